"""Parquet files: found by their split, read on demand, refused with file and row."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks import parquet_worker
from pytest_quantgate.tasks.parquet import ParquetCells, _check_rows
from pytest_quantgate.tasks.registry import find_source, load_samples
from pytest_quantgate.tasks.samples import Samples

pa = pytest.importorskip("pyarrow", reason="Parquet is read with pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

WHERE = Where(file="suites/x.quantgate.yaml", line=4, keys={"columns": 6})


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


def table(count: int = 6, *, start: int = 0, **columns: Any) -> Any:
    numbers = range(start, start + count)
    named: dict[str, Any] = {
        "image": [png(i) for i in numbers],
        "label": [("cat", "dog")[i % 2] for i in numbers],
    }
    named |= columns
    return pa.table({name: values for name, values in named.items() if values is not None})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a table into the data set's folder."""

    def make(content: Any, name: str = "test.parquet", **options: Any) -> Path:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(content, path, **options)
        return tmp_path / "photos"

    return make


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that reads files first, which takes a second, but for tests of it."""
    if "own_process" not in request.fixturenames:
        monkeypatch.setattr("pytest_quantgate.tasks.parquet_worker.try_files", lambda _: None)


@pytest.fixture
def own_process() -> None:
    """Read files in a process of its own first, as a run does."""


def load(root: Path, *, columns: dict[str, Any] | None = None, **more: Any) -> Samples:
    named = None if columns is None else ColumnsSpec(where=WHERE, **columns)
    keys = {key: more.pop(key) for key in ("captions_per_image", "test_split") if key in more}
    spec = DatasetSpec(where=WHERE, dataset="parquet", root=str(root), columns=named, **keys)
    options = {"samples": None, "purpose": "pairs", "environ": {}, **more}
    return load_samples("photos/test", datasets={"photos": spec}, **options)


Write = Callable[..., Path]


def test_bytes_in_a_column_are_images(write: Write) -> None:
    found = load(write(table()))

    assert found.ids == tuple(f"{i:06d}" for i in range(6))
    assert found.class_names == ("cat", "dog")
    assert found.labels == (0, 1, 0, 1, 0, 1)
    assert found.images[4].getpixel((0, 0)) == (4, 2, 3)
    assert len(found.notes) == 1
    assert "called by the number of their row" in found.notes[0]


@pytest.mark.parametrize(
    "image",
    [
        pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(6)]),
        pa.array([{"path": f"{i}.png", "bytes": png(i)} for i in range(6)]),
        pa.array([png(i) for i in range(6)], pa.large_binary()),
    ],
    ids=["struct", "struct the other way", "large"],
)
def test_images_of_any_type_are_the_same(write: Write, image: Any) -> None:
    ids = [str(i) for i in range(6)]
    plain = load(write(table(id=ids), "a/test.parquet") / "a")
    found = load(write(table(image=image, id=ids)))

    assert found.digest == plain.digest
    assert found.ids == tuple(ids)


def test_images_may_be_files_beside_the_table(write: Write) -> None:
    root = write(table(image=[f"sub/{i}.png" for i in range(6)]))
    (root / "sub").mkdir()
    for number in range(6):
        (root / "sub" / f"{number}.png").write_bytes(png(number))

    found = load(root)

    assert found.ids[3] == "sub/3"
    assert found.images[3].getpixel((0, 0)) == (3, 2, 3)


@pytest.mark.parametrize(
    "names",
    [
        ["test.parquet"],
        ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"],
        ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"],
        ["test/x.parquet", "test/y.parquet"],
        ["january.parquet", "march.parquet"],
    ],
)
def test_the_files_of_a_split_are_found_in_order(write: Write, names: list[str]) -> None:
    for number, name in enumerate(names):
        root = write(table(3, start=3 * number), name, row_group_size=2)
    if names[0] != "january.parquet":
        write(table(1, start=90), "train.parquet")

    found = load(root)

    assert len(found) == 3 * len(names)
    reds = [image.getpixel((0, 0))[0] for image in found.images[:]]
    assert reds == list(range(len(found)))


def test_samples_are_called_by_a_column_a_file_or_their_row(write: Write) -> None:
    files = pa.array([{"bytes": png(i), "path": f"/home/me/{i}.png"} for i in range(6)])
    doubled = pa.array([{"bytes": png(i), "path": "image.png"} for i in range(6)])

    by_key = load(write(table(image=files, key=list("abcdef"))))
    by_file = load(write(table(image=files, key=list("aacdef"))))
    by_row = load(write(table(image=doubled)))

    assert (by_key.ids[1], by_key.notes) == ("b", ("column 'key' is taken for the id",))
    assert (by_file.ids[1], by_file.notes) == ("1", ())
    assert by_row.ids[1] == "000001"


@pytest.mark.parametrize("odd", ["a\nb", "", None, "\x1b[31m"])
def test_an_id_is_a_name(write: Write, odd: Any) -> None:
    root = write(table(sku=["a", "b", odd, "d", "e", "f"]))

    with pytest.raises(DataError, match=r"row 2: .* in column 'sku' is no id"):
        load(root, columns={"id": "sku"})


def test_numbers_are_labels_by_the_names_that_datasets_keeps(write: Write) -> None:
    about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    content = table(label=[0, 1, 1, 0, 1, 0])
    content = content.replace_schema_metadata({"huggingface": json.dumps(about)})

    assert load(write(content)).class_names == ("cat", "dog")
    assert load(write(content)).labels == (0, 1, 1, 0, 1, 0)


def test_captions_of_one_column_or_several(write: Write) -> None:
    lists = table(2, label=None, captions=[["a", "b"], ["c", "d"]])
    columns = table(2, label=None, one=["a", "c"], two=["b", "d"])

    found = load(write(lists), captions_per_image=2)
    other = load(write(columns), columns={"captions": ("one", "two")})

    assert found.captions == other.captions == (("a", "b"), ("c", "d"))
    assert found.labels is None
    assert found.digest == other.digest


def test_pictures_alone_are_read_where_no_label_is_needed(write: Write) -> None:
    root = write(table(label=None))

    assert load(root, purpose="images").labels is None
    with pytest.raises(DataError, match=r"no column is called as labels or captions are; its col"):
        load(root, purpose="classification")


def test_further_columns_are_kept(write: Write) -> None:
    root = write(table(lux=[1, 2, 3, 4, 5, 6], camera=["x"] * 6))

    found = load(root, columns={"keep": ("camera", "lux")}, samples=2, first=True)

    assert found.columns == {"camera": ("x", "x"), "lux": (1, 2)}


def test_a_row_group_is_read_when_one_of_its_images_is(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(table(12), row_group_size=4)
    read: list[int] = []
    before = ParquetCells._read_group

    def count(self: ParquetCells, number: int) -> Any:
        read.append(number)
        return before(self, number)

    monkeypatch.setattr(ParquetCells, "_read_group", count)
    found = load(root, samples=3, first=True)

    assert read == [0]
    assert found.images[2].size == (6, 4)
    assert read == [0]
    assert len(load(root)) == 12
    assert read == [0, 0, 1, 2]


def test_an_image_that_stands_many_times_is_read(write: Write) -> None:
    """As a dictionary writes it: once in the file."""
    root = write(table(300, image=[png(7)] * 300, label=["cat"] * 300, id=list(range(300))))

    found = load(root)

    assert len(set(found.hashes)) == 1
    assert found.ids[299] == "299"


def test_what_there_is_is_counted_without_reading_an_image(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParquetCells, "_read_group", None)
    spec = DatasetSpec(where=WHERE, dataset="parquet", root=str(write(table(7))))
    reader, source = find_source("photos/test", datasets={"photos": spec}, environ={})

    assert reader.count is not None
    counted = reader.count(source)
    assert (counted.images, counted.captions, counted.classes) == (7, 0, (4, 3))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table(image=None), r"test\.parquet has no column that is called as images are; its col"),
        (table(image=[1, 2, 3, 4, 5, 6]), "column 'image' is int64, expected bytes, a struct"),
        (table(image=[[b"x"]] * 6), "column 'image' is list<"),
        (table(label=[0, 1, 0, 1, 0, 1]), "labels are numbers, and no names are known for them"),
        (table(label=[0.5] * 6), r"test\.parquet: row 0: label 0\.5 is float"),
        (table(label=["cat", "dog", None, *"abc"]), r"test\.parquet: row 2 has no label"),
        (table(label=None, text=["a", "", *"cdef"]), r"test\.parquet: row 1 has no caption"),
        (table(label=[{"a": 1}] * 6), "column 'label' is struct<"),
        (table(image=[*[png(1)] * 4, None, png(1)]), r"test\.parquet: row 4 has no image"),
        (table(0, image=pa.array([], pa.binary()), label=pa.array([], pa.string())), "has no rows"),
        (table(category=["x"] * 6), "each of the columns 'label', 'category' could be the label"),
    ],
)
def test_odd_columns_are_refused(write: Write, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(content))


def test_two_captions_where_five_are_said(write: Write) -> None:
    root = write(table(2, label=None, captions=[list("abcde"), ["a", "b"]]))

    with pytest.raises(DataError, match=r"row 1 has 2 captions, 5 are said"):
        load(root, captions_per_image=5)


def test_ids_that_are_not_unique_are_refused(write: Write) -> None:
    root = write(table(sku=["a", "b", "c", "b", "e", "f"]))

    with pytest.raises(DataError, match=r"row 1: id 'b' stands twice"):
        load(root, columns={"id": "sku"})


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["cat", "dog"], "plane\nship\ncar\n", r"of another set: it has 3 names, .* names 2 class"),
        (["cat", "dog"], "dog\ncat\n", r"has another order: 'dog' is class 0 there, and class 1"),
        (["cat"], "", "label 1, but there are 1 class names"),
    ],
)
def test_a_class_map_of_another_set_is_refused(
    write: Write, names: list[str], classes: str, message: str
) -> None:
    about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    content = table(label=[0, 1, 1, 0, 1, 0])
    root = write(content.replace_schema_metadata({"huggingface": json.dumps(about)}))
    (root / "classnames.txt").write_text(classes)

    with pytest.raises(DataError, match=message):
        load(root)


def test_other_words_for_the_same_classes_are_taken(write: Write) -> None:
    about = {"info": {"features": {"label": {"names": ["cat", "sea_dog"], "_type": "ClassLabel"}}}}
    content = table(label=[0, 1, 1, 0, 1, 0])
    root = write(content.replace_schema_metadata({"huggingface": json.dumps(about)}))
    (root / "classnames.txt").write_text("house cat\nSea dog\n")

    assert load(root).class_names == ("house cat", "Sea dog")


@pytest.mark.parametrize("kept", [0, 3, 40, -1, -40])
def test_a_truncated_file_is_refused(write: Write, kept: int) -> None:
    root = write(table())
    path = root / "test.parquet"
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(DataError, match=r"test\.parquet is damaged or cut short"):
        load(root)


def test_damaged_pages_are_refused(write: Write) -> None:
    root = write(table(60), compression="zstd")
    path = root / "test.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"test\.parquet is damaged or cut short"):
        load(root)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "link.png"])
def test_an_image_outside_the_folder_is_refused(write: Write, path: str) -> None:
    root = write(table(1, image=[path]))
    (root.parent / "secret.png").write_bytes(png(1))
    (root / "link.png").symlink_to(root.parent / "secret.png")

    with pytest.raises(DataError, match=r"test\.parquet: row 0: .* leads out of its data set"):
        load(root)


def test_a_file_that_leads_out_is_refused(write: Write, tmp_path: Path) -> None:
    root = write(table())
    (root / "test.parquet").rename(tmp_path / "other.parquet")
    (root / "test.parquet").symlink_to(tmp_path / "other.parquet")

    with pytest.raises(DataError, match="leads out of its data set"):
        load(root)


def test_a_missing_part_is_named(write: Write) -> None:
    write(table(), "test-00000-of-00003.parquet")
    root = write(table(), "test-00002-of-00003.parquet")

    with pytest.raises(DataError, match=r"test-00001-of-00003\.parquet is missing: 2 of 3 files"):
        load(root)


def test_parts_have_the_same_columns(write: Write) -> None:
    write(table(), "test-0.parquet")
    root = write(table(label=list(range(6))), "test-1.parquet")

    with pytest.raises(DataError, match=r"'label' is int64 there, and string in the first"):
        load(root)


def test_other_splits_are_named(write: Write) -> None:
    write(table(), "data/validation-00000-of-00001.parquet")
    root = write(table(), "data/train-00000-of-00001.parquet")

    with pytest.raises(DataError, match=r"its splits: train, validation: write test_split: valid"):
        load(root)
    assert len(load(root, test_split="validation")) == 6


def test_a_folder_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="is no directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"its splits: none$"):
        load(tmp_path)


# -- bounds ---------------------------------------------------------------------------------------


def test_a_row_group_that_is_too_large_says_how_to_write_it(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(table(200), use_dictionary=False)
    monkeypatch.setattr(bounds, "ROW_GROUP_BYTES", 4096)

    with pytest.raises(DataError, match=r"row group 0 holds \d+ bytes .* with row_group_size=\d+ "):
        load(root)


def test_a_dictionary_does_not_unfold_without_end(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few kilobytes whose one image stands a thousand times."""
    large = png(1) + bytes(20_000)
    root = write(table(1000, image=[large] * 1000, label=["x"] * 1000))
    monkeypatch.setattr(bounds, "ROW_GROUP_BYTES", 100_000)

    with pytest.raises(DataError, match=r"says \d+ bytes of images and unfolds to more than"):
        load(root)


@pytest.mark.parametrize(
    ("name", "bound", "content", "message"),
    [
        ("SAMPLES", 5, table(), r"6 rows, at most 5 are read"),
        ("TEXTS_BYTES", 40, table(), r"column 'label' holds \d+ bytes, at most 40"),
        ("IMAGE_BYTES", 40, table(), r"row 0: an image of \d+ bytes, at most 40 are read"),
    ],
)
def test_more_than_the_bounds_is_refused(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    bound: int,
    content: Any,
    message: str,
) -> None:
    root = write(content)
    monkeypatch.setattr(bounds, name, bound)

    with pytest.raises(DataError, match=message):
        load(root)


def test_without_pyarrow_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(table())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[data\]'"):
        load(root)


# -- another process reads first ------------------------------------------------------------------


@pytest.mark.usefixtures("own_process")
def test_a_file_that_ends_its_reader_is_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an exception of C++ that nothing catches does to the process that reads a footer."""
    root = write(table())
    code = "import os; os.abort()"

    def start(_module: str, *_: str, cwd: Path, **streams: Any) -> Any:
        return subprocess.Popen([sys.executable, "-c", code], cwd=cwd, text=True, **streams)

    monkeypatch.setattr("pytest_quantgate.bounded_process.start_module", start)

    with pytest.raises(DataError, match=r"test\.parquet was ended by SIGABRT: it is damaged"):
        load(root)


@pytest.mark.usefixtures("own_process")
def test_a_file_is_read_elsewhere_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(table(label=None, caption=list("abcdef"), lux=[1] * 6, sku=list("abcdef")))
    columns = {"captions": ("caption",), "keep": ("lux",), "id": "sku"}
    asked: list[str] = []
    before = parquet_worker.ask_module  # type: ignore[attr-defined]
    monkeypatch.setattr(
        parquet_worker,
        "ask_module",
        lambda *a, **k: asked.append(a[0]) or before(*a, **k),  # type: ignore[func-returns-value]
    )

    assert len(load(root, columns=columns)) == 6
    assert len(load(root, columns=columns, samples=2)) == 2
    assert len(asked) == 1
    write(table(7, start=3))
    assert len(load(root)) == 7
    assert len(asked) == 2


@pytest.mark.usefixtures("own_process")
def test_what_the_other_process_refuses_is_said_as_here(write: Write) -> None:
    root = write(table(label=[{"a": 1}] * 6))

    with pytest.raises(DataError, match=r"^[^:]*test\.parquet: column 'label' is struct<"):
        load(root)


def test_indices_that_lead_out_of_a_dictionary_are_refused(write: Write) -> None:
    """As a damaged page has them: pyarrow reads them, and only a full check finds them."""
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int32()), ["cat"], safe=False)
    file = SimpleNamespace(
        metadata=SimpleNamespace(row_group=lambda _: SimpleNamespace(num_rows=2))
    )

    with pytest.raises(ValueError, match=r"out of bounds: 9 \(should be in \[0, 0\]\)"):
        _check_rows(kinds, file=file, group=0)
    with pytest.raises(ValueError, match="says 2 rows and holds 1"):
        _check_rows(kinds[:1], file=file, group=0)
