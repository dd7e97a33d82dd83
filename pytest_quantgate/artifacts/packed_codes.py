"""4-bit weights with several codes in one number of a file, as each tool lays them out.

Which layout it is, the scales beside the codes tell: E4M3 or powers of two along a row (FP4, the
low half of a byte first), floats of twice as many rows (ModelOpt's INT4, two rows in one byte), or
floats beside 32-bit numbers (compressed-tensors, eight codes of a row, each plus 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.operands import WeightSummary, largest_of
from pytest_quantgate.artifacts.safetensors_file import Tensor, decode_powers, import_numpy
from pytest_quantgate.formats.table import E4M3, INT4, NVFP4, find_format

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

_POWERS = ("F8_E8M0", "U8")


@dataclass(frozen=True, kw_only=True)
class PackedCodes:
    """The codes of a weight, as [outputs, inputs] of `shape`, and the scales of their blocks.

    `whole` is the one factor of all scales, None where NVFP4's is not there.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, int]
    format: str
    whole: float | None = 1.0

    @property
    def block(self) -> int:
        """Return how many codes of a row share a scale, 0 where the scales cannot be laid so."""
        rows, columns = (*self.scales.shape, 1, 1)[:2]
        if len(self.scales.shape) > 2 or rows != self.shape[0] or not columns:
            return 0
        size, rest = divmod(self.shape[1], columns)
        return 0 if rest else size

    @property
    def fits(self) -> bool:
        """Return whether the scales are those of whole blocks, of the size that a format has."""
        kind = find_format(self.format)
        return self.block > 0 and (kind is None or kind.block_size in (None, self.block))

    @property
    def granularity(self) -> str:
        """Return `block 16`, or `per-channel` for one scale a row of a format without blocks."""
        kind = find_format(self.format)
        is_row = self.block == self.shape[1] and (kind is None or kind.block_size is None)
        return "per-channel" if is_row else f"block {self.block}" if self.block else ""

    def read_scales(self) -> Array | None:
        """Return the scales, flat as float32, None where a part of them is not there."""
        if self.whole is None:
            return None
        # compressed-tensors stores powers of two as plain bytes
        is_plain = self.scales.dtype == "U8"
        found = decode_powers(self.scales.raw()) if is_plain else self.scales.values()
        with import_numpy().errstate(all="ignore"):  # whoever reads an infinite one says so
            scaled: Array = (found * self.whole).astype("f4")
        return scaled

    def read_codes(self) -> Array:
        """Return the value of each code as float32, of `shape`."""
        numpy = import_numpy()
        raw = self.codes.raw()
        if self.codes.dtype == "I32":
            parts = raw.view("<u4")[:, None] >> numpy.arange(0, 32, 4, dtype="u4") & 15
            rows = parts.reshape(self.shape[0], -1)[:, : self.shape[1]]
            codes: Array = rows.astype("f4") - 8
            return codes
        halves = numpy.stack([raw & 15, raw >> 4], axis=-1)
        if self.format == INT4.name:  # two rows in one byte
            rows = numpy.moveaxis(halves.reshape(*self.codes.shape, 2), 2, 1)
            codes = rows.reshape(self.shape).astype("f4")
            codes -= 16 * (codes > 7)
            return codes
        kind = find_format(self.format)
        assert kind is not None
        sizes = [kind.value_of(code) for code in range(8)]
        values = numpy.asarray([*sizes, *(-size for size in sizes)], dtype="f4")
        found: Array = values[halves].reshape(self.shape)
        return found

    def dequantize(self) -> Array | None:
        """Return the weight as float32, None where its scales cannot be laid over it."""
        scales = self.read_scales()
        if scales is None or not self.block:
            return None
        rows = self.read_codes().reshape(scales.size, -1)
        with import_numpy().errstate(all="ignore"):
            found: Array = (rows * scales.reshape(-1, 1)).reshape(self.shape)
        return found

    def summarize(self) -> WeightSummary:
        """Return what the codes and the dequantized weight tell, a block where blocks are known."""
        numpy = import_numpy()
        codes, weight = self.read_codes(), self.dequantize()
        blocks = numpy.abs(codes).reshape(self.scales.count if self.block else 1, -1)
        with numpy.errstate(all="ignore"):
            odd = 0 if weight is None else int((~numpy.isfinite(weight)).sum())
            energy = (
                0.0 if weight is None or odd else float(numpy.square(weight, dtype="f8").mean())
            )
        return WeightSummary(
            largest=tuple(blocks.max(axis=1).tolist()), rms=energy**0.5, not_finite=odd
        )


def find_packed(tensors: Mapping[str, Tensor], *, name: str, module: str) -> PackedCodes | None:
    """Return the packed codes of the weight in a tensor, None where it is not packed so."""
    codes, scales = tensors[name], tensors.get(f"{module}.weight_scale")
    if scales is None or len(codes.shape) != 2 or not codes.count or not scales.count:
        return None
    if codes.dtype not in ("U8", "I32"):
        return None
    rows, columns = codes.shape
    if codes.dtype == "I32":
        said = tensors.get(f"{module}.weight_shape")
        shape = (rows, 8 * columns)
        if said is not None and said.count == 2 and said.dtype in ("I32", "I64"):
            shape = (int(said.values()[0]), int(said.values()[1]))
        if shape[0] != rows or not 8 * (columns - 1) < shape[1] <= 8 * columns:
            return None
        return PackedCodes(codes=codes, scales=scales, shape=shape, format=INT4.name)
    if scales.dtype == "F8_E4M3":
        return PackedCodes(
            codes=codes,
            scales=scales,
            shape=(rows, 2 * columns),
            format=NVFP4.name,
            whole=_read_whole(tensors, module=module),
        )
    if scales.dtype in _POWERS:
        return PackedCodes(codes=codes, scales=scales, shape=(rows, 2 * columns), format="MXFP4")
    if scales.shape and scales.shape[0] == 2 * rows:
        return PackedCodes(codes=codes, scales=scales, shape=(2 * rows, columns), format=INT4.name)
    return None


def _read_whole(tensors: Mapping[str, Tensor], *, module: str) -> float | None:
    """Return the factor of all scales of an NVFP4 weight: compressed-tensors keeps its inverse."""
    factor = _read_one(tensors, f"{module}.weight_scale_2")
    if factor is not None:
        return factor
    inverse = _read_one(tensors, f"{module}.weight_global_scale")
    return 1 / inverse if inverse else inverse


def read_input_range(tensors: Mapping[str, Tensor], *, module: str) -> tuple[float, ...] | None:
    """Return the range of an NVFP4 input, whose blocks are scaled in each run; None without."""
    top = E4M3.largest * largest_of(NVFP4.name)
    factor = _read_one(tensors, f"{module}.input_scale")
    if factor is not None:
        return (factor * top,)
    inverse = _read_one(tensors, f"{module}.input_global_scale")
    return None if inverse is None else (top / inverse if inverse else inverse,)


def _read_one(tensors: Mapping[str, Tensor], name: str) -> float | None:
    tensor = tensors.get(name)
    return float(tensor.values()[0]) if tensor is not None and tensor.count == 1 else None
