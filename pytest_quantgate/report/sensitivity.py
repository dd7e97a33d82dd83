"""Which layers cost what, as terminal text, YAML to paste, and a chart. Pure: text out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_quantgate.evidence.sensitivity import (
    Changed,
    Exclusion,
    GateCheck,
    GroupEffect,
    QuantizerGroup,
    Repair,
    Sensitivity,
)
from pytest_quantgate.gates.suspects import describe_outliers, explained_by_outliers
from pytest_quantgate.report.numbers import show_bytes
from pytest_quantgate.report.svg import LABEL_ROOM, Chart, Mark, Scale
from pytest_quantgate.run.sensitivity import SUSPECTS, rank_suspects
from pytest_quantgate.statistics.intervals import Flips, drop_limits
from pytest_quantgate.text.words import count, signed

#: SQNR from which on noise no longer shows in a plot.
QUIET_DB = 60.0

BAR_WIDTH = 20

#: The confidence of a change's limits: it ranks groups, and decides nothing.
LEVEL = 0.95


def to_sqnr_db(noise: float) -> float:
    """Return a ratio of noise to signal in dB of SQNR: +inf for none, -inf for NaN or Inf."""
    if not math.isfinite(noise):
        return -math.inf
    return math.inf if noise == 0 else -10 * math.log10(noise)


def render_sensitivity(found: Sensitivity, *, top: int, width: int | None = None) -> Iterator[str]:
    """Yield the lines of the ranked table: at most `top` groups, worst first.

    `width` are the columns of the terminal, None in a log: where a group's line does not fit, its
    bar goes, and then it takes three lines.
    """
    texts = f"{found.texts} texts" if found.texts != 1 else "1 text"
    yield f"{count(len(found.effects), 'group')} of quantizers on {found.samples} images and " + (
        f"{texts} of {found.data}"
    )
    for tower in found.towers:
        yield f"  {tower.tower} embeddings: SQNR {_db(tower.noise_all)} with every quantizer on"
        if to_sqnr_db(tower.noise_off) < QUIET_DB:
            yield (
                f"  {tower.tower} embeddings: SQNR {_db(tower.noise_off)} with every quantizer "
                f"off: the weights are not FP16's, which no exclusion mends"
            )
    if found.metric_off is not None and found.metric_all is not None:
        yield (
            f"  {found.task} {found.metric} on these samples: {found.metric_off * 100:.2f} % with "
            f"every quantizer off, {found.metric_all * 100:.2f} % with every one on"
        )
        counted = next((e.changed_only for e in found.effects if e.changed_only), None)
        if counted is not None:
            yield (
                f"  in brackets: {LEVEL * 100:.0f} % one-sided limits of a change in points; one "
                f"sample of {counted.samples} is {100 / counted.samples:.2f}"
            )
    yield ""
    shown = found.effects[:top]
    yield from _table([_cells(effect, found) for effect in shown], found=found, width=width)
    if len(found.effects) > top:
        yield f"  ... and {count(len(found.effects) - top, 'group')} more (--top)"
    yield from _outlier_lines(shown, found)


def _outlier_lines(effects: Sequence[GroupEffect], found: Sensitivity) -> Iterator[str]:
    """Yield the outlier channels that explain the noise of a group, as a red gate names them."""
    ranked = rank_suspects(replace(found, effects=tuple(effects)), most=len(effects))
    explained = [suspect for suspect in ranked if explained_by_outliers(suspect)]
    if not explained:
        return
    yield ""
    yield f"outlier channels explain most of the noise of {count(len(explained), 'group')}"
    for suspect in explained[:SUSPECTS]:
        yield f"  {suspect.label}: {describe_outliers(suspect)}"
        yield f"    quantized apart from the others: SQNR {suspect.sqnr_apart_db:.1f} dB"
    if len(explained) > SUSPECTS:
        yield f"  ... and {count(len(explained) - SUSPECTS, 'group')} more"


def render_exclusion(
    found: Exclusion, *, suite: str, section: str, weights_bytes: int, exclude: Sequence[str]
) -> Iterator[str]:
    """Yield what the exclusion is, what it gives and costs, and the YAML to paste."""
    if not found.checks:
        yield f"{suite} has no accuracy and no fidelity gate: no limit says what to leave out"
        return
    if found.outcome == "none needed":
        yield f"{suite}: nothing needs excluding, {count(len(found.checks), 'gate')} passed"
        yield from (
            f"  {check.before}  {check.gate}  {check.brief_before}" for check in found.checks
        )
        return
    if found.outcome == "impossible":
        yield f"{suite}: no exclusion meets the limits: {found.reason}"
        return
    if found.outcome == "not found":
        yield (
            f"{suite}: no exclusion meets the limits in {found.verifications} verified tries, "
            f"short of leaving out every group"
        )
        yield from (
            f"  {check.before}  {check.gate}  {check.brief_before}" for check in found.checks
        )
        return
    growth = found.extra_bytes / weights_bytes if weights_bytes else 0.0
    yield (
        f"{suite}: leaving out {count(len(found.groups), 'group')} meets every limit (verified, "
        f"{count(found.verifications, 'evaluation')} spent)"
    )
    yield from (line for check in found.checks for line in _check_lines(check))
    yield (
        f"  weights: {show_bytes(found.extra_bytes)} more, {show_bytes(weights_bytes)} -> "
        f"{show_bytes(weights_bytes + found.extra_bytes)} (+{growth * 100:.1f} %)"
    )
    if found.coverage:
        yield f"  then red: {found.coverage}"
        yield "            waive these modules there, with a reason and a day"
    yield ""
    yield from render_yaml(found.groups, section=section, exclude=exclude)


def render_repair(found: Repair, *, suite: str) -> Iterator[str]:
    """Yield what a mixed recipe keeps at which precision, what it gives, and what it costs."""
    search = found.found
    if search.outcome != "found":
        yield from render_exclusion(search, suite=suite, section="", weights_bytes=0, exclude=())
        return
    for groups, what in ((found.in_full, "in full precision"), (found.in_fp8, "in FP8")):
        if groups:
            yield f"{what}: {', '.join(group.label for group in groups)}"
    spent = count(found.verifications, "evaluation")
    yield f"on the half of the samples that was searched, {spent} spent"
    if found.in_full:
        yield from (line for check in search.checks for line in _check_lines(check))
    yield "on the other half, with the recipe as it is written"
    yield from (line for check in found.checks for line in _check_lines(check))
    before, after = found.weights_bytes
    yield (
        f"  weights: {show_bytes(before)} -> {show_bytes(after)} "
        f"(+{(after - before) / before * 100 if before else 0.0:.1f} %)"
    )
    if not found.holds:
        yield (
            "what was found does not hold on samples that the search never saw: give the gates "
            "more samples, or choose a gentler recipe"
        )


def render_yaml(
    groups: Sequence[QuantizerGroup], *, section: str, exclude: Sequence[str]
) -> Iterator[str]:
    """Yield `exclude` of a suite's `quantize` or `quantized`, with its patterns and those of
    `groups`."""
    yield f"{section}:"
    yield "  exclude:"
    yield from (f"    - {json.dumps(pattern, ensure_ascii=False)}" for pattern in exclude)
    known = set(exclude)
    for group in groups:
        for pattern in group.patterns:
            if pattern not in known:
                known.add(pattern)
                yield f"    - {json.dumps(pattern, ensure_ascii=False)}  # {group.label}"


def draw_noise(found: Sensitivity, *, top: int) -> Chart:
    """Return a bar for the noise of each group alone, worst first."""
    shown = found.effects[:top]
    noise = [-min(QUIET_DB, to_sqnr_db(effect.noise_only)) for effect in shown]
    low, high = min([-QUIET_DB, *noise]), max([0.0, *filter(math.isfinite, noise)])
    return Chart(
        title="Noise that each group of quantizers adds alone",
        description="Noise in the embeddings with one group alone quantized, a row a group",
        x=Scale(
            low=low,
            high=high + LABEL_ROOM * (high - low),
            title="noise against the signal, dB: a longer bar is more",
        ),
        marks=[
            Mark(
                x=min(db, high),
                end=low,
                y=row,
                shape="bar",
                series="quantized",
                text=f"{effect.group.label}: SQNR {_db(effect.noise_only)}",
                label=f"SQNR {_db(effect.noise_only)}",
            )
            for row, (effect, db) in enumerate(zip(shown, noise, strict=True))
        ],
        rows=[effect.group.label for effect in shown],
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """The cells of a group: what it does alone, with a bar of its noise, and left out."""

    label: str
    alone: tuple[str, str]
    left_out: tuple[str, str, str]
    bar: str


def _table(rows: Sequence[_Row], *, found: Sensitivity, width: int | None) -> Iterator[str]:
    name = found.metric if found.metric_off is not None else ""
    heads = _Row(
        label="group", alone=("SQNR", name), left_out=("SQNR", name, "weights"), bar="noise"
    )
    every = [heads, *rows]
    first = max(len(row.label) for row in every)
    alone = [max(len(row.alone[n]) for row in every) for n in range(2)]
    left_out = [max(len(row.left_out[n]) for row in every) for n in range(3)]

    def join(cells: Sequence[str], widths: Sequence[int]) -> str:
        return "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True) if w)

    for bar in (BAR_WIDTH, 0):
        sides = [
            (
                join((row.alone[0], f"{row.bar:<{bar}}" if bar else "", row.alone[1]),
                     (alone[0], bar, alone[1])),
                join(row.left_out, left_out),
            )
            for row in every
        ]  # fmt: skip
        over, beside = (len(side) for side in sides[0])
        lines = [f"  {'':<{first}}  {'quantized alone':^{over}}  {'left out':^{beside}}".rstrip()]
        for row, (left, right) in zip(every, sides, strict=True):
            lines.append(f"  {row.label:<{first}}  {left}  {right}".rstrip())
        if width is None or max(map(len, lines)) <= width:
            yield from lines
            return
    for row in rows:
        yield f"  {row.label}"
        yield f"    alone     {join(row.alone, alone)}".rstrip()
        if any(row.left_out):
            cells = join(row.left_out, [alone[0], left_out[1], left_out[2]])
            yield f"    left out  {cells}".rstrip()


def _cells(effect: GroupEffect, found: Sensitivity) -> _Row:
    if not effect.towers:
        return _Row(
            label=effect.group.label, alone=("never ran", ""), left_out=("", "", ""), bar=""
        )
    db = to_sqnr_db(effect.noise_only)
    share = 0.0 if db == math.inf else min(1.0, max(0.0, 1 - db / QUIET_DB))
    everything = max(t.noise_all for t in found.towers if t.tower in effect.towers)
    alone = left_out = ""
    if effect.metric_only is not None and effect.metric_without is not None:
        assert found.metric_off is not None
        assert found.metric_all is not None
        alone = _change(effect.metric_only - found.metric_off, effect.changed_only)
        left_out = _change(effect.metric_without - found.metric_all, effect.changed_without)
    weights = f"+{show_bytes(effect.group.extra_bytes)}" if effect.group.extra_bytes else ""
    return _Row(
        label=effect.group.label,
        alone=(_db(effect.noise_only), alone),
        left_out=(_gain_db(everything, effect.noise_without), left_out, weights),
        bar="#" * max(1 if db < QUIET_DB else 0, round(BAR_WIDTH * share)),
    )


def _change(share: float, changed: Changed | None) -> str:
    """Return a change of a metric with what it may be on other samples: `+0.78 [-1.20, 2.90]`."""
    if changed is None:
        return _points(share)
    flips = Flips(right_to_wrong=changed.lost, wrong_to_right=changed.won, samples=changed.samples)
    drop = drop_limits(flips, confidence=LEVEL)
    low, high = (signed(-limit * 100) for limit in (drop.high, drop.low))
    return f"{share * 100:+.2f} [{low}, {high}]"


def _check_lines(check: GateCheck) -> Iterator[str]:
    if check.predicted is None:
        yield f"  {check.after}  {check.gate}  {check.brief_after} (before: {check.brief_before})"
        return
    yield f"  {check.after}  {check.gate}  {check.brief_after}"
    before, after = _percent(check.value_before), _percent(check.value_after)
    yield (
        f"        FP16 {_percent(check.fp16_value)}, before {before} ({check.before}), predicted "
        f"{_percent(check.predicted)}, verified {after}"
    )


def _gain_db(before: float, after: float) -> str:
    """Return the change of SQNR: `+1.3 dB`."""
    if math.isnan(after):
        return ""
    gain = to_sqnr_db(after) - to_sqnr_db(before)
    if math.isnan(gain):  # both are infinite: nothing changed
        return "+0.0 dB"
    return f"{gain:+.1f} dB" if math.isfinite(gain) else ("all" if gain > 0 else "NaN")


def _db(noise: float) -> str:
    db = to_sqnr_db(noise)
    if db == math.inf:
        return "no noise"
    return f"{db:.1f} dB" if math.isfinite(db) else "NaN"


def _points(share: float) -> str:
    return f"{share * 100:+.2f} pp"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share * 100:.2f} %"
