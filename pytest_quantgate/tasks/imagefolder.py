"""Folders of image files, laid out as ImageFolder of Hugging Face.

    ROOT/<split>/<class>/*.jpg            the folder that an image is in names its class, or
    ROOT/<split>/metadata.csv             with file_name, and columns for labels, captions, more
    ROOT/<split>/metadata.jsonl           the same, a JSON object a line, or
    ROOT/<split>/*.jpg                    images alone

Where ROOT has no folder for any split, it is one set that is taken for every split. Files are read
where they lie, none is decoded before it is needed. Other files are passed over, and counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError, NotMeasured
from pytest_quantgate.tasks.class_texts import locate_texts, read_listed
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.tasks.metadata import METADATA, Rows, find_metadata, read_metadata
from pytest_quantgate.tasks.pictures import IMAGE_SUFFIXES
from pytest_quantgate.tasks.reader import Counted, DatasetReader, Source
from pytest_quantgate.tasks.rows import Chosen, build_samples, choose_columns, count_rows
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.spelling import spell_plain
from pytest_quantgate.untrusted import read_regular

FILE_NAME = "file_name"

#: Images that are not decoded here: to pass over them would make a set smaller than it is.
OTHER_IMAGES = ("tif", "tiff", "heic", "heif", "avif", "jp2", "jxl", "svg", "psd", "eps", "dng")

#: How splits are called: a folder of one of these names is no class.
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")


@dataclass(frozen=True, kw_only=True)
class FileImages:
    """The encoded images of samples, a file each; `names` are their paths below `folder`."""

    folder: Path
    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return read_image(self.folder / self.names[index], root=self.root)

    def locate(self, index: int) -> str:
        return str(self.folder / self.names[index])


def read_image(path: Path, *, root: Path) -> bytes:
    """Return the bytes of an image file; raises DataError where it is not below `root`, cannot be
    read or is too large."""
    try:
        return read_regular(check_inside(path, root=root), max_bytes=bounds.IMAGE_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def find_folder(root: Path, *, split: str, splits: Sequence[str] = SPLITS) -> Path:
    """Return the folder of a split, or the root where that has none for any.

    Raises NotMeasured where the root is no folder, DataError with the splits that there are.
    """
    if not root.is_dir():
        raise NotMeasured(f"{root} is no directory: set it to the folder of the data set")
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise DataError(f"split {split!r} is no name of a folder in {root}")
    if (root / split).is_dir():
        return check_inside(root / split, root=root)
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name in splits)
    if found:
        raise DataError(
            f"{root / split} is missing: {root} has the splits {', '.join(found)}; where tasks are "
            f"judged on one of them, write test_split: {found[-1]}"
        )
    return root


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A split whose names and labels were read; `names` are the image of each row."""

    table: Rows
    chosen: Chosen
    folder: Path
    names: Sequence[str]
    passed_over: int


def open_imagefolder(source: Source) -> Opened:
    """Return a split whose names and labels were read, and no image.

    Raises NotMeasured where the folder is not there, DataError for what does not fit together.
    """
    folder = find_folder(source.root, split=source.split)
    files, passed_over = list_images(folder, root=source.root)
    table, names = _read_metadata(folder, source=source, files=files)
    if table is not None:
        chosen = choose_columns(table, spec=source.spec, image=FILE_NAME)
    elif source.spec.columns is not None:
        raise DataError(
            f"{source.spec.where.of('columns')}: {folder} has no columns: it has neither "
            f"{' nor '.join(METADATA)}"
        )
    else:
        table, names = _label_by_folder(folder, files=files), files
        label = "label" if "label" in table.columns else ""
        notes = () if label else ("images lie in no folders of classes: they have no labels",)
        chosen = Chosen(image=FILE_NAME, label=label, captions=(), id="", keep=(), notes=notes)
    return Opened(table=table, chosen=chosen, folder=folder, names=names, passed_over=passed_over)


def load_imagefolder(source: Source, draw: Draw) -> Samples:
    """Return the drawn samples of a split; only their images are read. Raises as
    `open_imagefolder`."""
    opened = open_imagefolder(source)
    found = build_samples(
        source,
        opened.table,
        chosen=opened.chosen,
        images=FileImages(folder=opened.folder, root=source.root, names=opened.names),
        paths=opened.names,
        draw=draw,
    )
    if not opened.passed_over:
        return found
    note = f"files beside the images that are passed over: {opened.passed_over}"
    return replace(found, notes=(*found.notes, note))


def count_imagefolder(source: Source) -> Counted:
    """Return how much a split holds; no image is read."""
    opened = open_imagefolder(source)
    return count_rows(source, opened.table, chosen=opened.chosen)


def list_images(folder: Path, *, root: Path) -> tuple[list[str], int]:
    """Return the paths of all images below a folder, sorted, and how many other files there are.

    Raises DataError for a link that leads out of the root, and for images of other formats.
    """
    found: list[str] = []
    others = 0
    folders = [""]
    start = folder.stat()
    seen = {(start.st_dev, start.st_ino)}
    while folders:
        inside = folders.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.name.startswith(".") or (not inside and entry.name in METADATA):
                    continue
                if entry.is_symlink():
                    check_inside(folder / name, root=root)
                if entry.is_dir():
                    about = (folder / name).stat()
                    if (about.st_dev, about.st_ino) in seen:
                        raise DataError(f"{folder / name} is a link to a folder that is read twice")
                    seen.add((about.st_dev, about.st_ino))
                    folders.append(f"{name}/")
                    continue
                suffix = entry.name.rpartition(".")[2].lower()
                if suffix in IMAGE_SUFFIXES:
                    found.append(name)
                elif suffix in OTHER_IMAGES:
                    raise DataError(
                        f"{folder / name}: .{suffix} is not decoded, only "
                        f"{', '.join(IMAGE_SUFFIXES)} are: convert it"
                    )
                else:
                    others += 1
                if len(found) > bounds.SAMPLES:
                    raise DataError(f"{folder}: more than {bounds.SAMPLES} images")
    if not found:
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(found), others


def _label_by_folder(folder: Path, *, files: Sequence[str]) -> Rows:
    """Return the label of each image: the folder that it is in; none where all lie in no folder."""
    places = [str(folder / name) for name in files]
    labels = [PurePosixPath(name).parent.name for name in files]
    if not any(labels):
        return Rows(name=str(folder), values={FILE_NAME: list(files)}, places=places)
    bare = next((name for name, label in zip(files, labels, strict=True) if not label), None)
    if bare is not None:
        raise DataError(
            f"{folder / bare} lies in no folder of a class: put each image into one, or write "
            f"{folder / METADATA[0]} with the columns {FILE_NAME} and label"
        )
    used = {PurePosixPath(name).parts[0] for name in files}
    empty = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in used
    )
    if empty:
        raise DataError(
            f"{folder / empty[0]} is an empty class: it holds no image ({len(empty)} such "
            f"{'folder' if len(empty) == 1 else 'folders'}): fill or remove it"
        )
    return Rows(name=str(folder), values={FILE_NAME: list(files), "label": labels}, places=places)


# -- metadata -------------------------------------------------------------------------------------


def _read_metadata(
    folder: Path, *, source: Source, files: Sequence[str]
) -> tuple[Rows | None, list[str]]:
    """Return the table beside the images and the path of each row's image; None without one.

    One beside the folders of all splits counts too: its names then begin with the split's.
    """
    path = find_metadata(folder, source.root)
    if path is None:
        return None, []
    rows = read_metadata(path, root=source.root)
    if FILE_NAME not in rows.values:
        raise DataError(
            f"{path} has no column {FILE_NAME!r}; its columns: "
            f"{', '.join(map(repr, rows.columns)) or 'none'}"
        )
    prefix = "" if path.parent == folder else f"{folder.name}/"
    mine = [
        row
        for row, name in enumerate(rows.values[FILE_NAME])
        if not isinstance(name, str) or name.startswith(prefix)
    ]
    rows = Rows(
        name=rows.name,
        values={name: [values[row] for row in mine] for name, values in rows.values.items()},
        places=[rows.places[row] for row in mine],
    )
    return rows, _match_files(rows, folder=folder, prefix=prefix, source=source, files=files)


def _match_files(
    rows: Rows, *, folder: Path, prefix: str, source: Source, files: Sequence[str]
) -> list[str]:
    """Return the path of each row's image below the folder; each image stands in one row."""
    known = set(files)
    seen: dict[str, int] = {}
    for row, value in enumerate(rows.values[FILE_NAME]):
        if not isinstance(value, str) or not value:
            raise DataError(f"{rows.locate(row)}: {FILE_NAME} is {value!r:.60}, no name of a file")
        name = value.removeprefix(prefix).removeprefix("./")
        if name not in known:
            check_inside(folder / name, root=source.root)
            alike = next((one for one in files if spell_plain(one) == spell_plain(name)), None)
            hint = (
                f": the file is {alike!a}, the row says {name!a}, in another spelling of the same "
                f"accents (NFC, NFD): write the row as the file is"
                if alike
                else ""
            )
            raise DataError(f"{rows.locate(row)}: {value!r} is no image in {folder}{hint}")
        if name in seen:
            raise DataError(
                f"{rows.locate(row)}: {value!r} stands twice, first in {rows.locate(seen[name])}"
            )
        seen[name] = row
    left = len(known) - len(seen)
    if left:
        first = next(name for name in files if name not in seen)
        raise DataError(
            f"{rows.name} names no row for {left} of {len(files)} images, first {first!r}: add "
            f"their rows, or move them out of {folder}"
        )
    return list(seen)


READER = DatasetReader(
    load=load_imagefolder,
    count=count_imagefolder,
    read_texts=lambda source: read_listed(source.root),
    locate_texts=lambda source: locate_texts(source.root),
    takes_columns=True,
)
