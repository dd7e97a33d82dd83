"""Rounds values as a number format does, with NumPy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.operands import LARGEST
from pytest_quantgate.artifacts.safetensors_file import import_numpy

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

#: Exponent bits and mantissa bits of the floating-point formats.
_FLOATS = {"E4M3": (4, 3), "E5M2": (5, 2), "E2M1": (2, 1)}

#: The lowest and highest code of the integer formats.
_INTEGER = {"INT8": (-128.0, 127.0), "INT4": (-8.0, 7.0)}


def round_to(values: Array, *, format: str) -> Array:
    """Return values rounded to the nearest one that a format has, half to even, clipped."""
    numpy = import_numpy()
    if format in _INTEGER:
        low, high = _INTEGER[format]
        whole: Array = numpy.clip(numpy.rint(values), low, high)
        return whole
    exponent_bits, mantissa_bits = _FLOATS[format]
    largest = numpy.float32(LARGEST[format])
    _, exponents = numpy.frexp(values)  # values are in [0.5, 1) times 2 to this
    smallest = 2 - (1 << (exponent_bits - 1)) + 1
    steps = numpy.ldexp(numpy.float32(1), numpy.maximum(exponents, smallest) - 1 - mantissa_bits)
    rounded: Array = numpy.clip(numpy.rint(values / steps) * steps, -largest, largest)
    return rounded
