"""What a case measured -> the gates' verdicts, each judged once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.baseline_mode import BaselineMode
from pytest_quantgate.baselines import Record, next_record, refuse_unfit
from pytest_quantgate.errors import NotMeasured, QuantGateError
from pytest_quantgate.fingerprint import differences
from pytest_quantgate.gates import (
    judge_accuracy,
    judge_calibration,
    judge_coverage,
    judge_engine,
    judge_export,
    judge_fidelity,
    judge_latency,
    judge_memory,
    judge_parity,
    judge_regression,
    judge_roundtrip,
)
from pytest_quantgate.gates.memory import MemoryFigures, MemoryLimits
from pytest_quantgate.measurement import Outcomes, StoredPair
from pytest_quantgate.stages import TOWERS, TowerName
from pytest_quantgate.suite import (
    AccuracyGate,
    EngineGate,
    LatencyGate,
    MemoryGate,
    RegressionGate,
)
from pytest_quantgate.verdict import Status, Verdict, combine

if TYPE_CHECKING:
    from pytest_quantgate.case import Case


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict, and the record that the session is to write for it.

    `proposal` is `baseline` (write it to baselines/), `obtained` (propose it) or empty.
    """

    verdict: Verdict
    proposal: str = ""
    record: Record | None = None
    notes: tuple[str, ...] = ()


class Judging:
    """The verdicts of a case. What could not be measured is never green."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._verdicts: dict[tuple[str, str], Judged] = {}

    def judge(self, *, kind: str, key: str = "") -> Judged:
        """Return the verdict of one gate, judged once.

        What could not be measured is NOT_MEASURED with its reason; bad input is FAIL with its
        message. Neither is ever green.
        """
        judges: dict[str, Callable[[], Judged]] = {
            "coverage": self._judge_coverage,
            "calibration": self._judge_calibration,
            "fidelity": self._judge_fidelity,
            "accuracy": lambda: self._judge_accuracy(self.accuracy_gate(key)),
            "regression": lambda: self._judge_regression(self.regression_gate(key)),
            "roundtrip": self._judge_roundtrip,
            "export": self._judge_export,
            "parity": self._judge_parity,
            "engine": lambda: self._judge_engine(self.engine_gate(key)),
            "memory": lambda: self._judge_memory(self.memory_gate(key)),
            "latency": lambda: self._judge_latency(self.latency_gate(key)),
        }
        if (kind, key) not in self._verdicts:
            self._verdicts[kind, key] = self._judge(kind, judges[kind])
        return self._verdicts[kind, key]

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
        key = f"{task}-{metric}"
        gate = next((gate for gate in self.case.suite.gates.regression if gate.key == key), None)
        if gate is None:
            known = ", ".join(g.key for g in self.case.suite.gates.regression) or "none"
            headline = (
                f"{self.case.suite.path.name} has no regression gate of {task} {metric} (it has: "
                f"{known}): its limits belong into the suite"
            )
            return Judged(verdict=Verdict(gate="regression", status=Status.FAIL, headline=headline))
        if fp16 is None and quantized is None:
            return self.judge(kind="regression", key=key)
        return self._judge(
            "regression", lambda: self._judge_regression(gate, fp16=fp16, quantized=quantized)
        )

    def _judge(self, kind: str, judge: Callable[[], Judged]) -> Judged:
        try:
            judged = judge()
        except NotMeasured as error:
            return Judged(
                verdict=Verdict(gate=kind, status=Status.NOT_MEASURED, headline=str(error))
            )
        except QuantGateError as error:
            return Judged(verdict=Verdict(gate=kind, status=Status.FAIL, headline=str(error)))
        return replace(judged, notes=(*judged.notes, *self.case.notes))

    def accuracy_gate(self, key: str) -> AccuracyGate:
        return next(gate for gate in self.case.suite.gates.accuracy if gate.key == key)

    def regression_gate(self, key: str) -> RegressionGate:
        return next(gate for gate in self.case.suite.gates.regression if gate.key == key)

    def engine_gate(self, key: str) -> EngineGate:
        return next(gate for gate in self.case.suite.gates.engine if gate.key == key)

    def memory_gate(self, key: str) -> MemoryGate:
        return next(gate for gate in self.case.suite.gates.memory if gate.key == key)

    def latency_gate(self, key: str) -> LatencyGate:
        return next(gate for gate in self.case.suite.gates.latency if gate.key == key)

    def _judge_coverage(self) -> Judged:
        gate = self.case.suite.gates.coverage
        assert gate is not None
        return Judged(verdict=judge_coverage(self.case.audit, gate=gate, today=self.case.today))

    def _judge_calibration(self) -> Judged:
        gate = self.case.suite.gates.calibration
        assert gate is not None
        return Judged(
            verdict=judge_calibration(
                self.case.audit,
                self.case.calibration_run,
                evaluation_hashes=self.case.evaluation_hashes(),
                gate=gate,
            )
        )

    def _judge_fidelity(self) -> Judged:
        gate = self.case.suite.gates.fidelity
        assert gate is not None
        return Judged(verdict=judge_fidelity(self.case.fidelity(), gate=gate))

    def _judge_accuracy(self, gate: AccuracyGate) -> Judged:
        fp16, quantized = self.case.outcomes(
            task=gate.task, metric=gate.metric, samples=gate.samples, stage=gate.stage
        )
        return Judged(verdict=judge_accuracy(fp16=fp16, quantized=quantized, gate=gate))

    def _judge_roundtrip(self) -> Judged:
        gate = self.case.suite.gates.roundtrip
        assert gate is not None
        return Judged(verdict=judge_roundtrip(self.case.roundtrip(), gate=gate))

    def _judge_export(self) -> Judged:
        gate = self.case.suite.gates.export
        assert gate is not None
        variants: tuple[Literal["fp16", "quantized"], ...] = ("fp16", "quantized")
        audits = {
            variant: [
                self.case.stages.onnx_audit(variant=variant, tower=tower, precision="float16")
                for tower in TOWERS
            ]
            for variant in variants
        }
        return Judged(
            verdict=judge_export(
                self.case.audit,
                quantized=audits["quantized"],
                fp16_file_bytes=sum(found.file_bytes for found in audits["fp16"]),
                gate=gate,
            )
        )

    def _judge_parity(self) -> Judged:
        gate = self.case.suite.gates.parity
        assert gate is not None
        return Judged(
            verdict=judge_parity(self.case.stages.parity(samples=gate.samples), gate=gate)
        )

    def _judge_engine(self, gate: EngineGate) -> Judged:
        variants: tuple[Literal["fp16", "quantized"], ...] = ("fp16", "quantized")
        reports = {
            variant: {
                str(tower): self.case.stages.engine(variant=variant, tower=tower, gate=gate)
                for tower in gate.towers
            }
            for variant in variants
        }
        from pytest_quantgate.measure.quantizers import owner_of
        from pytest_quantgate.runtimes.onnx_graph import module_of_node

        excluded = {owner_of(name) for _, matched in self.case.audit.excludes for name in matched}
        return Judged(
            verdict=judge_engine(
                fp16=reports["fp16"],
                quantized=reports["quantized"],
                excluded_nodes={
                    tower: tuple(
                        node.node for node in report.nodes if module_of_node(node.node) in excluded
                    )
                    for tower, report in reports["quantized"].items()
                },
                onnx_digests={
                    tower: self.case.stages.onnx_audit(
                        variant="quantized", tower=tower, precision="float16"
                    ).digest
                    for tower in gate.towers
                },
                gate=gate,
            )
        )

    def _judge_memory(self, gate: MemoryGate) -> Judged:
        limits = MemoryLimits(
            max_plan_ratio=gate.max_plan_ratio,
            max_weights_ratio=gate.max_weights_ratio,
            max_activation_ratio=gate.max_activation_ratio,
            max_plan_bytes=gate.max_plan_bytes,
            max_weights_bytes=gate.max_weights_bytes,
            max_activation_bytes=gate.max_activation_bytes,
        )
        parts = tuple(
            judge_memory(
                fp16=self._memory_of("fp16", tower, gate),
                quantized=self._memory_of("quantized", tower, gate),
                limits=limits,
                where=gate.where,
                subject=f"{tower}, batch {gate.batch}, {gate.target}",
            )
            for tower in gate.towers
        )
        return Judged(verdict=combine(gate="memory", parts=parts))

    def _memory_of(
        self, variant: Literal["fp16", "quantized"], tower: TowerName, gate: MemoryGate
    ) -> MemoryFigures:
        report = self.case.stages.engine(variant=variant, tower=tower, gate=gate)
        return MemoryFigures(
            plan_bytes=report.plan_bytes,
            weights_bytes=report.weights_bytes,
            activation_bytes=report.activation_bytes,
        )

    def _judge_latency(self, gate: LatencyGate) -> Judged:
        run = self.case.stages.latency(gate)
        self.case.latency_runs[gate.key] = run
        return Judged(
            verdict=judge_latency(
                run,
                max_ratio=gate.max_ratio,
                max_latency_ms=None,
                confidence=gate.confidence,
                where=gate.where,
            )
        )

    def _judge_regression(
        self,
        gate: RegressionGate,
        *,
        fp16: Outcomes | None = None,
        quantized: Outcomes | None = None,
    ) -> Judged:
        if fp16 is None or quantized is None:
            measured = self.case.outcomes(task=gate.task, metric=gate.metric, samples=gate.samples)
            fp16, quantized = fp16 or measured[0], quantized or measured[1]
        record = self.case.store.read(self.case.suite.name, gate.key)
        proposed = next_record(
            record,
            suite=self.case.suite.name,
            key=gate.key,
            task=gate.task,
            metric=gate.metric,
            fp16=fp16,
            quantized=quantized,
            fingerprint=self.case.fingerprint(data=fp16.data_digest),
            versions=self.case.versions,
            today=self.case.today,
            reason=self.case.settings.reason or "first baseline",
        )
        mode = self.case.settings.baselines
        if mode is BaselineMode.UPDATE or (mode is BaselineMode.CREATE and record is None):
            return self._accept(gate, record=record, proposed=proposed)
        command = f"pytest {gate.where.file} --quantgate-baselines="
        verdict = judge_regression(
            fp16=fp16,
            quantized=quantized,
            stored=(
                StoredPair(fp16=record.fp16, accepted=record.accepted, first=record.first)
                if record
                else None
            ),
            differences=(differences(record.fingerprint, proposed.fingerprint) if record else ()),
            create_command=f"{command}create",
            update_command=f"{command}update --quantgate-reason='why'",
            gate=gate,
        )
        if verdict.passed:
            return Judged(verdict=verdict)
        return Judged(verdict=verdict, proposal="obtained", record=proposed)

    def _accept(self, gate: RegressionGate, *, record: Record | None, proposed: Record) -> Judged:
        """Return the verdict of a writing mode: the new record, or why it may not be kept."""
        checks = [self.judge(kind="coverage")] if self.case.suite.gates.coverage else []
        checks += [
            self.judge(kind="accuracy", key=other.key)
            for other in self.case.suite.gates.accuracy
            if other.key == gate.key
        ]
        refuse_unfit(proposed, verdicts=tuple(check.verdict for check in checks))
        if record is not None and record.same_result(proposed):
            headline = f"regression: baseline of {gate.key} is up to date, nothing to write"
            return Judged(verdict=Verdict(gate="regression", status=Status.PASS, headline=headline))
        word = "updated" if record else "created"
        headline = f"regression: baseline of {gate.key} {word}: {proposed.describe()}"
        brief = f"{word}: {proposed.describe()}"
        return Judged(
            verdict=Verdict(gate="regression", status=Status.PASS, headline=headline, brief=brief),
            proposal="baseline",
            record=proposed,
        )
