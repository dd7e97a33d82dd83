"""The same photographs in every form that a suite can name, as their own tools write them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="Parquet and saved data sets are read with pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

#: What `dataset:` says of each form.
FORMS = {
    "wds": "wds/photos",
    "folder": "imagefolder",
    "csv": "imagefolder",
    "jsonl": "imagefolder",
    "parquet": "parquet",
    "datasets": "datasets",
}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph: the name of its file below the split, such as `0/cat/17.jpg`.

    `light` is a further column, which all forms but folders of classes hold.
    """

    name: str
    content: bytes
    label: int
    light: str = "day"


def read_shard(path: Path, *, classes: Sequence[str], count: int | None = None) -> list[Photo]:
    """Return the photographs of a WebDataset's shard 0, in its order."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, _, suffix = member.name.partition(".")
            stream = archive.extractfile(member)
            assert stream is not None
            found.setdefault(key, {})[suffix] = stream.read()
    photos = []
    for key, parts in list(found.items())[:count]:
        label = int(parts["cls"])
        photos.append(Photo(name=f"0/{key}.jpg", content=parts["jpg"], label=label))
    return photos


def by_class(photos: Sequence[Photo], *, classes: Sequence[str]) -> list[Photo]:
    """Return photographs in the order and under the names that folders of classes give them."""
    moved = [
        replace(photo, name=photo.name.replace("0/", f"0/{classes[photo.label]}/", 1))
        for photo in photos
    ]
    return sorted(moved, key=lambda photo: photo.name)


def write_form(
    form: str, root: Path, *, splits: dict[str, list[Photo]], classes: Sequence[str]
) -> Path:
    """Write the splits in a form; return the root."""
    root.mkdir(parents=True)
    for split, photos in splits.items():
        _WRITERS[form](root, split, photos, classes)
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    return root


def _write_wds(root: Path, split: str, photos: list[Photo], classes: Sequence[str]) -> None:
    (root / split).mkdir()
    with tarfile.open(root / split / "0.tar", "w") as archive:
        for photo in photos:
            key = photo.name.removeprefix("0/").removesuffix(".jpg")
            more = json.dumps({"light": photo.light, "url": "https://example.org"})
            for name, content in (
                (f"{key}.jpg", photo.content),
                (f"{key}.cls", str(photo.label).encode()),
                (f"{key}.json", more.encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (root / split / "nshards.txt").write_text("1\n")


def _write_folder(root: Path, split: str, photos: list[Photo], classes: Sequence[str]) -> None:
    for photo in photos:
        path = root / split / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.content)


def _write_csv(root: Path, split: str, photos: list[Photo], classes: Sequence[str]) -> None:
    _write_folder(root, split, photos, classes)
    with (root / split / "metadata.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "label", "light"])
        writer.writerows([photo.name, classes[photo.label], photo.light] for photo in photos)


def _write_jsonl(root: Path, split: str, photos: list[Photo], classes: Sequence[str]) -> None:
    _write_folder(root, split, photos, classes)
    rows = [
        {"file_name": photo.name, "label": photo.label, "light": photo.light} for photo in photos
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (root / split / "metadata.jsonl").write_text(text)


def make_table(photos: Sequence[Photo]) -> Any:
    """Return the table that the `datasets` library makes of photographs."""
    return pa.table(
        {
            "image": pa.array(
                [{"bytes": photo.content, "path": photo.name} for photo in photos],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
            "label": pa.array([photo.label for photo in photos], pa.int64()),
            "light": pa.array([photo.light for photo in photos], pa.string()),
        }
    )


def _write_parquet(root: Path, split: str, photos: list[Photo], classes: Sequence[str]) -> None:
    parquet.write_table(make_table(photos), root / f"{split}.parquet", row_group_size=100)


def _write_datasets(root: Path, split: str, photos: list[Photo], classes: Sequence[str]) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "light": {"dtype": "string", "_type": "Value"},
    }
    save(make_table(photos), root / split, features=features)


def save(table: Any, folder: Path, *, features: dict[str, Any], split: str | None = None) -> None:
    """Write a table as `Dataset.save_to_disk` of the `datasets` library 5.2 does, in one file."""
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with (
        pa.OSFile(str(folder / name), "wb") as stream,
        pa.ipc.new_stream(stream, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=1000)
    state = {"_data_files": [{"filename": name}], "_fingerprint": "0", "_split": split}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}, indent=2))


_WRITERS = {
    "wds": _write_wds,
    "folder": _write_folder,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "datasets": _write_datasets,
}
