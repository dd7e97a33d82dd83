"""Fake quantization in NVFP4 and OCP's Microscaling formats on a CPU, where ModelOpt has none.

ModelOpt computes them by kernels for NVIDIA GPUs. The same arithmetic is here in PyTorch, in
float32 and in the kernels' own order, so that a machine without a GPU measures what one with a GPU
would. Sources: `kernels/quantization/gemm/fp4_kernel_hopper.py`, `fp4_kernel.py`,
`common/nvfp4_quant.py` and `tensor_quant_mx.cu` (scales as in its `compute_scale_e8m0_NV`) of
ModelOpt 0.47 and 0.48; where they differ, that counts which is installed (`arithmetic.py`).

Known to differ: a NaN stays NaN (the kernels' tables make a number of it), subnormal numbers are
kept (the MX kernels are built to flush them), and NVFP4 keeps to the block size that is declared
(`fp4_fake_quant_block` is not told it, and takes 16).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import E4M3, NVFP4, read_blocks, read_format
from pytest_quantgate.quantization.arithmetic import Arithmetic, read_arithmetic
from pytest_quantgate.quantization.e4m3 import can_round, round_e4m3
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import (
    amax_of,
    device_of,
    format_of,
    is_dynamic,
    list_enabled_formats,
    list_gpu_formats,
)

if TYPE_CHECKING:
    import torch

#: What the NVFP4 kernel takes for a scale of the tensor that is not positive.
_LEAST_TENSOR_SCALE = 1e-12

#: What `emulated_kernels` puts something else in the place of.
_REPLACED = ("quantize_op", "dynamic_block_quantize_op", "triton_kernel")

#: Bits and exponent bits, as ModelOpt's operator is told them.
_E4M3_BITS = (E4M3.bits, E4M3.exponent_bits)


def fake_quantize_nvfp4(
    values: torch.Tensor, amax: torch.Tensor, *, arithmetic: Arithmetic, block_size: int = 16
) -> torch.Tensor:
    """Return `values` as NVFP4 holds them, with scales from the blocks of the last axis at hand.

    `amax` is the range of the tensor, one value (the largest of several counts). A block's scale is
    its largest magnitude / 6, in E4M3 under the tensor's scale, amax / (6 * 448). All blocks are
    scaled by 1 under a range that is not positive or not finite.
    """
    import torch

    scales, tensor_scale = scale_nvfp4(values, amax, block_size=block_size)
    scales = (scales * tensor_scale).unsqueeze(-1)
    whole = amax.float().amax()
    is_range = (whole > 0) & torch.isfinite(whole)
    scales = torch.where(
        is_range & (scales >= arithmetic.least_block_scale), scales, torch.ones_like(scales)
    )
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales))
    found = _round_minifloat(_split(values, block_size) / divisor, NVFP4) * divisor
    return _join(torch.where(scales > 0, found, torch.zeros_like(found)), like=values)


def scale_nvfp4(
    values: torch.Tensor, amax: torch.Tensor, *, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales of blocks [..., blocks], values of E4M3, and that of the tensor."""
    tensor_scale = scale_nvfp4_tensor(amax)
    ranges = _magnitude(_split(values, block_size)).squeeze(-1)
    scales = (ranges / (NVFP4.largest * tensor_scale)).clamp_max(E4M3.largest)
    return _round_e4m3(scales), tensor_scale


def scale_nvfp4_tensor(amax: torch.Tensor) -> torch.Tensor:
    """Return the scale of a tensor: with it the scale of its largest block is that of E4M3."""
    import torch

    found = amax.float().amax() / (NVFP4.largest * E4M3.largest)
    return found if bool(found > 0) else torch.full_like(found, _LEAST_TENSOR_SCALE)


def fake_quantize_static_nvfp4(
    values: torch.Tensor,
    amax: torch.Tensor,
    global_amax: torch.Tensor | None = None,
    quantize_block_scales: bool = True,
    fp8_max_for_normalization: float = E4M3.largest,
    out_dtype: torch.dtype | None = None,
    *,
    arithmetic: Arithmetic,
) -> torch.Tensor:
    """Return `values` as NVFP4 holds them, with the calibrated range of each block in `amax`.

    The arguments are those of ModelOpt's `static_blockwise_fp4_fake_quant`: `amax` has one value
    for each `values.numel() / amax.numel()` values in a row. A block of range 0 becomes 0.
    """
    import torch

    if values.numel() % amax.numel():
        raise ValueError(f"{values.numel()} values are no whole blocks of {amax.numel()} ranges")
    scales = amax.float() / NVFP4.largest
    if quantize_block_scales:
        codes, tensor_scale = scale_static_nvfp4(
            amax,
            global_amax,
            arithmetic=arithmetic,
            fp8_max_for_normalization=fp8_max_for_normalization,
        )
        scales = codes * tensor_scale
    scales = scales.reshape(-1, 1)
    blocks = values.float().reshape(len(scales), -1)
    usable = torch.isfinite(scales) & (scales != 0)
    safe = torch.where(usable, scales, torch.ones_like(scales))
    found = _round_minifloat(blocks / safe, NVFP4) * safe
    found = torch.where(scales == 0, torch.zeros_like(found), found)
    return found.reshape(values.shape).to(out_dtype or values.dtype)


def scale_static_nvfp4(
    amax: torch.Tensor,
    global_amax: torch.Tensor | None = None,
    *,
    arithmetic: Arithmetic,
    fp8_max_for_normalization: float = E4M3.largest,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales of blocks of calibrated ranges, values of E4M3, and that of the tensor."""
    import torch

    ranges = amax.float()
    whole = (ranges.amax() if global_amax is None else global_amax).float()
    highest = whole * (E4M3.largest / fp8_max_for_normalization) / NVFP4.largest
    highest = torch.where(highest <= arithmetic.least_range, torch.ones_like(highest), highest)
    factor = E4M3.largest / highest
    scales = ranges / NVFP4.largest * factor
    return _round_e4m3(scales.clamp(-E4M3.largest, E4M3.largest)), 1 / factor


def fake_quantize_mx(
    values: torch.Tensor, *, element: NumberFormat, block_size: int = 32
) -> torch.Tensor:
    """Return `values` as a Microscaling format holds them, in blocks of the last axis.

    A block's scale is the smallest power of two, from 2**-127 to 2**127, with which its largest
    magnitude is at most the `element`'s largest value. It is 1 for a block of zeros.
    """
    import torch

    blocks = _split(values, block_size)
    scales = scale_mx(values, element=element, block_size=block_size).unsqueeze(-1)
    _, exponent = torch.frexp(scales)
    exponent = exponent - 1
    scaled = torch.ldexp(blocks, -exponent)
    if element.is_integer:
        found = scaled.round().clamp(-element.largest, element.largest)
    elif element.num_bits == E4M3.num_bits:
        found = _round_e4m3(scaled.clamp(-element.largest, element.largest))
    else:
        found = _round_minifloat(scaled, element)
    return _join(torch.ldexp(found, exponent), like=values)


def scale_mx(values: torch.Tensor, *, element: NumberFormat, block_size: int) -> torch.Tensor:
    """Return the scales of blocks [..., blocks], powers of two: see `fake_quantize_mx`."""
    import torch

    ranges = _magnitude(_split(values, block_size)).squeeze(-1)
    ratio = ranges / element.largest
    mantissa, exponent = torch.frexp(ratio)  # ratio = mantissa * 2**exponent, mantissa from 0.5
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    exponent = torch.where(ratio == 0, torch.full_like(exponent, -127), exponent).clamp(-127, 127)
    exponent = torch.where(ranges == 0, torch.zeros_like(exponent), exponent)
    return torch.ldexp(torch.ones_like(ratio), exponent)


def scale_blocks(quantizer: Any, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scales of a weight's blocks, [N, blocks], as its quantizer takes them.

    Those of NVFP4 are values of E4M3; the second value is what they are multiplied by. None for
    powers of two. Raises ValueError for a format whose blocks have no scales of their own.
    """
    kind, size = format_of(quantizer), read_blocks(quantizer.block_sizes).get(-1)
    if kind is None or kind.scale_bits is None or size is None:
        raise ValueError(f"blocks of {quantizer} have no scales of their own")
    amax = amax_of(quantizer)
    if amax is None:
        return scale_mx(weight, element=kind, block_size=size), None
    if is_dynamic(quantizer):
        return scale_nvfp4(weight, amax.to(weight.device), block_size=size)
    scales, factor = scale_static_nvfp4(
        amax.to(weight.device),
        getattr(quantizer, "global_amax", None),
        arithmetic=read_arithmetic(),
    )
    return scales.reshape(weight.shape[0], -1), factor


def _split(values: torch.Tensor, size: int) -> torch.Tensor:
    """Return float32 [..., blocks, size]; the last block is filled with zeros."""
    from torch.nn import functional

    missing = -values.shape[-1] % size
    whole = functional.pad(values.float(), (0, missing))
    return whole.reshape(*whole.shape[:-1], -1, size)


def _join(blocks: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    return blocks.flatten(-2)[..., : like.shape[-1]].to(like.dtype)


def _magnitude(blocks: torch.Tensor) -> torch.Tensor:
    """Return the largest finite magnitude of each block, [..., blocks, 1]: a NaN is passed over."""
    import torch

    known = torch.nan_to_num(blocks, nan=0.0).abs()
    return known.clamp_max(torch.finfo(torch.float32).max).amax(dim=-1, keepdim=True)


def _round_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Return the nearest values of E4M3 to values within its range, ties to the even code."""
    import torch

    return values.to(torch.float8_e4m3fn).float()


def _round_minifloat(values: torch.Tensor, kind: NumberFormat) -> torch.Tensor:
    """Return the nearest values of a format, ties to the even code, beyond its range the end."""
    import torch

    magnitude = values.abs().clamp_max(kind.largest)
    _, exponent = torch.frexp(magnitude)
    step = (exponent - 1 - kind.mantissa_bits).clamp_min(kind.first_exponent)
    found = torch.ldexp(torch.ldexp(magnitude, -step).round(), step)
    return torch.where(values < 0, -found, found)


# -- in ModelOpt's place -------------------------------------------------------------------------


def with_emulation(model: Encoder) -> Encoder:
    """Return a quantized model whose forwards emulate what ModelOpt cannot compute where it is.

    A note says so. What ModelOpt computes on a CPU slowly is computed faster, to the same bits. The
    model itself where there is neither.
    """
    formats = list_enabled_formats(model.module)
    found = _list_emulated(formats, module=model.module)
    if not found:
        faster = E4M3.name in formats and device_of(model.module) == "cpu" and _rounds_alike()
        return replace(model, forward_context=emulated_kernels) if faster else model
    note = (
        f"{', '.join(found)} {'was' if len(found) == 1 else 'were'} computed on this CPU by "
        f"pytest-quantgate's own arithmetic, which equals that of ModelOpt's kernels: those need "
        f"an NVIDIA GPU"
    )
    return replace(model, forward_context=emulated_kernels, notes=(*model.notes, note))


def kernels_for(formats: Iterable[str], *, module: torch.nn.Module) -> AbstractContextManager[None]:
    """Return the context in which a model can compute formats: an emulation, or nothing at all."""
    return emulated_kernels() if _list_emulated(formats, module=module) else nullcontext()


def _list_emulated(formats: Iterable[str], *, module: torch.nn.Module) -> list[str]:
    found = [kind.name for kind in list_gpu_formats(formats) if kind.is_emulated]
    return found if found and device_of(module) == "cpu" else []


@contextmanager
def emulated_kernels() -> Iterator[None]:
    """Let ModelOpt's quantizers compute on a CPU what it has kernels for GPUs alone for.

    Tensors on a GPU go to ModelOpt's own kernels as before, and when the block ends its module is
    what it was: three names of `tensor_quant` are other objects meanwhile.
    """
    module = import_modelopt("modelopt.torch.quantization.tensor_quant")
    own = {name: getattr(module, name) for name in _REPLACED}
    arithmetic = read_arithmetic()

    def quantize(inputs: torch.Tensor, amax: torch.Tensor, **named: Any) -> torch.Tensor:
        if (named["num_bits"], named["exponent_bits"]) == _E4M3_BITS and can_round(inputs, amax):
            return round_e4m3(inputs, amax, least_range=arithmetic.least_range)
        return own["quantize_op"](inputs, amax, **named)  # type: ignore[no-any-return]

    def quantize_blocks(inputs: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if inputs.device.type != "cpu":
            return own["dynamic_block_quantize_op"](inputs, *arguments, **named)  # type: ignore[no-any-return]
        return _quantize_dynamic_blocks(inputs, *arguments, **named, arithmetic=arithmetic)

    module.quantize_op = quantize
    module.dynamic_block_quantize_op = quantize_blocks
    module.triton_kernel = _Kernels(own["triton_kernel"], arithmetic=arithmetic)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


def _rounds_alike() -> bool:
    """Return whether this release of ModelOpt rounds to E4M3 as `round_e4m3` does."""
    import torch

    module = import_modelopt("modelopt.torch.quantization.tensor_quant")
    # Every exponent and sign, with the seven bits of a float32 that a tie is seen in.
    patterns = torch.arange(1 << 16, dtype=torch.int32) << 16
    values = torch.cat((patterns, patterns + 1)).view(torch.float32)
    least_range = read_arithmetic().least_range

    def agree(amax: torch.Tensor) -> bool:
        ours = round_e4m3(values, amax, least_range=least_range)
        theirs = module.fp8_eager(values, amax)
        return torch.equal(
            ours.nan_to_num().view(torch.int32), theirs.nan_to_num().view(torch.int32)
        )

    return all(agree(torch.tensor(amax)) for amax in (3.0, 2 * least_range, least_range))


def _quantize_dynamic_blocks(
    inputs: torch.Tensor,
    block_size: int,
    amax: torch.Tensor | None,
    num_bits: int,
    exponent_bits: int,
    scale_num_bits: int,
    scale_exponent_bits: int,
    trt_high_precision_dtype: str | None = None,
    onnx_quantizer_type: str | None = None,
    *,
    arithmetic: Arithmetic,
) -> torch.Tensor:
    """What `tensorrt::dynamic_block_quantize_op` computes, by its own arguments.

    Its last two, which it has since ModelOpt 0.48, are for an exported graph alone.
    """
    del trt_high_precision_dtype, onnx_quantizer_type
    bits = (exponent_bits, num_bits - exponent_bits - 1) if exponent_bits else num_bits
    scale_bits = (scale_exponent_bits, scale_num_bits - scale_exponent_bits - 1)
    blocks = {-1: block_size, "type": "dynamic", "scale_bits": scale_bits}
    kind = read_format(bits, block_sizes=blocks)
    if kind is not None and kind.scale_bits == scale_bits:
        if kind.amax == "none":
            return fake_quantize_mx(inputs, element=kind, block_size=block_size)
        if amax is not None:
            return fake_quantize_nvfp4(inputs, amax, arithmetic=arithmetic, block_size=block_size)
    raise NotImplementedError(
        f"num_bits {bits!r} with scale_bits {scale_bits!r} in dynamic blocks is not emulated"
    )


class _Kernels:
    """ModelOpt's Triton kernels, with static NVFP4 blocks for tensors on a CPU."""

    IS_AVAILABLE = True

    def __init__(self, own: Any, *, arithmetic: Arithmetic) -> None:
        self._own = own
        self._arithmetic = arithmetic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def static_blockwise_fp4_fake_quant(
        self, values: torch.Tensor, *arguments: Any, **named: Any
    ) -> torch.Tensor:
        if values.device.type != "cpu":
            return self._own.static_blockwise_fp4_fake_quant(values, *arguments, **named)  # type: ignore[no-any-return]
        return fake_quantize_static_nvfp4(values, *arguments, **named, arithmetic=self._arithmetic)

    def static_blockwise_fp4_cast(
        self, values: torch.Tensor, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if values.device.type != "cpu":
            return self._own.static_blockwise_fp4_cast(values, out_dtype)  # type: ignore[no-any-return]
        return _round_minifloat(values.float(), NVFP4).to(out_dtype or values.dtype)
