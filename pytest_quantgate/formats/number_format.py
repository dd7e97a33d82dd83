"""One number format: which values it has, how it is scaled, and how every other part spells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """One row of the table of number formats.

    A value is a sign (if `is_signed`), `exponent_bits` and `mantissa_bits`; without exponent bits
    it is an integer, whose mantissa is all bits but the sign. The `reserved_codes` at the top are
    NaN or infinite.
    `block_size` values share a scale by the format's own definition; None: a tensor, a channel or
    any block does. `scale_bits` are exponent and mantissa of a block's scale, None where it is in
    full precision. `amax` says what ModelOpt keeps in a quantizer's amax: the `range` of its
    values (static, or none where the quantizer is declared dynamic), the range of the `tensor`
    that the scales of blocks are made from (the blocks are dynamic), or `none`, as all scales come
    from the values at hand. What an algorithm adds (SmoothQuant's scale, SVDQuant's branch) is not
    part of a format.

    `needs_gpu`: ModelOpt computes it by kernels for NVIDIA GPUs alone; `is_emulated`: so this
    product has the same arithmetic for a CPU.
    `onnx_type` names it in ONNX, `safetensors_dtype` in safetensors files, `torch_dtype` in
    PyTorch, where this product stores values of it. `precision` is what an engine report calls a
    kernel that multiplies in it (empty: none was seen to), `engine_dtypes` the words of TensorRT
    for a tensor of it, `hardware_type` the word of its refusals. `first_target` is the first
    architecture with units for it, empty where no builder takes it.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    is_signed: bool = True
    reserved_codes: int = 0
    block_size: int | None = None
    scale_bits: tuple[int, int] | None = None
    amax: Literal["range", "tensor", "none"] = "range"
    needs_gpu: bool = False
    onnx_type: str = ""
    torch_dtype: str = ""
    safetensors_dtype: str = ""
    precision: str = ""
    engine_dtypes: tuple[str, ...] = ()
    hardware_type: str = ""
    first_target: str = ""

    @property
    def is_integer(self) -> bool:
        return self.exponent_bits == 0

    @property
    def bits(self) -> int:
        """Bits of one value, without its share of a scale."""
        return self.is_signed + self.exponent_bits + self.mantissa_bits

    @property
    def num_bits(self) -> int | tuple[int, int]:
        """The value of ModelOpt's `num_bits`."""
        return self.bits if self.is_integer else (self.exponent_bits, self.mantissa_bits)

    @property
    def is_emulated(self) -> bool:
        return self.needs_gpu and self.scale_bits is not None

    def keeps_amax(self, *, dynamic: bool) -> bool:
        """Return whether a quantizer has a calibrated amax; `dynamic` as it is declared."""
        return self.amax == "tensor" or (self.amax == "range" and not dynamic)

    @property
    def element(self) -> str:
        """The name of one value without its scale: `E2M1` for NVFP4."""
        if self.is_integer:
            return f"{'' if self.is_signed else 'U'}INT{self.bits}"
        return f"E{self.exponent_bits}M{self.mantissa_bits}"

    @property
    def family(self) -> str:
        """What people call it: `FP8` for E4M3, else its name."""
        return f"FP{self.bits}" if self.name == self.element and not self.is_integer else self.name

    # -- values ----------------------------------------------------------------------------------

    @property
    def top_code(self) -> int:
        """The code of the largest value; as many levels lie above 0."""
        codes: int = 1 << (self.exponent_bits + self.mantissa_bits)
        return codes - 1 - self.reserved_codes

    def value_of(self, code: int) -> float:
        """Return the value of a code without its sign: codes count up with their values."""
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if exponent:
            mantissa += 1 << self.mantissa_bits
        return math.ldexp(mantissa, self.first_exponent + max(exponent, 1) - 1)

    @cached_property
    def largest(self) -> float:
        """The largest value; with amax as the range, amax divided by it is the scale."""
        return self.value_of(self.top_code)

    @property
    def lowest(self) -> float:
        """The lowest value: integers have one more below 0 (two's complement)."""
        return -(self.largest + self.is_integer) if self.is_signed else 0.0

    @property
    def half_step(self) -> float:
        """Half the distance of the values at the largest one, as a share of it.

        0.5 / 127 for INT8; for E4M3, whose values end at 416 and 448, 16 / 448. Up to there
        rounding gives the largest value anyway. Infinite for INT1, which has none above 0.
        """
        return self._step_at(self.largest) / 2 / self.largest if self.largest else math.inf

    def round_value(self, value: float) -> float:
        """Return the nearest value of the format, of two the one with an even code; NaN for NaN."""
        if value >= self.largest:
            return self.largest
        if value <= self.lowest:
            return self.lowest
        step = self._step_at(value)
        return math.copysign(round(value / step) * step, value) if value == value else value

    def count_levels(self, share: float) -> tuple[int, int]:
        """Return how many levels above 0 there are up to a share of the range, and in all."""
        value = self.round_value(share * self.largest)
        step = self._step_at(value)
        binades = round(math.log2(step)) - self.first_exponent
        return round(value / step) + (binades << self.mantissa_bits), self.top_code

    @property
    def first_exponent(self) -> int:
        """The power of two of the smallest value above 0."""
        if self.is_integer:
            return 0
        bias = (1 << (self.exponent_bits - 1)) - 1
        return 1 - bias - self.mantissa_bits

    def _step_at(self, value: float) -> float:
        """Return the distance of the format's values around one within its range."""
        if self.is_integer or value == 0:
            return math.ldexp(1.0, self.first_exponent)
        binade = math.frexp(value)[1] - 1 - self.mantissa_bits
        return math.ldexp(1.0, max(binade, self.first_exponent))

    # -- storage ---------------------------------------------------------------------------------

    def count_bits(
        self, shape: Sequence[int], *, blocks: Mapping[int, int] | None = None, full_bits: int
    ) -> int:
        """Return the bits that a tensor takes, with the scales of its blocks.

        `blocks` are sizes by axis, where they are not the format's own; `full_bits` are those of a
        scale in full precision. The one scale of a tensor or channel is not counted.
        """
        values = math.prod(shape)
        if blocks is None and self.block_size is not None:
            blocks = {-1: self.block_size}
        if not blocks:
            return values * self.bits
        sizes = [1] * len(shape)
        for axis, size in blocks.items():
            sizes[axis] = size
        scales = math.prod(-(-length // size) for length, size in zip(shape, sizes, strict=True))
        return values * self.bits + scales * self._count_scale_bits(full_bits)

    def _count_scale_bits(self, full_bits: int) -> int:
        if self.scale_bits is None:
            return full_bits
        # Scales are positive: E8M0 has no sign, that of E4M3 is stored all the same.
        return sum(self.scale_bits) + (self.scale_bits[1] > 0)

    # -- targets ---------------------------------------------------------------------------------

    def is_supported_on(self, target: str) -> bool:
        """Return whether an architecture (`sm89`) has units for it; True for an unknown name."""
        number = target.removeprefix("sm")
        if not number.isdecimal():
            return True
        return bool(self.first_target) and int(number) >= int(self.first_target.removeprefix("sm"))
