"""Whether limits on a drop refuse a variant that guesses: where they reach chance, none does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.text.words import count, percent, points

if TYPE_CHECKING:
    from collections.abc import Iterable
    from fractions import Fraction

    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.statistics.intervals import ClassCounts

#: What is wrong with the limits and the samples, and not with the variant.
FINDINGS = ("fp16-none-right", "limit-reaches-chance")


def judge_guesses(
    value: float, *, subject: str, chance: float, samples: int, key: str, gate: TaskGate
) -> Verdict:
    """Return INCONCLUSIVE: a limit is kept by whatever loses all that `subject` has over chance.

    `value` is what `subject` has of the metric, `chance` what one that guesses has; 0: not known.
    """
    where, limit = gate.where.of(key), points(getattr(gate, key))
    if not value:
        return Verdict(
            gate=gate.kind,
            status=Status.INCONCLUSIVE,
            headline=f"{gate.kind}: {gate.task}: {subject} {gate.metric} is 0 on "
            f"{count(samples, 'sample')}: there is nothing to lose ({where})",
            brief=f"{subject} is right on no sample: there is nothing to lose",
            cause="samples and what is expected of them do not belong together, or the task asks "
            "for what this model cannot do",
            next_step="evaluate FP16 by itself until it is right on some",
            code=f"{gate.kind}.fp16-none-right",
        )
    over = value - chance
    guesses = f"chance alone gives {percent(chance)}" if chance else "nothing is known of chance"
    return Verdict(
        gate=gate.kind,
        status=Status.INCONCLUSIVE,
        headline=f"{gate.kind}: {gate.task}: {subject} {gate.metric} is {percent(value)}, "
        f"{guesses}: {key} {limit} passes a variant that has lost everything ({where})",
        brief=f"{key} {limit} passes one that guesses: {subject} has {points(over)} to lose",
        cause="a limit for a task that FP16 does better, or samples that it does badly on",
        next_step=f"set {key} well under {points(over)}"
        + (f", or a floor above {percent(chance)}" if hasattr(gate, "floor") else ""),
        figures={"fp16_to_lose_points": over * 100},
        code=f"{gate.kind}.limit-reaches-chance",
    )


def loses_in_parts(
    parts: Iterable[tuple[str, ClassCounts]], *, limit: Fraction, chance: float
) -> bool:
    """Return whether one that guesses loses more than a limit in some part: a class, a slice."""
    return any(counts.right / counts.samples + counts.drop - chance > limit for _, counts in parts)


def changed_by_guesses(value: float, *, chance: float, has_classes: bool) -> float:
    """Return the share of answers that one that guesses changes, of a model that has `value`.

    Of answers without classes only whether they are right is compared.
    """
    if has_classes:
        return 1 - chance
    return value * (1 - chance) + (1 - value) * chance
