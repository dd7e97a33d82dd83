"""What releases of ModelOpt compute otherwise: the numbers that an emulation of one depends on."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quantgate.quantization.modelopt import read_version

#: The largest value of E4M3, and that of float32.
_LARGEST_E4M3 = 448.0
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Where a release of ModelOpt takes a range or a scale for none.

    Under a range that is not above `least_range`, E4M3 is scaled as under 1. A dynamic block of
    NVFP4 whose own scale is below `least_block_scale` is scaled by 1.
    """

    least_range: float
    least_block_scale: float


#: By the first release that computes so. 0.48 takes a range for none only where its scale is no
#: float32 (`tensor_quant.fp8_eager`, `tensor_quant_gpu_fp8.cu`), and in NVFP4 lets every scale of a
#: block count: 0 makes it a block of zeros (`fp4_kernel_hopper.py`).
ARITHMETIC = {
    (0, 47): Arithmetic(least_range=2.0**-24, least_block_scale=1e-5),
    (0, 48): Arithmetic(least_range=_LARGEST_E4M3 / _LARGEST_FLOAT32, least_block_scale=0.0),
}


def read_arithmetic() -> Arithmetic:
    """Return that of the ModelOpt that is installed. Raises MissingPackage where none is."""
    version = read_version()
    return ARITHMETIC[max((first for first in ARITHMETIC if first <= version), default=(0, 47))]
