"""What may become a baseline: a result of a run in which every other gate of its suite passed.

`create`, `update` and `quantgate accept` ask the same question; a record carries the answer, the
statuses of its run, so that it can be asked where nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.store.records import AnyKind, AnyRecord, GateStatus, Kind, Record
from pytest_quantgate.text.words import listed

#: These are judged against the baseline that is to be replaced.
AGAINST_BASELINES: tuple[Kind, ...] = get_args(Kind)

#: What another gate may say of a result that is kept; what a machine cannot measure is not red.
ACCEPTABLE: tuple[GateStatus, ...] = ("PASS", "NOT_MEASURED")


def needs_passing(gate: str) -> bool:
    """Return whether a gate, by its name, must have passed for a result to become a baseline."""
    return gate.partition("[")[0] not in AGAINST_BASELINES


def with_verdicts(
    record: AnyKind, *, gates: Iterable[str], verdicts: Mapping[str, Verdict]
) -> AnyKind:
    """Return a record that says what each gate of its suite said, or that it did not run."""
    found: dict[str, GateStatus] = {
        gate: verdicts[gate].status.value if gate in verdicts else "DID_NOT_RUN"
        for gate in gates
        if needs_passing(gate)
    }
    return replace(record, verdicts=found)


def complete_verdicts(record: AnyKind, *, rows: Iterable[tuple[str, Verdict]]) -> AnyKind:
    """Return a record with what the gates of its suite said in the whole run, the worst of each."""
    verdicts: dict[str, Verdict] = {}
    for gate, verdict in rows:
        known = verdicts.get(gate)
        if known is None or verdict.status.severity > known.status.severity:
            verdicts[gate] = verdict
    gates = record.verdicts
    found: dict[str, GateStatus] = {
        gate: verdicts[gate].status.value for gate in gates if gate in verdicts
    }
    return replace(record, verdicts={**gates, **found})


def why_unfit(record: AnyRecord) -> str:
    """Return why a result must not become a baseline, empty where it may."""
    if isinstance(record, Record):
        for name, outcomes in (("FP16", record.fp16), ("quantized", record.accepted)):
            if outcomes.samples == 0:
                return f"{name} has no samples"
            if not math.isfinite(outcomes.value):
                return f"{name} value is {outcomes.value}"
    judged = {gate: status for gate, status in record.verdicts.items() if needs_passing(gate)}
    if not judged:
        return "it does not say what the other gates of its run said"
    red = [f"{gate} is {s}" for gate, s in judged.items() if s not in (*ACCEPTABLE, "DID_NOT_RUN")]
    red += [
        f"{gate} is {Status.NOT_MEASURED.value}"
        for gate in ("sanity", "coverage")
        if judged.get(gate) == Status.NOT_MEASURED.value
    ]
    left_out = [gate for gate, status in judged.items() if status == "DID_NOT_RUN"]
    if left_out:
        red.append(f"{listed(left_out)} did not run")
    return listed(red)


def refuse_red(record: AnyRecord, *, command: str) -> None:
    """Raise BaselineError for a stored baseline whose own run was not green.

    `accept`, `create` and `update` take none; one that was put there by hand is no reference. What
    version 0.1 wrote does not say what its run was, and stays.
    """
    reason = why_unfit(record) if record.verdicts else ""
    if reason:
        raise BaselineError(
            f"the baseline of {record.key} is of a run that may not be accepted: {reason}: take "
            f"one of a green run: {command}",
            code=f"{record.kind}.baseline-of-red-run",
        )


def refuse_unfit(record: AnyRecord, *, verdicts: Mapping[str, Verdict] = {}) -> None:
    """Raise BaselineError for a result that must not become a baseline.

    `verdicts` are those of its run where they are at hand: the first red one is told in full.
    """
    reason = why_unfit(record)
    if reason:
        red = (v.headline for gate, v in verdicts.items() if needs_passing(gate) and not v.passed)
        raise BaselineError(
            ": ".join((f"{record.key}: not accepted as a baseline: {reason}", *list(red)[:1]))
        )
