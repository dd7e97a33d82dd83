"""The reader of Parquet: another process reads first, which a damaged footer can end.

pyarrow checks what it reads, but some of what it finds in a footer is an exception of C++ that
nothing catches. So footers, and all columns but the images, are read once elsewhere; images are
read a row group at a time, later and here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

from pytest_quantgate.bounded_process import answer_request, ask_module
from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.class_texts import locate_texts, read_listed
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.parquet import (
    count_parquet,
    find_files,
    load_parquet,
    survey_parquet,
)
from pytest_quantgate.tasks.reader import Counted, DatasetReader, Source
from pytest_quantgate.tasks.samples import Samples


def load(source: Source, draw: Draw) -> Samples:
    """As `load_parquet`, after another process has read the files."""
    try_files(source)
    return load_parquet(source, draw)


def count(source: Source) -> Counted:
    """As `count_parquet`, after another process has read the files."""
    try_files(source)
    return count_parquet(source)


def try_files(source: Source) -> None:
    """Raise DataError where reading the files of a split goes wrong, however it does.

    Files that were read and have not changed are not read again. Nothing is read without pyarrow.
    """
    if importlib.util.find_spec("pyarrow") is None:
        return
    paths = find_files(source.root, split=source.split)
    spec = source.spec
    columns = None if spec.columns is None else _to_plain(spec.columns)
    request = {
        "name": source.name,
        "split": source.split,
        "root": str(source.root),
        "spec": _to_plain(spec) | {"columns": columns},
    }
    states = tuple((str(path), _state(path)) for path in paths)
    found = _ask(json.dumps(request), states)
    if found:
        raise DataError(found)


def _to_plain(section: Any) -> dict[str, Any]:
    found = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    where: Where = found["where"]
    return found | {"where": {"file": where.file, "line": where.line, "keys": dict(where.keys)}}


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.cache
def _ask(request: str, states: tuple[Any, ...]) -> str:
    """Return what is wrong, empty where nothing is."""
    names = states[0][0] if len(states) == 1 else f"{states[0][0]} or another part"
    answer = ask_module(__name__, json.loads(request), noun=f"reading {names}", of="it")
    return answer if isinstance(answer, str) else ""


def _answer(request: Any) -> Any:
    spec = request["spec"]
    columns = spec["columns"]
    if columns is not None:
        lists = {name: tuple(columns[name]) for name in ("captions", "keep")}
        columns = ColumnsSpec(**{**columns, **lists, "where": Where(**columns["where"])})
    survey_parquet(
        Source(
            name=request["name"],
            spec=DatasetSpec(**{**spec, "columns": columns, "where": Where(**spec["where"])}),
            root=Path(request["root"]),
            split=request["split"],
        )
    )
    return []


READER = DatasetReader(
    load=load,
    count=count,
    read_texts=lambda source: read_listed(source.root),
    locate_texts=lambda source: locate_texts(source.root),
    takes_columns=True,
    package="pyarrow",
    extra="data",
)


if __name__ == "__main__":
    answer_request(_answer, noun="reading Parquet", of="it")
