"""Two per-sample results of one task: the paired change with its interval, and the flips."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quantgate.comparison.changes import Change
from pytest_quantgate.evidence.outcomes import Score, averages_classes
from pytest_quantgate.gates.drops import describe_moves
from pytest_quantgate.statistics.intervals import Interval, drop_limits
from pytest_quantgate.statistics.pairing import Pairs, pair_scores
from pytest_quantgate.text.words import count, percent, signed

#: One-sided, as in a gate that does not say otherwise.
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One result: `correct` holds one outcome a sample, in the order of the sorted ids."""

    value: float
    correct: tuple[Score, ...]
    ids_digest: str
    data_digest: str


def describe_pairing(before: Sampled, after: Sampled) -> str:
    """Return why two results cannot be paired sample by sample, empty where they can."""
    if before.data_digest != after.data_digest:
        return f"the data differs ({before.data_digest[:12]} -> {after.data_digest[:12]})"
    if (before.ids_digest, len(before.correct)) != (after.ids_digest, len(after.correct)):
        return (
            f"the samples differ ({len(before.correct)} -> {len(after.correct)}, ids "
            f"{before.ids_digest[:12]} -> {after.ids_digest[:12]})"
        )
    return ""


def compare_results(
    before: Sampled, after: Sampled, *, subject: str, what: str, metric: str
) -> list[Change]:
    """Return what changed between two results of one task, as one change or none.

    `subject` names the result for machines, `what` for people (`tiny scenes acc1: quantized`).
    """
    unpaired = describe_pairing(before, after)
    if unpaired:
        return [
            Change(
                area="accuracy",
                kind="not paired",
                subjects=(subject,),
                text=f"{what} {percent(before.value)} -> {percent(after.value)}, not paired: "
                f"{unpaired}",
                before=percent(before.value),
                after=percent(after.value),
                figures={"before": before.value, "after": after.value},
            )
        ]
    pairs = pair_scores(before.correct, after.correct)
    lost, won = pairs.right_to_wrong, pairs.wrong_to_right
    if not lost and not won and before.value == after.value:
        return []
    gain, interval = _gain(pairs)
    of_what = " of the samples" if averages_classes(metric) else ""
    return [
        Change(
            area="accuracy",
            kind="accuracy",
            subjects=(subject,),
            text=f"{what} {percent(before.value)} -> {percent(after.value)}, change "
            f"{_plus(gain)}{of_what} [{_plus(interval.low)}, {_plus(interval.high)}] pp: "
            f"{_judge(interval)}",
            before=percent(before.value),
            after=percent(after.value),
            lines=(
                f"{count(lost + won, 'flip')} on {pairs.samples} samples: {describe_moves(pairs)} "
                f"(paired, one-sided {CONFIDENCE:.0%} limits)",
            ),
            figures={
                "before": before.value,
                "after": after.value,
                "change_points": gain * 100,
                "change_low_points": interval.low * 100,
                "change_high_points": interval.high * 100,
                "right_to_wrong": lost,
                "wrong_to_right": won,
                "samples": pairs.samples,
            },
        )
    ]


def _gain(pairs: Pairs) -> tuple[float, Interval]:
    """Return the change of the share that is right and its limits: the drop, its sign turned."""
    drop = drop_limits(pairs.flips, confidence=CONFIDENCE)
    return 0.0 - pairs.drop, Interval(low=-drop.high, high=-drop.low)


def _judge(interval: Interval) -> str:
    if interval.high < 0:
        return "a loss"
    if interval.low > 0:
        return "a gain"
    return "no change that the samples can show"


def _plus(share: float) -> str:
    text = signed(share * 100)
    return f"+{text}" if share > 0 and text != "0.00" else text
