"""Folders of images as Hugging Face's ImageFolder: read as they lie there, refused with a place."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pytest_quantgate.errors import DataError, NotMeasured
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import data_key, find_source, load_samples
from pytest_quantgate.tasks.samples import Samples

WHERE = Where(file="suites/x.quantgate.yaml", line=4, keys={"columns": 6, "captions_per_image": 7})


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


Make = Callable[..., Path]


@pytest.fixture
def make_root(tmp_path: Path) -> Make:
    """Write files of a split, each image of another colour."""

    def make(files: dict[str, bytes | str] | tuple[str, ...], *, split: str = "test") -> Path:
        root = tmp_path / "photos"
        for number, name in enumerate(files):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = files[name] if isinstance(files, dict) else png(number)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return make


def spec(root: Path, *, columns: dict[str, Any] | None = None, **more: Any) -> DatasetSpec:
    named = None if columns is None else ColumnsSpec(where=WHERE, **columns)
    return DatasetSpec(where=WHERE, dataset="imagefolder", root=str(root), columns=named, **more)


def load(root: Path, *, samples: int | None = None, purpose: Any = "pairs", **more: Any) -> Samples:
    return load_samples(
        "photos/test",
        datasets={"photos": spec(root, **more)},
        samples=samples,
        environ={},
        purpose=purpose,
        first=samples is not None,
    )


BY_CLASS = ("dog/1.png", "cat/a.png", "cat/b.PNG", "dog/0.png")


def test_a_folder_names_the_class_of_its_images(make_root: Make) -> None:
    found = load(make_root(BY_CLASS), purpose="classification")

    assert found.ids == ("cat/a", "cat/b", "dog/0", "dog/1")
    assert found.class_names == ("cat", "dog")
    assert found.labels == (0, 0, 1, 1)
    assert found.templates == ("a photo of a {c}",)
    assert found.images[2].getpixel((0, 0)) == (3, 2, 3)
    assert found.images[0].size == (6, 4)
    assert not found.notes


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    "files",
    [
        (f"{COMPOSED}/a.png", f"{DECOMPOSED}/b.png", "dog/c.png"),
        {"a.png": png(1), "b.png": png(2), "metadata.csv": "file_name,label\na.png,x\nb.png, x\n"},
    ],
)
def test_classes_that_look_the_same_are_refused(make_root: Make, files: Any) -> None:
    """A Mac decomposes accents, and a space before a name is not seen."""
    with pytest.raises(DataError, match="differ only in spaces, or in how accents are written"):
        load(make_root(files))


def test_a_name_that_is_spelt_otherwise_says_how(make_root: Make) -> None:
    row = f"file_name,label\n{COMPOSED}.png,x\n"
    root = make_root({f"{DECOMPOSED}.png": png(1), "metadata.csv": row})
    with pytest.raises(DataError) as refused:
        load(root)
    assert r"the file is 'cafe\u0301.png', the row says 'caf\xe9.png', in another" in str(
        refused.value
    )

    rows = f"file_name,label\n{DECOMPOSED}.png,{DECOMPOSED}\nb.png,dog\n"
    (root / "test" / "b.png").write_bytes(png(2))
    (root / "test" / "metadata.csv").write_text(rows)
    (root / "classnames.txt").write_text(f"{COMPOSED}\ndog\n")
    with pytest.raises(DataError, match=r"it is 'cafe\\u0301' in the data and 'caf\\xe9' there"):
        load(root)


def test_images_without_labels_are_pictures_alone(make_root: Make) -> None:
    bare = make_root(("b.png", "a.png"))

    found = load(bare, purpose="images")

    assert found.ids == ("a", "b")
    assert found.labels is found.captions is None  # type: ignore[comparison-overlap]
    assert found.notes == ("images lie in no folders of classes: they have no labels",)
    with pytest.raises(DataError, match=r"use <data set>/neighbours \(images lie in no folders of"):
        load(bare, purpose="classification")


def test_columns_that_nothing_is_known_of_are_listed(make_root: Make) -> None:
    root = make_root({"b.png": png(1), "metadata.csv": "file_name,kategorie\nb.png,dog\n"})

    with pytest.raises(DataError, match=r"neither labels nor captions.*'file_name', 'kategorie'"):
        load(root, purpose="classification")
    assert load(root, columns={"label": "kategorie"}).class_names == ("dog",)


def test_class_names_beside_the_data_name_its_folders(make_root: Make) -> None:
    root = make_root(BY_CLASS)
    (root / "classnames.txt").write_text("dog\tlittle dog\nbird\ncat\n")
    (root / "zeroshot_classification_templates.txt").write_text("the {c}\n")

    found = load(root, purpose="classification")

    assert found.class_names == ("little dog", "bird", "cat")
    assert found.labels == (2, 2, 0, 0)
    assert found.text(2) == "the little dog"


def test_an_undivided_folder_is_one_set(make_root: Make) -> None:
    root = make_root(BY_CLASS, split=".")

    assert load(root).ids == ("cat/a", "cat/b", "dog/0", "dog/1")


def test_tasks_are_judged_on_the_split_that_the_suite_names(make_root: Make) -> None:
    root = make_root(BY_CLASS, split="val")

    assert len(load(root, test_split="val")) == 4
    with pytest.raises(DataError, match=r"has the splits val; .* write test_split: val"):
        load(root)


CSV = """\
file_name,category,title,camera
b.png,dog,"a dog, running",x
sub/a.png,cat,a cat,y
"""


def test_metadata_says_labels_captions_and_more(make_root: Make) -> None:
    root = make_root({"b.png": png(1), "sub/a.png": png(2), "metadata.csv": CSV})

    found = load(root, columns={"captions": ("title",), "keep": ("camera",)})

    assert found.ids == ("b", "sub/a")
    assert found.class_names == ("cat", "dog")
    assert found.labels == (1, 0)
    assert found.captions == (("a dog, running",), ("a cat",))
    assert found.columns == {"camera": ("x", "y")}
    assert found.select([1]).columns == {"camera": ("y",)}
    assert found.notes == ("column 'category' is taken for the label",)
    assert (
        found.select([1]).digest != load(root, columns={"captions": ("title",)}).select([1]).digest
    )


def test_json_lines_are_the_same_data(make_root: Make) -> None:
    rows = [
        {"file_name": "b.png", "label": "dog", "captions": ["one", "two"]},
        {"file_name": "sub/a.png", "label": "cat", "captions": ["three", "four"]},
    ]
    csv = "file_name,label,first,second\nb.png,dog,one,two\nsub/a.png,cat,three,four\n"
    images: dict[str, Any] = {"b.png": png(1), "sub/a.png": png(2)}
    root = make_root({**images, "metadata.jsonl": "\n".join(map(json.dumps, rows))})
    found = load(root, captions_per_image=2)
    (root / "test" / "metadata.jsonl").unlink()
    other = load(
        make_root({**images, "metadata.csv": csv}), columns={"captions": ("first", "second")}
    )

    assert found.captions == (("one", "two"), ("three", "four"))
    assert found.digest == other.digest


def test_metadata_may_stand_beside_the_splits(make_root: Make) -> None:
    root = make_root({"b.png": png(1)})
    make_root({"c.png": png(2)}, split="train")
    (root / "metadata.csv").write_text("file_name,label\ntrain/c.png,cat\ntest/b.png,dog\n")

    found = load(root)

    assert found.ids == ("b",)
    assert found.class_names == ("dog",)


def test_samples_are_drawn_and_only_those_are_read(make_root: Make) -> None:
    root = make_root(BY_CLASS)
    (root / "test" / "dog" / "0.png").write_bytes(b"no image")

    found = load(root, samples=2)

    assert found.ids == ("cat/a", "cat/b")
    assert found.digest == load(root, samples=2).digest
    assert found.digest != load(root, samples=3).digest


def test_the_key_of_the_data_follows_its_bytes(make_root: Make) -> None:
    root = make_root(BY_CLASS)
    datasets = {"photos": spec(root)}

    assert data_key("photos/test", datasets=datasets, samples=None, environ={}) is None
    before = load(root).digest
    assert load(root, exif_rotation=True).digest != before
    (root / "test" / "cat" / "a.png").write_bytes(png(99))
    assert load(root).digest != before


def test_what_there_is_is_counted_without_reading_an_image(make_root: Make) -> None:
    root = make_root(dict.fromkeys(BY_CLASS, b""))
    reader, source = find_source("photos/test", datasets={"photos": spec(root)}, environ={})

    assert reader.count is not None
    counted = reader.count(source)
    assert (counted.images, counted.captions, counted.classes) == (4, 0, (2, 2))


def test_other_files_are_passed_over_and_counted(make_root: Make) -> None:
    root = make_root((*BY_CLASS, "cat/notes.txt", "cat/.DS_Store", "dog/x.json"))

    assert load(root).notes == ("files beside the images that are passed over: 2",)
    assert len(load(root)) == 4


# -- what is refused, and where it says that it is -------------------------------------------------

ROWS = "file_name,label\nb.png,dog\nsub/a.png,cat\n"


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        (
            "name,label\nb.png,dog\n",
            r"csv has no column 'file_name'; its columns: 'name'",
        ),
        (ROWS.replace("cat", ""), r"metadata\.csv:3 has no label"),
        (ROWS.replace("cat", "7"), r"metadata\.csv:3: label '7' is a number, others are names"),
        ("file_name,label\nb.png,0\nsub/a.png,1\n", "labels are numbers, and no names are known"),
        (ROWS + "b.png,dog\n", r"metadata\.csv:4: 'b\.png' stands twice, first in .*csv:2"),
        (ROWS + "../../x.png,dog\n", r"x\.png leads out of its data set"),
        (ROWS + "/etc/passwd,dog\n", r"/etc/passwd leads out of its data set"),
        (
            ROWS + "a\0.png,dog\n",
            r"'.*a\\x00\.png' is no path: embedded null|not CSV: line contains",
        ),
        (ROWS + "c.png,dog\n", r"metadata\.csv:4: 'c\.png' is no image in"),
        ("file_name,label\nb.png,dog\n", r"names no row for 1 of 2 images, first 'sub/a\.png'"),
        (ROWS + "b.png\n", r"metadata\.csv:4: 1 values, the header has 2"),
        ('file_name,label\n"b.png,dog\n', r"metadata\.csv:\d: not CSV"),
        ("file_name,label,class\nb.png,dog,dog\nsub/a.png,cat,cat\n", "'label', 'class' could be"),
        ("file_name,label,label\n", r"metadata\.csv:1: a column stands twice"),
        ("file_name,label\n", "names no row for 2 of 2 images"),
    ],
)
def test_bad_metadata_is_refused_with_its_line(make_root: Make, csv: str, message: str) -> None:
    root = make_root({"b.png": png(1), "sub/a.png": png(2), "metadata.csv": csv})

    with pytest.raises(DataError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"file_name": "b.png", "label": 1}\n{"file_name": "c.png", "label": "x"}',
            "str, those",
        ),
        ('{"file_name": "b.png", "label": 1.5}\n{"file_name": "c.png", "label": 1}', "is float"),
        ('{"file_name": "b.png"}\n{"file_name": "c.png", "label": 1}', "jsonl:1 has no label"),
        ('{"file_name": "b.png", "label": true}\n{"file_name": "c.png", "label": 1}', "is bool"),
        ('{"file_name": "b.png", "text": ["a", 3]}\n{"file_name": "c.png", "text": "b"}', "is int"),
        ('{"file_name": "b.png", "text": []}\n{"file_name": "c.png", "text": "b"}', "no caption"),
        ('{"file_name": "b.png"', r"metadata\.jsonl:1: not JSON"),
        ('{"file_name": "b\\u0000.png", "label": "x"}', "is no path: embedded null byte"),
        ("\n[1]", r"metadata\.jsonl:2: expected an object"),
        ('{"file_name": 3, "label": "x"}', r"jsonl:1: file_name is 3, no name of a file"),
    ],
)
def test_bad_lines_are_refused(make_root: Make, lines: str, message: str) -> None:
    root = make_root({"b.png": png(1), "c.png": png(2), "metadata.jsonl": lines})

    with pytest.raises(DataError, match=message):
        load(root)


def test_two_captions_where_five_are_said(make_root: Make) -> None:
    line = '{"file_name": "b.png", "captions": ["a", "b"]}'
    root = make_root({"b.png": png(1), "metadata.jsonl": line})

    with pytest.raises(DataError, match=r"jsonl:1 has 2 captions, 5 are said \(.*yaml:7\)"):
        load(root, captions_per_image=5)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat\nbird\n", r"1\.png: unknown label 'dog': .*classnames\.txt has 2 classes"),
        ("cat\ndogs\n", r"did you mean 'dogs'\?"),
        ("plane\nship\n", r"is the class list of another set: none of the 2 labels"),
        ("cat\ncat\n", "'cat' stands twice"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(
    make_root: Make, classes: str, message: str
) -> None:
    root = make_root(("cat/0.png", "dog/1.png"))
    (root / "classnames.txt").write_text(classes)

    with pytest.raises(DataError, match=message):
        load(root)


def test_an_empty_class_is_refused(make_root: Make) -> None:
    root = make_root(BY_CLASS)
    (root / "test" / "bird").mkdir()

    with pytest.raises(DataError, match=r"test/bird is an empty class: .*\(1 such folder\)"):
        load(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat/a.png", "b.png"), r"b\.png lies in no folder of a class"),
        (("cat/a.png", "cat/b.tiff"), r"b\.tiff: \.tiff is not decoded, only jpg, jpeg"),
        (("cat/a.txt",), "holds no image"),
    ],
)
def test_odd_folders_are_refused(make_root: Make, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(make_root(names))


def test_columns_need_metadata(make_root: Make) -> None:
    with pytest.raises(DataError, match=r"yaml:6: .* has no columns: it has neither metadata\.csv"):
        load(make_root(BY_CLASS), columns={"label": "class"})


def test_a_column_that_is_not_there_is_named(make_root: Make) -> None:
    root = make_root({"b.png": png(1), "metadata.csv": "file_name,label\nb.png,dog\n"})

    with pytest.raises(DataError, match=r"has no column 'labels'; did you mean 'label'\?"):
        load(root, columns={"label": "labels"})


def test_two_tables_are_one_too_many(make_root: Make) -> None:
    root = make_root({"b.png": png(1), "metadata.csv": ROWS, "metadata.jsonl": ""})

    with pytest.raises(DataError, match="both describe"):
        load(root)


def test_a_folder_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="is no directory"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("link", ["cat/b.png", "cat", "metadata.csv"])
def test_a_link_that_leads_out_is_refused(make_root: Make, tmp_path: Path, link: str) -> None:
    root = make_root(BY_CLASS)
    outside = tmp_path / "outside" / "b.png"
    outside.parent.mkdir()
    outside.write_bytes(png(7))
    path = root / "test" / link
    if path.is_dir():
        path = root / "test" / "more"
        outside = outside.parent
    path.unlink(missing_ok=True)
    path.symlink_to(outside)

    with pytest.raises(DataError, match="leads out of its data set"):
        load(root)


def test_a_link_that_comes_later_is_refused(make_root: Make, tmp_path: Path) -> None:
    root = make_root(BY_CLASS)
    found = load(root)
    (tmp_path / "secret.png").write_bytes(png(7))
    (root / "test" / "cat" / "a.png").unlink()
    (root / "test" / "cat" / "a.png").symlink_to(tmp_path / "secret.png")

    with pytest.raises(DataError, match="leads out of its data set"):
        _ = found.images[0]


def test_a_folder_that_leads_to_itself_is_refused(make_root: Make) -> None:
    root = make_root(BY_CLASS)
    (root / "test" / "cat" / "again").symlink_to(root / "test")

    with pytest.raises(DataError, match="is a link to a folder that is read twice"):
        load(root)
