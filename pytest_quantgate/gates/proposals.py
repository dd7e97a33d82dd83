"""What a gate against a baseline proposes to keep, and whether the other gates allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.gates.run import GateRun, Judged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.store.records import AnyKind, AnyRecord, Kind
    from pytest_quantgate.suite.gates import GateSection


def judge_others(run: GateRun, record: AnyKind) -> AnyKind:
    """Return a record with the verdicts of all other gates, whether they were to run or not.

    Raises BaselineError where one of them is not green: what is kept is what may ship.
    """
    from pytest_quantgate.store.acceptance import refuse_unfit, with_verdicts

    verdicts: Mapping[str, Verdict] = {
        gate.name: run.judging.judge(kind=gate.kind, key=gate.key).verdict
        for gate in _list_others(run)
    }
    record = with_verdicts(record, gates=verdicts, verdicts=verdicts)
    refuse_unfit(record, verdicts=verdicts)
    return record


def propose(run: GateRun, record: AnyRecord, *, verdict: Verdict, notes: tuple[str, ...]) -> Judged:
    """Return a red verdict and the record that would make it green.

    What other gates say is known at the end of the run, whatever their order and process: until
    then those that this case has not judged have not run.
    """
    from pytest_quantgate.store.acceptance import with_verdicts

    others = _list_others(run)
    said = {gate.name: run.judging.known(gate) for gate in others}
    judged = {name: verdict for name, verdict in said.items() if verdict is not None}
    record = with_verdicts(record, gates=[gate.name for gate in others], verdicts=judged)
    return Judged(verdict=verdict, proposal="obtained", record=record, notes=notes)


def _list_others(run: GateRun) -> list[GateSection]:
    """Return the gates that must have passed for a result to become a baseline."""
    from pytest_quantgate.store.acceptance import needs_passing

    return [gate for gate in run.suite.gates if needs_passing(gate.kind)]


def note_old_place(run: GateRun, gate: GateSection, *, kind: Kind) -> tuple[str, ...]:
    """Say where version 0.1 left the baseline that was used, and what moves it."""
    old = run.store.find_old(run.suite.name, gate.key, kind=kind)
    if old is None:
        return ()
    return (
        f"{old.path.name} is as version 0.1 wrote it, below {old.path.parent.name}/: "
        f"quantgate migrate {gate.where.file}",
    )
