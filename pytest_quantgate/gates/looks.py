"""Looks at the data of a gate: a limit that is tried until it passes is no limit any more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.errors import MissingPackage, QuantGateError

if TYPE_CHECKING:
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.gates.run import GateRun
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.store.looks import Looks
    from pytest_quantgate.store.records import Look


def remember_look(
    run: GateRun, gate: TaskGate, quantized: Outcomes
) -> tuple[Looks, tuple[str, ...]]:
    """Remember a look at the data of a gate; return which it is, and what went wrong with it.

    Without a ledger nothing is remembered, and every look is the first.
    """
    from pytest_quantgate.store.looks import Looks, count_looks

    question = f"{run.suite.name} {gate.key}"
    if run.ledger is None:
        return Looks(number=1, earlier=(), variants=1), ()
    now = make_look(run, gate, quantized)
    looks = count_looks(now, (*run.ledger.read(question), *_list_stored(run, gate)))
    try:
        run.ledger.add(question, replace(now, number=looks.number))
    except OSError as error:
        return looks, (f"{gate.key}: this look at the data was not remembered: {error}",)
    return looks, ()


def make_look(run: GateRun, gate: TaskGate, quantized: Outcomes) -> Look:
    from pytest_quantgate.store.looks import sketch
    from pytest_quantgate.store.records import Look
    from pytest_quantgate.tasks.registry import evaluation_data

    name, purpose = evaluation_data(gate.task)
    try:
        shown = run.contents(name, gate.samples, purpose=purpose, first=gate.first)
        pixels = shown.pixels
    except MissingPackage:  # then only the very same samples are known again
        pixels = ()
    of = run.fingerprint(data=quantized.data_digest)
    return Look(
        samples=len(quantized.ids),
        data_digest=quantized.data_digest,
        day=run.today.isoformat(),
        variant=of.variant,
        sketch=sketch(pixels),
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
