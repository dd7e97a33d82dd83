"""The trace gate: every quantizer is followed from the recipe to the kernel that computes with it.

The stages are `declared` (the recipe means it, and no exclusion takes it away), `model` (it is
switched on), `forward` (it runs), `onnx` (a Q/DQ pair at its place) and `engine` (the kernel of
the operation that it quantizes computes in its precision).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.evidence.verdict import Figure, Verdict, combine
from pytest_quantgate.formats.table import explain_target, find_format
from pytest_quantgate.gates.coverage import NOT_QUANTIZED, CoverageGate, wanted_slots
from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.fused import WHY_FUSED, list_excluded, list_fused
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.scope import find_waiver
from pytest_quantgate.gates.sections import EngineTarget, target_key
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.keys import BadKey, list_key, text_key
from pytest_quantgate.suite.where import Where
from pytest_quantgate.text.words import count, list_groups, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_quantgate.evidence.audit import Audit, Quantizer, Slot, Tower
    from pytest_quantgate.evidence.onnx import OnnxAudit, QdqPair
    from pytest_quantgate.formats.number_format import NumberFormat
    from pytest_quantgate.runtimes.engine_layers import EngineReport

GATE = "trace"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class TraceGate(EngineTarget):
    """Every quantizer followed from the recipe into ONNX and, with a `target`, into the engine.

    `allow` are patterns of quantizers that may run wider in the engine, such as a convolution that
    a target has no FP8 kernel for.
    """

    kind = GATE

    target: str | None = field(default=None, metadata=target_key(without="; without: ends at ONNX"))
    allow: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="pattern"), help="quantizers that may run wider in the engine"
        ),
    )

    def check(self) -> None:
        super().check()
        for name in ("library", "batch", "allow"):
            if self.target is None and name in self.where.keys:
                raise BadKey(name, "is about an engine: set target as well, such as target: sm89")


Stage = Literal["model", "forward", "onnx", "engine"]
STAGES: tuple[Stage, ...] = ("model", "forward", "onnx", "engine")

#: Slots of a layer; the others belong to an attention block.
LAYER_SLOTS: tuple[Slot, ...] = ("input", "weight", "output", "other")

#: Where to look next, by the stage at which quantizers were lost.
MENDS: Mapping[Stage, str] = {
    "model": "look at the coverage gate; what shall stay in FP16 belongs into exclude",
    "forward": "look at the coverage gate: a quantizer that never runs quantizes nothing",
    "onnx": "look at the export gate, and export the approved variant again",
    "engine": "look at the engine gate; what may run wider there belongs into trace.allow",
}

#: How a sentence says that a quantizer did not reach a stage.
LOST: Mapping[Stage, str] = {
    "model": "are switched off in the model",
    "forward": "never run in a forward",
    "onnx": "are not in the ONNX graph",
    "engine": "do not reach the engine",
}


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """One quantizer: the first stage that it did not reach (None: it reached all), and why."""

    name: str
    slot: Slot
    tower: Tower
    lost_at: Stage | None = None
    reason: str = ""

    def reached(self, stage: Stage) -> bool:
        return self.lost_at is None or STAGES.index(stage) < STAGES.index(self.lost_at)


def follow_quantizers(
    audit: Audit,
    *,
    onnx: Mapping[str, OnnxAudit],
    engines: Mapping[str, EngineReport] | None,
    towers: Sequence[Literal["vision", "text"]],
    coverage: CoverageGate | None = None,
) -> tuple[TraceRow, ...]:
    """Return for every quantizer of `towers` how far it came, in the model's own order.

    Declared are those that the recipe means or that are on, without what the suite excludes or
    `coverage` waives, and those that attention blocks lack although they are promised. `onnx` and
    `engines` are by tower; without `engines` the trace ends at the graph.
    """
    excluded = {name for _, matched in audit.excludes for name in matched}
    intended = set(audit.intended)
    disabled_by = dict(audit.disabled_by)
    waivers = coverage.waive if coverage is not None else ()
    rows = list(_find_unreplaced(audit, towers=towers, coverage=coverage))
    for quantizer in audit.quantizers:
        if quantizer.name in excluded or not (quantizer.enabled or quantizer.name in intended):
            continue
        if quantizer.tower not in (*towers, "other") or find_waiver(quantizer.name, waivers):
            continue
        lost = _find_loss(
            quantizer,
            disabled_by=disabled_by.get(quantizer.name, ""),
            onnx=onnx,
            engines=engines,
            towers=towers,
        )
        rows.append(
            TraceRow(
                name=quantizer.name,
                slot=quantizer.slot,
                tower=quantizer.tower,
                lost_at=lost[0] if lost else None,
                reason=lost[1] if lost else "",
            )
        )
    return tuple(rows)


def _find_unreplaced(
    audit: Audit, *, towers: Sequence[Literal["vision", "text"]], coverage: CoverageGate | None
) -> Iterator[TraceRow]:
    """Yield the quantizers that attention blocks were promised and have no place for."""
    expected = coverage or CoverageGate(where=Where(file="", line=0), towers=tuple(towers))
    slots = wanted_slots(audit, gate=expected)
    there = {(quantizer.module, quantizer.slot) for quantizer in audit.quantizers}
    computes = ("attention", "mha", "matmul")
    ran = {operation.module for operation in audit.operations if operation.function in computes}
    fused, left_out = list_fused(audit), list_excluded(audit)
    for module in audit.modules:
        if module.kind not in ("attention", "mha") or module.tower not in towers:
            continue
        if module.name not in ran - left_out or find_waiver(module.name, expected.waive):
            continue
        for slot in slots:
            if (module.name, slot) not in there:
                yield TraceRow(
                    name=f"{module.name} ({slot.replace('_', ' ')})",
                    slot=slot,
                    tower=module.tower,
                    lost_at="model",
                    reason=WHY_FUSED
                    if module.name in fused
                    else "no such quantizer: the attention class was never replaced",
                )


def judge_trace(
    rows: Sequence[TraceRow], *, engine: str, gate: TraceGate, begin: Stage = "model"
) -> Verdict:
    """Return whether every declared quantizer came through; else FAIL with the first stage.

    `engine` describes the engines (`TensorRT-RTX 1.7 for sm89`), empty where the trace ends at the
    graph; `begin` is the first stage that was looked at. A quantizer that `allow` names may be lost
    in the engine, and nowhere else; a pattern that allows nothing that was lost is FAIL, as it
    hides what it was written for.
    """
    if not rows:
        return _fail(
            "nothing-declared",
            f"no quantizer is declared in {listed(gate.towers)}: there is nothing to follow "
            f"({gate.where})",
            next_step="look at the coverage gate",
            cause="the recipe means no layer of these towers",
        )
    lost = [row for row in rows if row.lost_at is not None]
    allowed = [row for row in lost if row.lost_at == "engine" and _allows(gate, row.name)]
    parts = [
        _judge_stage(stage, [row for row in lost if row.lost_at == stage and row not in allowed],
                     of=len(rows), gate=gate)
        for stage in STAGES
    ]  # fmt: skip
    parts.append(_judge_allow(gate, [row.name for row in allowed], of=len(rows)))
    found = tuple(part for part in parts if part is not None)
    figures = _figures(rows, allowed=len(allowed))
    table = render_table(rows, engine=bool(engine), begin=begin)
    if found:
        verdict = combine(gate=GATE, parts=found)
        return replace(verdict, evidence=(*table, *verdict.evidence), figures=figures)
    through = len(rows) - len(allowed)
    end = engine or "the ONNX graph"
    exception = f", {len(allowed)} run wider there as allowed" if allowed else ""
    return _pass(
        f"{through} of {len(rows)} quantizers followed from "
        f"{'the recipe' if begin == 'model' else 'the ONNX files'} into {end}"
        f"{exception}",
        brief=f"{through} of {len(rows)} quantizers reach {'the engine' if engine else 'ONNX'}"
        + (f", {len(allowed)} allowed" if allowed else ""),
        evidence=table,
        figures=figures,
    )


def render_table(
    rows: Sequence[TraceRow], *, engine: bool, begin: Stage = "model"
) -> tuple[str, ...]:
    """Return the table of a variant as lines: how many of each kind reached each stage."""
    stages = STAGES[STAGES.index(begin) : None if engine else -1]
    kinds: dict[str, list[TraceRow]] = {}
    for row in rows:
        part = "layers" if row.slot in LAYER_SLOTS else "attention"
        kinds.setdefault(f"{row.tower} {part}", []).append(row)
    width = max(len("quantizers"), *(len(kind) for kind in kinds))
    lines = [f"{'quantizers':<{width}}  declared" + "".join(f"{s:>9}" for s in stages)]
    for kind, members in (*kinds.items(), ("all", list(rows))):
        numbers = (sum(row.reached(stage) for row in members) for stage in stages)
        lines.append(f"{kind:<{width}}  {len(members):>8}" + "".join(f"{n:>9}" for n in numbers))
    return tuple(lines)


def _allows(gate: TraceGate, name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in gate.allow)


# -- one quantizer ------------------------------------------------------------------------


def _find_loss(
    quantizer: Quantizer,
    *,
    disabled_by: str,
    onnx: Mapping[str, OnnxAudit],
    engines: Mapping[str, EngineReport] | None,
    towers: Sequence[str],
) -> tuple[Stage, str] | None:
    """Return the first stage that a quantizer did not reach and why; None if it reached all."""
    if not quantizer.enabled:
        by = f"pattern {disabled_by!r} switched it off" if disabled_by else "it is off"
        return "model", by
    ran = [t for t in towers if quantizer.tower_calls.get(t)]
    if not ran:
        return "forward", "it is on and no forward calls it"
    for tower in ran:
        pairs = [pair for pair in onnx[tower].pairs if pair.quantizer == quantizer.name]
        if not pairs:
            return "onnx", f"no Q/DQ pair in the {tower} graph"
        pair = next((found for found in pairs if found.complete and found.feeds_owner), None)
        if pair is None:
            half = not any(found.complete for found in pairs)
            return "onnx", "half a Q/DQ pair" if half else "its Q/DQ pair stands at another place"
        if engines is not None:
            reason = _find_engine_loss(quantizer, pair, onnx=onnx[tower], engine=engines[tower])
            if reason:
                return "engine", reason
    return None


def _find_engine_loss(
    quantizer: Quantizer, pair: QdqPair, *, onnx: OnnxAudit, engine: EngineReport
) -> str:
    """Return why no kernel computes with a quantizer in its precision; empty where one does."""
    kind = find_format(quantizer.format)
    if kind is None or not kind.precision:
        return f"no kernel is known to compute in {quantizer.format}"
    if not kind.is_supported_on(engine.target):
        return explain_target(kind, target=engine.target)
    readers = [op.node for op in onnx.operations if quantizer.name in op.quantizers]
    if not readers:
        return _find_unwritten(pair, wanted=kind, engine=engine)
    for node in readers:
        precision, kernel = _find_kernel(node, engine=engine)
        if kernel is None:
            return f"no kernel computes {node} by itself"
        if precision != kind.precision:
            return f"{node} runs in {precision}, in kernel {kernel}"
    return ""


def _find_kernel(node: str, *, engine: EngineReport) -> tuple[str | None, str | None]:
    """Return the precision and the name of the kernel that multiplies at an ONNX node."""
    for found in engine.nodes:
        if found.node == node:
            return found.precision, found.layer
    for layer in engine.layers:
        if node in layer.onnx_nodes and layer.kind in ("matmul", "attention", "gemm"):
            return layer.precision, layer.name
    return None, None


def _find_unwritten(pair: QdqPair, *, wanted: NumberFormat, engine: EngineReport) -> str:
    """An output that the next layer quantizes again: some kernel must write it narrow, or the
    attention kernel must hold it."""
    prefix = pair.node.rpartition("/")[0]
    kernels = [
        layer
        for layer in engine.layers
        if any(node.rpartition("/")[0] == prefix for node in layer.onnx_nodes)
    ]
    if not kernels:
        return "the builder took its Q/DQ pair out"
    for layer in kernels:
        if layer.kind == "attention" and layer.precision == wanted.precision:
            return ""
        if set(layer.output_dtypes) & set(wanted.engine_dtypes):
            return ""
    return f"kernel {kernels[0].name} writes {listed(kernels[0].output_dtypes)}"


# -- the verdict --------------------------------------------------------------------------


def _judge_stage(
    stage: Stage, lost: Sequence[TraceRow], *, of: int, gate: TraceGate
) -> Verdict | None:
    if not lost:
        return None
    where = gate.where
    first = lost[0]
    reasons = dict.fromkeys(row.reason for row in lost)
    return _fail(
        f"lost-at-{stage}",
        f"{len(lost)} of {count(of, 'quantizer')} {LOST[stage]}: {first.name}: {first.reason} "
        f"({where})",
        brief=f"{len(lost)} of {of} quantizers lost at {stage}",
        evidence=list_groups((row.name for row in lost), most=5),
        cause=listed(list(reasons), most=3),
        next_step=MENDS[stage],
    )


def _judge_allow(gate: TraceGate, allowed: Sequence[str], *, of: int) -> Verdict | None:
    if len(allowed) == of:
        return _fail(
            "allows-all",
            f"allow lets all of {count(of, 'quantizer')} run wider in the engine: nothing of the "
            f"recipe is left there ({gate.where.of('allow')})",
            brief="allow lets every quantizer run wider",
            next_step="name what may run wider, and no more",
            cause="a pattern that matches more than it was written for",
        )
    idle = [p for p in gate.allow if not any(fnmatch.fnmatch(name, p) for name in allowed)]
    if not idle:
        return None
    return _fail(
        "allows-nothing",
        f"allow {idle[0]!r} allows nothing: every quantizer that it matches, if any, reaches the "
        f"engine ({gate.where.of('allow')})",
        brief=f"allow {idle[0]!r} allows nothing",
        next_step="remove the pattern",
        cause="the pattern is misspelt, or what it allowed reaches the engine by now",
    )


def _figures(rows: Sequence[TraceRow], *, allowed: int) -> dict[str, Figure]:
    def pairs() -> Iterator[tuple[str, Figure]]:
        yield "quantizers_declared", len(rows)
        for stage in STAGES:
            yield f"quantizers_lost_at_{stage}", sum(row.lost_at == stage for row in rows)
        yield "quantizers_allowed", allowed

    return dict(pairs())


def judge(run: GateRun, gate: TraceGate) -> Judged:
    """Return whether every quantizer of the recipe arrives."""
    stages = run.stages
    onnx = {
        str(tower): stages.onnx_audit(variant="quantized", tower=tower, precision=stages.shipped)
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
        run.audit,
        onnx=onnx,
        engines=engines,
        towers=gate.towers,
        coverage=run.suite.gates.one(CoverageGate),
    )
    begin: Stage = "onnx" if run.suite.is_onnx_alone else "model"
    return Judged(verdict=judge_trace(rows, engine=name, gate=gate, begin=begin))


KIND = GateKind(
    section=TraceGate,
    help="every quantizer, from the recipe to the engine",
    judge=judge,
    needs_torch=lambda gate: gate.target is None,
    several=True,
    needs=("tensorrt-rtx",),
    follows={
        "trace.nothing-declared": NOT_QUANTIZED,
        "trace.lost-at-model": NOT_QUANTIZED,
        "trace.lost-at-forward": NOT_QUANTIZED,
        "trace.lost-at-onnx": ("export.quantizers-lost",),
        "trace.lost-at-engine": ("engine.attention-not-fused", "engine.too-few-fp8"),
    },
)
