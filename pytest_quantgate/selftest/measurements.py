"""Sabotages of what was measured: outcomes, embeddings, checkpoints, exports, engines, times.

Here the decision is on trial, not the measurement: would this gate, with the limits that the suite
sets and the samples that it has, say no? A limit that nothing can exceed shows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from pytest_quantgate.encoders.faults import image_size
from pytest_quantgate.evidence.audit import Audit, CalibrationRun
from pytest_quantgate.evidence.fidelity import Fidelity
from pytest_quantgate.evidence.load import Served, Timing
from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.evidence.outcomes import Outcomes, Score, mean_score
from pytest_quantgate.evidence.parity import Parity, Roundtrip
from pytest_quantgate.evidence.sanity import Answers, Sanity, Twins
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.trace import TraceGate
from pytest_quantgate.selftest.sabotage import Sabotage, Spoil, exchange, exchange_stages

if TYPE_CHECKING:
    from pytest_quantgate.gates.memory import MemoryGate
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.runtimes.engine_layers import EngineReport

OTHER_DIGEST = "0" * 64


def list_measurement_sabotages() -> tuple[Sabotage, ...]:
    """Return the sabotages of measurements, of every gate that has any."""
    return (
        *_sanity(),
        *_coverage(),
        *_calibration(),
        *_fidelity(),
        *_accuracy(),
        *_regression(),
        *_roundtrip(),
        *_export(),
        *_parity(),
        *_engine(),
        *_memory(),
        *_trace(),
        *_latency(),
        *_load(),
    )


# -- sanity --------------------------------------------------------------------------------------


def _sanity() -> tuple[Sabotage, ...]:
    def on_sanity(change: Callable[[Sanity], Sanity | None]) -> Spoil:
        def spoil(case: Case, _key: str) -> Case | None:
            changed = change(case.sanity)
            return None if changed is None else exchange(case, sanity=changed)

        return spoil

    def on_classes(**changes: object) -> Spoil:
        def change(sanity: Sanity) -> Sanity | None:
            if not any(task.classes > 1 for task in sanity.tasks):
                return None
            tasks = tuple(
                dataclasses.replace(task, **changes) if task.classes > 1 else task  # type: ignore[arg-type]
                for task in sanity.tasks
            )
            return dataclasses.replace(sanity, tasks=tasks)

        return on_sanity(change)

    def on_reading(**changes: object) -> Spoil:
        def change(sanity: Sanity) -> Sanity | None:
            if not (sanity.reading.count and sanity.reading.pools_end):
                return None  # no end token to lose
            changed = dataclasses.replace(sanity.reading, **changes)  # type: ignore[arg-type]
            return dataclasses.replace(sanity, reading=changed)

        return on_sanity(change)

    def guess(sanity: Sanity) -> Sanity | None:
        tasks = tuple(
            dataclasses.replace(task, answers=guessed(task.answers))
            for task in sanity.tasks
            if task.answers is not None
        )
        return dataclasses.replace(sanity, tasks=tasks) if tasks else None

    def guessed(answers: Answers) -> Answers:
        right = int(answers.samples * answers.chance)
        return dataclasses.replace(answers, right=right, whole=True)

    def exchange_processor(sanity: Sanity) -> Sanity:
        fault = image_size(made=(3, 225, 225), taken=(3, 224, 224))
        return dataclasses.replace(sanity, faults=(fault,))

    twins = Twins(first=0, second=1, names=("one", "one"), pairs=1)
    return (
        Sabotage(
            name="a template that names no class",
            gate="sanity",
            cause=r"has no \{c\}",
            spoil=on_classes(without_class=((0, "a photo of a {}"),)),
        ),
        Sabotage(
            name="a class name that stands twice",
            gate="sanity",
            cause="stands twice",
            spoil=on_classes(same_name=twins),
        ),
        Sabotage(
            name="two classes with one prompt",
            gate="sanity",
            cause="read alike",
            spoil=on_classes(same_prompt=twins),
        ),
        Sabotage(
            name="a tokenizer without end token",
            gate="sanity",
            cause="no end token",
            spoil=on_reading(without_end=1, example="a photo", pooled="a"),
        ),
        Sabotage(
            name="another token pooled",
            gate="sanity",
            cause="not the end token",
            spoil=on_reading(pooled_elsewhere=1, example="a photo", pooled="photo"),
        ),
        Sabotage(
            name="FP16 that guesses",
            gate="sanity",
            cause="no better than chance",
            spoil=on_sanity(guess),
        ),
        Sabotage(
            name="the image processor of another model",
            gate="sanity",
            cause="the vision tower takes",
            spoil=on_sanity(exchange_processor),
        ),
        Sabotage(
            name="FP16 that gives NaN",
            gate="sanity",
            cause="NaN or Inf",
            spoil=on_sanity(lambda sanity: dataclasses.replace(sanity, nonfinite_images=1)),
        ),
    )


# -- coverage and calibration: what needs no forward ------------------------------------------


def _coverage() -> tuple[Sabotage, ...]:
    def never_called(audit: Audit) -> Audit:
        return replace_quantizers(audit, tower_calls={})

    def misspelt(audit: Audit) -> Audit:
        return dataclasses.replace(audit, excludes=(*audit.excludes, ("*no_such_layer*", ())))

    return (
        Sabotage(
            name="quantizers that never ran",
            gate="coverage",
            cause="never (ran|called)",
            spoil=_on_audit(never_called),
        ),
        Sabotage(
            name="an exclude pattern that matches nothing",
            gate="coverage",
            cause="matches none of",
            spoil=_on_audit(misspelt),
        ),
    )


def _calibration() -> tuple[Sabotage, ...]:
    def on_run(change: Callable[[CalibrationRun], CalibrationRun]) -> Spoil:
        def spoil(case: Case, _key: str) -> Case | None:
            run = case.calibration_run
            if run.given:
                return None  # a checkpoint does not tell how it was calibrated
            return exchange(case, calibration_run=change(run))

        return spoil

    def no_batch(run: CalibrationRun) -> CalibrationRun:
        idle = dict.fromkeys(run.tower_batches, 0)
        return dataclasses.replace(run, batches=0, tower_batches=idle)

    def idle_tower(run: CalibrationRun) -> CalibrationRun:
        *_, last = run.tower_batches
        return dataclasses.replace(run, tower_batches={**run.tower_batches, last: 0})

    def nonfinite(run: CalibrationRun) -> CalibrationRun:
        return dataclasses.replace(run, nonfinite=("image 0",))

    def overlap(run: CalibrationRun) -> CalibrationRun:
        ((content, _), *_rest) = run.sample_hashes
        copy = (content, "a copy")
        return dataclasses.replace(run, held_out_hashes=(*run.held_out_hashes, copy))

    return (
        Sabotage(
            name="no calibration batch",
            gate="calibration",
            cause="no batch was ever calibrated on",
            spoil=on_run(no_batch),
        ),
        Sabotage(
            name="one tower never calibrated",
            gate="calibration",
            cause=r"the \w+ tower was never calibrated",
            spoil=on_run(idle_tower),
        ),
        Sabotage(
            name="NaN in the calibration data",
            gate="calibration",
            cause="calibration data holds NaN or Inf",
            spoil=on_run(nonfinite),
        ),
        Sabotage(
            name="calibrated on what is judged",
            gate="calibration",
            cause="also calibrated the quantizers",
            spoil=on_run(overlap),
        ),
    )


def _on_audit(change: Callable[[Audit], Audit]) -> Spoil:
    return lambda case, _key: exchange(case, audit=change(case.audit))


def replace_quantizers(audit: Audit, **changes: object) -> Audit:
    """Return an audit with these changes to every enabled quantizer."""
    return dataclasses.replace(
        audit,
        quantizers=tuple(
            dataclasses.replace(q, **changes) if q.enabled else q  # type: ignore[arg-type]
            for q in audit.quantizers
        ),
    )


# -- fidelity ------------------------------------------------------------------------------------


def _fidelity() -> tuple[Sabotage, ...]:
    def on_towers(**changes: object) -> Spoil:
        def spoil(case: Case, _key: str) -> Case:
            found = case.fidelity()
            towers = tuple(
                dataclasses.replace(tower, **changes)  # type: ignore[arg-type]
                for tower in found.towers
            )
            return exchange(case, fidelity=lambda: dataclasses.replace(found, towers=towers))

        return spoil

    def one_tower(case: Case, _key: str) -> Case:
        found: Fidelity = case.fidelity()
        return exchange(case, fidelity=lambda: dataclasses.replace(found, towers=found.towers[:-1]))

    return (
        Sabotage(
            name="embeddings of another model",
            gate="fidelity",
            cause="under min_",
            spoil=on_towers(
                cosine_mean=0.0, cosine_worst=-1.0, sqnr_mean_db=-3.0, sqnr_worst_db=-6.0
            ),
        ),
        Sabotage(
            name="NaN in the embeddings", gate="fidelity", cause="NaN", spoil=on_towers(nonfinite=1)
        ),
        Sabotage(
            name="one tower never compared",
            gate="fidelity",
            cause="no embeddings of the",
            spoil=one_tower,
        ),
    )


# -- accuracy and regression ---------------------------------------------------------------------


def answer_wrong(outcomes: Outcomes) -> Outcomes:
    """Return outcomes in which no sample is right."""
    return with_correct(outcomes, correct=(False,) * len(outcomes.ids))


def with_correct(outcomes: Outcomes, *, correct: tuple[Score, ...]) -> Outcomes:
    """Return outcomes with these samples right; answers change where that does, so the value."""
    classes = len(outcomes.class_names) or 2
    answers = tuple(
        answer if was == right else label if right else (label + 1) % classes
        for answer, was, label, right in zip(
            outcomes.answers, outcomes.correct, outcomes.labels, correct, strict=True
        )
    )
    changed = dataclasses.replace(outcomes, correct=correct, answers=answers)
    return dataclasses.replace(changed, value=value_of(changed))


def value_of(outcomes: Outcomes) -> float:
    """Return the metric that the samples give."""
    return mean_score(outcomes.correct, labels=outcomes.labels, metric=outcomes.metric)


def drop_samples(outcomes: Outcomes) -> Outcomes:
    """Return outcomes without the second half of the samples."""
    half = max(1, len(outcomes.ids) // 2)
    fewer = dataclasses.replace(
        outcomes,
        ids=outcomes.ids[:half],
        correct=outcomes.correct[:half],
        answers=outcomes.answers[:half],
        labels=outcomes.labels[:half],
    )
    return dataclasses.replace(fewer, value=value_of(fewer))


def trade_answers(outcomes: Outcomes) -> Outcomes:
    """Return outcomes in which as many wrong answers became right as right ones wrong."""
    right = [i for i, good in enumerate(outcomes.correct) if good]
    wrong = [i for i, good in enumerate(outcomes.correct) if not good]
    traded = min(len(right), len(wrong))
    flipped = {*right[:traded], *wrong[:traded]}
    return with_correct(
        outcomes,
        correct=tuple(
            not good if i in flipped else good for i, good in enumerate(outcomes.correct)
        ),
    )


def exchange_outcomes(
    case: Case,
    *,
    fp16: Callable[[Outcomes], Outcomes] = lambda outcomes: outcomes,
    quantized: Callable[[Outcomes], Outcomes] = lambda outcomes: outcomes,
) -> Case:
    """Return a copy of a case whose outcomes are changed, on whatever task a gate asks for."""

    def outcomes(**request: Any) -> tuple[Outcomes, Outcomes]:
        before, after = case.outcomes(**request)
        return fp16(before), quantized(after)

    return exchange(case, outcomes=outcomes)


def _outcomes(
    *,
    fp16: Callable[[Outcomes], Outcomes] = lambda outcomes: outcomes,
    quantized: Callable[[Outcomes], Outcomes] = lambda outcomes: outcomes,
) -> Spoil:
    return lambda case, _key: exchange_outcomes(case, fp16=fp16, quantized=quantized)


def _accuracy() -> tuple[Sabotage, ...]:
    def under_floor(case: Case, key: str) -> Case | None:
        if case.suite.gates.get(AccuracyGate, key=key).floor is None:
            return None
        return exchange_outcomes(case, fp16=answer_wrong, quantized=answer_wrong)

    def trade(case: Case, key: str) -> Case | None:
        gate = case.suite.gates.get(AccuracyGate, key=key)
        if gate.max_flips is None:
            return None
        before, _ = case.outcomes(
            task=gate.task,
            metric=gate.metric,
            samples=gate.samples,
            stage=gate.stage,
            first=gate.first,
        )
        traded = trade_answers(before)
        flipped = sum(a != b for a, b in zip(before.answers, traded.answers, strict=True))
        if flipped <= gate.max_flips * len(before.ids):
            return None  # too few are wrong for an even trade over the limit
        return exchange_outcomes(
            case, quantized=lambda after: dataclasses.replace(traded, variant=after.variant)
        )

    return (
        Sabotage(
            name="answers of another class",
            gate="accuracy",
            cause="over max_drop",
            spoil=_outcomes(quantized=answer_wrong),
        ),
        Sabotage(
            name="evaluated on a part",
            gate="accuracy",
            cause="sample ids differ",
            spoil=_outcomes(quantized=drop_samples),
        ),
        Sabotage(
            name="evaluated on other data",
            gate="accuracy",
            cause="the data differs",
            spoil=_outcomes(quantized=_with(data_digest=OTHER_DIGEST)),
        ),
        Sabotage(
            name="NaN in the embeddings",
            gate="accuracy",
            cause="NaN or Inf",
            spoil=_outcomes(quantized=_with(nonfinite=1)),
        ),
        Sabotage(
            name="a value that was edited",
            gate="accuracy",
            cause="is not what its .* samples say",
            spoil=_outcomes(quantized=lambda o: dataclasses.replace(o, value=o.value / 2 + 0.25)),
        ),
        Sabotage(
            name="both variants wrong alike",
            gate="accuracy",
            cause="under floor|classes in another order",  # each sample gets the next class
            spoil=under_floor,
        ),
        Sabotage(name="losses that gains hide", gate="accuracy", cause="max_flips", spoil=trade),
    )


def _with(**changes: object) -> Callable[[Outcomes], Outcomes]:
    return lambda outcomes: dataclasses.replace(outcomes, **changes)  # type: ignore[arg-type]


def _regression() -> tuple[Sabotage, ...]:
    def without_baseline(case: Case, _key: str) -> Case:
        return exchange(case, store=_EmptyStore())

    return (
        Sabotage(
            name="no baseline", gate="regression", cause="no baseline", spoil=without_baseline
        ),
        Sabotage(
            name="a variant that got worse",
            gate="regression",
            cause="over max_drop",
            spoil=_outcomes(quantized=answer_wrong),
        ),
        Sabotage(
            name="FP16 that moved",
            gate="regression",
            cause="over max_fp16_drop|classes in another order",
            spoil=_outcomes(fp16=answer_wrong),
        ),
        Sabotage(
            name="evaluated on other data",
            gate="regression",
            cause="evaluation data differ",
            spoil=_outcomes(
                fp16=_with(data_digest=OTHER_DIGEST), quantized=_with(data_digest=OTHER_DIGEST)
            ),
        ),
    )


class _EmptyStore:
    """A store in which nothing was ever written."""

    def read(self, _suite: str, _key: str) -> None:
        return None


# -- roundtrip -----------------------------------------------------------------------------------


def _roundtrip() -> tuple[Sabotage, ...]:
    def on_roundtrip(change: Callable[[Roundtrip], Roundtrip]) -> Spoil:
        def spoil(case: Case, _key: str) -> Case:
            changed = change(case.roundtrip())
            return exchange(case, roundtrip=lambda: changed)

        return spoil

    return (
        Sabotage(
            name="restored to other outputs",
            gate="roundtrip",
            cause="embeddings differ after the restore",
            spoil=on_roundtrip(
                lambda found: dataclasses.replace(
                    found, equal=dict.fromkeys(found.equal, False), max_abs_difference=1.0
                )
            ),
        ),
        Sabotage(
            name="one range lost in the checkpoint",
            gate="roundtrip",
            cause="amax differ",
            spoil=on_roundtrip(
                lambda found: dataclasses.replace(found, amax_different=("some.input_quantizer",))
            ),
        ),
        Sabotage(
            name="a damaged checkpoint that loads",
            gate="roundtrip",
            cause="damage was accepted",
            spoil=on_roundtrip(
                lambda found: dataclasses.replace(found, accepted=("state file missing",))
            ),
        ),
    )


# -- exported files ------------------------------------------------------------------------------


def exchange_export(case: Case, change: Callable[[OnnxAudit], OnnxAudit]) -> Case:
    """Return a copy of a case whose quantized files hold something else."""

    def onnx_audit(*, variant: str, **request: Any) -> OnnxAudit:
        found = case.stages.onnx_audit(variant=variant, **request)
        return change(found) if variant == "quantized" else found

    return exchange_stages(case, onnx_audit=onnx_audit)


def _export() -> tuple[Sabotage, ...]:
    def on_export(change: Callable[[OnnxAudit], OnnxAudit]) -> Spoil:
        return lambda case, _key: exchange_export(case, change)

    def scaled(audit: OnnxAudit) -> OnnxAudit:
        (first, *rest) = audit.pairs
        wider = dataclasses.replace(
            first,
            scale_min=first.scale_min * 4,
            scale_max=first.scale_max * 4,
            amax_min=first.amax_min * 4,
            amax_max=first.amax_max * 4,
        )
        return dataclasses.replace(audit, pairs=(wider, *rest))

    def in_full_precision(audit: OnnxAudit) -> OnnxAudit:
        return dataclasses.replace(
            audit,
            pairs=tuple(
                dataclasses.replace(pair, source="weight, float") if pair.slot == "weight" else pair
                for pair in audit.pairs
            ),
        )

    def added(audit: OnnxAudit) -> OnnxAudit:
        extra = dataclasses.replace(audit.pairs[0], quantizer=None, node="added/Q", slot="other")
        return dataclasses.replace(audit, pairs=(*audit.pairs, extra))

    return (
        Sabotage(
            name="one pair lost",
            gate="export",
            cause="1 of .* quantizers .* are not in its graph",
            spoil=on_export(lambda audit: dataclasses.replace(audit, pairs=audit.pairs[1:])),
        ),
        Sabotage(
            name="exported from FP16",
            gate="export",
            cause="exported from another variant",
            spoil=on_export(lambda audit: dataclasses.replace(audit, pairs=())),
        ),
        Sabotage(
            name="one scale times 4",
            gate="export",
            cause="amax .* in the graph",
            spoil=on_export(scaled),
        ),
        Sabotage(
            name="weights in full precision",
            gate="export",
            cause="not stored in 8 bits",
            spoil=on_export(in_full_precision),
        ),
        Sabotage(
            name="a pair that nobody approved",
            gate="export",
            cause="belong to no quantizer that was approved",
            spoil=on_export(added),
        ),
    )


def _parity() -> tuple[Sabotage, ...]:
    def on_parity(change: Callable[[Parity], Parity]) -> Spoil:
        def spoil(case: Case, _key: str) -> Case:
            gate = case.suite.gates.one(ParityGate)
            assert gate is not None
            changed = change(case.stages.parity(samples=gate.samples))
            return exchange_stages(case, parity=lambda **_request: changed)

        return spoil

    def towers(**changes: object) -> Callable[[Parity], Parity]:
        return lambda parity: dataclasses.replace(
            parity,
            towers=tuple(
                dataclasses.replace(tower, **changes)  # type: ignore[arg-type]
                for tower in parity.towers
            ),
        )

    return (
        Sabotage(
            name="a graph that computes something else",
            gate="parity",
            cause="computes something else",
            spoil=on_parity(towers(error=1.5, floor=0.0)),
        ),
        Sabotage(
            name="a graph that is quantized less",
            gate="parity",
            cause="quantized less than the model",
            spoil=on_parity(towers(error=0.0, sqnr_torch_db=20.0, sqnr_onnx_db=60.0)),
        ),
    )


# -- engines -------------------------------------------------------------------------------------


def exchange_engine(case: Case, change: Callable[[EngineReport], EngineReport]) -> Case:
    """Return a copy of a case whose quantized engines are others."""

    def engine(
        *,
        variant: Literal["fp16", "quantized"],
        tower: Literal["vision", "text"],
        gate: EngineGate | MemoryGate,
    ) -> EngineReport:
        found = case.stages.engine(variant=variant, tower=tower, gate=gate)
        return change(found) if variant == "quantized" else found

    return exchange_stages(case, engine=engine)


def _engine() -> tuple[Sabotage, ...]:
    def half_precision(case: Case, key: str) -> Case | None:
        if not case.suite.gates.get(EngineGate, key=key).min_fp8_gemms:
            return None
        return exchange_engine(case, lambda report: dataclasses.replace(report, fp8_gemm_nodes=0))

    def fell_apart(case: Case, key: str) -> Case | None:
        if case.suite.gates.get(EngineGate, key=key).attention is None:
            return None

        def change(report: EngineReport) -> EngineReport:
            return dataclasses.replace(
                report,
                attentions=tuple(
                    dataclasses.replace(found, state="not-fused", reason="it fell apart")
                    for found in report.attentions
                ),
            )

        return exchange_engine(case, change)

    return (
        Sabotage(
            name="a plan of an older file",
            gate="engine",
            cause="built from another ONNX file",
            spoil=lambda case, _key: exchange_engine(
                case, lambda report: dataclasses.replace(report, onnx_sha256=OTHER_DIGEST)
            ),
        ),
        Sabotage(
            name="linear layers in half precision",
            gate="engine",
            cause="min_fp8_gemms",
            spoil=half_precision,
        ),
        Sabotage(
            name="attention that fell apart",
            gate="engine",
            cause="attention blocks .* are not fused",
            spoil=fell_apart,
        ),
    )


#: More than any engine needs.
HUGE_BYTES = 1 << 60


def _memory() -> tuple[Sabotage, ...]:
    def too_large(case: Case, _key: str) -> Case:
        return exchange_engine(
            case,
            lambda report: dataclasses.replace(
                report,
                plan_bytes=HUGE_BYTES,
                weights_bytes=HUGE_BYTES,
                activation_bytes=HUGE_BYTES,
            ),
        )

    return (
        Sabotage(
            name="an engine that is larger than FP16's",
            gate="memory",
            cause="over max_",
            spoil=too_large,
        ),
    )


def _trace() -> tuple[Sabotage, ...]:
    def in_half_precision(case: Case, key: str) -> Case | None:
        if case.suite.gates.get(TraceGate, key=key).target is None:
            return None

        def change(report: EngineReport) -> EngineReport:
            return dataclasses.replace(
                report,
                nodes=tuple(dataclasses.replace(node, precision="half") for node in report.nodes),
            )

        return exchange_engine(case, change)

    return (
        Sabotage(
            name="quantizers that no forward calls",
            gate="trace",
            cause="never run in a forward",
            spoil=_on_audit(lambda audit: replace_quantizers(audit, tower_calls={})),
        ),
        Sabotage(
            name="one quantizer lost in the export",
            gate="trace",
            cause="not in the ONNX graph",
            spoil=lambda case, _key: exchange_export(
                case, lambda audit: dataclasses.replace(audit, pairs=audit.pairs[1:])
            ),
        ),
        Sabotage(
            name="layers in half precision in the engine",
            gate="trace",
            cause="not reach the engine",
            spoil=in_half_precision,
        ),
    )


def _latency() -> tuple[Sabotage, ...]:
    def slower(case: Case, key: str) -> Case:
        gate = case.suite.gates.get(LatencyGate, key=key)
        run = case.latency_runs[f"latency[{key}]"]  # measured when the good variant was judged
        limits_ms = [run.fp16.median_ms]
        if gate.max_ratio is not None:
            limits_ms.append(float(gate.max_ratio) * run.fp16.median_ms)
        if gate.max_latency_ms is not None:
            limits_ms.append(gate.max_latency_ms)
        factor = 4 * max(limits_ms) / run.fp16.median_ms
        slow = dataclasses.replace(
            run.quantized, times_ms=tuple(time * factor for time in run.fp16.times_ms)
        )
        return exchange(case, latency=lambda _gate: dataclasses.replace(run, quantized=slow))

    def without_rounds(case: Case, key: str) -> Case:
        run = case.latency_runs[f"latency[{key}]"]
        fewer = dataclasses.replace(run.quantized, times_ms=run.quantized.times_ms[:-1])
        return exchange(case, latency=lambda _gate: dataclasses.replace(run, quantized=fewer))

    return (
        Sabotage(name="slower than allowed", gate="latency", cause="over max_", spoil=slower),
        Sabotage(
            name="a round that is missing",
            gate="latency",
            cause="rounds are not paired",
            spoil=without_rounds,
        ),
    )


def _load() -> tuple[Sabotage, ...]:
    def exchange_load(case: Case, key: str, spoil: Callable[[Served], Served]) -> Case:
        run = case.load_runs[f"load[{key}]"]  # measured when the good variant was judged
        spoiled = tuple(spoil(served) for served in run.quantized)
        times = tuple(served.p99_ms for served in spoiled)
        timed = dataclasses.replace(
            run.timed, quantized=dataclasses.replace(run.timed.quantized, times_ms=times)
        )
        found = dataclasses.replace(run, timed=timed, quantized=spoiled)
        return exchange(case, load=lambda _gate: found)

    def slow(served: Served) -> Served:
        times: dict[str, Any] = {
            f"{name}_ms": served.time_ms(name) * 1e3
            for name in get_args(Timing)
            if math.isfinite(served.time_ms(name))
        }
        return dataclasses.replace(served, late=served.queries, **times)

    def swapped(served: Served) -> Served:
        first, second, *others = served.answers
        wrong = dataclasses.replace(
            first,
            nearest=second.input,
            distance=0.9,
            batch=(first.input, second.input),
        )
        return dataclasses.replace(served, answers=(wrong, second, *others))

    return (
        Sabotage(
            name="a tail that is longer than allowed",
            gate="load",
            cause=r"over (p\d\d_ratio|offline_ratio|max_)",
            spoil=lambda case, key: exchange_load(case, key, slow),
        ),
        Sabotage(
            name="two requests of a batch get each other's answers",
            gate="load",
            cause=r"the embedding of input \d+, in the batch of inputs",
            spoil=lambda case, key: exchange_load(case, key, swapped),
        ),
    )


def count_by_gate(sabotages: tuple[Sabotage, ...]) -> Mapping[str, int]:
    """Return how many sabotages there are for each kind of gate."""
    counts: dict[str, int] = {}
    for sabotage in sabotages:
        counts[sabotage.gate] = counts.get(sabotage.gate, 0) + 1
    return counts
