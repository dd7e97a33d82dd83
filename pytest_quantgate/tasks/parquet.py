"""Parquet files: one or several a split, image bytes in a column.

    ROOT/<split>.parquet        ROOT/<split>-00000-of-00005.parquet        ROOT/<split>/*.parquet
    ROOT/data/<split>-*.parquet (as the hub keeps them)

Where none of these begins like a split, all of ROOT/*.parquet is one set. Labels and texts are read
whole, by their columns; images a row group at a time, when one is needed. What a footer says of
sizes is checked before anything is unfolded, and texts are read as dictionaries: a value that
stands a million times is in memory once.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.tasks.columnar import (
    CellArrays,
    CellImages,
    check_image_type,
    has_path,
    is_text,
    list_classes,
    read_features,
    to_values,
)
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.tasks.imagefolder import SPLITS
from pytest_quantgate.tasks.reader import Counted, Source
from pytest_quantgate.tasks.rows import build_samples, choose_columns, count_rows
from pytest_quantgate.tasks.samples import Samples

_NUMBERED = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """The rows of Parquet files, one after another; `files` are opened, no column is read.

    `texts` are the same files, opened so that a text which stands a million times is read once.
    """

    name: str
    paths: Sequence[Path]
    files: Sequence[Any]
    texts: Sequence[Any]

    @cached_property
    def columns(self) -> Sequence[str]:
        return tuple(self.files[0].schema_arrow.names)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each file, and the number of all rows."""
        return list(itertools.accumulate((f.metadata.num_rows for f in self.files), initial=0))

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
        wanted = f"{column}.{part}" if part else column
        for path, file in zip(self.paths, self.texts, strict=True):
            leaves = _list_leaves(file, column, part)
            size = sum(_size(file, group, leaves) for group in range(file.num_row_groups))
            if size > bounds.TEXTS_BYTES:
                raise DataError(
                    f"{path}: column {wanted!r} holds {size} bytes, at most {bounds.TEXTS_BYTES} "
                    f"are read of what is no image"
                )
            for group in range(file.num_row_groups):
                try:
                    found = file.read_row_group(group, columns=[wanted], use_threads=False)[column]
                    found = compute.struct_field(found, part) if part else found
                    _check_rows(found, file=file, group=group)
                except Exception as error:  # a damaged page ends in any of them
                    raise _say_damaged(path, error) from error
                values += to_values(found, column=wanted, name=str(path))
        return values


@dataclass(frozen=True, kw_only=True)
class ParquetCells:
    """The image column: a row group is read when one of its cells is, and kept until another is."""

    table: ParquetTable
    column: str
    groups: Sequence[tuple[int, int]]
    starts: Sequence[int]
    held: dict[int, CellArrays] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def locate(self, row: int) -> str:
        return self.table.locate(row)

    def read_cell(self, row: int) -> tuple[bytes | None, str | None]:
        number = bisect.bisect_right(self.starts, row) - 1
        if number not in self.held:
            self.held.clear()
            self.held[number] = self._read_group(number)
        return self.held[number].read(row - self.starts[number])

    def _read_group(self, number: int) -> CellArrays:
        """Return the cells of a row group.

        A dictionary may unfold to any number of copies: then a few rows are read at a time, and no
        more than was said.
        """
        import pyarrow as pa

        index, group = self.groups[number]
        file = self.table.files[index]
        leaves = _list_leaves(file, self.column)
        size = _size(file, group, leaves)
        about = file.metadata.row_group(group)
        repeats = any(about.column(leaf).has_dictionary_page for leaf in leaves)
        at_once = max(1, 2 * bounds.ROW_GROUP_BYTES // max(1, size)) if repeats else about.num_rows
        chunks: list[Any] = []
        held = 0
        try:
            for batch in file.iter_batches(
                batch_size=max(1, min(at_once, about.num_rows)),
                row_groups=[group],
                columns=[self.column],
                use_threads=False,
            ):
                held += batch.nbytes
                if held > 2 * bounds.ROW_GROUP_BYTES:
                    raise DataError(
                        f"{self.table.paths[index]}: row group {group} says {size} bytes of images "
                        f"and unfolds to more than {2 * bounds.ROW_GROUP_BYTES}: remove its copies"
                    )
                chunks.append(batch.column(0))
            array = pa.chunked_array(chunks, type=file.schema_arrow.field(self.column).type)
            _check_rows(array, file=file, group=group)
        except Exception as error:  # a damaged page ends in any of them
            raise _say_damaged(self.table.paths[index], error) from error
        return CellArrays.split(array)


def find_files(root: Path, *, split: str) -> list[Path]:
    """Return the files of a split in order; raises NotMeasured or DataError with the remedy."""
    if not root.is_dir():
        raise NotMeasured(f"{root} is no directory: set it to the folder of the Parquet files")
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise DataError(f"split {split!r} is no name of files in {root}")
    for folder in (root, root / "data"):
        found = sorted({*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")})
        found = found or sorted((folder / split).glob("*.parquet"))
        if found:
            break
    else:
        found = sorted(root.glob("*.parquet"))
        places = (*found, *(root / "data").glob("*.parquet"), *root.glob("*/*.parquet"))
        named = {re.split(r"[-.]", path.name)[0] for path in places}
        named |= {path.parent.name for path in root.glob("*/*.parquet")}
        splits = sorted(named & {*SPLITS})
        if splits or not found:
            raise DataError(
                f"{root} has no file {split}.parquet, {split}-*.parquet or {split}/*.parquet; its "
                f"splits: {', '.join(splits) or 'none'}"
                + (f": write test_split: {splits[-1]}" if splits and split == "test" else "")
            )
    _check_numbers(found)
    return [check_inside(path, root=root) for path in found]


def _check_numbers(paths: Sequence[Path]) -> None:
    """Raise DataError where files say how many they are, and one is missing."""
    numbered = [match for path in paths if (match := _NUMBERED.fullmatch(path.stem))]
    for match in numbered:
        there = {int(other["number"]) for other in numbered if other["count"] == match["count"]}
        absent = sorted(set(range(int(match["count"]))) - there)
        if absent:
            name = f"{match['split']}-{absent[0]:05d}-of-{match['count']}.parquet"
            raise DataError(
                f"{paths[0].parent / name} is missing: {len(there)} of {int(match['count'])} files "
                f"are there"
            )


def survey_parquet(source: Source) -> None:
    """Read footers, and all columns that are used but images; raises DataError."""
    table = open_parquet(source)
    chosen = choose_columns(table, spec=source.spec)
    for name in filter(None, (chosen.label, *chosen.captions, chosen.id, *chosen.keep)):
        table.read(name)
    _read_paths(table, chosen.image)


def open_parquet(source: Source) -> ParquetTable:
    """Return the files of a split, opened; of each only the footer is read.

    Raises MissingPackage without pyarrow, NotMeasured and DataError as `find_files` does.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingPackage("pyarrow", extra="data", purpose=f"reading {source.name}") from error
    paths = find_files(source.root, split=source.split)
    files: list[Any] = []
    texts: list[Any] = []
    first: dict[str, str] = {}
    for path in paths:
        try:
            plain = parquet.ParquetFile(
                path, memory_map=True, thrift_string_size_limit=bounds.HEADER_BYTES
            )
            schema = {field.name: str(field.type) for field in plain.schema_arrow}
            repeated = [leaf for leaf in _list_texts(plain) if _may_repeat(plain, leaf)]
            files.append(plain)
            texts.append(
                parquet.ParquetFile(
                    path, memory_map=True, metadata=plain.metadata, read_dictionary=repeated
                )
            )
        except Exception as error:  # a damaged footer ends in any of them
            raise _say_damaged(path, error) from error
        first = first or schema
        if schema != first:
            odd = next(n for n in (*first, *schema) if first.get(n) != schema.get(n))
            raise DataError(
                f"{path} has other columns than {paths[0]}: {odd!r} is {schema.get(odd, 'absent')} "
                f"there, and {first.get(odd, 'absent')} in the first"
            )
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} files)"
    table = ParquetTable(name=name, paths=paths, files=files, texts=texts)
    if len(table) > bounds.SAMPLES:
        raise DataError(f"{table.name}: {len(table)} rows, at most {bounds.SAMPLES} are read")
    return table


def load_parquet(source: Source, draw: Draw) -> Samples:
    """Return the drawn samples of a split; of the others only labels and texts are read.

    Raises as `open_parquet`, and DataError for columns that are not what was said.
    """
    table = open_parquet(source)
    chosen = choose_columns(table, spec=source.spec)
    schema = table.files[0].schema_arrow
    kind = schema.field(chosen.image).type
    check_image_type(kind, column=chosen.image, name=table.name)
    groups = [(f, g) for f, file in enumerate(table.files) for g in range(file.num_row_groups)]
    sizes = [table.files[f].metadata.row_group(g).num_rows for f, g in groups]
    for index, group in groups:
        _check_group(table, index=index, group=group, column=chosen.image)
    cells = ParquetCells(
        table=table,
        column=chosen.image,
        groups=groups,
        starts=list(itertools.accumulate(sizes, initial=0)),
    )
    return build_samples(
        source,
        table,
        chosen=chosen,
        images=CellImages(cells=cells, root=source.root),
        paths=_read_paths(table, chosen.image),
        draw=draw,
        known_classes=_list_classes(table, chosen.label),
    )


def _read_paths(table: ParquetTable, column: str) -> Sequence[str | None]:
    """Return the name of each image's file, None where the table knows none."""
    kind = table.files[0].schema_arrow.field(column).type
    if is_text(kind):
        return table.read(column)
    return table.read_leaf(column, "path") if has_path(kind) else [None] * len(table)


def count_parquet(source: Source) -> Counted:
    """Return how much a split holds; no image is read."""
    table = open_parquet(source)
    chosen = choose_columns(table, spec=source.spec)
    return count_rows(
        source, table, chosen=chosen, known_classes=_list_classes(table, chosen.label)
    )


def _list_classes(table: ParquetTable, label: str) -> Sequence[str]:
    schema = table.files[0].schema_arrow
    return list_classes(read_features(schema.metadata, name=table.name), label)


def _check_group(table: ParquetTable, *, index: int, group: int, column: str) -> None:
    """Raise DataError for a row group whose images are more than is held at once."""
    file = table.files[index]
    size = _size(file, group, _list_leaves(file, column))
    if size > bounds.ROW_GROUP_BYTES:
        rows = file.metadata.row_group(group).num_rows
        fitting = max(1, rows * (bounds.ROW_GROUP_BYTES >> 4) // size)
        raise DataError(
            f"{table.paths[index]}: row group {group} holds {size} bytes of images, at most "
            f"{bounds.ROW_GROUP_BYTES} are read at once: write the file again with "
            f"row_group_size={fitting} (pyarrow.parquet.write_table)"
        )


def _list_leaves(file: Any, column: str, part: str = "") -> list[int]:
    """Return the numbers of the leaf columns that a column, or a part of it, is stored in."""
    whole = f"{column}.{part}" if part else column
    paths = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    return [i for i, path in enumerate(paths) if path == whole or path.startswith(f"{whole}.")]


def _size(file: Any, group: int, leaves: Sequence[int]) -> int:
    about = file.metadata.row_group(group)
    return sum(about.column(leaf).total_uncompressed_size for leaf in leaves)


def _check_rows(found: Any, *, file: Any, group: int) -> None:
    """Raise ValueError for values that are no texts or lead out of their dictionary, and where the
    pages of a row group hold fewer rows than its footer says."""
    found.validate(full=True)
    said = file.metadata.row_group(group).num_rows
    if len(found) != said:
        raise ValueError(f"row group {group} says {said} rows and holds {len(found)}")


def _list_texts(file: Any) -> list[str]:
    leaves = [file.metadata.schema.column(i) for i in range(file.metadata.num_columns)]
    return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]


def _may_repeat(file: Any, leaf: str) -> bool:
    """Return whether values of a leaf column may stand once for many rows."""
    (number,) = _list_leaves(file, leaf)
    groups = (file.metadata.row_group(group) for group in range(file.num_row_groups))
    return any(group.column(number).has_dictionary_page for group in groups)


def _say_damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path} is damaged or cut short: {reason}: copy or write it again")
