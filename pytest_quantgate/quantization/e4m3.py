"""E4M3 under one range, on a CPU: bit for bit what ModelOpt computes there, in less time.

ModelOpt's `tensor_quant.fp8_eager` makes five new tensors and casts twice, and takes most of
a quantized forward. Here a part of the tensor that stays in the CPU's cache is rounded in place.

A float32 is rounded to a multiple of 2^e by adding 1.5 * 2^(e + 23) and taking it away again, ties
to the even multiple, as the addition itself rounds (Dekker, A floating-point technique for
extending the available precision, 1971). E4M3 has three bits behind the first one, so a value with
exponent k is rounded to a multiple of 2^(k - 3), and what is below 2^-6 to one of 2^-9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.formats.table import E4M3

if TYPE_CHECKING:
    import torch

#: What a thread rounds at a time: 256 KB of float32.
_PART = 1 << 16

#: A float32's exponent starts at this bit, is stored with this added, and 23 bits stand before it.
_EXPONENT = 23
_BIAS = 127


def can_round(inputs: torch.Tensor, amax: torch.Tensor) -> bool:
    """Return whether `round_e4m3` is for these: float32 on a CPU, under one range."""
    import torch

    return (
        inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and inputs.is_contiguous()
        and amax.numel() == 1
        and amax.dim() <= inputs.dim()
    )


def round_e4m3(inputs: torch.Tensor, amax: torch.Tensor, *, least_range: float) -> torch.Tensor:
    """Return `inputs`, of any shape, as E4M3 holds them where `amax` is its largest value, 448.

    A range that is not above `least_range` counts as 1.
    """
    import torch

    largest = E4M3.largest
    amax = amax.to(torch.float32)
    scale = largest / torch.where(amax <= least_range, torch.ones_like(amax), amax).reshape(())
    inverse = 1 / scale
    outputs = torch.empty_like(inputs)
    source, target = inputs.view(-1), outputs.view(-1)
    length = min(_PART * torch.get_num_threads(), len(source))
    bits = torch.empty(length, dtype=torch.int32)
    # Three bits stay of 23, and half as much again keeps the sum's own exponent from falling.
    offset = ((_EXPONENT - E4M3.mantissa_bits) << _EXPONENT) | (1 << (_EXPONENT - 1))
    least = _BIAS + E4M3.first_exponent + E4M3.mantissa_bits
    for start in range(0, len(source), length or 1):
        part = target[start : start + length]
        step = bits[: len(part)]
        given = source[start : start + length]
        torch.mul(given, scale, out=part).clamp_(-largest, largest)
        torch.bitwise_and(part.view(torch.int32), 0xFF << _EXPONENT, out=step)
        step.clamp_(min=least << _EXPONENT).add_(offset)
        raised = step.view(torch.float32)
        part.add_(raised).sub_(raised).mul_(inverse)
        torch.copysign(part, given, out=part)  # a -0 of E4M3 stays one
    return outputs
