"""The engine gate: what TensorRT makes of the exported model, in precision, fusion and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from pytest_quantgate.gates.words import count, listed, shorten
from pytest_quantgate.runtimes.engine_layers import EngineAttention, EngineReport
from pytest_quantgate.suite import EngineGate
from pytest_quantgate.verdict import Status, Verdict, combine

GATE = "engine"
MIB = 2**20


def judge_engine(
    *,
    fp16: Mapping[str, EngineReport],
    quantized: Mapping[str, EngineReport],
    excluded_nodes: Mapping[str, tuple[str, ...]],
    onnx_digests: Mapping[str, str],
    gate: EngineGate,
) -> Verdict:
    """Return whether the engines of the towers, by name, are what the suite asks for.

    `fp16` are the engines of the FP16 model for the same target. `excluded_nodes` names for each
    tower the ONNX nodes that must not run in 8 bits, `onnx_digests` the SHA-256 of the approved
    ONNX files: an engine that was built from another one is INCOMPARABLE with what was approved.
    """
    if not gate.towers:
        return _verdict(Status.FAIL, f"no tower is named, so it decides nothing ({gate.where})")
    for variant, reports in (("", quantized), ("FP16 ", fp16)):
        missing = [tower for tower in gate.towers if tower not in reports]
        if missing:
            names = " and ".join(missing)
            return _verdict(Status.FAIL, f"no {variant}engine of the {names} tower ({gate.where})")
    stale = [t for t in gate.towers if quantized[t].onnx_sha256 != onnx_digests.get(t)]
    if stale:
        tower = stale[0]
        return _verdict(
            Status.INCOMPARABLE,
            f"the plan of the {tower} tower was built from another ONNX file: sha256 "
            f"{quantized[tower].onnx_sha256[:12]}, approved {onnx_digests.get(tower, '')[:12]} "
            f"({gate.where})",
            next_step="build it again from the approved file",
        )
    parts: list[Verdict | None] = [_judge_gemms(quantized, gate=gate)]
    for tower in gate.towers:
        parts.append(_judge_excluded(quantized[tower], tower, excluded_nodes.get(tower, ()), gate))
        parts.append(_judge_attention(quantized[tower], tower, gate=gate))
        parts += _judge_sizes(fp16[tower], quantized[tower], tower, gate=gate)
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    figures = dict(verdict.figures)
    for tower in gate.towers:
        figures |= _figures(fp16[tower], quantized[tower], tower)
    if not verdict.passed:
        return replace(verdict, figures=figures)
    gemms = sum(quantized[t].fp8_gemm_nodes for t in gate.towers)
    of = sum(quantized[t].gemm_nodes for t in gate.towers)
    first = quantized[gate.towers[0]]
    ratios = ", ".join(
        f"{t} weights {_ratio(quantized[t].weights_bytes, fp16[t].weights_bytes):.2f}x, "
        f"plan {_ratio(quantized[t].plan_bytes, fp16[t].plan_bytes):.2f}x"
        for t in gate.towers
    )
    attention = ", ".join(f"{t} {_attention_words(quantized[t])}" for t in gate.towers)
    return Verdict(
        gate=GATE,
        status=Status.PASS,
        headline=f"engine: {first.library} {first.library_version} for {first.target}: {gemms} of "
        f"{of} linear layers in FP8; attention {attention}; {ratios}",
        brief=f"{gemms} of {of} linear in FP8; attention {attention}",
        evidence=verdict.evidence,
        figures=figures,
    )


def _verdict(status: Status, headline: str, **more: object) -> Verdict:
    return Verdict(gate=GATE, status=status, headline=f"engine: {headline}", **more)  # type: ignore[arg-type]


def _ratio(after: int, before: int) -> float:
    return after / before if before else float("inf")


def _attention_words(report: EngineReport) -> str:
    fused = sum(found.state == "fused-fp8" for found in report.attentions)
    return f"{fused}/{len(report.attentions)} fused in FP8"


def _figures(
    fp16: EngineReport, quantized: EngineReport, tower: str
) -> dict[str, int | float | str | bool]:
    return {
        f"{tower}_fp8_gemm_nodes": quantized.fp8_gemm_nodes,
        f"{tower}_plan_bytes": quantized.plan_bytes,
        f"{tower}_weights_bytes": quantized.weights_bytes,
        f"{tower}_activation_bytes": quantized.activation_bytes,
        f"{tower}_plan_ratio": _ratio(quantized.plan_bytes, fp16.plan_bytes),
        f"{tower}_weights_ratio": _ratio(quantized.weights_bytes, fp16.weights_bytes),
        f"{tower}_activation_ratio": _ratio(quantized.activation_bytes, fp16.activation_bytes),
    }


def _judge_gemms(reports: Mapping[str, EngineReport], *, gate: EngineGate) -> Verdict:
    found = sum(reports[tower].fp8_gemm_nodes for tower in gate.towers)
    of = sum(reports[tower].gemm_nodes for tower in gate.towers)
    least = gate.min_fp8_gemms
    text = f"{found} of {of} linear layers multiply FP8 by FP8"
    if least is None or found >= least:
        return _verdict(Status.PASS, text)
    rest = [
        f"{node.node}: {node.precision or 'in no kernel of its own'}"
        for tower in gate.towers
        for node in reports[tower].nodes
        if node.op == "linear" and node.precision != "fp8"
    ]
    return _verdict(
        Status.FAIL,
        f"{text}, min_fp8_gemms is {least} ({gate.where.of('min_fp8_gemms')})",
        brief=f"{found} of {of} linear layers in FP8, min_fp8_gemms {least}",
        evidence=shorten(rest),
        cause="layers without Q/DQ on both operands run in half precision",
        next_step="look at the export gate, then at the precision of these nodes",
    )


def _judge_excluded(
    report: EngineReport, tower: str, names: tuple[str, ...], gate: EngineGate
) -> Verdict | None:
    narrow = [
        node.node
        for node in report.nodes
        if node.node in names and node.precision in ("fp8", "int8")
    ]
    if not narrow:
        return None
    return _verdict(
        Status.FAIL,
        f"{count(len(narrow), 'excluded layer')} of the {tower} engine run in 8 bits: "
        f"{listed(narrow)} ({gate.where})",
        cause="the exported graph quantizes them although the suite excludes them",
        next_step="look at the export gate",
    )


def _judge_attention(report: EngineReport, tower: str, *, gate: EngineGate) -> Verdict | None:
    if gate.attention is None:
        return None
    source = gate.where.of("attention")
    if not report.attentions:
        return _verdict(
            Status.FAIL, f"no attention block was found in the {tower} engine ({source})"
        )
    wanted = ("fused-fp8",) if gate.attention == "fused-fp8" else ("fused-fp8", "fused-half")
    other = [found for found in report.attentions if found.state not in wanted]
    if not other:
        return _verdict(Status.PASS, f"{tower} attention {_attention_words(report)}")
    first = other[0]
    return _verdict(
        Status.FAIL,
        f"{len(other)} of {len(report.attentions)} attention blocks of the {tower} engine are not "
        f"{gate.attention}: block {_block(first.block, first.index)} is {first.state}, "
        f"{first.reason} ({source})",
        brief=f"{len(other)} of {len(report.attentions)} {tower} attention blocks not "
        f"{gate.attention}",
        evidence=shorten(
            [f"block {_block(o.block, o.index)}: {o.state}, {o.reason}" for o in other[1:]]
        ),
        cause=first.reason,
        next_step=_mend_attention(first),
    )


def _mend_attention(found: EngineAttention) -> str:
    if "tokens are too few" in found.reason or "single head" in found.reason:
        return (
            "no recipe changes that: leave attention out of this tower's gate, or ask for `fused`"
        )
    return (
        "declare softmax pairs (export: {allow: [softmax]}), which FP8 attention needs, and use "
        "recipe: fp8-attention"
    )


def _block(block: int | None, index: int) -> int:
    return index if block is None else block


def _judge_sizes(
    fp16: EngineReport, quantized: EngineReport, tower: str, *, gate: EngineGate
) -> list[Verdict]:
    parts = []
    for name in ("plan", "weights", "activation"):
        after, before = getattr(quantized, f"{name}_bytes"), getattr(fp16, f"{name}_bytes")
        ratio: Fraction | None = getattr(gate, f"max_{name}_ratio")
        limit_bytes: int | None = getattr(gate, f"max_{name}_bytes")
        if ratio is not None:
            good = after <= ratio * before
            parts.append(
                _verdict(
                    Status.PASS if good else Status.FAIL,
                    f"{tower} {name} {after / MIB:.1f} MiB against FP16's {before / MIB:.1f} MiB, "
                    f"{_ratio(after, before):.3f}x, {'within' if good else 'over'} "
                    f"max_{name}_ratio {float(ratio):g}x ({gate.where.of(f'max_{name}_ratio')})",
                    brief=f"{tower} {name} {_ratio(after, before):.2f}x of FP16, "
                    f"{'within' if good else 'over'} {float(ratio):g}x",
                    cause="" if good else _size_cause(name),
                )
            )
        if limit_bytes is not None:
            good = after <= limit_bytes
            parts.append(
                _verdict(
                    Status.PASS if good else Status.FAIL,
                    f"{tower} {name} {after / MIB:.1f} MiB, {'within' if good else 'over'} "
                    f"max_{name} {limit_bytes / MIB:.1f} MiB ({gate.where.of(f'max_{name}')})",
                    brief=f"{tower} {name} {after / MIB:.1f} MiB, "
                    f"{'within' if good else 'over'} {limit_bytes / MIB:.1f} MiB",
                )
            )
    return parts


def _size_cause(name: str) -> str:
    if name == "activation":
        return "FP8 engines can need more activation memory than FP16 ones: unfused kernels"
    return "weights that are not quantized, or not stored in 8 bits (embeddings stay FP16)"
