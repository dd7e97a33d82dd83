"""Weights of two checkpoints: which changed, by how much, and what was done to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_quantgate.artifacts.safetensors_file import Tensor, import_numpy
from pytest_quantgate.comparison.changes import Change, Table
from pytest_quantgate.quantization.quantizers import block_of
from pytest_quantgate.text.words import count, group, listed

#: Values read at once from a weight: 8 MB as float64.
_STEP = 1 << 20

#: Larger weights are not searched for: 256 MB as float64.
_LARGEST_RECOGNISED = 1 << 25

#: A weight that is another one times a number, up to this relative rest, was scaled.
_SCALED_REST = 1e-3


def compare_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Change]:
    """Return which weights came, went, moved, or are stored otherwise."""
    changes = []
    for kind, names, words in (
        ("removed", [name for name in before if name not in after], "gone"),
        ("added", [name for name in after if name not in before], "new"),
    ):
        if names:
            changes.append(
                Change(
                    area="weights",
                    kind=kind,
                    subjects=tuple(names),
                    text=f"{count(len(names), 'weight tensor')} {words}: {listed(group(names))}",
                    lines=group(names),
                )
            )
    moved, retyped = [], []
    for name in (name for name in before if name in after):
        old, new = before[name], after[name]
        if old.shape != new.shape:
            changes.append(
                Change(
                    area="weights",
                    kind="reshaped",
                    subjects=(name,),
                    text=f"weight {name}: shape {list(old.shape)} -> {list(new.shape)}",
                    before=str(list(old.shape)),
                    after=str(list(new.shape)),
                )
            )
            continue
        found = _compare_values(name, old, new)
        if found is not None:
            moved.append(found)
        if old.dtype != new.dtype:
            retyped.append((name, old.dtype, new.dtype))
    if moved:
        moved = [replace(item, now=_recognise(item.name, before, after)) for item in moved]
        changes.append(_describe_weights(moved, all_of=tuple(before)))
    for pair in dict.fromkeys((old, new) for _, old, new in retyped):
        names = [name for name, old, new in retyped if (old, new) == pair]
        changes.append(
            Change(
                area="weights",
                kind="stored as",
                subjects=tuple(names),
                text=f"{count(len(names), 'weight tensor')} stored as {pair[0]} -> {pair[1]}: "
                f"{listed(group(names))}",
                before=pair[0],
                after=pair[1],
            )
        )
    return changes


def largest_magnitude(weight: Tensor) -> float:
    """Return the largest magnitude in a tensor, NaN where one is in it, 0 for an empty one."""
    numpy = import_numpy()
    parts = [
        numpy.abs(weight.values(start, start + _STEP)).max()
        for start in range(0, weight.count, _STEP)
    ]
    return float(numpy.max(parts)) if parts else 0.0


@dataclass(frozen=True, kw_only=True)
class _Moved:
    name: str
    error: float  # relative: norm of the difference over norm of before
    scale: float | None  # after = scale * before, up to _SCALED_REST
    changed: int
    count: int
    nonfinite: int
    now: str = ""  # what it is of the old weights, where that is known


def _compare_values(name: str, before: Tensor, after: Tensor) -> _Moved | None:
    numpy = import_numpy()
    total = before.count
    squares = products = after_squares = differences = 0.0
    changed = nonfinite = 0
    for start in range(0, total, _STEP):
        stop = start + _STEP
        if before.dtype == after.dtype and numpy.array_equal(
            before.raw(start, stop).view("u1"), after.raw(start, stop).view("u1")
        ):
            part = before.values(start, stop)
            part = part[numpy.isfinite(part)]
            energy = float(part @ part)
            squares, products, after_squares = (
                squares + energy,
                products + energy,
                after_squares + energy,
            )
            continue
        old, new = before.values(start, stop), after.values(start, stop)
        unequal = ~((old == new) | (numpy.isnan(old) & numpy.isnan(new)))
        changed += int(unequal.sum())
        nonfinite += int((~numpy.isfinite(new)).sum())
        good = numpy.isfinite(old) & numpy.isfinite(new)
        old, new = old[good], new[good]
        squares += float(old @ old)
        after_squares += float(new @ new)
        products += float(old @ new)
        differences += float((new - old) @ (new - old))
    if not changed:
        return None
    scale = products / squares if squares else None
    if scale is not None:
        rest = max(0.0, after_squares - scale * products)
        if after_squares == 0 or rest > _SCALED_REST**2 * after_squares:
            scale = 0.0 if after_squares == 0 else None
    if nonfinite:
        scale = None
    return _Moved(
        name=name,
        error=math.sqrt(differences / squares) if squares else math.inf,
        scale=scale if scale is None or abs(scale - 1) > _SCALED_REST else None,
        changed=changed,
        count=total,
        nonfinite=nonfinite,
    )


def _recognise(name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """Return whether a changed weight is its own transpose, or another one's old values."""
    numpy = import_numpy()
    old, new = before[name], after[name]
    if new.count > _LARGEST_RECOGNISED or new.count < 2:
        return ""
    values = new.values()
    if len(new.shape) == 2 and new.shape[0] == new.shape[1]:
        turned = old.values().reshape(old.shape).T.reshape(-1)
        if numpy.array_equal(turned, values):
            return "transposed"
    if values.min() == values.max():  # what many a weight may hold
        return f"all {values[0]:g} now" if values[0] else "all zero now"
    for other, tensor in before.items():
        if other == name or tensor.shape != new.shape or not _starts_alike(tensor, new):
            continue
        if numpy.array_equal(tensor.values(), values):
            return f"holds what {other} held"
    return ""


def _starts_alike(one: Tensor, two: Tensor) -> bool:
    return bool((one.values(0, 8) == two.values(0, 8)).all())


def _list_whole_blocks(moved: Sequence[str], *, all_of: Sequence[str]) -> tuple[str, ...]:
    """Return which whole transformer blocks changed where that is all that did."""
    blocks = {name: _block_module(name) for name in all_of}
    whole = {block for name, block in blocks.items() if name in moved and block}
    if not whole or any(not blocks[name] for name in moved):
        return ()
    if whole == {block for block in blocks.values() if block}:
        return ()
    if any(block in whole and name not in moved for name, block in blocks.items()):
        return ()
    return (f"all weights of these blocks, and no other: {listed(group(sorted(whole)))}",)


def _block_module(name: str) -> str:
    """Return the module of the transformer block that a weight is in, empty outside of them."""
    block = block_of(name)
    return "" if block is None else f"{name.partition(f'.{block}.')[0]}.{block}"


def _describe_weights(moved: list[_Moved], *, all_of: Sequence[str]) -> Change:
    moved.sort(key=lambda item: (-item.nonfinite, -item.error, item.name))
    worst = moved[0]
    return Change(
        area="weights",
        kind="weights changed",
        subjects=tuple(item.name for item in moved),
        text=f"{len(moved)} of {count(len(all_of), 'weight tensor')} changed, most {worst.name}: "
        f"{_weight_words(worst)}",
        lines=_list_whole_blocks([item.name for item in moved], all_of=all_of),
        table=Table(
            columns=("weight", "relative change", "values changed", "what"),
            rows=tuple(
                (
                    item.name,
                    f"{item.error:.2e}",
                    f"{item.changed} of {item.count}",
                    _weight_words(item),
                )
                for item in moved
            ),
        ),
        figures={"weights": len(moved), "largest_relative_change": _finite(worst.error)},
    )


def _weight_words(item: _Moved) -> str:
    if item.now:
        return item.now
    if item.nonfinite:
        return f"{count(item.nonfinite, 'value')} NaN or Inf"
    if item.scale == 0:
        return "all zero now"
    if item.scale is not None:
        return f"scaled by {item.scale:.4g}"
    return f"relative change {item.error:.2e}"


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"
