"""Sabotages of what was exported: ONNX files, engines, and what is followed into them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.trace import TraceGate
from pytest_quantgate.selftest.measurements import never_called, on_audit
from pytest_quantgate.selftest.sabotage import (
    OTHER_DIGEST,
    Change,
    Sabotage,
    Spoil,
    alter_each,
    altered,
    exchange_stages,
)

if TYPE_CHECKING:
    from pytest_quantgate.gates.memory import MemoryGate
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.runtimes.engine_layers import EngineReport


def list_exported_sabotages() -> tuple[Sabotage, ...]:
    return (*_export(), *_parity(), *_engine(), *_memory(), *_trace())


def exchange_export(case: Case, change: Change) -> Case:
    """Return a copy of a case whose quantized files hold something else."""

    def onnx_audit(*, variant: str, **request: Any) -> OnnxAudit:
        found: OnnxAudit = case.stages.onnx_audit(variant=variant, **request)
        if variant == "quantized":
            found = change(found)
        return found

    return exchange_stages(case, onnx_audit=onnx_audit)


def _on_export(change: Change) -> Spoil:
    return lambda case, _key: exchange_export(case, change)


def _lose_pair(audit: OnnxAudit) -> OnnxAudit:
    return replace(audit, pairs=audit.pairs[1:])


def _export() -> tuple[Sabotage, ...]:
    def scaled(audit: OnnxAudit) -> OnnxAudit:
        (first, *rest) = audit.pairs
        names = ("scale_min", "scale_max", "amax_min", "amax_max")
        wider = altered(**{name: getattr(first, name) * 4 for name in names})(first)
        return replace(audit, pairs=(wider, *rest))

    def in_full_precision(audit: OnnxAudit) -> OnnxAudit:
        wide = altered(source="weight, float")
        pairs = tuple(wide(pair) if pair.slot == "weight" else pair for pair in audit.pairs)
        return replace(audit, pairs=pairs)

    def added(audit: OnnxAudit) -> OnnxAudit:
        extra = replace(audit.pairs[0], quantizer=None, node="added/Q", slot="other")
        return replace(audit, pairs=(*audit.pairs, extra))

    of = partial(Sabotage, gate="export")
    return (
        of(
            name="one pair lost",
            cause="1 of .* quantizers .* are not in its graph",
            spoil=_on_export(_lose_pair),
        ),
        of(
            name="exported from FP16",
            cause="exported from another variant",
            spoil=_on_export(altered(pairs=())),
        ),
        of(name="one scale times 4", cause="amax .* in the graph", spoil=_on_export(scaled)),
        of(
            name="weights in full precision",
            cause="not stored in 8 bits",
            spoil=_on_export(in_full_precision),
        ),
        of(
            name="a pair that nobody approved",
            cause="belong to no quantizer that was approved",
            spoil=_on_export(added),
        ),
    )


def _parity() -> tuple[Sabotage, ...]:
    def on_towers(**changes: float) -> Spoil:
        def spoil(case: Case, _key: str) -> Case:
            gate = case.suite.gates.one(ParityGate)
            assert gate is not None
            changed = alter_each("towers", **changes)(case.stages.parity(samples=gate.samples))
            return exchange_stages(case, parity=lambda **_request: changed)

        return spoil

    of = partial(Sabotage, gate="parity")
    return (
        of(
            name="a graph that computes something else",
            cause="computes something else",
            spoil=on_towers(error=1.5, floor=0.0),
        ),
        of(
            name="a graph that is quantized less",
            cause="quantized less than the model",
            spoil=on_towers(error=0.0, sqnr_torch_db=20.0, sqnr_onnx_db=60.0),
        ),
    )


def exchange_engine(case: Case, change: Change) -> Case:
    """Return a copy of a case whose quantized engines are others."""

    def engine(
        *,
        variant: Literal["fp16", "quantized"],
        tower: Literal["vision", "text"],
        gate: EngineGate | MemoryGate,
    ) -> EngineReport:
        found: EngineReport = case.stages.engine(variant=variant, tower=tower, gate=gate)
        if variant == "quantized":
            found = change(found)
        return found

    return exchange_stages(case, engine=engine)


def _on_engine(change: Change) -> Spoil:
    return lambda case, _key: exchange_engine(case, change)


def _engine() -> tuple[Sabotage, ...]:
    def half_precision(case: Case, key: str) -> Case | None:
        if not case.suite.gates.get(EngineGate, key=key).min_fp8_gemms:
            return None
        return exchange_engine(case, altered(fp8_gemm_nodes=0))

    def fell_apart(case: Case, key: str) -> Case | None:
        if case.suite.gates.get(EngineGate, key=key).attention is None:
            return None
        apart = alter_each("attentions", state="not-fused", reason="it fell apart")
        return exchange_engine(case, apart)

    of = partial(Sabotage, gate="engine")
    return (
        of(
            name="a plan of an older file",
            cause="built from another ONNX file",
            spoil=_on_engine(altered(onnx_sha256=OTHER_DIGEST)),
        ),
        of(name="linear layers in half precision", cause="min_fp8_gemms", spoil=half_precision),
        of(
            name="attention that fell apart",
            cause="attention blocks .* are not fused",
            spoil=fell_apart,
        ),
    )


#: More than any engine needs.
HUGE_BYTES = 1 << 60


def _memory() -> tuple[Sabotage, ...]:
    sizes = ("plan_bytes", "weights_bytes", "activation_bytes")
    too_large = _on_engine(altered(**dict.fromkeys(sizes, HUGE_BYTES)))
    of = partial(Sabotage, gate="memory")
    return (of(name="an engine that is larger than FP16's", cause="over max_", spoil=too_large),)


def _trace() -> tuple[Sabotage, ...]:
    def in_half_precision(case: Case, key: str) -> Case | None:
        if case.suite.gates.get(TraceGate, key=key).target is None:
            return None
        return exchange_engine(case, alter_each("nodes", precision="half"))

    of = partial(Sabotage, gate="trace")
    return (
        of(
            name="quantizers that no forward calls",
            cause="never run in a forward",
            spoil=on_audit(never_called),
        ),
        of(
            name="one quantizer lost in the export",
            cause="not in the ONNX graph",
            spoil=_on_export(_lose_pair),
        ),
        of(
            name="layers in half precision in the engine",
            cause="not reach the engine",
            spoil=in_half_precision,
        ),
    )
