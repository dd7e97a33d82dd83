"""Folders of `save_to_disk`: read by pyarrow where they lie, refused with file and row."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import find_source, load_samples
from pytest_quantgate.tasks.samples import Samples
from tests.data_forms import save

pa = pytest.importorskip("pyarrow", reason="saved data sets are read with pyarrow")

WHERE = Where(file="suites/x.quantgate.yaml", line=4, keys={"columns": 6})
CLASSES = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


def table(count: int = 6, **columns: Any) -> Any:
    named: dict[str, Any] = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    named |= columns
    return pa.table({name: values for name, values in named.items() if values is not None})


def cells(bytes_: Any, path: Any, count: int = 6) -> Any:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": bytes_, "path": path}] * count, kind)


def load(root: Path, *, columns: dict[str, Any] | None = None, **more: Any) -> Samples:
    named = None if columns is None else ColumnsSpec(where=WHERE, **columns)
    keys = {key: more.pop(key) for key in ("captions_per_image", "test_split") if key in more}
    spec = DatasetSpec(where=WHERE, dataset="datasets", root=str(root), columns=named, **keys)
    options = {"samples": None, "purpose": "pairs", "environ": {}, **more}
    return load_samples("photos/test", datasets={"photos": spec}, **options)


def test_a_split_of_several_is_read(tmp_path: Path) -> None:
    save(table(), tmp_path / "test", features=CLASSES, split="test")
    save(table(2), tmp_path / "train", features=CLASSES, split="train")

    found = load(tmp_path)

    assert found.ids == ("0", "1", "2", "3", "4", "5")
    assert found.labels == (0, 1, 0, 1, 0, 1)
    assert found.class_names == ("cat", "dog")
    assert found.images[4].getpixel((0, 0)) == (4, 2, 3)
    assert not found.notes


@pytest.mark.parametrize("split", ["test", None])
def test_a_folder_may_be_one_set(tmp_path: Path, split: str | None) -> None:
    save(table(), tmp_path / "one", features=CLASSES, split=split)

    assert len(load(tmp_path / "one")) == 6


def test_several_files_follow_one_another(tmp_path: Path) -> None:
    save(table(3), tmp_path / "test", features=CLASSES)
    save(table(2), tmp_path / "more", features=CLASSES)
    other = tmp_path / "more" / "data-00000-of-00001.arrow"
    other.rename(tmp_path / "test" / "second.arrow")
    state = tmp_path / "test" / "state.json"
    files = [{"filename": "data-00000-of-00001.arrow"}, {"filename": "second.arrow"}]
    state.write_text(json.dumps({"_data_files": files}))

    found = load(tmp_path)

    assert len(found) == 5
    assert [image.getpixel((0, 0))[0] for image in found.images[:]] == [0, 1, 2, 0, 1]
    assert found.ids[3] == "000003"


def test_what_there_is_is_counted(tmp_path: Path) -> None:
    save(table(7), tmp_path / "test", features=CLASSES)
    spec = DatasetSpec(where=WHERE, dataset="datasets", root=str(tmp_path))
    reader, source = find_source("photos/test", datasets={"photos": spec}, environ={})

    assert reader.count is not None
    counted = reader.count(source)
    assert (counted.images, counted.classes) == (7, (4, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(image=None), "has no column that is called as images are"),
        (table(image=[1] * 6), "column 'image' is int64, expected bytes, a struct"),
        (table(label=[0, 1, 0, 1, 0, -1]), r"arrow: row 5 has the label -1, which stands for none"),
        (table(label=[0, 1, 0, 1, 0, 2]), r"arrow: row 5: label 2, but there are 2 class names"),
        (table(label=[0, 1, 0, 1, 0, None]), r"arrow: row 5 has no label"),
        (table(image=cells(None, None)), "row 0 has no image"),
        (table(image=cells(None, "/etc/hostname")), "row 0: /etc/hostname leads"),
        (table(image=cells(None, "../x.png")), r"row 0: .*x\.png leads out"),
        (table(label=None, text=[["a"], ["b", "c"], *[["d"]] * 4]), "row 1 has 2 captions, 1 are"),
    ],
)
def test_odd_columns_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    save(content, tmp_path / "test", features=CLASSES)

    with pytest.raises(DataError, match=message):
        load(tmp_path, captions_per_image=1)


def test_a_class_map_of_another_set_is_refused(tmp_path: Path) -> None:
    save(table(), tmp_path / "test", features=CLASSES)
    (tmp_path / "classnames.txt").write_text("plane\nship\ncar\n")

    with pytest.raises(DataError, match="is the class list of another set: it has 3 names"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1000, -300])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    save(table(), tmp_path / "test", features=CLASSES)
    path = tmp_path / "test" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(DataError, match=r"arrow is damaged or cut short"):
        load(tmp_path)


@pytest.mark.parametrize("column", ["image", "text"])
def test_offsets_that_lead_out_of_a_column_are_refused(tmp_path: Path, column: str) -> None:
    values: dict[str, Any] = {"image": [b"abcd", b"efghi"], "text": ["klmn", "opqrs"]}
    if column == "text":
        values["image"] = [b"ab", b"efghi"]
    else:
        values["text"] = ["kl", "opqrs"]
    save(pa.table(values), tmp_path / "test", features={})
    path = tmp_path / "test" / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    good, bad = (struct.pack("<iii", 0, 4, end) for end in (9, 1 << 30))
    assert content.count(good) == 1
    path.write_bytes(content.replace(good, bad))

    with pytest.raises(DataError, match="damaged or cut short"):
        load(tmp_path)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_buffers_are_refused_before_they_unfold(tmp_path: Path, codec: str) -> None:
    save(table(), tmp_path / "test", features=CLASSES)
    content = table(image=[bytes(1 << 20)] * 6)
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with (
        pa.OSFile(str(tmp_path / "test" / "data-00000-of-00001.arrow"), "wb") as stream,
        pa.ipc.new_stream(stream, content.schema, options=options) as writer,
    ):
        writer.write_table(content)

    with pytest.raises(DataError, match=r"arrow is compressed, which save_to_disk does not do"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", r"state\.json cannot be read"),
        ("[]", r"state\.json: expected an object"),
        ("{}", r"state\.json: expected _data_files with a filename each"),
        ('{"_data_files": [{"filename": 3}, {}]}', r"expected _data_files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', r"gone\.arrow is missing: .*state\.json"),
        ('{"_data_files": [{"filename": "../../x"}]}', "leads out of its data set"),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "leads out of its data set"),
        (
            '{"_data_files": [{"filename": "a"}], "_indices_data_files": [{"filename": "b"}]}',
            "index of an old release",
        ),
    ],
)
def test_an_odd_state_is_refused(tmp_path: Path, state: str, message: str) -> None:
    save(table(), tmp_path / "test", features=CLASSES)
    (tmp_path / "test" / "state.json").write_text(state)

    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_other_splits_are_named(tmp_path: Path) -> None:
    save(table(), tmp_path / "many" / "validation", features=CLASSES)
    save(table(), tmp_path / "one", features=CLASSES, split="train")

    with pytest.raises(DataError, match="has the splits validation: save it with save_to_disk"):
        load(tmp_path / "many")
    with pytest.raises(DataError, match="holds the split 'train', 'test' is asked for: write test"):
        load(tmp_path / "one")
    assert len(load(tmp_path / "many", test_split="validation")) == 6
    assert len(load(tmp_path / "one", test_split="train")) == 6


def test_a_folder_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="is no directory"):
        load(tmp_path / "nowhere")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(table(), tmp_path / "test", features=CLASSES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[data\]'"):
        load(tmp_path)
