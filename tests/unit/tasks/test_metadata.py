"""Further columns of data that has none of its own: members of archives, tables beside them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_benchmark.datasets import builder
from PIL import Image

from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.reader import Source
from pytest_quantgate.tasks.readers import find_reader
from pytest_quantgate.tasks.registry import data_key, load_samples
from pytest_quantgate.tasks.samples import Samples

FILE = "s.quantgate.yaml"
COLUMNS = Where(file=FILE, line=6, keys={"keep": 7, "id": 8, "label": 9})

Rows = Sequence[Mapping[str, Any] | str | None]


def spec(dataset: str, root: Path, *, keep: Sequence[str] = ("light",), **more: Any) -> DatasetSpec:
    columns = {name: more.pop(name) for name in ("id", "label") if name in more}
    return DatasetSpec(
        where=Where(file=FILE, line=4, keys={"captions_per_image": 5}),
        dataset=dataset,
        root=str(root),
        columns=ColumnsSpec(where=COLUMNS, keep=tuple(keep), **columns),
        **more,
    )


def load(dataset: str, root: Path, *, purpose: Any = "classification", **more: Any) -> Samples:
    datasets = {"photos": spec(dataset, root, **more)}
    return load_samples("photos/test", datasets=datasets, samples=None, environ={}, purpose=purpose)


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[[Rows], Path]:
    """Write an archive with what stands in the .json of each sample, which may lack one."""

    def make(rows: Rows, *, texts: Sequence[str] = ()) -> Path:
        root = tmp_path / "photos"
        (root / "test").mkdir(parents=True)
        with tarfile.open(root / "test" / "0.tar", "w") as archive:
            for number, row in enumerate(rows):
                stream = io.BytesIO()
                pixels = np.full((4, 4, 3), number, dtype=np.uint8)
                Image.fromarray(pixels).save(stream, "PNG")
                members = [("png", stream.getvalue())]
                members += [("txt", texts[number].encode())] if texts else [("cls", b"0")]
                if row is not None:
                    text = row if isinstance(row, str) else json.dumps(row)
                    members.append(("json", text.encode()))
                for suffix, content in members:
                    info = tarfile.TarInfo(f"s{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        (root / "test" / "nshards.txt").write_text("1")
        (root / "classnames.txt").write_text("cat\ndog\n")
        if texts:
            (root / "dataset_type.txt").write_text("retrieval")
        return root

    return make


def test_members_of_an_archive_are_columns(make_root: Callable[[Rows], Path]) -> None:
    """What a sample does not say is no value; what nobody asks for is not read."""
    root = make_root([{"light": "day", "lux": 3.5}, {"light": "night"}, {"lux": 4, "tags": []}])

    found = load("wds/photos", root, keep=("lux", "light"))

    assert found.columns == {"lux": (3.5, None, 4), "light": ("day", "night", None)}
    counted = find_reader("wds/photos").count
    assert counted is not None
    datasets = spec("wds/photos", root)
    source = Source(name="photos/test", spec=datasets, root=root, split="test")
    assert counted(source).columns == {"class": ["cat"] * 3, "light": ("day", "night", "")}


@pytest.mark.parametrize(
    ("rows", "keep", "words"),
    [
        ([{"light": "day"}, None], "light", "1 samples lack an image or a .json, first 's1'"),
        ([{"light": "day"}, "{"], "light", "0/s1.json: not JSON"),
        ([{"light": "day"}, "[1]"], "light", "0/s1.json: expected an object, found '[1]'"),
        ([{"light": ["day"]}], "light", "0/s0.json: 'light' is list, expected a text or a number"),
        ([{"light": "day"}], "ligth", f"{FILE}:7: "),
        ([{"light": "day"}], "ligth", "has no column 'ligth'; did you mean 'light'?; its columns:"),
    ],
)
def test_members_that_hold_no_column_are_refused(
    make_root: Callable[[Rows], Path], rows: Rows, keep: str, words: str
) -> None:
    root = make_root(rows)
    with pytest.raises(DataError) as refused:
        load("wds/photos", root, keep=(keep,))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "id,light\n0/s1,night\n0/s0,day\n0/s9,dusk\n"),
        (
            "metadata.jsonl",
            '{"id": "0/s1", "light": "night"}\n{"id": "0/s0", "light": "day", "more": []}\n',
        ),
    ],
)
def test_a_table_beside_the_archives_names_samples_as_they_are_shown(
    make_root: Callable[[Rows], Path], name: str, text: str
) -> None:
    root = make_root([None, None])
    datasets = {"photos": spec("wds/photos", root)}
    (root / "test" / name).write_text(text)

    found = load("wds/photos", root)

    assert found.columns == {"light": ("day", "night")}
    key = data_key("photos/test", datasets=datasets, samples=None, environ={})
    (root / "test" / name).write_text(text.replace("night", "dawn"))
    assert load("wds/photos", root).columns == {"light": ("day", "dawn")}
    assert data_key("photos/test", datasets=datasets, samples=None, environ={}) != key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,light\n0/s0,day\n", "has no column 'id', which names the sample of each row as"),
        ("id,lux\n0/s0,1\n", f"{FILE}:7: "),
        (
            "id,light\n0/s0,day\n",
            "has no row for 1 of 2 samples, first '0/s1': its column 'id' begins with '0/s0'",
        ),
        ("id,light\n", "has no row for 2 of 2 samples, first '0/s0'"),
        ("id,light\n0/s0,day\n0/s0,day\n", "metadata.csv:3: '0/s0' stands twice, first in "),
        ("id,light\n0/s0\n", "metadata.csv:2: 1 values, the header has 2"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    make_root: Callable[[Rows], Path], text: str, words: str
) -> None:
    root = make_root([None, None])
    (root / "test" / "metadata.csv").write_text(text)
    with pytest.raises(DataError) as refused:
        load("wds/photos", root)
    assert words in str(refused.value)


def test_two_tables_and_one_that_leads_out_are_refused(
    make_root: Callable[[Rows], Path], tmp_path: Path
) -> None:
    root = make_root([None])
    (tmp_path / "other.csv").write_text("id,light\n0/s0,day\n")
    (root / "test" / "metadata.csv").symlink_to(tmp_path / "other.csv")
    with pytest.raises(DataError, match="leads out of"):
        load("wds/photos", root)
    (root / "test" / "metadata.csv").unlink()
    for name in ("metadata.csv", "metadata.jsonl"):
        (root / "test" / name).write_text("")
    with pytest.raises(DataError, match="both describe"):
        load("wds/photos", root)


@pytest.mark.parametrize("dataset", ["wds/photos", "cifar100"])
def test_what_data_has_of_its_own_is_not_named_again(
    make_root: Callable[[Rows], Path], dataset: str
) -> None:
    words = f"{FILE}:9: {dataset} has images, labels and captions of its own: remove label"
    with pytest.raises(DataError, match=words):
        load(dataset, make_root([None]), label="kind")


def test_captions_that_are_fewer_than_said_are_refused(make_root: Callable[..., Path]) -> None:
    root = make_root([None, None], texts=["a\nb\n", "c\n"])
    assert load("wds/p", root, purpose="retrieval", keep=()).captions == (("a", "b"), ("c",))
    with pytest.raises(DataError, match=rf"'s1' has 1 captions, 2 are said \({FILE}:5\)"):
        load("wds/p", root, purpose="retrieval", keep=(), captions_per_image=2)


class Photos:
    """A set as torchvision has it."""

    classes = ("cat", "dog")
    templates = ("a photo of a {c}.",)
    targets = (0, 1, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = Image.fromarray(np.full((4, 4, 3), index, dtype=np.uint8))
        return image, self.targets[index]


class Captioned(Photos):
    targets = (["a", "b"], ["c", "d"], ["e"])  # type: ignore[assignment]


def test_a_table_brings_columns_to_a_set_of_clip_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "build_dataset", lambda **_: Photos())
    with pytest.raises(DataError) as refused:
        load("cifar100", tmp_path)
    assert str(refused.value) == (
        f"{FILE}:7: cifar100 has no columns of its own: write {tmp_path}/metadata.csv with the "
        f"columns id, light, the first of which begins with cifar100/test/000000"
    )

    rows = [f"cifar100/test/{number:06d},{'day' if number else 'night'}" for number in range(3)]
    (tmp_path / "metadata.csv").write_text("\n".join(["sku,light", *rows]))
    found = load("cifar100", tmp_path, id="sku")

    assert found.columns == {"light": ("night", "day", "day")}


def test_captions_of_clip_benchmark_are_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "build_dataset", lambda **_: Captioned())
    with pytest.raises(DataError, match="000002 has 1 captions, 2 are said"):
        load("flickr8k", tmp_path, purpose="retrieval", keep=(), captions_per_image=2)
