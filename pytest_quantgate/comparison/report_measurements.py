"""What two reports measured beside accuracy: fidelity, round trip, parity and times.

A change is what stands out of the noise of its measurement: less is no difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from pytest_quantgate.comparison.changes import Change, compare_texts
from pytest_quantgate.evidence.fidelity import Fidelity, TowerFidelity
from pytest_quantgate.evidence.parity import Parity, Roundtrip
from pytest_quantgate.gates.timed import show_ms
from pytest_quantgate.report.model import LatencyFacts
from pytest_quantgate.statistics.intervals import Interval
from pytest_quantgate.statistics.rounds import Levels, noise_factor, widen
from pytest_quantgate.text.words import count, group, listed

#: Two runs of one variant on other machines differ by less.
NOISE_DB = 0.1
NOISE_COSINE = 1e-4

#: A layer by itself that gets this much noisier or quieter is named.
LAYER_DB = 1.0

#: An error of an exported block that grew or shrank by this factor is named.
ERROR_FACTOR = 2.0

#: One-sided limits of a ratio of times, as in a gate that does not say otherwise.
CONFIDENCE = 0.95


def compare_fidelity(
    before: Fidelity | None, after: Fidelity | None, *, suite: str
) -> list[Change]:
    """Return which towers moved against FP16, and which layers by themselves."""
    if before is None or after is None or before.data != after.data:
        return []
    changes = []
    olds = {tower.tower: tower for tower in before.towers}
    for new in after.towers:
        old = olds.get(new.tower)
        if old is None or not _moved(old, new):
            continue
        others = [t for t in after.towers if t is not new and t.tower in olds]
        alone = [t.tower for t in others if not _moved(olds[t.tower], t)]
        changes.append(
            Change(
                area="accuracy",
                kind="fidelity",
                subjects=(f"{suite} {new.tower}",),
                text=f"{suite}: {new.tower} embeddings against FP16's: {_fidelity_words(old)} -> "
                f"{_fidelity_words(new)}" + (f"; {alone[0]} as before" if alone else ""),
                before=_fidelity_words(old),
                after=_fidelity_words(new),
                figures={
                    "before_cosine": _plain(old.cosine_mean),
                    "after_cosine": _plain(new.cosine_mean),
                    "before_sqnr_db": _plain(old.sqnr_mean_db),
                    "after_sqnr_db": _plain(new.sqnr_mean_db),
                },
            )
        )
    return [*changes, *_compare_layers(before, after, suite=suite)]


def _moved(old: TowerFidelity, new: TowerFidelity) -> bool:
    return (
        old.nonfinite != new.nonfinite
        or _differ(old.cosine_mean, new.cosine_mean, by=NOISE_COSINE)
        or _differ(old.sqnr_mean_db, new.sqnr_mean_db, by=NOISE_DB)
    )


def _differ(old: float, new: float, *, by: float) -> bool:
    if math.isfinite(old) and math.isfinite(new):
        return abs(new - old) >= by
    return repr(old) != repr(new)


def _fidelity_words(tower: TowerFidelity) -> str:
    bad = f", NaN or Inf in {tower.nonfinite} of {tower.samples}" if tower.nonfinite else ""
    return f"cosine {tower.cosine_mean:.4f}, SQNR {tower.sqnr_mean_db:.1f} dB{bad}"


def _compare_layers(before: Fidelity, after: Fidelity, *, suite: str) -> list[Change]:
    olds, news = dict(before.worst_layers), dict(after.worst_layers)
    changes = []
    for kind, sign, word in (("noisier", 1, "noisier"), ("quieter", -1, "quieter")):
        names = [
            name
            for name in news
            if name in olds and _drop_db(olds[name], news[name]) * sign >= LAYER_DB
        ]
        if not names:
            continue
        names.sort(key=lambda name: (-abs(_drop_db(olds[name], news[name])), name))
        worst = names[0]
        changes.append(
            Change(
                area="accuracy",
                kind=kind,
                subjects=tuple(names),
                text=f"{suite}: {count(len(names), 'layer')} {word} by "
                f"{'itself' if len(names) == 1 else 'themselves'}, most {worst}: "
                f"SQNR {olds[worst]:.1f} -> {news[worst]:.1f} dB",
                lines=group(names) if len(names) > 1 else (),
                figures={"layers": len(names)},
            )
        )
    return changes


def _drop_db(old: float, new: float) -> float:
    if old == new or (math.isnan(old) and math.isnan(new)):
        return 0.0
    if math.isnan(new) or math.isnan(old):
        return math.inf if math.isnan(new) else -math.inf
    return old - new


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def compare_roundtrip(
    before: Roundtrip | None, after: Roundtrip | None, *, suite: str
) -> list[Change]:
    """Return what a save and a restore lose now, or no longer."""
    if before is None or after is None:
        return []
    sides = [
        {
            **{f"{tower} outputs": _equal(equal) for tower, equal in side.equal.items()},
            "ranges that differ": listed(side.amax_different) or "none",
            "damage that was loaded": listed(side.accepted) or "none",
        }
        for side in (before, after)
    ]
    return compare_texts(sides[0], sides[1], area="engine", within=f"{suite}: round trip")


def _equal(equal: bool) -> str:
    return "as before the save" if equal else "others after the restore"


def compare_parity(before: Parity | None, after: Parity | None, *, suite: str) -> list[Change]:
    """Return which exported towers and blocks are farther from PyTorch's, or nearer."""
    if before is None or after is None:
        return []
    changes = []
    olds = {tower.tower: tower for tower in before.towers}
    for new in after.towers:
        old = olds.get(new.tower)
        if old is None:
            continue
        name = f"{suite}: {new.tower} in {after.runtime.partition(' ')[0]}"
        counts = [{"samples with NaN or Inf": str(side.nonfinite)} for side in (old, new)]
        changes += compare_texts(*counts, area="engine", within=name)
        errors = {block.module: block for block in old.blocks}
        pairs = [(f"{new.tower} embeddings", old.error, new.error, max(old.floor, new.floor))]
        pairs += [
            (block.module, errors[block.module].error, block.error, block.floor)
            for block in new.blocks
            if block.module in errors
        ]
        for part, was, now, floor in pairs:
            high, low = max(was, now), min(was, now)
            if high > floor and not high <= ERROR_FACTOR * low:
                changes.append(
                    Change(
                        area="engine",
                        kind="parity",
                        subjects=(f"{suite} {part}",),
                        text=f"{suite}: {part} in {after.runtime} against PyTorch's: error "
                        f"{was:.2e} -> {now:.2e}",
                        before=f"{was:.2e}",
                        after=f"{now:.2e}",
                        figures={"before": _plain(was), "after": _plain(now)},
                    )
                )
    return changes


def compare_latency(
    before: Iterable[LatencyFacts], after: Iterable[LatencyFacts], *, suite: str
) -> tuple[list[Change], list[str]]:
    """Return what changed of the times, and sentences on what did not beyond their noise.

    Times of one machine alone say something about the variants: each side's ratio to FP16, from
    its own rounds, is what is compared.
    """
    changes: list[Change] = []
    same = []
    olds = {facts.gate: facts for facts in before}
    for new in after:
        old = olds.get(new.gate)
        if old is None:
            continue
        name = f"{suite}: {new.gate}"
        sides = [_describe_timing(facts) for facts in (old, new)]
        found = compare_texts(sides[0], sides[1], area="engine", within=name)
        changes += found
        limits = [_limit_ratio(facts) for facts in (old, new)]
        text = f"{name}: {_ratio_words(old, limits[0])} -> {_ratio_words(new, limits[1])}"
        if limits[0] is None or limits[1] is None:
            if limits[0] is not limits[1]:
                changes.append(_note_ratio(name, old, new, text=text))
        elif limits[0].low > limits[1].high or limits[1].low > limits[0].high:
            word = "slower" if limits[1].low > limits[0].high else "faster"
            changes.append(_note_ratio(name, old, new, text=f"{text}: {word}"))
        elif not found:
            same.append(f"{text}: no change that the rounds can show")
    return changes, same


def _describe_timing(facts: LatencyFacts) -> dict[str, str]:
    lengths = {
        "fp16": len(facts.fp16_ms),
        "quantized": len(facts.quantized_ms),
        "fp16 again": len(facts.fp16_again_ms),
    }
    rounds = ", ".join(f"{key} {number}" for key, number in lengths.items())
    if len(set(lengths.values())) == 1:
        rounds = str(lengths["fp16"])
    noise = _noise(facts)
    coarse = "" if noise is None else f"{'under' if noise < 1.05 else 'over'} 5 %"
    return {
        "rounds": rounds,
        "processes": str(facts.processes),
        "batch": str(facts.batch),
        "runtime": facts.runtime,
        "machine": f"{facts.system}, {facts.processor}, {facts.cores} cores, "
        f"{facts.threads} threads, {facts.device}",
        "not warmed up": listed(facts.cold) or "none",
        "rounds without a valid time": str(_count_invalid(facts)),
        "noise of the machine (FP16 against itself)": coarse or "not known",
    }


def _times(facts: LatencyFacts) -> tuple[Sequence[float], ...]:
    return (facts.fp16_ms, facts.quantized_ms, facts.fp16_again_ms)


def _count_invalid(facts: LatencyFacts) -> int:
    return sum(not (math.isfinite(t) and t > 0) for times in _times(facts) for t in times)


def _is_sound(facts: LatencyFacts) -> bool:
    return len({len(times) for times in _times(facts)}) == 1 and not _count_invalid(facts)


def _noise(facts: LatencyFacts) -> float | None:
    """Return by what factor FP16 against itself may leave 1; None where the rounds cannot tell."""
    if not _is_sound(facts):
        return None
    ratios = [b / a for a, b in zip(facts.fp16_ms, facts.fp16_again_ms, strict=True)]
    try:
        return noise_factor(_levels(ratios, facts), confidence=CONFIDENCE)
    except ValueError:
        return None


def _limit_ratio(facts: LatencyFacts) -> Interval | None:
    """Return the limits of quantized / FP16 with the machine's noise; None without sound rounds."""
    noise = _noise(facts)
    if noise is None:
        return None
    return widen(_levels(_divide_rounds(facts), facts).limits(confidence=CONFIDENCE), by=noise)


def _levels(values: Sequence[float], facts: LatencyFacts) -> Levels:
    return Levels.of(values, processes=facts.processes, pause_rounds=facts.pause_rounds)


def _divide_rounds(facts: LatencyFacts) -> list[float]:
    """Return quantized / FP16 of each round: what slowed a whole round cancels."""
    return [b / a for a, b in zip(facts.fp16_ms, facts.quantized_ms, strict=True)]


def _ratio_words(facts: LatencyFacts, limits: Interval | None) -> str:
    medians = [statistics.median(times) if times else math.nan for times in _times(facts)[:2]]
    shown = f"FP16 {_show_ms(medians[0])}, quantized {_show_ms(medians[1])}"
    if limits is None:
        return f"{shown} (no ratio)"
    ratio = _levels(_divide_rounds(facts), facts).typical
    return f"{shown} ({ratio:.3g}x [{limits.low:.3g}, {limits.high:.3g}])"


def _show_ms(value_ms: float) -> str:
    return show_ms(value_ms) if math.isfinite(value_ms) and value_ms > 0 else f"{value_ms:g} ms"


def _note_ratio(name: str, old: LatencyFacts, new: LatencyFacts, *, text: str) -> Change:
    medians = [
        statistics.median(side.quantized_ms) if side.quantized_ms else math.nan
        for side in (old, new)
    ]
    return Change(
        area="engine",
        kind="latency",
        subjects=(name,),
        text=text,
        figures={"before_ms": _plain(medians[0]), "after_ms": _plain(medians[1])},
    )
