"""What a run judged and left in the cache -> a `Report`. Measures nothing, imports no torch.

The gates ran in this process or in workers; their verdicts are in the summary, the keys of what
they used in `Evidence`. Whatever is no longer in the cache, or damaged, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from pytest_quantgate import __version__
from pytest_quantgate.evidence.audit import TOWERS, Audit, CalibrationRun
from pytest_quantgate.evidence.calibration import describe_images
from pytest_quantgate.evidence.codec import from_json
from pytest_quantgate.evidence.fidelity import Fidelity
from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.parity import Parity, Roundtrip
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.coverage import CoverageGate, wanted_slots
from pytest_quantgate.gates.slices import Columns, align_columns
from pytest_quantgate.gates.trace import STAGES, Stage, TraceRow, follow_quantizers
from pytest_quantgate.report.environment import describe_environment, read_clock
from pytest_quantgate.report.evidence import Evidence
from pytest_quantgate.report.model import (
    Attempt,
    AuditFacts,
    CalibrationFacts,
    Conclusion,
    EngineFacts,
    Environment,
    GateResult,
    JudgedFile,
    OnnxFacts,
    OwnTestResult,
    QuantizerFacts,
    Report,
    StageFacts,
    StageName,
    SuiteReport,
    TaskFacts,
    VariantName,
)
from pytest_quantgate.report.quantizer_states import describe_quantizers
from pytest_quantgate.report.tasks import describe_task
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import Conclusion as Concluded
from pytest_quantgate.run.conclusion import Results, Row, SuiteConclusion
from pytest_quantgate.runtimes.engine_layers import EngineReport
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.contents import CLASS, Contents

Value = TypeVar("Value")


def collect_report(
    summary: Summary,
    *,
    evidence: Mapping[str, Evidence],
    cache: Cache,
    root: Path,
    environ: Mapping[str, str],
) -> Report:
    """Return the report of a run; `evidence` is by suite name."""
    report = describe_results(
        summary.results,
        conclusion=summary.conclusion,
        created=read_clock(environ),
        environment=describe_environment(
            root=root, environ=environ, measured=[found.versions for found in evidence.values()]
        ),
    )
    return replace(
        report,
        suites=tuple(
            _SuiteReader(evidence[suite.suite], cache=cache).fill(suite)
            if suite.suite in evidence
            else suite
            for suite in report.suites
        ),
        warnings=summary.warnings,
        written=summary.written,
        obtained=summary.obtained,
        orphans=summary.orphans,
    )


def describe_results(
    results: Results, *, conclusion: Concluded, created: str, environment: Environment
) -> Report:
    """Return the report of what results alone say, without the evidence behind it."""
    return Report(
        product_version=__version__,
        created=created,
        conclusion=Conclusion(status=conclusion.status.value, sentence=conclusion.sentence),
        suites=tuple(_describe_suite(suite, results=results) for suite in conclusion.suites),
        environment=environment,
        errors=results.errors,
        incomparable=results.incomparable,
        unanswered=results.unanswered,
        own_tests=tuple(
            OwnTestResult(
                test=test.test,
                status=test.verdict.status.value,
                headline=test.verdict.headline,
                code=test.verdict.code,
                attempts=_describe_attempts(test.attempts),
            )
            for test in results.own_tests
        ),
        stopped=results.stopped,
        orphans_count=bool(results.orphans),
    )


def _describe_suite(suite: SuiteConclusion, *, results: Results) -> SuiteReport:
    rows = [row for row in results.rows if row.suite == suite.suite]
    (collected,) = (found for found in results.suites if found.suite == suite.suite)
    return SuiteReport(
        name=suite.label,
        file=collected.file,
        suite=suite.suite,
        digest=collected.digest,
        all_gates=collected.gates,
        allow_unmeasured=collected.allow_unmeasured,
        advisory=collected.advisory,
        conclusion=Conclusion(status=suite.status.value, sentence=suite.sentence),
        gates=tuple(_describe_gate(row) for row in rows),
        not_run=tuple(suite.not_run),
        not_run_because=suite.not_run,
        allowed_unmeasured=suite.allowed,
        notes=tuple(dict.fromkeys(note for row in rows for note in row.notes)),
        files=tuple(
            JudgedFile(artifact="suite", name=found.file, sha256=found.digest)
            for found in (collected,)
            if found.digest
        ),
    )


def _describe_attempts(attempts: Sequence[Verdict]) -> tuple[Attempt, ...]:
    if len(attempts) < 2:
        return ()
    return tuple(Attempt(status=v.status.value, headline=v.headline) for v in attempts)


def _describe_gate(row: Row) -> GateResult:
    verdict = row.verdict
    kind, _, key = row.gate.partition("[")
    return GateResult(
        name=row.gate,
        kind=kind,
        key=key.removesuffix("]"),
        status=verdict.status.value,
        headline=verdict.headline,
        brief=verdict.brief or verdict.headline.removeprefix(f"{kind}: "),
        evidence=verdict.evidence,
        cause=verdict.cause,
        next_step=verdict.next_step,
        figures=verdict.figures,
        code=verdict.code,
        where=verdict.where,
        follows=verdict.follows,
        attempts=_describe_attempts(row.attempts),
        answered_by=row.answered_by,
    )


class _SuiteReader:
    """Reads what one suite used back from the cache."""

    def __init__(self, evidence: Evidence, *, cache: Cache) -> None:
        self.evidence = evidence
        self.cache = cache

    def fill(self, report: SuiteReport) -> SuiteReport:
        evidence = self.evidence
        audit = self._read(Audit, ("variant",), name="audit.json")
        run = self._read(CalibrationRun, ("variant",), name="calibration.json")
        onnx = {
            (variant, tower): found
            for (_, variant, tower, precision), found in self._read_all(OnnxAudit, "onnx_audit")
            if evidence.model is not None and precision == evidence.model.dtype
        }
        engines = {
            about[1:]: found
            for about, found in self._read_all(EngineReport, "engine", name="report.json")
        }
        recipe = evidence.recipe
        return replace(
            report,
            device=evidence.device,
            versions=evidence.versions,
            model=evidence.model,
            recipe=(
                replace(recipe, name=audit.recipe_name, formats=audit.formats)
                if recipe and audit
                else recipe
            ),
            calibration=self._describe_calibration(run),
            audit=self._describe_audit(audit, onnx=onnx, engines=engines),
            fidelity=self._read(Fidelity, ("fidelity",)),
            tasks=tuple(self._describe_tasks(report.gates)),
            roundtrip=self._read(Roundtrip, ("roundtrip",)),
            onnx=tuple(_describe_onnx(variant, audit) for (variant, _), audit in onnx.items()),
            parity=self._read(Parity, ("parity",)),
            engines=tuple(_describe_engine(about, found) for about, found in engines.items()),
            latency=evidence.latency,
            files=tuple(
                sorted(
                    (*report.files, *evidence.files, *self._list_built()),
                    key=lambda file: (file.artifact, file.name),
                )
            ),
        )

    def _list_built(self) -> Iterator[JudgedFile]:
        """Yield the checkpoint, ONNX files and engines that this run built or took from the cache.

        A checkpoint or an ONNX file that was given is what ships, and no copy of it.
        """
        given = {file.artifact for file in self.evidence.files}
        for use in self.evidence.used:
            kind, *of = use.about
            below = {"variant": "checkpoint/", "onnx": "", "engine": ""}.get(kind)
            artifact = "checkpoint" if kind == "variant" else f"{kind}-{'-'.join(of)}"
            if below is None or {artifact, f"{kind}-{'-'.join(of[:2])}"} & given:
                continue
            for name, digest in self.cache.digests(kind=kind, key=use.key).items():
                if name.startswith(below) and not (kind == "engine" and name.endswith(".json")):
                    name = name.removeprefix(below)
                    yield JudgedFile(artifact=artifact, name=name, sha256=digest, built=True)

    def _read(
        self, kind: type[Value], about: tuple[str, ...], *, name: str = "value.json"
    ) -> Value | None:
        for use in self.evidence.used:
            if use.about == about:
                return self._load(kind, use.about[0], use.key, name=name)
        return None

    def _read_all(
        self, kind: type[Value], entry: str, *, name: str = "value.json"
    ) -> Iterator[tuple[tuple[str, ...], Value]]:
        for use in self.evidence.used:
            if use.about[0] == entry:
                found = self._load(kind, entry, use.key, name=name)
                if found is not None:
                    yield use.about, found

    def _load(self, kind: type[Value], entry: str, key: str, *, name: str) -> Value | None:
        data = self.cache.read(kind=entry, key=key, name=name)
        if data is None:
            return None
        try:
            return from_json(kind, data)
        except ValueError:
            return None

    def _describe_calibration(self, run: CalibrationRun | None) -> CalibrationFacts | None:
        if run is None:
            return None
        images = describe_images(run.sample_hashes, held_out=run.held_out_hashes)
        return CalibrationFacts(
            data=run.data,
            samples=run.samples,
            batch_size=self.evidence.calibration_batch_size,
            batches=run.batches,
            held_out_samples=run.held_out_samples,
            nonfinite=run.nonfinite,
            digest=self.evidence.calibration_digest,
            tower_batches=run.tower_batches,
            sources=images.sources,
            contents_digest=images.contents,
            order_digest=images.order,
            held_out_overlap=images.held_out,
        )

    def _describe_audit(
        self,
        audit: Audit | None,
        *,
        onnx: Mapping[tuple[str, str], OnnxAudit],
        engines: Mapping[tuple[str, ...], EngineReport],
    ) -> AuditFacts | None:
        if audit is None:
            return None
        gate = self.evidence.coverage or CoverageGate(where=Where(file="", line=0))
        traces = list(_follow(audit, gate=gate, onnx=onnx, engines=engines))
        lost: dict[str, tuple[Stage, str]] = {}
        for target, rows in traces:
            for row in rows:
                known = lost.get(row.name)
                if row.lost_at and (known is None or _earlier(row.lost_at, known[0])):
                    at = f"{target}: " if row.lost_at == "engine" else ""
                    lost[row.name] = (row.lost_at, f"{at}{row.reason}")
        quantizers = describe_quantizers(audit, gate=gate, slots=wanted_slots(audit, gate=gate))
        return AuditFacts(
            towers=audit.towers,
            quantizers=tuple(_with_loss(facts, lost.get(facts.name)) for facts in quantizers),
            excludes={pattern: len(matched) for pattern, matched in audit.excludes},
            stages=_count_stages(traces),
            notes=audit.notes,
        )

    def _describe_tasks(self, gates: Sequence[GateResult]) -> Iterator[TaskFacts]:
        previews = {use.about[1:]: use.key for use in self.evidence.used
                    if use.about[0] == "previews"}  # fmt: skip
        for use in self.evidence.used:
            kind, *of = use.about
            stored = self.cache.read(kind=kind, key=use.key) if kind == "outcomes" else None
            if stored is None:
                continue
            task, metric, stage, draw = of
            suffix = "" if stage == "torch" else f"-{stage}"
            key = f"[{task}-{metric}{suffix}]"
            pictures = self.cache.read(kind="previews", key=previews.get(tuple(of), "none"))
            try:
                fp16, quantized = (from_json(Outcomes, item) for item in stored)
            except ValueError:
                continue
            if fp16.ids != quantized.ids:
                continue  # the gate has said so
            yield describe_task(
                fp16=fp16,
                quantized=quantized,
                stage=cast(StageName, stage),
                gates=tuple(gate.name for gate in gates if gate.name == f"{gate.kind}{key}"),
                previews=pictures or {},
                columns=self._read_columns(task, draw, ids=fp16.ids),
            )

    def _read_columns(self, task: str, draw: str, *, ids: Sequence[str]) -> Columns:
        """Return what the data of a task says of each outcome, besides its class."""
        name = f"{task.rpartition('/')[0]}/test"
        for (_, of, _, drawn), shown in self._read_all(Contents, "contents"):
            if (of, drawn) == (name, draw):
                columns = align_columns(shown, ids)
                return {name: values for name, values in columns.items() if name != CLASS}
        return {}


def _with_loss(facts: QuantizerFacts, lost: tuple[Stage, str] | None) -> QuantizerFacts:
    return replace(facts, lost_at=lost[0], lost_because=lost[1]) if lost else facts


def _earlier(stage: Stage, other: Stage) -> bool:
    return STAGES.index(stage) < STAGES.index(other)


def _follow(
    audit: Audit,
    *,
    gate: CoverageGate,
    onnx: Mapping[tuple[str, str], OnnxAudit],
    engines: Mapping[tuple[str, ...], EngineReport],
) -> Iterator[tuple[str, tuple[TraceRow, ...]]]:
    """Yield (target, rows) for every tower that was exported and every target it was built for."""
    for tower in TOWERS:
        graph = onnx.get(("quantized", tower))
        if graph is None:
            continue
        built = {
            target: engine
            for (variant, where, target, *_), engine in engines.items()
            if (variant, where) == ("quantized", tower)
        }
        for target, engine in built.items() or [("", None)]:
            yield (
                target,
                follow_quantizers(
                    audit,
                    onnx={tower: graph},
                    engines={tower: engine} if engine else None,
                    towers=[tower],
                    coverage=gate,
                ),
            )


def _count_stages(traces: Iterable[tuple[str, Sequence[TraceRow]]]) -> tuple[StageFacts, ...]:
    """Return how many quantizers of each tower and slot reached each stage."""
    found: dict[tuple[str, str], StageFacts] = {}
    for target, rows in traces:
        kinds: dict[tuple[str, str], list[TraceRow]] = {}
        for row in rows:
            kinds.setdefault((row.tower, row.slot), []).append(row)
        for (tower, slot), members in kinds.items():

            def count(stage: Stage, members: list[TraceRow] = members) -> int:
                return sum(row.reached(stage) for row in members)

            known = found.get((tower, slot))
            engines = dict(known.engines) if known else {}
            if target:
                engines[target] = count("engine")
            found[tower, slot] = StageFacts(
                tower=tower,
                slot=slot,
                declared=len(members),
                model=count("model"),
                forward=count("forward"),
                onnx=count("onnx"),
                engines=engines,
            )
    return tuple(found.values())


def _describe_onnx(variant: str, audit: OnnxAudit) -> OnnxFacts:
    return OnnxFacts(
        variant=_variant(variant),
        tower=audit.tower,
        precision=audit.precision,
        opset=audit.opset,
        file_bytes=audit.file_bytes,
        digest=audit.digest,
        pairs=sum(pair.complete and pair.feeds_owner for pair in audit.pairs),
        lost=audit.lost,
        undeclared=len(audit.undeclared),
        weights_bytes=dict(audit.weights_bytes),
    )


def _variant(name: str) -> VariantName:
    return "fp16" if name == "fp16" else "quantized"


def _describe_engine(about: Sequence[str], engine: EngineReport) -> EngineFacts:
    variant, tower, _, batch, _ = about
    precisions: dict[str, int] = {}
    layers: dict[str, str] = {}
    for node in engine.nodes:
        precision = node.precision or "merged"
        precisions[precision] = precisions.get(precision, 0) + 1
        layers[node.node.strip("/").rpartition("/")[0].replace("/", ".")] = precision
    return EngineFacts(
        variant=_variant(variant),
        tower=tower,
        target=engine.target,
        batch=int(batch),
        library=engine.library,
        library_version=engine.library_version,
        plan_digest=engine.plan_sha256,
        onnx_digest=engine.onnx_sha256,
        plan_bytes=engine.plan_bytes,
        weights_bytes=engine.weights_bytes,
        activation_bytes=engine.activation_bytes,
        gemm_nodes=engine.gemm_nodes,
        fp8_gemm_nodes=engine.fp8_gemm_nodes,
        attentions=len(engine.attentions),
        attentions_fused_fp8=sum(found.state == "fused-fp8" for found in engine.attentions),
        precisions=precisions,
        layers=layers,
    )
