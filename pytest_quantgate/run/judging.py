"""What a case measured -> the gates' verdicts, each judged once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pytest_quantgate.errors import (
    Incomparable,
    ModelError,
    NotMeasured,
    QuantGateError,
    WriteError,
)
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.overflow import ANSWERING, judge_overflow
from pytest_quantgate.gates.regression import RegressionGate, judge_run
from pytest_quantgate.gates.run import Judged
from pytest_quantgate.gates.suspects import name_suspects
from pytest_quantgate.statistics.family import ALONE, SILENT, Family
from pytest_quantgate.suite.gates import IMPLICIT, GateSection, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_quantgate.evidence.audit import Tower
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.gates.accuracy import AccuracyGate
    from pytest_quantgate.gates.fidelity import FidelityGate
    from pytest_quantgate.gates.run import GateRun
    from pytest_quantgate.run.measured import Measured


def narrow_towers(gate: GateSection, *, towers: Sequence[str]) -> GateSection:
    """Return a gate on the towers of its `towers` that the model has; raises ModelError for none.

    Both is what `towers` says where a suite says nothing, so it means every tower that is there.
    """
    named = getattr(gate, "towers", None)
    if named is None:
        return gate
    kept = tuple(tower for tower in named if tower in towers)
    if named and not kept:
        raise ModelError(
            f"{gate.where.of('towers')}: the model has no {' or '.join(named)} tower: it has "
            f"{', '.join(towers)}"
        )
    return cast(GateSection, replace(cast(Any, gate), towers=kept))


class Judging:
    """The verdicts of a case. What could not be measured is never green."""

    def __init__(self, case: Measured) -> None:
        self.case = case
        self._verdicts: dict[tuple[str, str], Judged] = {}
        #: The gates that first met a place that cannot be written, by the kind of place.
        self._unwritable: dict[type[WriteError], str] = {}

    def judge(self, *, kind: str, key: str = "") -> Judged:
        """Return the verdict of one gate, judged once.

        What could not be measured is NOT_MEASURED with its reason; bad input is FAIL with its
        message. Neither is ever green. Raises KeyError for a gate that the suite has not.
        """
        if (kind, key) not in self._verdicts:
            gate = self.case.suite.gates.find(kind=kind, key=key)
            self._verdicts[kind, key] = self._judge(kind, lambda: self._judge_gate(gate))
        return self._verdicts[kind, key]

    def known(self, gate: GateSection) -> Verdict | None:
        """Return what a gate said if it was judged already."""
        judged = self._verdicts.get((gate.kind, gate.key))
        return judged.verdict if judged else None

    def _judge_gate(self, gate: GateSection) -> Judged:
        narrowed = narrow_towers(gate, towers=self.case.towers)
        stages = self.case.stages
        before, stages.used_files = stages.used_files, {}  # one gate may ask another
        try:
            judged: Judged = kind_of(gate).judge(self.case, narrowed)
            given = tuple(
                f"the {name} was given: {what}" for name, what in stages.used_files.items()
            )
        finally:
            stages.used_files |= before
        verdict = replace(judged.verdict, evidence=(*judged.verdict.evidence, *given))
        return self._judge_overflow(replace(judged, verdict=verdict), gate=gate)

    def _find_insanity(self, kind: str) -> Judged | None:
        """Return why a gate is not judged: where sanity fails, numbers mean something else."""
        sanity = self.judge(kind="sanity").verdict
        if sanity.status is not Status.FAIL:
            return None
        code = f" [{sanity.code}]" if sanity.code else ""
        return Judged(
            verdict=Verdict(
                gate=kind,
                status=Status.NOT_MEASURED,
                headline=f"not judged, as the sanity gate fails: "
                f"{sanity.headline.removeprefix('sanity: ')}{code}",
                brief=f"not judged, as the sanity gate fails{code}",
            )
        )

    def check_baseline(
        self,
        *,
        task: str,
        metric: str,
        fp16: Outcomes | None = None,
        quantized: Outcomes | None = None,
    ) -> Judged:
        """Return the verdict of the suite's regression gate on a task and metric.

        `fp16` and `quantized` take outcomes that the caller measured; None: the suite measures.
        """
        key, gates = f"{task}-{metric}", self.case.suite.gates.all(RegressionGate)
        gate = next((gate for gate in gates if gate.key == key), None)
        if gate is None:
            known = ", ".join(gate.key for gate in gates) or "none"
            headline = (
                f"{self.case.suite.path.name} has no regression gate of {task} {metric} (it has: "
                f"{known}): its limits belong into the suite"
            )
            return Judged(
                verdict=Verdict(
                    gate=RegressionGate.kind,
                    status=Status.FAIL,
                    headline=headline,
                    code="regression.no-such-gate",
                )
            )
        if fp16 is None and quantized is None:
            return self.judge(kind=gate.kind, key=key)
        return self._judge(
            gate.kind,
            lambda: judge_run(cast("GateRun", self.case), gate, fp16=fp16, quantized=quantized),
        )

    def _judge(self, kind: str, judge: Callable[[], Judged]) -> Judged:
        try:
            insanity = None if kind in IMPLICIT else self._find_insanity(kind)
            if insanity is not None:
                return insanity
            judged = judge()
        except NotMeasured as error:
            return Judged(
                verdict=Verdict(gate=kind, status=Status.NOT_MEASURED, headline=str(error))
            )
        except WriteError as error:
            return Judged(verdict=self._say_unwritable(kind, error))
        except Incomparable as error:
            code = f"{kind}.{error.finding}"
            return Judged(
                verdict=Verdict(
                    gate=kind,
                    status=Status.INCOMPARABLE,
                    headline=str(error),
                    brief=error.brief,
                    code=code,
                    cause=error.cause,
                )
            )
        except QuantGateError as error:
            code = error.code or f"{kind}.{error.finding}"
            return Judged(
                verdict=Verdict(
                    gate=kind,
                    status=Status.FAIL,
                    headline=str(error),
                    code=code,
                    cause=error.cause,
                )
            )
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            headline = f"cannot read or write: {place}{error.strerror or error}"
            code = f"{kind}.input-unusable"
            return Judged(
                verdict=Verdict(
                    gate=kind,
                    status=Status.FAIL,
                    headline=headline,
                    code=code,
                    cause="the file is not there, or this user may not read or write it",
                )
            )
        if kind in IMPLICIT:
            return judged  # what a reader must know of the variants is not built yet
        return replace(judged, notes=(*judged.notes, *self.case.notes))

    def _say_unwritable(self, kind: str, error: WriteError) -> Verdict:
        """Return a FAIL that says what to do, once; it is why the other gates measure nothing."""
        first = self._unwritable.setdefault(type(error), kind)
        if first != kind:
            headline = f"nothing could be written: the {first} gate says where, and what to do"
            return Verdict(gate=kind, status=Status.NOT_MEASURED, headline=headline)
        code = f"{kind}.{error.finding}"
        return Verdict(
            gate=kind, status=Status.FAIL, headline=str(error), code=code, cause=error.cause
        )

    def _judge_overflow(self, judged: Judged, *, gate: GateSection) -> Judged:
        """Return what a gate says, and of the values inside the model where it answers for them."""
        named = [other for other in self.case.suite.gates if other.kind not in IMPLICIT]
        order = {kind: place for place, kind in enumerate(ANSWERING)}
        if gate is not min(named, key=lambda other: order.get(other.kind, len(order))):
            return judged
        verdict = judge_overflow(
            judged.verdict,
            fp16=self.case.activations(),
            quantized=self.case.audit.activations,
            samples=self.case.calibration_run.held_out_samples,
            dtype=self.case.suite.model.dtype,
            where=gate.where,
        )
        if verdict.status is judged.verdict.status:
            return replace(judged, verdict=verdict)
        return replace(judged, verdict=verdict, proposal="", record=None)

    def name_suspects(
        self, verdict: Verdict, gate: AccuracyGate | FidelityGate, *, tower: Tower | None = None
    ) -> Verdict:
        """Return a red verdict with the layers in which the error enters.

        Whatever goes wrong in looking for them, the verdict itself stands, and says so.
        """
        from pytest_quantgate.run.sensitivity import Study

        try:
            suspects = Study(self.case).suspects(gate, tower=tower)
            recipe = self.case.recipe.name
        except Exception as error:  # noqa: BLE001 (it becomes a line of the evidence)
            reason = " ".join(str(error).split()) or type(error).__name__
            line = f"which layer it is was not measured: {reason[:200]}"
            return replace(verdict, evidence=(*verdict.evidence, line))
        return name_suspects(verdict, suspects, suite=gate.where.file, recipe=recipe)

    @property
    def family(self) -> Family:
        """The limits that a false alarm may come from: those of all gates that have some."""
        gates = self.case.suite.gates
        if self.case.suite.family == "none":
            return ALONE
        size = sum(kind_of(gate).count_limits(gate) for gate in gates)
        return Family(size=size, strengths=self._measure_strengths)

    def _measure_strengths(self) -> tuple[float, ...]:
        """Return the strength of every alarm of the family, measuring what is not in the cache."""
        found: list[float] = []
        for gate in self.case.suite.gates:
            kind = kind_of(gate)
            limits = kind.count_limits(gate)
            try:
                found += kind.strengths(self.case, gate) if limits else ()
            except QuantGateError:  # its own gate says why
                found += [SILENT] * limits
        return tuple(found)
