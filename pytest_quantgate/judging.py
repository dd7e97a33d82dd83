"""What a case measured -> the gates' verdicts, each judged once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.baseline_mode import BaselineMode
from pytest_quantgate.baselines import (
    end_chain,
    is_of_other_data,
    next_latency_record,
    next_record,
)
from pytest_quantgate.errors import MissingPackage, NotMeasured, QuantGateError, WriteError
from pytest_quantgate.fingerprint import differences, list_unknown
from pytest_quantgate.gates import accuracy as accuracy_room
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
    judge_sanity,
    judge_tower,
    judge_trace,
)
from pytest_quantgate.gates import regression as regression_room
from pytest_quantgate.gates.accuracy import describe_looks, spend_confidence
from pytest_quantgate.gates.calibration import warn_of_near_copies
from pytest_quantgate.gates.chance import judge_chance
from pytest_quantgate.gates.family import ALONE, SILENT, Family
from pytest_quantgate.gates.memory import figures_of, limits_of
from pytest_quantgate.gates.overflow import ANSWERING, judge_overflow
from pytest_quantgate.gates.pairing import Pairs, Unpaired, pair_outcomes
from pytest_quantgate.gates.parity import point_to_export
from pytest_quantgate.gates.samples import FINDINGS
from pytest_quantgate.gates.sanity import is_left_open
from pytest_quantgate.gates.shipped import judge_shipped
from pytest_quantgate.gates.suspects import name_suspects
from pytest_quantgate.gates.trace import follow_quantizers
from pytest_quantgate.measure.latency import Machine
from pytest_quantgate.measurement import Outcomes, StoredPair, Tower
from pytest_quantgate.stages import TOWERS
from pytest_quantgate.store.acceptance import needs_passing, refuse_unfit, with_verdicts
from pytest_quantgate.store.looks import Looks, count_looks, sketch
from pytest_quantgate.store.records import (
    AnyKind,
    AnyRecord,
    Kind,
    LatencyRecord,
    Look,
    Record,
)
from pytest_quantgate.suite import (
    AccuracyGate,
    EngineGate,
    FidelityGate,
    LatencyGate,
    MemoryGate,
    ParityGate,
    RegressionGate,
    TraceGate,
)
from pytest_quantgate.verdict import Status, Verdict, combine

if TYPE_CHECKING:
    from pytest_quantgate.case import Case
    from pytest_quantgate.collect import GateItem


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict, and the record that the session is to write for it.

    `proposal` is `baseline` (write it to baselines/), `obtained` (propose it) or empty.
    """

    verdict: Verdict
    proposal: str = ""
    record: AnyRecord | None = None
    notes: tuple[str, ...] = ()


class Judging:
    """The verdicts of a case. What could not be measured is never green."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._verdicts: dict[tuple[str, str], Judged] = {}
        #: The gates that first met a place that cannot be written, by the kind of place.
        self._unwritable: dict[type[WriteError], str] = {}

    def judge(self, *, kind: str, key: str = "") -> Judged:
        """Return the verdict of one gate, judged once.

        What could not be measured is NOT_MEASURED with its reason; bad input is FAIL with its
        message. Neither is ever green.
        """
        judges: dict[str, Callable[[], Judged]] = {
            "sanity": self._judge_sanity,
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
            "trace": lambda: self._judge_trace(self.trace_gate(key)),
            "latency": lambda: self._judge_latency(self.latency_gate(key)),
        }
        if (kind, key) not in self._verdicts:
            self._verdicts[kind, key] = self._judge(
                kind, lambda: self._judge_overflow(judges[kind](), kind=kind, key=key)
            )
        return self._verdicts[kind, key]

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
            insanity = None if kind == "sanity" else self._find_insanity(kind)
            if insanity is not None:
                return insanity
            judged = judge()
        except NotMeasured as error:
            return Judged(
                verdict=Verdict(gate=kind, status=Status.NOT_MEASURED, headline=str(error))
            )
        except WriteError as error:
            return Judged(verdict=self._say_unwritable(kind, error))
        except QuantGateError as error:
            return Judged(
                verdict=Verdict(gate=kind, status=Status.FAIL, headline=str(error), code=error.code)
            )
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            headline = f"cannot read or write: {place}{error.strerror or error}"
            return Judged(verdict=Verdict(gate=kind, status=Status.FAIL, headline=headline))
        if kind == "sanity":
            return judged  # what a reader must know of the variants is not built yet
        return replace(judged, notes=(*judged.notes, *self.case.notes))

    def _say_unwritable(self, kind: str, error: WriteError) -> Verdict:
        """Return a FAIL that says what to do, once; it is why the other gates measure nothing."""
        first = self._unwritable.setdefault(type(error), kind)
        if first != kind:
            headline = f"nothing could be written: the {first} gate says where, and what to do"
            return Verdict(gate=kind, status=Status.NOT_MEASURED, headline=headline)
        code = f"{kind}.unwritable"
        return Verdict(gate=kind, status=Status.FAIL, headline=str(error), code=code)

    def accuracy_gate(self, key: str) -> AccuracyGate:
        return next(gate for gate in self.case.suite.gates.accuracy if gate.key == key)

    def regression_gate(self, key: str) -> RegressionGate:
        return next(gate for gate in self.case.suite.gates.regression if gate.key == key)

    def engine_gate(self, key: str) -> EngineGate:
        return next(gate for gate in self.case.suite.gates.engine if gate.key == key)

    def memory_gate(self, key: str) -> MemoryGate:
        return next(gate for gate in self.case.suite.gates.memory if gate.key == key)

    def trace_gate(self, key: str) -> TraceGate:
        return next(gate for gate in self.case.suite.gates.trace if gate.key == key)

    def latency_gate(self, key: str) -> LatencyGate:
        return next(gate for gate in self.case.suite.gates.latency if gate.key == key)

    def _judge_sanity(self) -> Judged:
        from pytest_quantgate.tasks.registry import locate_texts

        case = self.case
        sanity = case.sanity
        places = {
            task.data: locate_texts(task.data, datasets=case.suite.datasets, environ=case.environ)
            for task in sanity.tasks
        }
        return Judged(verdict=judge_sanity(sanity, model=case.source.description, places=places))

    def _judge_coverage(self) -> Judged:
        gate = self.case.suite.gates.coverage
        assert gate is not None
        return Judged(
            verdict=judge_coverage(
                self.case.audit,
                gate=gate,
                today=self.case.today,
                attention=self.case.suite.model.attn_implementation,
            )
        )

    def _judge_calibration(self) -> Judged:
        gate = self.case.suite.gates.calibration
        assert gate is not None
        near_copies = self.case.near_copies()
        return Judged(
            verdict=judge_calibration(
                self.case.audit,
                self.case.calibration_run,
                evaluation_hashes=self.case.evaluation_hashes(),
                near_copies=near_copies,
                gate=gate,
                attention=self.case.suite.model.attn_implementation,
            ),
            notes=warn_of_near_copies(near_copies),
        )

    def _judge_fidelity(self) -> Judged:
        gate = self.case.suite.gates.fidelity
        assert gate is not None
        fidelity = self.case.fidelity()
        verdict = judge_fidelity(fidelity, gate=gate)
        red = [t for t in fidelity.towers if not judge_tower(t, gate=gate).passed]
        if verdict.status is Status.FAIL and red:
            tower = red[0]
            # What a layer adds by itself stays as evidence; what it does to the embeddings leads.
            plain = verdict if tower.nonfinite else replace(verdict, cause="")
            named = self._name_suspects(plain, gate, tower=tower.tower)
            verdict = named if named.cause else replace(named, cause=verdict.cause)
        return Judged(verdict=verdict)

    def _judge_overflow(self, judged: Judged, *, kind: str, key: str) -> Judged:
        """Return what a gate says, and of the values inside the model where it answers for them."""
        gates = self.case.suite.gates
        for name in dict.fromkeys((*ANSWERING, *(field.name for field in fields(gates)))):
            found = getattr(gates, name)
            if found:
                gate = found[0] if isinstance(found, tuple) else found
                break
        if (name, getattr(gate, "key", "")) != (kind, key):
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

    def _judge_accuracy(self, gate: AccuracyGate) -> Judged:
        fp16, quantized = self.case.outcomes(
            task=gate.task,
            metric=gate.metric,
            samples=gate.samples,
            stage=gate.stage,
            first=gate.first,
        )
        senseless = self._judge_answers(gate, fp16=fp16)
        if senseless is not None:
            return Judged(verdict=senseless)
        looks, notes = self._look(gate, quantized)
        verdict = judge_accuracy(
            fp16=fp16,
            quantized=quantized,
            gate=spend_confidence(gate, look=looks.number),
            family=self.family,
        )
        verdict = describe_looks(verdict, gate=gate, looks=looks)
        about_data = verdict.code.rpartition(".")[2] in FINDINGS  # no layer explains that
        if verdict.status in (Status.FAIL, Status.INCONCLUSIVE) and not about_data:
            verdict = self._name_suspects(verdict, gate)
        return Judged(verdict=verdict, notes=notes)

    def _look(self, gate: AccuracyGate, quantized: Outcomes) -> tuple[Looks, tuple[str, ...]]:
        """Remember a look at the data of a gate; return which it is, and what went wrong with it.

        Without a ledger nothing is remembered, and every look is the first.
        """
        ledger, question = self.case.ledger, f"{self.case.suite.name} {gate.key}"
        if ledger is None:
            return FIRST_LOOK, ()
        now = self._make_look(gate, quantized)
        looks = count_looks(now, (*ledger.read(question), *self._list_stored_looks(gate)))
        try:
            ledger.add(question, replace(now, number=looks.number))
        except OSError as error:
            return looks, (f"{gate.key}: this look at the data was not remembered: {error}",)
        return looks, ()

    def _make_look(self, gate: AccuracyGate, quantized: Outcomes) -> Look:
        from pytest_quantgate.tasks.registry import evaluation_data

        name, purpose = evaluation_data(gate.task)
        try:
            shown = self.case.contents(name, gate.samples, purpose=purpose, first=gate.first)
            pixels = shown.pixels
        except MissingPackage:  # then only the very same samples are known again
            pixels = ()
        of = self.case.fingerprint(data=quantized.data_digest)
        return Look(
            samples=len(quantized.ids),
            data_digest=quantized.data_digest,
            day=self.case.today.isoformat(),
            variant=of.variant,
            sketch=sketch(pixels),
        )

    def _list_stored_looks(self, gate: AccuracyGate) -> tuple[Look, ...]:
        """Return the looks that a task's baseline knows of: all there is on a fresh machine."""
        if gate.key not in {other.key for other in self.case.suite.gates.regression}:
            return ()
        try:
            record = self.case.store.read(self.case.suite.name, gate.key)
        except QuantGateError:  # the regression gate says so
            return ()
        return record.looks if record is not None else ()

    def _judge_answers(
        self, gate: AccuracyGate | RegressionGate, *, fp16: Outcomes
    ) -> Verdict | None:
        """Return why FP16's answers to a whole task mean nothing; None where they do.

        Chance is judged where sanity, which looks at a part, left it open; exchanged classes show
        on many samples only.
        """
        from pytest_quantgate.measure.sanity import read_answers

        if fp16.nonfinite:
            return None  # no answers: its own gate says so
        asked = (gate.task, gate.samples, gate.first)
        answers = read_answers(fp16)
        is_open = any(
            (task.task, task.samples, task.first) == asked and is_left_open(task.answers)
            for task in self.case.sanity.tasks
        )
        if not is_open and not answers.swapped:
            return None
        kind = "accuracy" if isinstance(gate, AccuracyGate) else "regression"
        verdict = judge_chance(answers, gate=kind, task=gate.task)
        return None if verdict.passed else verdict

    def _name_suspects(
        self, verdict: Verdict, gate: AccuracyGate | FidelityGate, *, tower: Tower | None = None
    ) -> Verdict:
        """Return a red verdict with the layers in which the error enters.

        Whatever goes wrong in looking for them, the verdict itself stands, and says so.
        """
        from pytest_quantgate.sensitivity import Study

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
        """The limits that a false alarm may come from: all accuracy and regression limits."""
        gates = self.case.suite.gates
        if self.case.suite.family == "none":
            return ALONE
        size = sum(accuracy_room.count_limits(gate) for gate in gates.accuracy)
        size += regression_room.LIMITS_COUNT * len(gates.regression)
        return Family(size=size, strengths=self._measure_strengths)

    def _measure_strengths(self) -> tuple[float, ...]:
        """Return the strength of every alarm of the family, measuring what is not in the cache."""
        gates, found = self.case.suite.gates, list[float]()
        for gate in gates.accuracy:
            try:
                fp16, quantized = self.case.outcomes(
                    task=gate.task,
                    metric=gate.metric,
                    samples=gate.samples,
                    stage=gate.stage,
                    first=gate.first,
                )
            except QuantGateError:  # its own gate says why
                found += [SILENT] * accuracy_room.count_limits(gate)
                continue
            found += accuracy_room.list_strengths(fp16=fp16, quantized=quantized, gate=gate)
        for other in gates.regression:
            try:
                found += self._regression_strengths(other)
            except QuantGateError:
                found += [SILENT] * regression_room.LIMITS_COUNT
        return tuple(found)

    def _regression_strengths(self, gate: RegressionGate) -> tuple[float, ...]:
        fp16, quantized = self.case.outcomes(
            task=gate.task, metric=gate.metric, samples=gate.samples, first=gate.first
        )
        record = self.case.store.read(self.case.suite.name, gate.key)
        comparable = record is not None and not differences(
            record.fingerprint,
            self.case.fingerprint(data=fp16.data_digest, data_parts=fp16.data_parts),
        )
        return regression_room.list_strengths(
            fp16=fp16,
            quantized=quantized,
            stored=_stored_pair(record) if comparable else None,
            gate=gate,
        )

    def _judge_roundtrip(self) -> Judged:
        gate = self.case.suite.gates.roundtrip
        assert gate is not None
        return Judged(verdict=judge_roundtrip(self.case.roundtrip(), gate=gate))

    def _judge_export(self) -> Judged:
        gate = self.case.suite.gates.export
        assert gate is not None
        coverage = self.case.suite.gates.coverage
        stages = self.case.stages
        variants: tuple[Literal["fp16", "quantized"], ...] = ("fp16", "quantized")
        audits = {
            variant: [
                stages.onnx_audit(variant=variant, tower=tower, precision=stages.shipped)
                for tower in TOWERS
            ]
            for variant in variants
        }
        verdict = judge_export(
            self.case.audit,
            quantized=audits["quantized"],
            fp16_file_bytes=sum(found.file_bytes for found in audits["fp16"]),
            left_out=[t for t in TOWERS if coverage and t not in coverage.towers],
            gate=gate,
        )
        if self.case.suite.gates.parity is None:  # which runs the files otherwise
            usual = ParityGate(where=gate.where)
            parts = judge_shipped(
                stages.shipped_towers(samples=usual.samples),
                gate="export",
                where=gate.where,
                torch_db={},
                max_change_db=usual.max_sqnr_change_db,
            )
            red = tuple(part for part in parts if not part.passed)
            if red:
                verdict = combine(gate="export", parts=(*red, verdict))
            else:
                lines = tuple(part.headline for part in parts)
                verdict = replace(verdict, evidence=(*verdict.evidence, *lines))
        return Judged(verdict=verdict)

    def _judge_parity(self) -> Judged:
        gate = self.case.suite.gates.parity
        assert gate is not None
        stages = self.case.stages
        verdict = judge_parity(
            stages.parity(samples=gate.samples),
            gate=gate,
            shipped=stages.shipped_towers(samples=gate.samples),
        )
        if verdict.status is Status.FAIL and self.case.suite.gates.export is not None:
            verdict = point_to_export(verdict, export=self.judge(kind="export").verdict)
        return Judged(verdict=verdict)

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

        outputs, not_executed = None, ""
        parity = self.case.suite.gates.parity or ParityGate(where=gate.where)
        try:
            outputs = self.case.stages.engine_outputs(gate, samples=parity.samples)
        except NotMeasured as error:
            not_executed = str(error)
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
                        variant="quantized",
                        tower=tower,
                        precision=self.case.stages.shipped,
                    ).digest
                    for tower in gate.towers
                },
                gate=gate,
                outputs=outputs,
                not_executed=not_executed,
                max_sqnr_change_db=parity.max_sqnr_change_db,
            )
        )

    def _judge_memory(self, gate: MemoryGate) -> Judged:
        parts = tuple(
            judge_memory(
                fp16=figures_of(self.case.stages.engine(variant="fp16", tower=tower, gate=gate)),
                quantized=figures_of(
                    self.case.stages.engine(variant="quantized", tower=tower, gate=gate)
                ),
                limits=limits_of(gate),
                where=gate.where,
                subject=f"{tower}, batch {gate.batch}, {gate.target}",
                prefix=f"{tower}_",
            )
            for tower in gate.towers
        )
        return Judged(verdict=combine(gate="memory", parts=parts))

    def _judge_trace(self, gate: TraceGate) -> Judged:
        stages = self.case.stages
        onnx = {
            str(tower): stages.onnx_audit(
                variant="quantized", tower=tower, precision=stages.shipped
            )
            for tower in gate.towers
        }
        engines, name = None, ""
        if gate.target is not None:
            engines = {
                str(tower): stages.engine(variant="quantized", tower=tower, gate=gate)
                for tower in gate.towers
            }
            first = engines[gate.towers[0]]
            name = f"{first.library} {first.library_version} for {first.target}"
        rows = follow_quantizers(
            self.case.audit,
            onnx=onnx,
            engines=engines,
            towers=gate.towers,
            coverage=self.case.suite.gates.coverage,
        )
        return Judged(verdict=judge_trace(rows, engine=name, gate=gate))

    def _judge_latency(self, gate: LatencyGate) -> Judged:
        run = self.case.stages.latency(gate)
        self.case.latency_runs[gate.key] = run
        command = f"pytest {gate.where.file} --quantgate-baselines="

        def judge(machine: Machine | None) -> Verdict:
            return judge_latency(
                run,
                max_ratio=gate.max_ratio,
                max_latency_ms=gate.max_latency_ms,
                min_ratio=gate.min_ratio,
                confidence=gate.confidence,
                where=gate.where,
                baseline_machine=machine,
                create_command=f"{command}create",
                update_command=f"{command}update --quantgate-reason='why'",
            )

        if gate.max_latency_ms is None:
            return Judged(verdict=judge(None))
        record = self.case.store.read_latency(self.case.suite.name, gate.key)
        proposed = next_latency_record(
            record,
            suite=self.case.suite.name,
            key=gate.key,
            run=run,
            versions=self.case.versions,
            today=self.case.today,
            reason=self.case.settings.reason or "first baseline",
        )
        here = judge(run.machine)
        mode = self.case.settings.baselines
        if mode is BaselineMode.UPDATE or (mode is BaselineMode.CREATE and record is None):
            return self._accept_machine(record, proposed=proposed, verdict=here)
        verdict = judge(record.machine if record else None)
        notes = self._note_old_place(gate) if record else ()
        if verdict.passed or not here.passed:
            return Judged(verdict=verdict, notes=notes)
        return self._propose(proposed, verdict=verdict, notes=notes)

    def _accept_machine(
        self, record: LatencyRecord | None, *, proposed: LatencyRecord, verdict: Verdict
    ) -> Judged:
        """Return the verdict of a writing mode: a machine on which the limits hold is recorded."""
        if not verdict.passed:
            return Judged(verdict=verdict)
        proposed = self._judge_others(proposed)
        same = record is not None and record.same_result(proposed)
        word = "up to date, nothing to write" if same else "updated" if record else "created"
        verdict = replace(
            verdict, evidence=(f"baseline {word}: {proposed.describe()}", *verdict.evidence)
        )
        if same:
            return Judged(verdict=verdict)
        return Judged(verdict=verdict, proposal="baseline", record=proposed)

    def _judge_regression(
        self,
        gate: RegressionGate,
        *,
        fp16: Outcomes | None = None,
        quantized: Outcomes | None = None,
    ) -> Judged:
        if fp16 is None or quantized is None:
            measured = self.case.outcomes(
                task=gate.task, metric=gate.metric, samples=gate.samples, first=gate.first
            )
            senseless = self._judge_answers(gate, fp16=measured[0])
            if senseless is not None:
                return Judged(verdict=senseless)
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
            fingerprint=self.case.fingerprint(data=fp16.data_digest, data_parts=fp16.data_parts),
            versions=self.case.versions,
            today=self.case.today,
            reason=self.case.settings.reason or "first baseline",
            pairs=_pair(fp16, quantized),
        )
        proposed = replace(proposed, looks=self._list_looks(gate, quantized) or proposed.looks)
        mode = self.case.settings.baselines
        command = f"pytest {gate.where.file} --quantgate-baselines="
        update = f"{command}update --quantgate-reason='why'"
        has_new_data = record is not None and is_of_other_data(record, proposed)
        if has_new_data:
            update += " --quantgate-new-data"
        if mode is BaselineMode.UPDATE or (mode is BaselineMode.CREATE and record is None):
            if record is not None and has_new_data and not self.case.settings.new_data:
                refused = _refuse_new_data(record, gate=gate, command=update)
                draws = self._list_draws(gate, before=record, now=proposed)
                return Judged(verdict=replace(refused, evidence=(*refused.evidence, *draws)))
            return self._accept(gate, record=record, proposed=proposed)
        verdict = judge_regression(
            fp16=fp16,
            quantized=quantized,
            stored=_stored_pair(record),
            differences=(differences(record.fingerprint, proposed.fingerprint) if record else ()),
            create_command=f"{command}create",
            update_command=update,
            gate=gate,
            family=self.family,
        )
        notes: tuple[str, ...] = ()
        if record is not None:
            notes = self._note_old_place(gate)
            chains = tuple(f"accepted before: {chain.describe()}" for chain in record.chains)
            draws = self._list_draws(gate, before=record, now=proposed)
            verdict = replace(verdict, evidence=(*verdict.evidence, *draws, *chains))
            unknown = list_unknown(record.fingerprint, proposed.fingerprint)
            if unknown:
                notes = (
                    *notes,
                    f"the baseline of {gate.key} does not say: {', '.join(unknown)}; they were "
                    f"not compared. To record them: {update}",
                )
        if verdict.passed:
            return Judged(verdict=verdict, notes=notes)
        return self._propose(proposed, verdict=verdict, notes=notes)

    def _list_draws(self, gate: RegressionGate, *, before: Record, now: Record) -> tuple[str, ...]:
        """Say where version 0.1 took other samples of the same data: nothing accepted is lost."""
        if before.fingerprint.settings:
            return ()
        calibration, places = self.case.suite.calibration, []
        if before.fingerprint.calibration != now.fingerprint.calibration and not calibration.first:
            places.append(str(calibration.where))
        is_drawn = gate.samples is not None and not gate.first
        if before.fingerprint.data != now.fingerprint.data and is_drawn:
            places.append(str(gate.where))
        return tuple(
            f"version 0.1 took the first samples, this one draws them: first: true in {place} "
            f"compares with what was accepted"
            for place in places
        )

    def _judge_others(self, record: AnyKind) -> AnyKind:
        """Return a record with the verdicts of all other gates, whether they were to run or not.

        Raises BaselineError where one of them is not green: what is kept is what may ship.
        """
        verdicts = {
            gate.name: self.judge(kind=gate.kind, key=gate.key).verdict for gate in self._others
        }
        record = with_verdicts(record, gates=verdicts, verdicts=verdicts)
        refuse_unfit(record, verdicts=verdicts)
        return record

    def _propose(self, record: AnyRecord, *, verdict: Verdict, notes: tuple[str, ...]) -> Judged:
        """Return a red verdict and the record that would make it green.

        What other gates say is known at the end of the run, whatever their order and process: until
        then those that this case has not judged have not run.
        """
        judged = {
            gate.name: self._verdicts[gate.kind, gate.key].verdict
            for gate in self._others
            if (gate.kind, gate.key) in self._verdicts
        }
        record = with_verdicts(record, gates=[gate.name for gate in self._others], verdicts=judged)
        return Judged(verdict=verdict, proposal="obtained", record=record, notes=notes)

    @property
    def _others(self) -> list[GateItem]:
        """The gates that must have passed for a result to become a baseline."""
        from pytest_quantgate.collect import list_gates

        return [gate for gate in list_gates(self.case.suite) if needs_passing(gate.kind)]

    def _list_looks(self, gate: RegressionGate, quantized: Outcomes) -> tuple[Look, ...]:
        """Return the looks at the data of a baseline that this machine and the baseline know of."""
        for other in self.case.suite.gates.accuracy:
            if other.key == gate.key and self.case.ledger is not None:
                looks, _ = self._look(other, quantized)
                now = replace(self._make_look(other, quantized), number=looks.number)
                return (*looks.earlier, now)
        return ()

    def _note_old_place(self, gate: RegressionGate | LatencyGate) -> tuple[str, ...]:
        """Say where version 0.1 left the baseline that was used, and what moves it."""
        kind: Kind = "regression" if isinstance(gate, RegressionGate) else "latency"
        old = self.case.store.find_old(self.case.suite.name, gate.key, kind=kind)
        if old is None:
            return ()
        return (
            f"{old.path.name} is as version 0.1 wrote it, below {old.path.parent.name}/: "
            f"quantgate migrate {gate.where.file}",
        )

    def _accept(self, gate: RegressionGate, *, record: Record | None, proposed: Record) -> Judged:
        """Return the verdict of a writing mode: the new record, or why it may not be kept."""
        proposed = self._judge_others(proposed)
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


def _refuse_new_data(record: Record, *, gate: RegressionGate, command: str) -> Verdict:
    return Verdict(
        gate="regression",
        status=Status.FAIL,
        headline=f"regression: baseline of {gate.key} is not updated: the evaluation data is not "
        f"that on which the first variant was accepted ({gate.where})",
        evidence=(f"accepted so far: {end_chain(record, record).describe()}",),
        cause="on other data nobody sees what the variant has lost since the first one",
        next_step=f"if the data is meant to change: {command}",
        code="regression.new-data",
    )


FIRST_LOOK = Looks(number=1, earlier=(), variants=1)


def _pair(fp16: Outcomes, quantized: Outcomes) -> Pairs | None:
    """Return both variants paired; None where they cannot be, which their own gate says."""
    try:
        return pair_outcomes(before=fp16, after=quantized)
    except Unpaired:
        return None


def _stored_pair(record: Record | None) -> StoredPair | None:
    if record is None:
        return None
    return StoredPair(
        fp16=record.fp16,
        accepted=record.accepted,
        first=record.first,
        first_fp16=record.first_fp16,
    )
