"""Two sets of quantizers: which are on, what they are, where they sit, and how ranges moved."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.comparison.changes import Area, Change, Table
from pytest_quantgate.formats.table import keeps_amax
from pytest_quantgate.quantization.quantizers import block_of, owner_of, slot_of, tower_of
from pytest_quantgate.text.words import count, group, listed

_SLOT_WORDS = {
    "q": "attention q",
    "k": "attention k",
    "v": "attention v",
    "softmax": "attention softmax",
    "attention_output": "attention output",
}


#: So many ranges are a pattern.
_MANY = 5

#: Ranges that moved by less than this, in powers of two, moved by rounding: 2e-6 of their size.
_ROUNDING = 3e-6

#: A phrase names no more modules than this, for they stand in the lines below it.
_MOST_MODULES = 4


def compare_quantizers(
    before: Mapping[str, StoredQuantizer], after: Mapping[str, StoredQuantizer]
) -> list[Change]:
    """Return what differs between two sets of quantizers: which are on, what they are, ranges."""
    return [*_compare_switches(before, after), *_compare_ranges(before, after)]


def _compare_switches(
    before: Mapping[str, StoredQuantizer], after: Mapping[str, StoredQuantizer]
) -> list[Change]:
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    both = [name for name in before if name in after]
    on = {name for name, q in before.items() if q.enabled}
    on_now = {name for name, q in after.items() if q.enabled}
    changes = _compare_towers(on, on_now)

    def note(kind: str, names: Sequence[str], words: str, *, all_of: Iterable[str]) -> None:
        changes.extend(_note("quantizers", kind, names, words, all_of=all_of))

    # A quantizer that is off computes nothing: whether it is there at all makes no difference.
    note(
        "removed",
        [name for name in gone if name in on],
        "removed that had been on",
        all_of=on,
    )
    added = [name for name in new if name in on_now]
    note("added", added, f"added and on{_count_idle(added, after)}", all_of=on_now)
    stopped = [name for name in both if name in on and name not in on_now]
    for reason in dict.fromkeys(after[name].off_because for name in stopped):
        note(
            "switched off",
            [name for name in stopped if after[name].off_because == reason],
            reason or "switched off",
            all_of=on,
        )
    started = [name for name in both if name not in on and name in on_now]
    note("switched on", started, f"switched on{_count_idle(started, after)}", all_of=on_now)
    active = [name for name in both if name in on and name in on_now]
    ran = [n for n in active if before[n].calls is not None and after[n].calls is not None]
    note(
        "no longer runs",
        [n for n in ran if before[n].calls and not after[n].calls],
        "still on that never run any more",
        all_of=on,
    )
    note(
        "runs now",
        [n for n in ran if not before[n].calls and after[n].calls],
        "on that never ran and run now",
        all_of=on_now,
    )
    facts: tuple[tuple[str, str, Callable[[StoredQuantizer], str]], ...] = (
        ("format changed", "format", lambda q: q.format),
        ("granularity changed", "granularity", lambda q: q.granularity),
        ("range kind changed", "range", lambda q: "dynamic" if q.dynamic else "static"),
        ("SmoothQuant changed", "SmoothQuant scale", _pre_scale_words),
    )
    for kind, word, read in facts:
        changes += _compare_fact(before, after, names=active, kind=kind, word=word, read=read)
    settings = dict.fromkeys(
        key for name in active for side in (before, after) for key in side[name].settings
    )
    for key in settings:
        changes += _compare_fact(
            before,
            after,
            names=active,
            kind="setting changed",
            word=key,
            read=lambda q, key=key: q.settings.get(key, "none"),  # type: ignore[misc]
        )
    return changes


def _note(
    area: Area, kind: str, names: Sequence[str], words: str, *, all_of: Iterable[str]
) -> list[Change]:
    """Return one change of these quantizers, none without any."""
    if not names:
        return []
    text = f"{count(len(names), 'quantizer')} {words}: {describe_places(names, all_of=all_of)}"
    return [
        Change(
            area=area,
            kind=kind,
            subjects=tuple(names),
            text=text,
            lines=group(names),
            figures={"quantizers": len(names)},
        )
    ]


def _count_idle(names: Sequence[str], quantizers: Mapping[str, StoredQuantizer]) -> str:
    """Return how many of these never run, where that was audited."""
    idle = sum(quantizers[name].calls == 0 for name in names)
    return f" ({'it never runs' if idle == len(names) == 1 else f'{idle} never run'})" * bool(idle)


def _compare_towers(before: Iterable[str], after: Iterable[str]) -> list[Change]:
    """Return the towers that lost their last enabled quantizer, or got their first ones."""
    counts = [Counter(tower_of(owner_of(name)) for name in names) for names in (before, after)]
    changes = []
    for tower in ("vision", "text"):
        old, new = counts[0][tower], counts[1][tower]
        if min(old, new) == 0 and max(old, new) > 2:
            kind = "tower unquantized" if new == 0 else "tower quantized"
            changes.append(
                Change(
                    area="quantizers",
                    kind=kind,
                    subjects=(tower,),
                    text=f"the whole {tower} tower is {'un' if new == 0 else ''}quantized now: "
                    f"{old} -> {new} quantizers on",
                    before=str(old),
                    after=str(new),
                    figures={"before": old, "after": new},
                )
            )
    return changes


def _pre_scale_words(quantizer: StoredQuantizer) -> str:
    return "none" if quantizer.pre_scale is None else "there"


def _compare_fact(
    before: Mapping[str, StoredQuantizer],
    after: Mapping[str, StoredQuantizer],
    *,
    names: Sequence[str],
    kind: str,
    word: str,
    read: Callable[[StoredQuantizer], str],
) -> list[Change]:
    """Return a change for each pair of values that a fact of some quantizers went between."""
    moved: dict[tuple[str, str], list[str]] = {}
    for name in names:
        old, new = read(before[name]), read(after[name])
        if old != new:
            moved.setdefault((old, new), []).append(name)
    return [
        Change(
            area="quantizers",
            kind=kind,
            subjects=tuple(found),
            text=f"{word} {old} -> {new} in {count(len(found), 'quantizer')}: "
            f"{describe_places(found, all_of=names)}",
            before=old,
            after=new,
            lines=group(found),
            figures={"quantizers": len(found)},
        )
        for (old, new), found in moved.items()
    ]


def describe_places(names: Iterable[str], *, all_of: Iterable[str]) -> str:
    """Return where quantizers sit, in a phrase: whole towers first, then slots and blocks.

    `all_of` are those that could have been concerned; a tower whose every one is, is whole.
    """
    names = list(names)
    if len(names) <= 2:
        return ", ".join(names)
    everything = Counter(tower_of(owner_of(name)) for name in {*all_of, *names})
    phrases = []
    for tower in ("vision", "text", "other"):
        found = [name for name in names if tower_of(owner_of(name)) == tower]
        if not found:
            continue
        if len(found) == everything[tower] and len(found) > 2:
            label = "other modules" if tower == "other" else f"the whole {tower} tower"
            phrases.append(f"{label} ({len(found)})")
            continue
        by_slot: dict[str, list[str]] = {}
        for name in found:
            kind = slot_of(name)
            by_slot.setdefault(_SLOT_WORDS.get(kind, kind), []).append(name)
        by_place: dict[str, list[str]] = {}
        for slot, members in by_slot.items():
            by_place.setdefault(_describe_place(slot, members), []).append(slot)
        slots = [f"{_join_slots(found)} {where}".rstrip() for where, found in by_place.items()]
        phrases.append(f"{tower}: {', '.join(slots)}")
    return "; ".join(phrases)


def _describe_place(slot: str, members: Sequence[str]) -> str:
    """Return the modules where they are few, how many, and the blocks, of one slot in a tower."""
    blocks = sorted(block for block in {block_of(name) for name in members} if block is not None)
    parts = []
    if not slot.startswith("attention "):
        modules = dict.fromkeys(_module_in_block(name) for name in members)
        if len(modules) <= _MOST_MODULES:
            parts.append(f"of {', '.join(modules)}")
    if len(members) != len(blocks) and len(members) > 1:
        parts.append(f"({len(members)})")
    if blocks:
        parts.append(f"in {_name_blocks(blocks)}")
    return " ".join(parts)


def _module_in_block(name: str) -> str:
    """Return what owns a quantizer, by its name inside its block: `mlp.fc1`."""
    owner = owner_of(name)
    block = block_of(name)
    if block is not None:
        return owner.partition(f".{block}.")[2] or owner
    return owner.partition("_model.")[2] or owner


def _name_blocks(blocks: Sequence[int]) -> str:
    """Return `block 3` or `blocks 0-2, 5`."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"block {shown}" if len(blocks) == 1 else f"blocks {shown}"


def _join_slots(slots: Sequence[str]) -> str:
    """Return `attention q, k, output` for the slots of attention, the others as they are."""
    inside = [slot.removeprefix("attention ") for slot in slots if slot.startswith("attention ")]
    others = [slot for slot in slots if not slot.startswith("attention ")]
    return ", ".join([*(["attention " + ", ".join(inside)] if inside else []), *others])


@dataclass(frozen=True, kw_only=True)
class _Drift:
    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    size: float
    ratio: float
    changed: int


def _compare_ranges(
    before: Mapping[str, StoredQuantizer], after: Mapping[str, StoredQuantizer]
) -> list[Change]:
    both = [
        name for name, q in before.items() if name in after and q.enabled and after[name].enabled
    ]
    changes: list[Change] = []
    drifts: list[_Drift] = []
    lost, gained = [], []
    for name in both:
        old, new = before[name].amax, after[name].amax
        if old is not None and new is None:
            if _keeps_amax(after[name]):  # a dynamic one has none, and that it is one is said
                lost.append(name)
        elif old is None and new is not None:
            if _keeps_amax(before[name]):
                gained.append(name)
        elif old is not None and new is not None:
            drift = _drift(name, old, new)
            if drift is not None:
                drifts.append(drift)
    words = "a static quantizer without one takes each batch's own, without a word"
    changes += _note("ranges", "range lost", lost, f"on without amax now ({words})", all_of=both)
    changes += _note("ranges", "range added", gained, "on with an amax that had none", all_of=both)
    if drifts:
        alike = {name for name in both if _is_alike(before[name], after[name])}
        changes.append(_describe_drifts(drifts, all_of=both, alike=alike))
    inside = [
        name
        for name in both
        if before[name].amax == after[name].amax
        and before[name].ranges_digest
        and after[name].ranges_digest
        and before[name].ranges_digest != after[name].ranges_digest
    ]
    words = "with other ranges between the same smallest and largest"
    changes += _note("ranges", "re-ranged inside", inside, words, all_of=both)
    rescaled = [
        drift
        for name in both
        if (old := before[name].pre_scale) is not None
        and (new := after[name].pre_scale) is not None
        and (drift := _drift(name, old, new)) is not None
    ]
    if rescaled:
        changes.append(_describe_rescaled(rescaled))
    return changes


def _keeps_amax(quantizer: StoredQuantizer) -> bool:
    return keeps_amax(quantizer.format, dynamic=quantizer.dynamic)


def _is_alike(old: StoredQuantizer, new: StoredQuantizer) -> bool:
    """Return whether the same values would give both quantizers the same range."""
    kinds = [(q.format, q.granularity, q.pre_scale is None) for q in (old, new)]
    return kinds[0] == kinds[1]


def _drift(name: str, old: tuple[float, ...], new: tuple[float, ...]) -> _Drift | None:
    """Return how far one range moved, None where it is bit for bit what it was."""
    old_flat, new_flat = old, new
    if len(old) != len(new):
        # Another number of ranges is another granularity: the widest of each is compared.
        old_flat, new_flat = (max(old, default=0.0),), (max(new, default=0.0),)
    worst, ratio, changed = 0.0, 1.0, 0
    for was, now in zip(old_flat, new_flat, strict=True):
        if was == now or (was != was and now != now):
            continue
        changed += 1
        size = _octaves(was, now)
        if size >= worst:
            worst, ratio = size, now / was if was else math.inf
    if not changed:
        return None
    return _Drift(name=name, before=old, after=new, size=worst, ratio=ratio, changed=changed)


def _octaves(was: float, now: float) -> float:
    """Return how far apart two ranges are, in powers of two; infinite for 0, NaN and Inf."""
    if was > 0 and now > 0 and math.isfinite(was) and math.isfinite(now):
        return abs(math.log2(now) - math.log2(was))
    return math.inf


def _describe_drifts(
    drifts: list[_Drift], *, all_of: Sequence[str], alike: Collection[str]
) -> Change:
    drifts.sort(key=lambda drift: (-drift.size, drift.name))
    worst = drifts[0]
    ratios = [drift.ratio for drift in drifts]
    lines = []
    broken = [d.name for d in drifts if not all(math.isfinite(v) and v > 0 for v in d.after)]
    if broken:
        lines.append(f"not finite or not positive now: {listed(group(broken))}")
    same_ratio = max(ratios) - min(ratios) <= 1e-4 * abs(max(ratios)) if len(drifts) > 1 else False
    if worst.size < _ROUNDING:
        lines.append("rounding alone: another batch order, library or machine does that")
    elif same_ratio and math.isfinite(ratios[0]):
        lines.append(f"all by the same factor {ratios[0]:.4g}")
    elif len(drifts) > 1:
        wide = sum(d.size > 1 for d in drifts)
        middle = sum(math.log2(1.1) < d.size <= 1 for d in drifts)
        lines.append(
            f"{wide} by more than 2x, {middle} by 10 % to 2x, {len(drifts) - wide - middle} by less"
        )
    sized = [d for d in drifts if math.isfinite(d.size)]
    wider = sum(d.ratio > 1 for d in sized)
    if sized:
        parts = (
            f"{wider} wider (coarser steps)",
            f"{len(sized) - wider} narrower (more is clipped)",
        )
        lines.append(", ".join(parts))
    if 2 < len(drifts) < len(all_of):
        lines.append(describe_places([drift.name for drift in drifts], all_of=all_of))
    halved = sum(tuple(map(_to_half, drift.before)) == drift.after for drift in drifts)
    if halved > len(drifts) / 2:
        lines.append(f"{halved} of {len(drifts)} are what they were, rounded to half precision")
    elif worst.size >= _ROUNDING:
        lines += _list_unmoved({drift.name for drift in drifts}, all_of=all_of, alike=alike)
    return Change(
        area="ranges",
        kind="re-ranged",
        subjects=tuple(drift.name for drift in drifts),
        text=f"{len(drifts)} of {count(len(all_of), 'quantizer')} re-ranged, most {worst.name}: "
        f"amax {_show(worst.before)} -> {_show(worst.after)} ({_times(worst.ratio)})",
        before=_show(worst.before),
        after=_show(worst.after),
        lines=tuple(lines),
        table=Table(
            columns=("quantizer", "amax before", "amax after", "factor", "ranges moved"),
            rows=tuple(
                (
                    drift.name,
                    _show(drift.before),
                    _show(drift.after),
                    _times(drift.ratio),
                    f"{drift.changed} of {len(drift.after)}",
                )
                for drift in drifts
            ),
        ),
        figures={
            "quantizers": len(drifts),
            "largest_drift_octaves": worst.size if math.isfinite(worst.size) else "inf",
        },
    )


def _list_unmoved(
    moved: Collection[str], *, all_of: Sequence[str], alike: Collection[str]
) -> list[str]:
    """Return which whole towers, and whether all weights, kept their ranges where many moved.

    One side of a model that moved alone says what was other: what that tower was calibrated on.
    """
    if len(moved) < _MANY:
        return []
    kept = [name for name in all_of if name not in moved]
    lines = []
    for tower in ("vision", "text"):
        if len(kept_there := [n for n in kept if tower_of(owner_of(n)) == tower]) >= _MANY and not (
            [n for n in moved if tower_of(owner_of(n)) == tower]
        ):
            lines.append(f"no range of the {tower} tower moved ({len(kept_there)} are the same)")
    weights = [name for name in kept if slot_of(name) == "weight"]
    moved_weights = sum(slot_of(name) == "weight" for name in moved)
    if sum(slot_of(name) == "weight" and name in alike for name in moved) >= _MANY:
        lines.append(f"{count(moved_weights, 'range')} of weights moved: those of other weights")
    elif len(weights) >= _MANY and not moved_weights:
        lines.append("no range of a weight moved: other calibration data, or another order of it")
    return lines


def _to_half(value: float) -> float:
    """Return a value rounded to half precision: infinite over 65504."""
    try:
        rounded: float = struct.unpack("e", struct.pack("e", value))[0]
    except OverflowError:
        return math.inf
    return rounded


def _describe_rescaled(drifts: list[_Drift]) -> Change:
    drifts.sort(key=lambda drift: (-drift.size, drift.name))
    worst = drifts[0]
    return Change(
        area="ranges",
        kind="SmoothQuant re-scaled",
        subjects=tuple(drift.name for drift in drifts),
        text=f"{count(len(drifts), 'quantizer')} with another SmoothQuant scale, most "
        f"{worst.name}: {_show(worst.before)} -> {_show(worst.after)} ({_times(worst.ratio)})",
        before=_show(worst.before),
        after=_show(worst.after),
        figures={"quantizers": len(drifts)},
    )


def _show(values: tuple[float, ...]) -> str:
    if not values:
        return "empty"
    if len(values) == 1:
        return f"{values[0]:.5g}"
    bad = [value for value in values if not math.isfinite(value)]
    if bad:
        return f"{len(bad)} of {len(values)} not finite"
    return f"{min(values):.4g} to {max(values):.4g}"


def _times(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "not a factor"
    if 0 < abs(ratio - 1) < 1e-3:
        return f"{(ratio - 1) * 100:+.2g} %"
    return f"x{ratio:.4g}"
