"""Rounds values as a number format does, with NumPy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.safetensors_file import import_numpy
from pytest_quantgate.formats.table import find_format

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]


def round_to(values: Array, *, format: str) -> Array:
    """Return values rounded to the nearest one that a format has, half to even, clipped.

    Raises ValueError for what is no format.
    """
    numpy = import_numpy()
    kind = find_format(format)
    if kind is None:
        raise ValueError(f"{format!r} is no number format")
    steps = numpy.float32(1)
    if not kind.is_integer:
        _, exponents = numpy.frexp(values)  # values are in [0.5, 1) times 2 to this
        binades = numpy.maximum(exponents - 1 - kind.mantissa_bits, kind.first_exponent)
        steps = numpy.ldexp(steps, binades)
    lowest, largest = numpy.float32(kind.lowest), numpy.float32(kind.largest)
    rounded: Array = numpy.clip(numpy.rint(values / steps) * steps, lowest, largest)
    return rounded
