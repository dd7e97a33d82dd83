"""The registry of readers: those of this package, and those of others by their entry points."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.reader import DatasetReader

GROUP = "pytest_quantgate.datasets"

#: The modules that read each kind of data. Any other name is a data set of clip-benchmark.
_OWN = {
    "wds": "webdataset",
    "imagefolder": "imagefolder",
    "parquet": "parquet_worker",
    "datasets": "saved_datasets",
}
_OTHERS = "clip_benchmark"


def find_reader(dataset: str) -> DatasetReader:
    """Return the reader of a suite's `dataset:`, which may go on after a /, as in `wds/photos`.

    Raises DataError where a package that has it cannot be imported.
    """
    kind = dataset.partition("/")[0]
    entry = None if kind in _OWN else _find_entry(kind)
    if entry is None:
        module = importlib.import_module(f"pytest_quantgate.tasks.{_OWN.get(kind, _OTHERS)}")
        own: DatasetReader = module.READER
        return own
    try:
        found = entry.load()
    except Exception as error:  # whatever another package's code raises
        raise DataError(
            f"the data set {kind} ({entry.value}) cannot be imported: {type(error).__name__}: "
            f"{error}"
        ) from error
    if not isinstance(found, DatasetReader):
        raise DataError(f"{entry.value} is {type(found).__name__}, no DatasetReader")
    return found


def find_package(dataset: str) -> str:
    """Return the package that brings a reader, by its import name; empty for one of this package.

    It is not loaded.
    """
    kind = dataset.partition("/")[0]
    entry = None if kind in _OWN else _find_entry(kind)
    return entry.module.partition(".")[0] if entry is not None else ""


def list_readers() -> tuple[str, ...]:
    """Return what `dataset:` may be, besides the names of clip-benchmark."""
    return (*_OWN, *sorted({entry.name for entry in entry_points(group=GROUP)} - set(_OWN)))


def _find_entry(kind: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=kind)), None)
