"""Tables beside images: metadata.csv and metadata.jsonl, a row an image.

That of an image folder names its images. Beside other data it brings further columns of samples,
which its column `id` names as `quantgate data show` does.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.specs import ColumnsSpec
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.untrusted import parse_json, read_regular

METADATA = ("metadata.csv", "metadata.jsonl")

#: The column that names the sample of a row, where a suite says no other.
ID = "id"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table that was read whole: a value a row in each column; `places` are `file:line`."""

    name: str
    values: dict[str, list[Any]]
    places: Sequence[str]

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self.values)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, column: str) -> Sequence[Any]:
        return self.values[column]

    def locate(self, row: int) -> str:
        return self.places[row]


def find_metadata(*folders: Path) -> Path | None:
    """Return the table that lies in one of the folders; raises DataError where there are two."""
    places = dict.fromkeys(folders)
    there = [place / name for place in places for name in METADATA if (place / name).exists()]
    if len(there) > 1:
        raise DataError(f"{there[0]} and {there[1]} both describe {folders[0]}: keep one of them")
    return there[0] if there else None


def read_metadata(path: Path, *, root: Path) -> Rows:
    """Return a table that was read whole; raises DataError where it is none."""
    try:
        content = read_regular(check_inside(path, root=root), max_bytes=bounds.TEXTS_BYTES).decode(
            "utf-8-sig"
        )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _read_csv(content, path) if path.suffix == ".csv" else _read_jsonl(content, path)


def read_columns_beside(
    path: Path, *, root: Path, ids: Sequence[str], columns: ColumnsSpec
) -> dict[str, tuple[Any, ...]]:
    """Return the kept columns of the samples that are called so, out of a table beside them.

    Rows of other samples are passed over. Raises DataError for a column that it lacks, for a
    sample without a row, and for one with two.
    """
    table = read_metadata(path, root=root)
    key = columns.id or ID
    if key not in table.columns:
        raise DataError(
            f"{path} has no column {key!r}, which names the sample of each row as quantgate data "
            f"show does; its columns: {', '.join(map(repr, table.columns)) or 'none'}"
        )
    check_kept(columns, there=table.columns, name=str(path))
    rows: dict[str, int] = {}
    for row, name in enumerate(table.read(key)):
        other = rows.setdefault(str(name), row)
        if other != row:
            raise DataError(
                f"{table.locate(row)}: {name!r:.60} stands twice, first in {table.locate(other)}"
            )
    absent = [name for name in ids if name not in rows]
    if absent:
        raise DataError(
            f"{path} has no row for {len(absent)} of {len(ids)} samples, first {absent[0]!r}: its "
            f"column {key!r} begins with {next(iter(rows), '')!r:.60}"
        )
    return {name: tuple(table.read(name)[rows[sample]] for sample in ids) for name in columns.keep}


def check_kept(columns: ColumnsSpec, *, there: Sequence[str], name: str) -> None:
    """Raise DataError where a suite keeps a column that is not there."""
    for column in columns.keep:
        if column not in there:
            close = difflib.get_close_matches(column, there, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(
                f"{columns.where.of('keep')}: {name} has no column {column!r}{hint}; its columns: "
                f"{', '.join(map(repr, there)) or 'none'}"
            )


def read_members(
    texts: Mapping[str, str], *, columns: ColumnsSpec, name: str
) -> dict[str, tuple[Any, ...]]:
    """Return the kept columns out of a JSON object of each sample, in the order of `texts`.

    A name that a sample lacks has no value there. Raises DataError for one that all lack, and for
    a value that is no text, number or true or false.
    """
    rows: list[Mapping[str, Any]] = []
    for sample, text in texts.items():
        try:
            row = parse_json(text)
        except ValueError as error:
            raise DataError(f"{name}: {sample}.json: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}: {sample}.json: expected an object, found {text[:40]!r}")
        for column in columns.keep:
            if isinstance(row.get(column), (dict, list)):
                raise DataError(
                    f"{name}: {sample}.json: {column!r} is {type(row[column]).__name__}, expected "
                    f"a text or a number"
                )
        rows.append(row)
    there = tuple(dict.fromkeys(column for row in rows for column in row))
    check_kept(columns, there=there, name=f"{name}: the .json of its samples")
    return {column: tuple(row.get(column) for row in rows) for column in columns.keep}


def _read_csv(content: str, path: Path) -> Rows:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    places, rows = [], []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: a column stands twice: {', '.join(header)}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}:{reader.line_num}: {len(row)} values, the header has {len(header)}"
                )
            rows.append(row)
            places.append(f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    columns = zip(*rows, strict=True) if rows else iter([()] * len(header))
    values = {
        name: [value or None for value in column]
        for name, column in zip(header, columns, strict=True)
    }
    return Rows(name=str(path), values=values, places=places)


def _read_jsonl(content: str, path: Path) -> Rows:
    found: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object {{...}}, found {line[:40]!r}")
        found.append((f"{path}:{number}", row))
    columns = dict.fromkeys(name for _, row in found for name in row)
    values = {name: [row.get(name) for _, row in found] for name in columns}
    return Rows(name=str(path), values=values, places=[place for place, _ in found])
