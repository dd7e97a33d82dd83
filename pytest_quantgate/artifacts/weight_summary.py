"""One pass over a stored weight, in pieces: its largest value under each scale, and its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.operands import WeightSummary, largest_of
from pytest_quantgate.artifacts.safetensors_file import Tensor, import_numpy
from pytest_quantgate.formats.table import find_format

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

#: Values that are read at once: 8 MB as float32.
_STEP = 1 << 21

_INTEGERS = ("I8", "U8", "INT8", "UINT8", "INT4", "UINT4")


def summarize_tensor(
    tensor: Tensor, *, format: str, ranges: Sequence[float] | None
) -> WeightSummary:
    """Return the summary of a weight of a checkpoint that is kept with these ranges."""
    return summarize(
        tensor.singles, count=tensor.count, stored=tensor.dtype, format=format, ranges=ranges
    )


def summarize(
    read: Callable[[int, int], Array],
    *,
    count: int,
    stored: str,
    format: str,
    ranges: Sequence[float] | None,
) -> WeightSummary:
    """Return the summary of `count` values, of which `read(start, stop)` gives some as float32.

    Values that share a scale stand beside each other: per tensor, per row, per block of a row.
    """
    numpy = import_numpy()
    scales = [1.0]
    if ranges and count and count % len(ranges) == 0:
        scales = list(ranges)
    is_coded = stored not in ("F16", "BF16", "F32", "F64", "float16", "float32", "bfloat16")
    lowest, highest = _find_limits(format, stored=stored)
    block = max(1, count // len(scales))
    largest = [0.0] * len(scales)
    squares = [0.0] * len(scales)
    not_finite = beyond = 0
    for first, start, stop in _cut(count, block=block):
        with numpy.errstate(all="ignore"):
            part = read(start, stop)
            rows = part.reshape(-1, min(block, stop - start))
            tops = numpy.abs(rows).max(axis=1)
            sums = numpy.einsum("ij,ij->i", rows, rows, dtype="f8")
        if not numpy.isfinite(tops).all():
            not_finite += int((~numpy.isfinite(part)).sum())
        if lowest is not None:
            beyond += int(((part < lowest) | (part > highest)).sum())
        for place, (top, total) in enumerate(zip(tops.tolist(), sums.tolist(), strict=True), first):
            largest[place] = max(largest[place], top) if math.isfinite(top) else largest[place]
            squares[place] += total if math.isfinite(total) else 0.0
    weights = [1.0] * len(scales)
    if is_coded:  # without scales nothing is known of the size
        weights = [scale / largest_of(format) if ranges else 0.0 for scale in scales]
    energy = sum(total * _square(scale) for total, scale in zip(squares, weights, strict=True))
    return WeightSummary(
        largest=tuple(largest),
        rms=math.sqrt(energy / count) if count else 0.0,
        not_finite=not_finite,
        beyond=beyond,
    )


def _square(scale: float) -> float:
    return scale * scale if math.isfinite(scale) and abs(scale) < 1e100 else 0.0


def _find_limits(format: str, *, stored: str) -> tuple[float | None, float]:
    """Return the lowest and highest code of a format with fewer bits than it lies in."""
    kind = find_format(format)
    if stored not in _INTEGERS or kind is None or kind.bits >= 8:
        return None, 0.0
    return kind.lowest, kind.largest


def _cut(count: int, *, block: int) -> Iterator[tuple[int, int, int]]:
    """Yield (index of the first block, start, stop): some whole blocks, or a part of a long one."""
    if block > _STEP:
        for start in range(0, count, block):
            end = start + block
            for piece in range(start, end, _STEP):
                yield start // block, piece, min(piece + _STEP, end)
        return
    step = _STEP // block * block
    for start in range(0, count, step):
        yield start // block, start, min(start + step, count)
