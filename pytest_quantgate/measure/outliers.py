"""Outlier channels: a few input channels whose size leaves all others few levels of one range.

An activation has one range for all of its channels (per-tensor). Where a few channels are many
times larger than the rest, the range is theirs, and the rest is rounded to the few levels at its
lower end: Dettmers et al. 2022 (LLM.int8(), arXiv 2208.07339, section 4) find such channels at
fixed places of the hidden state, Xiao et al. 2023 (SmoothQuant, arXiv 2211.10438, section 3) name
the effective levels that are left: 2^bits * m_i / m for a channel of size m_i in a range m.

Two questions are asked, and both are tried out. Here, at the quantizer's own input: does the noise
of the other channels fall, to half at least, if the same quantizer rounds them in the range that
they need themselves? If not, the channels do no harm: FP8 rounds small values as finely as large
ones, short of its subnormals. And in `measure/sensitivity.py`: how far does the noise of the
embeddings fall with the channels set apart? A gate names outlier channels by that answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.audit import Slot
from pytest_quantgate.evidence.sensitivity import OutlierChannels
from pytest_quantgate.formats.table import find_format, name_format
from pytest_quantgate.measure.fidelity import sum_of_squares
from pytest_quantgate.measure.groups import block_prefix
from pytest_quantgate.measure.quantizers import replaced_forward
from pytest_quantgate.quantization.quantizers import (
    amax_of,
    format_of,
    has_constant_range,
    is_dynamic,
    owner_of,
    slot_of,
    whole_name,
)

if TYPE_CHECKING:
    import torch

#: An outlier reaches more than so many times the median channel: it takes two bits from it.
FAR_ABOVE = 4.0

#: Outliers are few: at most one channel in so many. More of them are how the input is.
FEW = 16

#: The quantizers whose input has channels in its last dimension (a convolution's: its second).
_WITH_CHANNELS: tuple[Slot, ...] = ("input", "q", "k", "v", "attention_output")


def find_outliers(
    name: str, quantizer: Any, value: torch.Tensor, *, owner: torch.nn.Module
) -> OutlierChannels | None:
    """Return the outlier channels of what a quantizer was given, or None where they do no harm.

    None too where it has no single static range, or `value` is not finite.
    """
    import numpy as np
    import torch

    amax = amax_of(quantizer)
    if (
        slot_of(name) not in _WITH_CHANNELS
        or amax is None
        or amax.numel() != 1
        or not float(amax) > 0
        or is_dynamic(quantizer)
        or has_constant_range(quantizer)
        or value.dim() < 2
    ):
        return None
    channel = _channel_dimension(owner)
    seen = _scaled(quantizer, value.detach()).movedim(channel, -1)
    largest = seen.abs().amax(dim=tuple(range(seen.dim() - 1))).cpu().double().numpy()
    used = largest[largest > 0]
    if not np.isfinite(largest).all() or not used.size:
        return None
    median = float(np.median(used))
    order = np.argsort(-largest, kind="stable")
    channels = [int(index) for index in order if largest[index] > FAR_ABOVE * median]
    if not channels or len(channels) * FEW > len(largest):
        return None
    others = np.setdiff1d(order, channels)
    range_, top, rest = float(amax), float(largest[channels[0]]), float(largest[others].max())

    def noise(largest: float) -> float:
        with _narrowed(quantizer, min(1.0, largest / range_)):
            # `forward` itself: a call would run the hooks that may have led here.
            rounded = quantizer.forward(value.detach()).movedim(channel, -1)
        index = torch.from_numpy(others).to(seen.device)
        error = rounded.index_select(-1, index).double() - seen.index_select(-1, index).double()
        return sum_of_squares(error)

    # In ranges that are as wide as their values: one that is too wide by itself is no outlier's.
    before = noise(top)
    if before == 0 or not noise(rest) <= before / 2:
        return None
    kind = format_of(quantizer)
    if kind is not None and kind.is_integer and quantizer.unsigned:
        kind = find_format(f"U{kind.name}")
    levels, levels_count = kind.count_levels(min(1.0, median / range_)) if kind else (None, None)
    return OutlierChannels(
        quantizer=name,
        place=_place_of(name),
        format=name_format(quantizer.num_bits, block_sizes=quantizer.block_sizes),
        channels=tuple(channels),
        channels_count=len(largest),
        largest_ratio=top / median,
        smallest_ratio=float(largest[channels[-1]]) / median,
        range_ratio=min(1.0, rest * max(1.0, range_ / top) / range_),  # as in `_own_range`
        levels=levels,
        levels_count=levels_count,
        smoothable=_is_smoothable(name, quantizer, owner),
    )


@contextmanager
def set_apart(
    module: torch.nn.Module, quantizers: Mapping[str, Any], found: Sequence[OutlierChannels]
) -> Iterator[None]:
    """Round outlier channels and the others apart from each other, while the block runs.

    The others have the range that they need, and so have the weights of the outliers, which are
    often as small as the outliers are large; both are too wide or too narrow by as much as the
    ranges are that are there. The outliers, and the weights of the others, are rounded as before.
    """
    with ExitStack() as stack:
        for outliers in found:
            name = owner_of(outliers.quantizer)
            owner = module.get_submodule(name)
            channel, ratio = _channel_dimension(owner), outliers.range_ratio
            split = _Split(quantizers[outliers.quantizer], outliers.channels, channel)
            stack.enter_context(split.with_others_narrowed(ratio))
            weights = quantizers.get(f"{name}.weight_quantizer")
            if slot_of(outliers.quantizer) == "input" and weights is not None:
                columns = _Split(weights, outliers.channels, 1)
                stack.enter_context(columns.with_columns_narrowed(outliers.channels_count))
        yield


class _Split:
    """A quantizer that rounds some channels in another range than the rest."""

    def __init__(self, quantizer: Any, channels: Sequence[int], dimension: int) -> None:
        self._quantizer, self._channels, self._dimension = quantizer, channels, dimension
        self._plain = quantizer.forward

    def with_others_narrowed(self, ratio: float) -> AbstractContextManager[None]:
        """Round all but the channels in a range that is narrower by a ratio."""

        def forward(value: torch.Tensor) -> torch.Tensor:
            return self._mixed(value, ratio, others=True)

        return replaced_forward(self._quantizer, forward)

    def with_columns_narrowed(self, count: int) -> AbstractContextManager[None]:
        """Round the channels of a weight with `count` of them in the range that they need."""

        def forward(value: torch.Tensor) -> torch.Tensor:
            if value.dim() < 2 or value.shape[1] != count:  # a convolution in groups
                return self._plain(value)  # type: ignore[no-any-return]
            ratio = self._columns_ratio(value)
            return self._plain(value) if ratio is None else self._mixed(value, ratio, others=False)

        return replaced_forward(self._quantizer, forward)

    def _mixed(self, value: torch.Tensor, ratio: Any, *, others: bool) -> torch.Tensor:
        together: torch.Tensor = self._plain(value)
        with _narrowed(self._quantizer, ratio):
            apart: torch.Tensor = self._plain(value)
        rest, chosen = (apart, together) if others else (together, apart)
        index = self._index(rest)
        return rest.index_copy(self._dimension, index, chosen.index_select(self._dimension, index))

    def _columns_ratio(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Return the range that the channels of a weight need, as a share of the one they have."""
        import torch

        amax = amax_of(self._quantizer)
        if amax is None or has_constant_range(self._quantizer) or is_dynamic(self._quantizer):
            return None
        if amax.numel() != 1 and amax.shape != (len(weight), *[1] * (weight.dim() - 1)):
            return None
        every = weight.detach().abs()
        dims = tuple(range(0 if amax.numel() == 1 else 1, weight.dim()))
        whole, part = (
            values.amax(dim=dims, keepdim=True).reshape(amax.shape)
            for values in (every, every.index_select(1, self._index(every)))
        )
        ratio = _own_range(part, whole, amax) / amax
        return torch.where(ratio > 0, ratio, 1.0)  # false for the NaN of a row of zeros, too

    def _index(self, value: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.tensor(self._channels, device=value.device)


def _own_range(part: torch.Tensor, whole: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Return the range that a part needs: wider than its values by as much as `amax` is.

    Where `amax` clips, the part has the range that it has, at most: no narrowing mends that.
    """
    import torch

    return torch.minimum(amax, part * (amax / whole).clamp(min=1.0))


@contextmanager
def _narrowed(quantizer: Any, ratio: float) -> Iterator[None]:
    before = quantizer._amax
    quantizer._amax = before * ratio
    try:
        yield
    finally:
        quantizer._amax = before


def _scaled(quantizer: Any, value: torch.Tensor) -> torch.Tensor:
    """Return what a quantizer rounds of a value: SmoothQuant scales it before."""
    scale = getattr(quantizer, "pre_quant_scale", None)
    return value if scale is None else value * scale


def _channel_dimension(owner: torch.nn.Module) -> int:
    from torch import nn

    return 1 if isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else -1


def _is_smoothable(name: str, quantizer: Any, owner: torch.nn.Module) -> bool:
    """Return whether ModelOpt's SmoothQuant would move these channels' range into the weights.

    It does so for Linear layers with weights and inputs in INT8, and had not done so yet.
    """
    from torch import nn

    weights = getattr(owner, "weight_quantizer", None)
    bits = (quantizer.num_bits, getattr(weights, "num_bits", None))
    unsmoothed = getattr(quantizer, "pre_quant_scale", None) is None
    return (
        slot_of(name) == "input" and isinstance(owner, nn.Linear) and bits == (8, 8) and unsmoothed
    )


def _place_of(name: str) -> str:
    """Return where in its block a quantizer sits: `mlp.fc1`, `self_attn.v_bmm`."""
    owner = owner_of(name)
    if slot_of(name) != "input":
        owner = f"{owner}.{whole_name(name).rpartition('.')[2].removesuffix('_quantizer')}"
    place = block_prefix(owner)
    return owner[len(place) + 1 :] if place else owner.rpartition(".")[2]
