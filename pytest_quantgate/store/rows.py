"""Embeddings of many samples in files: written part by part, read as maps that hold little memory.

A file is what `numpy.save` writes of the whole array, byte by byte.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Rows = numpy.ndarray[Any, numpy.dtype[numpy.float32]]


def write_rows(paths: Sequence[Path], parts: Iterable[Sequence[Rows]], *, count: int) -> None:
    """Write an array float32 [count, D] into each file, of parts [n, D] of each in order.

    No more than a part of each is held. Raises ValueError where the parts are not `count` rows.
    """
    import numpy

    written = 0
    with ExitStack() as opened:
        streams = [opened.enter_context(path.open("wb")) for path in paths]
        for part in parts:
            for stream, rows in zip(streams, part, strict=True):
                if not written:
                    header = numpy.lib.format.header_data_from_array_1_0(rows)
                    shape = (count, *rows.shape[1:])
                    numpy.lib.format.write_array_header_1_0(stream, {**header, "shape": shape})
                stream.write(rows.tobytes())
            written += len(part[0])
    if written != count:
        raise ValueError(f"{written} of {count} rows were embedded")


def open_rows(path: Path, *, count: int) -> Rows:
    """Return float32 [count, D] of a file, which is read where it is looked at.

    What is written into it stays with who wrote it. Raises ValueError for any other file, which is
    never unpickled.
    """
    import numpy

    try:
        found = numpy.load(path, mmap_mode="c", allow_pickle=False)
    except (EOFError, SyntaxError, TypeError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(found, numpy.ndarray) or found.dtype != numpy.float32:
        raise ValueError(f"{path.name}: expected an array of float32")
    if found.ndim != 2 or found.shape[0] != count:
        raise ValueError(f"{path.name}: {found.shape} are no embeddings of {count} samples")
    return found


def let_go(rows: Rows) -> None:
    """Give back the memory of what was read of a file; who looks again reads it again.

    Where the system cannot, nothing is done. What was written into `rows` is undone.
    """
    if isinstance(rows.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        rows.base.madvise(mmap.MADV_DONTNEED)
