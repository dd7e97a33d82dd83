"""Reads ModelOpt's quantizers: what each is, where it sits, and what it did in a forward."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.audit import Declared, Quantizer, Tower
from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import ignores_scales, name_format, read_blocks
from pytest_quantgate.quantization.emulation import scale_blocks
from pytest_quantgate.quantization.quantizers import (
    amax_of,
    block_of,
    find_quantizers,
    format_of,
    has_constant_range,
    is_dynamic,
    owner_of,
    plain_class_name,
    slot_of,
    tower_of,
    whole_name,
)
from pytest_quantgate.quantization.recipes import format_of as format_of_settings

if TYPE_CHECKING:
    import numpy as np
    import torch

#: How far rounding may move a range from the largest magnitude of its values, as a share of it.
RANGE_TOLERANCE = 0.01


@dataclass(kw_only=True)
class Activity:
    """What one quantizer did: forwards in which it ran per tower, and values that it clipped.

    `clipped_values` counts them sample by sample (only of forwards in which any was clipped).
    `largest` is the largest magnitude that it was given on held-out data, None before any;
    `row_values` how many values the last axis had.
    `batch_dependent` says whether what it gave for a sample changed with the rest of the batch.
    """

    tower_calls: Counter[str] = field(default_factory=Counter)
    changed: bool = False
    batch_dependent: bool = False
    clipped_values: list[int] = field(default_factory=list)
    seen: int = 0
    largest: float | None = None
    row_values: int = 0


@contextmanager
def watch(
    quantizers: Mapping[str, Any],
    *,
    activity: Mapping[str, Activity],
    tower: Tower,
    count_clipping: bool,
) -> Iterator[None]:
    """Count calls, changes and clipped values of every quantizer while the block runs.

    Whether the batch matters is asked where clipping is not counted: once is enough.

    One hook for all modules, not a hook on each: `nn.TransformerEncoderLayer` looks for hooks on
    its children and leaves its fused path, which calls no quantizer, as soon as it finds one.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_hook

    by_identity = {
        id(quantizer): (activity[name], slot_of(name)) for name, quantizer in quantizers.items()
    }

    begun: dict[int, int] = {}

    def hook(module: Any, inputs: Sequence[Any], output: Any) -> None:
        found = by_identity.get(id(module))
        if found is None or not module.is_enabled or not isinstance(output, torch.Tensor):
            return
        seen, slot = found
        seen.tower_calls[tower] += 1
        value = inputs[0]
        seen.row_values = value.shape[-1] if value.dim() else 0
        if not seen.changed:
            seen.changed = output.shape != value.shape or not torch.equal(output, value)
        if slot == "weight" and (seen.seen or not count_clipping):
            return  # a weight stays as it is, whatever is in the batch
        if not count_clipping:
            seen.batch_dependent |= depends_on_batch(module, value, output)
            return
        clipped, total = count_clipped(module, value)
        if slot == "weight":
            clipped = [sum(clipped)]
        if id(module) in begun:  # called before in this block, for the same samples
            place = begun[id(module)]
            pairs = zip_longest(seen.clipped_values[place:], clipped, fillvalue=0)
            clipped = [one + other for one, other in pairs]
            del seen.clipped_values[place:]
        begun[id(module)] = len(seen.clipped_values)
        seen.clipped_values += clipped
        seen.seen += total
        if total and not has_constant_range(module):
            seen.largest = max(seen.largest or 0.0, largest_magnitude(module, value))

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def depends_on_batch(quantizer: Any, value: torch.Tensor, output: torch.Tensor) -> bool:
    """Return whether what a quantizer gives for a batch changes with what else is in it.

    The same values, 1.3 times as large, are put behind it: a range for the whole batch then is
    another one, a range for each token or block, or one that was calibrated, is not. Not twice as
    large: to a floating-point format a power of two makes no difference.
    """
    import torch

    if amax_of(quantizer) is not None and not is_dynamic(quantizer):
        return False
    more = quantizer.forward(torch.cat([value, 1.3 * value]))
    return not torch.equal(more[: len(value)], output)


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run another forward in a module's place, while the block runs."""
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def count_clipped(quantizer: Any, value: torch.Tensor) -> tuple[list[int], int]:
    """Return how many values a quantizer clips in each row, and how many values there are in all.

    No rows stand for none in any. ([], 0) where there is no static amax that could clip.
    SmoothQuant scales a value before it is quantized, and so does this count.

    What lies above amax by up to half a step of the format becomes the largest level, as far off
    as rounding puts any value of that size: it is not clipped. Nor is it news: the model that was
    calibrated had no quantizers before this one, and the noise of those moves a value as far.
    """
    import torch

    amax = amax_of(quantizer)
    kind = format_of(quantizer)
    if amax is None or kind is None or not kind.keeps_amax(dynamic=is_dynamic(quantizer)):
        return [], 0
    if not value.numel():
        return [], 0
    scale = getattr(quantizer, "pre_quant_scale", None)
    if scale is not None:
        value = value * scale
    highest = amax.to(value.device) * (1 + half_step(kind, dtype=value.dtype))
    low, high = torch.aminmax(value.detach())
    if float(torch.maximum(-low, high)) <= float(highest.min()):
        return [], value.numel()  # the usual case, without a temporary of the value's size
    try:
        above = value.detach().abs() > highest
    except RuntimeError:  # block amax does not broadcast over the value
        return [], 0
    return above.flatten(start_dim=1).sum(dim=1).tolist(), value.numel()


def half_step(kind: NumberFormat, *, dtype: torch.dtype) -> float:
    """Return `NumberFormat.half_step`: above the largest level by so much, nothing is clipped.

    Never less than the rounding of `dtype`, in which the value was computed.
    """
    import torch

    return max(kind.half_step, 8 * torch.finfo(dtype).eps)


def list_amax(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the static amax of every quantizer by its name, flat, as float64.

    Of a weight whose blocks have scales of their own: the range of each, as its scale stands for.
    """
    found = {}
    for name, quantizer in find_quantizers(module).items():
        amax, kind = amax_of(quantizer), format_of(quantizer)
        if kind is not None and kind.scale_bits is not None and slot_of(name) == "weight":
            weight = module.get_parameter(f"{owner_of(name)}.weight").detach().float()
            scales, factor = scale_blocks(quantizer, weight)
            amax = (scales if factor is None else scales * factor).double() * kind.largest
        if amax is not None:
            found[name] = amax.detach().cpu().double().flatten().numpy()
    return found


def largest_magnitude(quantizer: Any, value: torch.Tensor) -> float:
    """Return the largest magnitude that a quantizer sees of a value, scaled as SmoothQuant does."""
    import torch

    scale = getattr(quantizer, "pre_quant_scale", None)
    low, high = torch.aminmax(value.detach() if scale is None else value.detach() * scale)
    return float(torch.maximum(-low, high))


def describe_quantizer(
    name: str,
    quantizer: Any,
    *,
    owner: torch.nn.Module,
    activity: Activity,
    ran_in: frozenset[Tower],
) -> Quantizer:
    """Return the plain record of one quantizer."""
    import torch

    weight = owner._parameters.get("weight") if slot_of(name) == "weight" else None
    amax = amax_of(quantizer)
    finite = amax is not None and bool(torch.isfinite(amax).all())
    module = owner_of(name)
    blocks = read_blocks(quantizer.block_sizes)
    return Quantizer(
        name=name,
        module=module,
        module_class=plain_class_name(owner),
        slot=slot_of(name),
        tower=tower_of(module, ran_in=ran_in),
        block=block_of(name),
        enabled=bool(quantizer.is_enabled),
        format=name_format(quantizer.num_bits, block_sizes=quantizer.block_sizes),
        granularity=_granularity(quantizer.block_sizes, axis=quantizer.axis),
        block_sizes=tuple(size for _, size in sorted(blocks.items())),
        dynamic=is_dynamic(quantizer),
        amax_min=float(amax.min()) if amax is not None and amax.numel() else None,
        amax_max=float(amax.max()) if amax is not None and amax.numel() else None,
        amax_finite=finite,
        amax_count=int(amax.numel()) if amax is not None else 0,
        tower_calls=dict(activity.tower_calls),
        changed=activity.changed,
        clipped=sum(activity.clipped_values),
        seen=activity.seen,
        largest=activity.largest,
        clipped_samples=sum(number > 0 for number in activity.clipped_values),
        clipped_squares=sum(number**2 for number in activity.clipped_values),
        batch_dependent=activity.batch_dependent,
        row_values=activity.row_values,
        scales_ignored=ignores_scales(quantizer.num_bits, block_sizes=quantizer.block_sizes),
        ranges_off=0 if weight is None else count_ranges_off(quantizer, weight),
    )


def declare(cfg: Mapping[str, Any]) -> Declared:
    """Return what the settings of a recipe say of a quantizer, as `describe_quantizer` would."""
    blocks = cfg.get("block_sizes") or {}
    return Declared(
        format=format_of_settings(cfg),
        granularity=_granularity(blocks, axis=cfg.get("axis")),
        dynamic="dynamic" in (cfg.get("type"), blocks.get("type")),
    )


def _granularity(block_sizes: Any, *, axis: Any) -> str:
    if read_blocks(block_sizes):
        return "block"
    # A block without a size is a whole row: ModelOpt writes a range for each token so.
    return "per-channel" if block_sizes or axis is not None else "per-tensor"


def count_ranges_off(quantizer: Any, weight: torch.Tensor) -> int:
    """Return how many ranges of a weight are not the largest magnitude of their own values.

    That of the tensor, or those of its channels or blocks, in the order in which ModelOpt keeps
    them; 0 where it keeps them in another number.
    """
    import torch

    amax = amax_of(quantizer)
    if amax is None:
        return 0
    blocks, found = read_blocks(quantizer.block_sizes), weight.detach().abs().float()
    if not blocks or is_dynamic(quantizer):
        axes = () if quantizer.axis is None or blocks else (quantizer.axis % weight.dim(),)
        over = [axis for axis in range(weight.dim()) if axis not in axes]
        found = found.amax(dim=over)
    else:
        for axis in range(weight.dim()):
            size = blocks.get(axis - weight.dim(), blocks.get(axis, 1))
            parts = torch.split(found, size, dim=axis)
            found = torch.cat([part.amax(dim=axis, keepdim=True) for part in parts], dim=axis)
    own, kept = found.flatten(), amax.detach().float().flatten().to(found.device)
    if own.numel() != kept.numel():
        return 0
    return int(((kept - own).abs() > RANGE_TOLERANCE * own).sum())


def replay_recipe(
    *,
    names: Mapping[str, str],
    entries: Sequence[Mapping[str, Any]],
    exclude: Sequence[str],
    matches_class: Callable[[str, str], bool],
) -> tuple[dict[str, Any], dict[str, str], dict[str, tuple[str, ...]]]:
    """Return what a recipe meant, by applying its entries in order to quantizer names.

    `names` maps quantizer name to its module's name. The result is the quantizers that some entry
    switched on with what it configures them by (None: nothing), for each of those that ended off
    the pattern that switched it off last, and for every exclude pattern the quantizers that it
    matched.
    """
    intended: dict[str, Any] = {}
    off: dict[str, str] = {}
    for entry in entries:
        pattern, parent = entry["quantizer_name"], entry.get("parent_class")
        for name, module in names.items():
            if not matches(name, pattern):
                continue
            if parent is not None and not matches_class(module, parent):
                continue
            if entry["enable"]:
                intended[name] = _part_of(entry.get("cfg"), name=name) or intended.get(name)
                off.pop(name, None)
            elif name in intended:
                off[name] = pattern if parent is None else f"{pattern} on {parent}"
    excluded: dict[str, tuple[str, ...]] = {}
    for pattern in exclude:
        matched = tuple(name for name in names if matches(name, pattern))
        excluded[pattern] = matched
        for name in matched:
            if name in intended:
                off.setdefault(name, pattern)
    return intended, off, excluded


def _part_of(cfg: Any, *, name: str) -> Any:
    """Return the settings of one quantizer of a sequence (`weight_quantizer.1`), or all."""
    part = name.rpartition(".")[2]
    if not isinstance(cfg, (list, tuple)):
        return cfg
    return cfg[int(part)] if part.isdecimal() and int(part) < len(cfg) else None


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern names a quantizer, or the sequence that it is a member of.

    ModelOpt matches `weight_quantizer` of a two-step format, whose parts are then called
    `weight_quantizer.0` and `weight_quantizer.1`.
    """
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(whole_name(name), pattern)
