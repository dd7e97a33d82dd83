"""Looks at the data of a gate: a limit that is tried until it passes is no limit any more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.errors import MissingPackage, QuantGateError
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.statistics.looks import (
    PLANNED_SHARE,
    Step,
    confidences_of_looks,
    spend_share,
)
from pytest_quantgate.text.words import level

if TYPE_CHECKING:
    from fractions import Fraction

    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.gates.run import GateRun
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.store.looks import Looks
    from pytest_quantgate.store.records import Look
    from pytest_quantgate.tasks.contents import Contents


def find_looks(run: GateRun, gate: TaskGate, quantized: Outcomes, *, planned: int | None) -> Looks:
    """Return the how many-th look at its data a gate takes now, and what that spends.

    `planned` is the most that `samples` will be raised to, None without a plan. Without a ledger
    nothing is remembered, and every look is the first.
    """
    from pytest_quantgate.store.looks import Looks, count_looks

    now = make_look(run, gate, quantized)
    if run.ledger is None:
        looks = Looks(now=now)
    else:
        looks = count_looks(now, (*run.ledger.read(_ask(run, gate)), *_list_stored(run, gate)))
    if looks.recorded:
        return looks
    spent = spend_share(
        gate.samples / planned if planned and gate.samples else 1.0,
        spent=max((look.spent for look in looks.earlier), default=0.0),
        confidence=gate.confidence,
    )
    return replace(looks, now=replace(looks.now, spent=spent))


def remember_look(
    run: GateRun, gate: TaskGate, quantized: Outcomes, *, planned: int | None
) -> tuple[Looks, tuple[str, ...]]:
    """Remember a look at the data of a gate; return which it is, and what is to be said of it.

    That is what was guessed about the data and changed in it, and whether the look could not be
    remembered.
    """
    looks = find_looks(run, gate, quantized, planned=planned)
    notes = describe_data(run, gate)
    try:
        if run.ledger is not None:
            run.ledger.add(_ask(run, gate), looks.now)
    except OSError as error:
        return looks, (*notes, f"{gate.key}: this look at the data was not remembered: {error}")
    return looks, notes


def plan_looks(
    confidence: Fraction, *, samples: int | None, planned: int | None
) -> tuple[tuple[int, Fraction], ...]:
    """Return samples and confidence of the look at `samples` and of the last, at `planned`.

    Empty without a plan, and at its end: then there is one look.
    """
    if samples is None or planned is None or samples >= planned:
        return ()
    early = spend_share(samples / planned, spent=0.0, confidence=confidence)
    steps = [Step(samples=samples, spent=early), Step(samples=planned, spent=PLANNED_SHARE)]
    levels = confidences_of_looks(confidence, steps)
    return tuple(zip((samples, planned), levels, strict=True))


def confidence_left(confidence: Fraction, looks: Looks) -> Fraction:
    """Return the confidence that a look has left, so that all looks together keep one."""
    steps = [Step(samples=look.samples, spent=look.spent) for look in (*looks.earlier, looks.now)]
    return confidences_of_looks(confidence, steps)[-1]


def _ask(run: GateRun, gate: TaskGate) -> str:
    """Return the question that looks are remembered under."""
    return f"{run.suite.name} {gate.key}"


def describe_data(run: GateRun, gate: TaskGate) -> tuple[str, ...]:
    """Return how the data of a task was read, where that is not plain from the suite."""
    shown = _show(run, gate)
    return shown.describe(gate.task.rpartition("/")[0]) if shown is not None else ()


def _show(run: GateRun, gate: TaskGate) -> Contents | None:
    from pytest_quantgate.tasks.registry import evaluation_data

    name, purpose = evaluation_data(gate.task)
    try:
        return run.contents(name, gate.samples, purpose=purpose, first=gate.first)
    except MissingPackage:  # without perceptual hashes
        return None


def make_look(run: GateRun, gate: TaskGate, quantized: Outcomes) -> Look:
    from pytest_quantgate.store.looks import sketch
    from pytest_quantgate.store.records import Look

    shown = _show(run, gate)
    of = run.fingerprint(data=quantized.data_digest)
    return Look(
        samples=len(quantized.ids),
        data_digest=quantized.data_digest,
        day=run.today.isoformat(),
        variant=of.variant,
        # Without it only the very same samples are known again.
        sketch=sketch(shown.pixels if shown is not None else ()),
    )


def _list_stored(run: GateRun, gate: TaskGate) -> tuple[Look, ...]:
    """Return the looks that a task's baseline knows of: all there is on a fresh machine."""
    if not any((g.kind, g.key) == ("regression", gate.key) for g in run.suite.gates):
        return ()
    try:
        record = run.store.read(run.suite.name, gate.key)
    except QuantGateError:  # the regression gate says so
        return ()
    return record.looks if record is not None else ()


def describe_looks(
    verdict: Verdict, *, confidence: Fraction, planned: int | None, looks: Looks
) -> Verdict:
    """Return a verdict that says which look at the data it is, and of how many variants.

    `confidence` is that of all looks together, `planned` how far the samples may be raised.
    """
    lines: list[str] = []
    number, is_early = looks.now.number, looks.now.spent < PLANNED_SHARE
    left = confidence_left(confidence, looks)
    goal = planned or "more"
    what = f"look {number} of a plan to {goal} samples" if is_early else f"look {number}"
    if looks.earlier or is_early:
        before = ", ".join(f"{look.samples} on {look.day}" for look in looks.earlier[-4:])
        after = "" if is_early else "; fresh samples are a first look"
        lines.append(
            f"{what}{f' at samples of the same data ({before})' if before else ''}: judged at "
            f"{level(left)}, so that all looks together are wrong in at most "
            f"{float((1 - confidence) * 100):.3g} %{after}"
        )
    if looks.variants > 1:
        once = float(1 - confidence)
        lines.append(
            f"{looks.variants} variants were judged on these samples: the best of so many passes "
            f"wrongly in up to {(1 - (1 - once) ** looks.variants) * 100:.2g} %; confirm the one "
            f"that ships on fresh samples"
        )
    is_open = is_early and verdict.status is Status.INCONCLUSIVE
    return replace(
        verdict,
        brief=f"{verdict.brief}, look {number}" if looks.earlier or is_early else verdict.brief,
        evidence=(*verdict.evidence, *lines),
        next_step=f"raise samples to {goal}, as planned" if is_open else verdict.next_step,
        figures={**verdict.figures, "look": number, "variants_judged": looks.variants},
    )
