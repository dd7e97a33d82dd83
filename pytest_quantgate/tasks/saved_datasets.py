"""Folders that the `datasets` library saved (`save_to_disk`): memory-mapped Arrow files.

    ROOT/<split>/state.json         which files hold the rows, in their order
    ROOT/<split>/dataset_info.json  the names of classes
    ROOT/<split>/data-00000-of-00001.arrow

ROOT may also be one such folder by itself: that of its split, or of every split where it names
none. Read with pyarrow alone: the files are in Arrow's stream format, and no byte of an image is
copied before it is needed.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.tasks.class_texts import locate_texts, read_listed
from pytest_quantgate.tasks.columnar import (
    CellArrays,
    CellImages,
    check_image_type,
    has_path,
    is_text,
    list_classes,
    to_values,
)
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.tasks.reader import Counted, DatasetReader, Source
from pytest_quantgate.tasks.rows import build_samples, choose_columns, count_rows
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.untrusted import parse_json, read_regular

STATE, INFO = "state.json", "dataset_info.json"


@dataclass(frozen=True, kw_only=True)
class ArrowTable:
    """The rows of Arrow files, one after another, in the files' own memory maps."""

    name: str
    paths: Sequence[Path]
    tables: Sequence[Any]
    features: Mapping[str, Any]

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self.tables[0].schema.names)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each file, and the number of all rows."""
        return list(itertools.accumulate((t.num_rows for t in self.tables), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, row: int) -> str:
        file = bisect.bisect_right(self.starts, row) - 1
        return f"{self.paths[file]}: row {row - self.starts[file]}"

    def read(self, column: str) -> Sequence[Any]:
        return self.read_leaf(column)

    def read_leaf(self, column: str, part: str = "") -> list[Any]:
        """Return the values of a column, or of one part of a struct."""
        import pyarrow.compute as compute

        values: list[Any] = []
        for path, table in zip(self.paths, self.tables, strict=True):
            found = table[column]
            if part:
                found = compute.struct_field(found, part)
            try:
                found.validate(full=True)
            except ValueError as error:
                raise _say_damaged(path, error) from error
            values += to_values(found, column=column, name=str(path))
        return values


@dataclass(frozen=True, kw_only=True)
class ArrowCells:
    """The image column, read where it lies."""

    table: ArrowTable
    arrays: Sequence[CellArrays]

    def __len__(self) -> int:
        return len(self.table)

    def locate(self, row: int) -> str:
        return self.table.locate(row)

    def read_cell(self, row: int) -> tuple[bytes | None, str | None]:
        starts = self.table.starts
        file = bisect.bisect_right(starts, row) - 1
        return self.arrays[file].read(row - starts[file])


def find_saved(root: Path, *, split: str) -> Path:
    """Return the folder of a split; raises NotMeasured or DataError with the splits there are."""
    if not root.is_dir():
        raise NotMeasured(f"{root} is no directory: set it to a folder of save_to_disk")
    if (root / STATE).is_file():
        said = _read_object(root / STATE, root=root).get("_split")
        if said is not None and said != split:
            raise DataError(
                f"{root} holds the split {said!r}, {split!r} is asked for"
                + (f": write test_split: {said}" if split == "test" else "")
            )
        return root
    found = sorted(path.parent.name for path in root.glob(f"*/{STATE}"))
    if split not in found:
        raise DataError(
            f"{root / split / STATE} is missing: {root} has the splits "
            f"{', '.join(found) or 'none'}: save it with save_to_disk, or write test_split"
        )
    return check_inside(root / split, root=root)


def open_saved(source: Source) -> ArrowTable:
    """Return the files of a split, memory-mapped; no value is read.

    Raises MissingPackage without pyarrow, NotMeasured and DataError as `find_saved` does.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingPackage("pyarrow", extra="data", purpose=f"reading {source.name}") from error
    root = source.root
    folder = find_saved(root, split=source.split)
    state = _read_object(folder / STATE, root=root)
    files = state.get("_data_files")
    listed = files if isinstance(files, list) else []
    names = [str(file.get("filename") or "") for file in listed if isinstance(file, dict)]
    if not names or not all(names):
        raise DataError(f"{folder / STATE}: expected _data_files with a filename each")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder / STATE}: the rows are chosen by an index of an old release: save it again"
        )
    info = folder / INFO
    about = _read_object(info, root=root).get("features") if info.is_file() else {}
    paths = [check_inside(folder / name, root=root) for name in names]
    tables = [_map_file(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if table.schema.names != tables[0].schema.names or table.schema.types != (
            tables[0].schema.types
        ):
            raise DataError(f"{path} has other columns than {paths[0]}: save the data again")
    found = ArrowTable(
        name=str(folder),
        paths=paths,
        tables=tables,
        features=about if isinstance(about, dict) else {},
    )
    if len(found) > bounds.SAMPLES:
        raise DataError(f"{found.name}: {len(found)} rows, at most {bounds.SAMPLES} are read")
    return found


def _map_file(path: Path) -> Any:
    """Return the table in an Arrow stream; raises DataError for a damaged one, or a compressed one:
    what that unfolds to is known only when it is there."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as stream:
            messages = pa.ipc.MessageReader.open_stream(stream)
            for message in messages:
                if _is_compressed(message.metadata.to_pybytes()):
                    raise DataError(
                        f"{path} is compressed, which save_to_disk does not do: save it again"
                    )
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        "".join(table.schema.names)  # raises for one that is no text
        return table
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {path.parent / STATE} names it") from error
    except Exception as error:  # a damaged message ends in any of them
        raise _say_damaged(path, error) from error


#: Where in the tables of Arrow's messages (Message.fbs) stand the header's type, the header, and,
#: in that of a batch, its compression; and the number of that type.
_HEADER_TYPE, _HEADER, _COMPRESSION = 1, 2, 3
_RECORD_BATCH = 3


def _is_compressed(message: bytes) -> bool:
    """Return whether the metadata of a message is that of a batch whose buffers are compressed.

    Flatbuffers: a table begins with the distance back to its list of offsets, one a field.
    """

    def find(table: int, field: int) -> int:
        """Return where a field of a table stands, 0 where it has none."""
        (back,) = struct.unpack_from("<i", message, table)
        listed = table - back
        (size,) = struct.unpack_from("<H", message, listed)
        place = 4 + 2 * field
        if place + 2 > size:
            return 0
        (offset,) = struct.unpack_from("<H", message, listed + place)
        return table + offset if offset else 0

    def follow(place: int) -> int:
        return int(place + struct.unpack_from("<I", message, place)[0])

    root = follow(0)
    kind, header = find(root, _HEADER_TYPE), find(root, _HEADER)
    if not kind or not header or message[kind] != _RECORD_BATCH:
        return False
    return find(follow(header), _COMPRESSION) != 0


def load_saved(source: Source, draw: Draw) -> Samples:
    """Return the drawn samples of a split; of the others only labels and texts are read.

    Raises as `open_saved`, and DataError for columns that are not what was said.
    """
    table = open_saved(source)
    chosen = choose_columns(table, spec=source.spec)
    kind = table.tables[0].schema.field(chosen.image).type
    check_image_type(kind, column=chosen.image, name=table.name)
    columns = [part[chosen.image] for part in table.tables]
    for path, column in zip(table.paths, columns, strict=True):
        try:
            column.validate(full=True)
        except ValueError as error:
            raise _say_damaged(path, error) from error
    cells = ArrowCells(table=table, arrays=[CellArrays.split(column) for column in columns])
    paths: Sequence[str | None] = [None] * len(table)
    if is_text(kind):
        paths = table.read(chosen.image)
    elif has_path(kind):
        paths = table.read_leaf(chosen.image, "path")
    return build_samples(
        source,
        table,
        chosen=chosen,
        images=CellImages(cells=cells, root=source.root),
        paths=paths,
        draw=draw,
        known_classes=list_classes(table.features, chosen.label),
    )


def count_saved(source: Source) -> Counted:
    """Return how much a split holds; no image is read."""
    table = open_saved(source)
    chosen = choose_columns(table, spec=source.spec)
    known = list_classes(table.features, chosen.label)
    return count_rows(source, table, chosen=chosen, known_classes=known)


def _read_object(path: Path, *, root: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(check_inside(path, root=root), max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object {{...}}")
    return found


def _say_damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path} is damaged or cut short: {reason}: copy or save it again")


READER = DatasetReader(
    load=load_saved,
    count=count_saved,
    read_texts=lambda source: read_listed(source.root),
    locate_texts=lambda source: locate_texts(source.root),
    takes_columns=True,
    package="pyarrow",
    extra="data",
)
