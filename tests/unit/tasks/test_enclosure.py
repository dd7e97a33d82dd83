"""What a loader of a data set opens lies in the data set's folder, by links and by names."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.specs import DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.enclosure import check_inside, enclosed
from pytest_quantgate.tasks.reader import Source
from pytest_quantgate.tasks.registry import data_key, load_samples, locate_texts, read_class_texts
from pytest_quantgate.tasks.webdataset import count_webdataset

WHERE = Where(file="suites/x.quantgate.yaml", line=3)
SECRET = "TOKEN=canary"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder beside the data set, with the files that it has, and what nobody shall see."""
    folder = tmp_path / "private"
    (folder / "test").mkdir(parents=True)
    for name in ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"):
        (folder / name).write_text(f"{SECRET}\nother {{c}}\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    write_shard(folder / "test" / "0.tar")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "private.jpg")
    return folder


def write_shard(path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (1, 2, 3)).save(stream, "PNG")
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.png", stream.getvalue()), ("a.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    (folder / "dataset_type.txt").write_text("classification\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    write_shard(folder / "test" / "0.tar")
    return folder


def specs(root: Path, dataset: str = "wds/photos") -> dict[str, DatasetSpec]:
    return {"photos": DatasetSpec(where=WHERE, dataset=dataset, root=str(root))}


def load(root: Path, dataset: str = "wds/photos", **options: Any) -> Any:
    options = {"samples": None, **options}
    return load_samples("photos/test", datasets=specs(root, dataset), environ={}, **options)


READERS: dict[str, Callable[[Path], Any]] = {
    "load": load,
    "digest": lambda root: data_key("photos/test", datasets=specs(root), samples=None, environ={}),
    "texts": lambda root: read_class_texts("photos/test", datasets=specs(root), environ={}),
    "places": lambda root: locate_texts("photos/test", datasets=specs(root), environ={}),
    "plan": lambda root: count_webdataset(Source.of_folder(root, split="test")),
}
TEXTS = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
SHARDS = ("test/nshards.txt", "test/0.tar", "test")


@pytest.mark.parametrize(
    ("reader", "name"),
    [
        *(("load", name) for name in (*TEXTS, *SHARDS)),
        *(("digest", name) for name in (*TEXTS, *SHARDS)),
        *(("texts", name) for name in TEXTS),
        *(("places", name) for name in TEXTS[:2]),
        *(("plan", name) for name in SHARDS),
    ],
)
def test_a_link_that_leads_out_of_a_webdataset_is_refused(
    photos: Path, private: Path, reader: str, name: str
) -> None:
    for place in (private / name, Path("..") / ("../" * name.count("/")) / "private" / name):
        aside = photos.parent / f"aside-{place.is_absolute()}"
        (photos / name).rename(aside)
        (photos / name).symlink_to(place)

        with pytest.raises(DataError, match="leads out of its data set") as caught:
            READERS[reader](photos)
        assert SECRET not in str(caught.value)

        (photos / name).unlink()
        aside.rename(photos / name)


def test_links_within_a_data_set_and_to_it_are_followed(photos: Path, tmp_path: Path) -> None:
    (photos / "names").mkdir()
    for name in ("classnames.txt", "test/0.tar"):
        target = photos / "names" / Path(name).name
        (photos / name).rename(target)
        (photos / name).symlink_to(target)
    (tmp_path / "way").symlink_to(photos, target_is_directory=True)

    for root in (photos, tmp_path / "way"):
        assert load(root).class_names == ("cat", "dog")
        assert load(root).images[0].size == (6, 4)


def test_a_snapshot_of_the_hub_links_to_files_beside_it(photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "datasets--somebody--photos"
    (home / "blobs").mkdir(parents=True)
    snapshot = home / "snapshots" / "0123"
    for file in sorted(path for path in photos.rglob("*") if path.is_file()):
        blob = home / "blobs" / file.name
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(photos)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))

    assert load(snapshot).class_names == ("cat", "dog")


# -- loaders of others ----------------------------------------------------------------------------


@pytest.fixture
def captions(tmp_path: Path) -> Callable[..., Path]:
    """A folder of MS-COCO as clip-benchmark has it, with one picture of a name."""
    pytest.importorskip("pycocotools")

    def make(name: str) -> Path:
        root = tmp_path / "coco"
        (root / "val2014").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / "val2014" / "good.jpg")
        annotations = {
            "images": [{"id": 1, "file_name": name}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}],
        }
        (root / "coco_test_karpathy.json").write_text(json.dumps(annotations))
        return root

    return make


@pytest.mark.parametrize("name", ["../../private/private.jpg", "ABSOLUTE", "link.jpg"])
def test_an_annotation_cannot_name_a_picture_outside(
    captions: Callable[..., Path], private: Path, name: str
) -> None:
    root = captions(name.replace("ABSOLUTE", str(private / "private.jpg")))
    (root / "val2014" / "link.jpg").symlink_to(private / "private.jpg")

    with pytest.raises(DataError, match=r"private\.jpg leads out|link\.jpg leads out"):
        load(root, "mscoco_captions", purpose="retrieval")


def test_annotations_of_another_folder_are_not_read(
    captions: Callable[..., Path], private: Path
) -> None:
    root = captions("good.jpg")
    (root / "coco_test_karpathy.json").rename(private / "other.json")
    (root / "coco_test_karpathy.json").symlink_to(private / "other.json")

    with pytest.raises(DataError, match="leads out of its data set"):
        load(root, "mscoco_captions", purpose="retrieval")


def test_pictures_of_the_data_set_are_read_now_and_later(captions: Callable[..., Path]) -> None:
    root = captions("good.jpg")

    found = load(root, "mscoco_captions", purpose="retrieval")

    assert found.captions == (("a cat",),)
    assert found.images[0].size == (4, 4)
    (root / "val2014" / "good.jpg").unlink()
    (root / "val2014" / "good.jpg").symlink_to(Path(__file__))
    with pytest.raises(DataError, match="leads out of its data set"):
        _ = found.images[0]


@pytest.mark.parametrize(
    "read",
    [
        lambda path: open(path).read(),  # noqa: SIM115, PTH123
        lambda path: path.read_text(),
        lambda path: os.read(os.open(path, os.O_RDONLY), 9),
        lambda path: Image.open(path),
        lambda path: np.load(path),
        lambda path: np.fromfile(path),
        lambda path: tarfile.open(path),  # noqa: SIM115
        lambda path: open(os.fsencode(path)).read(),  # noqa: SIM115, PTH123
    ],
    ids=["open", "pathlib", "os", "PIL", "numpy", "fromfile", "tarfile", "bytes"],
)
def test_it_does_not_matter_how_a_file_is_opened(
    photos: Path, private: Path, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    secret = Path("..") / "private" / "classnames.txt"

    with enclosed(photos), pytest.raises(DataError, match="leads out of its data set"):
        read(secret)
    with enclosed(photos):
        assert (photos / "classnames.txt").read_text() == "cat\ndog\n"

    assert secret.read_text().startswith(SECRET)  # outside of the block nothing is watched


def test_a_folder_that_only_begins_alike_is_outside(photos: Path) -> None:
    other = photos.with_name("photos-of-others")
    other.mkdir()

    with pytest.raises(DataError, match="leads out"):
        check_inside(other / "x", root=photos)
    assert check_inside(photos, root=photos) == photos
    assert check_inside(Path("/x"), root=Path("/")) == Path("/x")
