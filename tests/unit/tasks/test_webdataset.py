"""Local WebDataset folders: read as clip-benchmark writes them, refused where damaged."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_quantgate.errors import DataError, NotMeasured
from pytest_quantgate.suite.specs import CalibrationSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.contents import read_contents
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.reader import Source
from pytest_quantgate.tasks.registry import data_key, load_samples, split_calibration
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.webdataset import digest_root, load_webdataset

WHERE = Where(file="suites/x.quantgate.yaml", line=4, keys={"root": 5})
Members = list[tuple[str, bytes]]


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def sample(index: int, label: int | str) -> Members:
    return [(f"s{index:04d}.png", png(index)), (f"s{index:04d}.cls", str(label).encode())]


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set with one split of two shards."""

    def make(
        *,
        shards: tuple[Members, ...] | None = None,
        split: str = "test",
        classes: str | None = "cat\ndog\n",
        kind: str | None = None,
    ) -> Path:
        if shards is None:
            shards = ([*sample(0, 0), *sample(1, 1)], sample(2, 1))
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True, exist_ok=True)
        for number, members in enumerate(shards):
            with tarfile.open(folder / f"{number}.tar", "w") as archive:
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        (folder / "nshards.txt").write_text(f"{len(shards)}\n", encoding="utf-8")
        root = folder.parent
        if classes is not None:
            (root / "classnames.txt").write_text(classes, encoding="utf-8")
        if kind is not None:
            (root / "dataset_type.txt").write_text(kind, encoding="utf-8")
        return root

    return make


def load(root: Path, *, split: str = "test", **draw: Any) -> Samples:
    return load_webdataset(Source.of_folder(root, split=split), Draw(**draw))


def test_samples_come_in_the_files_order(make_root: Callable[..., Path]) -> None:
    found = load(make_root())

    assert found.ids == ("0/s0000", "0/s0001", "1/s0002")
    assert found.labels == (0, 1, 1)
    assert found.class_names == ("cat", "dog")
    assert found.templates == ("a photo of a {c}",)
    assert np.asarray(found.images[2]).tolist() == np.full((4, 6, 3), 2).tolist()
    assert [image.size for image in found.images[0:2]] == [(6, 4)] * 2
    assert len(set(found.hashes)) == 3


def test_the_first_samples_can_be_taken(make_root: Callable[..., Path]) -> None:
    assert load(make_root(), count=2, first=True).ids == ("0/s0000", "0/s0001")


def test_a_draw_of_a_sorted_archive_sees_every_class(make_root: Callable[..., Path]) -> None:
    """Forty of one class of ten would be the first; only what was drawn is read."""
    classes = "".join(f"class {label}\n" for label in range(10))
    members = [part for i in range(100) for part in sample(i, i // 10)]
    root = make_root(shards=(members[:100], members[100:]), classes=classes)
    damaged = (root / "test" / "1.tar").read_bytes().replace(png(99), bytes(len(png(99))))
    (root / "test" / "1.tar").write_bytes(damaged)

    found = load(root, count=20)
    assert Counter(found.labels) == dict.fromkeys(range(10), 2)
    assert [np.asarray(image)[0, 0, 0] for image in found.images[:]] == [
        int(name[-4:]) for name in found.ids
    ]
    assert list(found.ids) == sorted(found.ids)
    assert set(found.ids) < set(load(root, count=40).ids)
    assert found.ids == load(root, count=20).ids


def test_templates_are_the_data_sets_own(make_root: Callable[..., Path]) -> None:
    root = make_root()
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\n\nthe {c}\n", "utf-8")

    assert load(root).templates == ("a {c}", "the {c}")


def test_captions_of_a_retrieval_set(make_root: Callable[..., Path]) -> None:
    members = [("a.jpg", png(1)), ("a.txt", b"one\ntwo\n"), ("b.jpg", png(2)), ("b.txt", b"three")]
    found = load(make_root(shards=(members,), classes=None, kind="retrieval"))

    assert found.captions == (("one", "two"), ("three",))
    assert found.labels is None


@pytest.mark.parametrize(
    ("shards", "options", "message"),
    [
        (([],), {}, "the data set is empty: nothing can be measured on it"),
        (([("a.png", png(1))],), {}, r"1 samples lack an image or a \.cls, first 'a'"),
        ((sample(1, "cat"),), {}, "sample 's0001': label 'cat' is no class index"),
        ((sample(1, 7),), {}, "has label 7, but there are 2 class names"),
        (None, {"classes": None}, "classnames.txt is missing or empty: one class name a line"),
        (([("a.png", png(1)), ("a.txt", b" ")],), {"kind": "retrieval"}, "'a' has no caption"),
        (
            (sample(1, 0),),
            {"kind": "retreival"},
            "dataset_type.txt: 'retreival' is neither classification nor retrieval",
        ),
        (
            (sample(1, 0),),
            {"classes": "caf\u00e9\ncafe\u0301\n"},
            r"the classes 'caf\\xe9' and 'cafe\\u0301' differ only in spaces, or in how accents",
        ),
        (([("a.cls", b"0"), ("a.png", b"")],), {}, None),
    ],
)
def test_what_is_wrong_in_a_set_is_named(
    make_root: Callable[..., Path], shards: Any, options: dict[str, Any], message: str | None
) -> None:
    root = make_root(shards=shards, **options)
    if message is None:
        with pytest.raises(DataError, match=r"0\.tar: image '0/a' cannot be decoded"):
            _ = load(root).images[0]
        return
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_shard_beyond_the_number_that_is_said_is_not_passed_over(
    make_root: Callable[..., Path],
) -> None:
    root = make_root()
    (root / "test" / "nshards.txt").write_text("1")
    with pytest.raises(DataError, match=r"1\.tar is not read: .*nshards\.txt says 1 shards"):
        load(root)


def test_suffixes_are_the_same_in_capitals(make_root: Callable[..., Path]) -> None:
    members = [("a.PNG", png(1)), ("a.CLS", b"1"), *sample(2, 0)]
    found = load(make_root(shards=(members,)))
    assert (found.ids, found.labels) == (("0/a", "0/s0002"), (1, 0))


def test_a_missing_folder_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="is no directory: set it to a WebDataset folder"):
        load(tmp_path / "gone")


def test_a_missing_split_names_those_that_are_there(make_root: Callable[..., Path]) -> None:
    root = make_root()
    make_root(split="train")

    with pytest.raises(DataError, match=r"nshards.txt is missing: .* has the splits test, train"):
        load(root, split="val")


def test_a_missing_shard_and_a_bad_count_are_named(make_root: Callable[..., Path]) -> None:
    root = make_root()
    (root / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1\.tar is missing: .*nshards\.txt says 2 shards"):
        load(root)
    (root / "test" / "nshards.txt").write_text("two", encoding="utf-8")
    with pytest.raises(DataError, match="expected the number of shards"):
        load(root)


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_a_cut_shard_is_refused(make_root: Callable[..., Path], keep: float) -> None:
    root = make_root()
    shard = root / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[: int(3000 * keep)])

    with pytest.raises(DataError, match=r"0\.tar"):
        load(root)


def test_bytes_that_are_no_tar_and_no_text_are_refused(make_root: Callable[..., Path]) -> None:
    root = make_root()
    (root / "test" / "0.tar").write_bytes(b"\x80\x04pickle" * 200)
    with pytest.raises(DataError, match=r"0\.tar is damaged: .*: copy or build it again"):
        load(root)
    (root / "classnames.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classnames\.txt cannot be read"):
        load(root)


def suite_set(root: Path) -> dict[str, DatasetSpec]:
    return {"photos": DatasetSpec(where=WHERE, dataset="wds/photos", root=str(root))}


def test_the_key_follows_the_bytes_and_not_the_place(
    make_root: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_root()

    def key(**changes: Any) -> str | None:
        given: dict[str, Any] = {"samples": None, "environ": {}, "datasets": suite_set(root)}
        return data_key("photos/test", **(given | changes))

    before = key()
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert key(datasets=suite_set(moved)) == before
    assert key(datasets=suite_set(moved), samples=2) != before
    (moved / "classnames.txt").write_text("dog\ncat\n", encoding="utf-8")
    assert key(datasets=suite_set(moved)) != before


def test_the_root_comes_from_the_environment(make_root: Callable[..., Path]) -> None:
    datasets = {"photos": DatasetSpec(where=WHERE, dataset="wds", root="${QUANTGATE_PHOTOS}")}
    given: dict[str, Any] = {"datasets": datasets, "samples": None}

    assert (
        len(load_samples("photos/test", environ={"QUANTGATE_PHOTOS": str(make_root())}, **given))
        == 3
    )
    with pytest.raises(NotMeasured, match=r":5: environment variable QUANTGATE_PHOTOS is not"):
        load_samples("photos/test", environ={}, **given)


def draw_calibration(
    spec: CalibrationSpec, datasets: Mapping[str, DatasetSpec]
) -> tuple[Samples, Samples]:
    wanted = spec.samples + spec.held_out_samples
    found = load_samples(
        spec.data,
        datasets=datasets,
        samples=wanted,
        environ={},
        purpose="pairs",
        first=spec.first,
    )
    used, fresh = split_calibration(spec, pixels=read_contents(found).pixels)
    return found.select(used), found.select(fresh)


def test_calibration_leaves_out_copies_of_what_it_used(make_root: Callable[..., Path]) -> None:
    members = [*sample(0, 0), *sample(1, 1), ("x.png", png(0)), ("x.cls", b"0"), *sample(3, 0)]
    datasets = suite_set(make_root(shards=(members,), split="train"))
    spec = CalibrationSpec(
        where=WHERE, data="photos/train", samples=2, batch_size=2, held_out_samples=2, first=True
    )
    used, held_out = draw_calibration(spec, datasets)
    assert used.ids == ("0/s0000", "0/s0001")
    assert held_out.ids == ("0/s0003",)

    copies = CalibrationSpec(
        where=WHERE, data="photos/train", samples=2, batch_size=2, held_out_samples=1, first=True
    )
    with pytest.raises(DataError, match="all 1 held-out samples are copies of calibration"):
        draw_calibration(copies, datasets)


def test_calibration_and_held_out_pairs_are_drawn_over_a_sorted_archive(
    make_root: Callable[..., Path],
) -> None:
    classes = "".join(f"class {label}\n" for label in range(5))
    members = [part for i in range(60) for part in sample(i, i // 12)]
    datasets = suite_set(make_root(shards=(members,), split="train", classes=classes))
    given: dict[str, Any] = {"data": "photos/train", "batch_size": 5, "where": WHERE}
    spec = CalibrationSpec(samples=20, held_out_samples=40, **given)

    used, held_out = draw_calibration(spec, datasets)
    assert Counter(used.labels) == dict.fromkeys(range(5), 4)
    assert Counter(held_out.labels) == dict.fromkeys(range(5), 8)
    assert not set(used.ids) & set(held_out.ids)
    # Each beginning is a draw: batches and probes see all classes.
    assert len(set(used.labels[:5])) == len(set(held_out.labels[:5])) == 5  # type: ignore[index]

    first, rest = draw_calibration(replace(spec, first=True), datasets)
    assert first.ids == tuple(f"0/s{i:04d}" for i in range(20))
    assert rest.ids == tuple(f"0/s{i:04d}" for i in range(20, 60))


def test_the_key_says_what_is_drawn(make_root: Callable[..., Path]) -> None:
    """`first` and the whole have the keys that version 0.1 gave them: its baselines stay."""
    datasets = suite_set(make_root())

    def key(samples: int | None, **more: Any) -> str | None:
        return data_key("photos/test", samples=samples, environ={}, datasets=datasets, **more)

    keys = [key(2), key(3), key(2, purpose="pairs"), key(2, first=True), key(None)]
    assert len(set(keys)) == len(keys)
    digest = digest_root(datasets_root(datasets), split="test")
    for samples, found in ((2, key(2, first=True)), (None, key(None))):
        text = json.dumps(["wds", digest, "photos/test", samples])
        assert found == hashlib.sha256(text.encode()).hexdigest()


def datasets_root(datasets: dict[str, DatasetSpec]) -> Path:
    (spec,) = datasets.values()
    assert spec.root is not None
    return Path(spec.root)


def test_a_shard_that_is_a_copy_of_another_is_refused(make_root: Callable[..., Path]) -> None:
    """The same keys under another number: the ids differ, the samples do not."""
    shard = [*sample(0, 0), *sample(1, 1)]
    with pytest.raises(DataError, match=r"1\.tar is a copy of .*0\.tar: .*nshards\.txt"):
        load(make_root(shards=(shard, shard)))

    other = [*sample(2, 0), *sample(3, 1)]
    assert len(load(make_root(shards=(shard, other, [])))) == 4


def test_exif_is_followed_where_the_suite_says_so(make_root: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (6, 4)).save(stream, "JPEG", exif=exif)
    root = make_root(shards=([("a.jpg", stream.getvalue()), ("a.cls", b"0")],))

    def read(**keys: Any) -> tuple[Samples, str | None]:
        spec = DatasetSpec(where=WHERE, dataset="wds/photos", root=str(root), **keys)
        given: dict[str, Any] = {"datasets": {"p": spec}, "samples": None, "environ": {}}
        return load_samples("p/test", **given), data_key("p/test", **given)

    (stored, key), (turned, other) = read(), read(exif_rotation=True)

    assert (stored.images[0].size, turned.images[0].size) == ((6, 4), (4, 6))
    assert stored.digest != turned.digest
    assert key != other
    assert stored.list_changes(0) == ("not turned, though EXIF says so",)
    assert turned.list_changes(0) == ("turned as EXIF says",)
