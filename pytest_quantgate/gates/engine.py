"""The engine gate: what TensorRT makes of the exported model, in precision, fusion and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.formats.table import narrow_precisions
from pytest_quantgate.gates.coverage import NOT_QUANTIZED
from pytest_quantgate.gates.deciding import fail, let_pass, refuse
from pytest_quantgate.gates.fused import list_excluded
from pytest_quantgate.gates.memory import figures_of, judge_sizes
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.sections import EngineSizes
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.keys import BadKey, choice_key, count_key, counts_key
from pytest_quantgate.text.words import count, listed, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_quantgate.evidence.onnx import EngineOutputs
    from pytest_quantgate.runtimes.engine_layers import EngineAttention, EngineReport

GATE = "engine"
_fail = partial(fail, GATE)
_refuse = partial(refuse, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class EngineGate(EngineSizes):
    """What the engines of the towers must be, built ahead of time for a `target` (`sm89`).

    `attention` is `fused-fp8` (one FP8 kernel in every block) or `fused` (one kernel).
    """

    kind = GATE

    min_fp8_gemms: int | None = field(
        default=None, metadata=count_key(help="linear layers in FP8, all towers together")
    )
    min_gemms: Mapping[str, int] = field(
        default_factory=dict,
        metadata=counts_key(
            *narrow_precisions(),
            help="linear layers in each precision, all towers together: {fp4: 48}",
        ),
    )
    attention: Literal["fused-fp8", "fused"] | None = field(
        default=None,
        metadata=choice_key("fused-fp8", "fused", help="in every block of every tower"),
    )

    def check(self) -> None:
        super().check()
        self.refuse_no_limit("attention, min_gemms or a max_...")
        if self.min_fp8_gemms is not None and "fp8" in self.min_gemms:
            raise BadKey("min_fp8_gemms", "is set twice: write min_gemms: {fp8: ...} alone")

    @property
    def least_gemms(self) -> Mapping[str, tuple[int, str]]:
        """The least number of linear layers by precision, with the key that says so."""
        found = {name: (least, "min_gemms") for name, least in self.min_gemms.items()}
        if self.min_fp8_gemms is not None:
            found["fp8"] = (self.min_fp8_gemms, "min_fp8_gemms")
        return found


#: Above this SQNR in dB nothing is quantized: what is left is the rounding of FP16 arithmetic.
NOT_QUANTIZED_DB = 50.0


def judge_engine(
    *,
    fp16: Mapping[str, EngineReport],
    quantized: Mapping[str, EngineReport],
    excluded_nodes: Mapping[str, tuple[str, ...]],
    onnx_digests: Mapping[str, str],
    gate: EngineGate,
    outputs: Mapping[str, EngineOutputs] | None = None,
    not_executed: str = "no device was asked",
    max_sqnr_change_db: float = 1.0,
) -> Verdict:
    """Return whether the engines of the towers, by name, are what the suite asks for.

    `fp16` are the engines of the FP16 model for the same target. `excluded_nodes` names for each
    tower the ONNX nodes that must not run in 8 bits, and the Softmax of attention that is left out;
    `onnx_digests` the SHA-256 of the approved ONNX files: an engine that was built from another one
    is INCOMPARABLE with what was approved, and so are engines for several targets or by several
    versions of the library.

    `outputs` are what the quantized engines gave on a device; their SQNR against FP16 may differ by
    `max_sqnr_change_db` from PyTorch's and ONNX Runtime's. Where they are None the evidence
    of a green verdict says that nothing was executed, and why: `not_executed`.
    """
    broken = _check_engines(fp16=fp16, quantized=quantized, onnx_digests=onnx_digests, gate=gate)
    if broken is not None:
        return broken
    parts: list[Verdict | None] = [*_judge_gemms(quantized, gate=gate)]
    for tower in gate.towers:
        excluded = excluded_nodes.get(tower, ())
        parts.append(_judge_excluded(quantized[tower], tower, excluded, gate))
        parts.append(_judge_attention(quantized[tower], tower, excluded, gate))
        parts += judge_sizes(
            gate=GATE,
            fp16=figures_of(fp16.get(tower)),
            quantized=figures_of(quantized[tower]),
            limits=gate,
            subject=tower,
            prefix=f"{tower}_",
        )
        if outputs is not None:
            parts += _judge_outputs(outputs.get(tower), tower, max_sqnr_change_db, gate)
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    figures = dict(verdict.figures)
    for tower in gate.towers:  # sizes have figures without a limit too
        figures |= _figures(fp16.get(tower), quantized[tower], tower)
    if not verdict.passed:
        return replace(verdict, figures=figures)
    unseen = () if outputs is not None else (f"outputs were not executed here: {not_executed}",)
    gemms = _gemms_words([quantized[t] for t in gate.towers])
    first = quantized[gate.towers[0]]
    ratios = ", ".join(_size_words(fp16.get(t), quantized[t], tower=t) for t in gate.towers)
    attention = ", ".join(f"{t} {_attention_words(quantized[t])}" for t in gate.towers)
    return _pass(
        f"{first.library} {first.library_version} for {first.target}: "
        f"{gemms.replace('linear', 'linear layers', 1)}; attention {attention}; {ratios}",
        brief=f"{gemms}; attention {attention}",
        evidence=(*verdict.evidence, *unseen),
        figures=figures,
    )


def _check_engines(
    *,
    fp16: Mapping[str, EngineReport],
    quantized: Mapping[str, EngineReport],
    onnx_digests: Mapping[str, str],
    gate: EngineGate,
) -> Verdict | None:
    """Return a red verdict for engines that are not there, or not those that were approved."""
    for variant, reports in (("", quantized), ("FP16 ", fp16)):
        missing = [
            tower
            for tower in gate.towers
            if tower not in reports and not (variant and quantized[tower].given)
        ]
        if missing:
            names = " and ".join(missing)
            return _fail(
                "tower-missing",
                f"no {variant}engine of the {names} tower ({gate.where})",
                cause="the build of that tower failed, or the suite does not name its engine",
                next_step="name the engine of every tower, or the towers that there are: "
                "towers: [...]",
            )
    stale = [t for t in gate.towers if quantized[t].onnx_sha256 != onnx_digests.get(t)]
    if stale:
        tower = stale[0]
        return _refuse(
            "of-another-file",
            f"the plan of the {tower} tower was built from another ONNX file: sha256 "
            f"{quantized[tower].onnx_sha256[:12]}, approved {onnx_digests.get(tower, '')[:12]} "
            f"({gate.where})",
            next_step="build it again from the approved file",
            cause="the model was exported again after the engine was built",
        )
    made = {
        f"{report.library} {report.library_version} for {report.target}": f"{variant}{tower}"
        for variant, reports in (("", quantized), ("FP16 ", fp16))
        for tower in gate.towers
        if tower in reports
        for report in [reports[tower]]
    }
    if len(made) > 1:
        return _refuse(
            "of-several-targets",
            f"the engines are not of one library and target: "
            f"{listed([f'{name} ({which})' for name, which in made.items()])} ({gate.where})",
            next_step="build them again in one run",
            cause="engines of several machines or TensorRT versions came together",
        )
    return None


def _ratio(after: int, before: int) -> float:
    return after / before if before else float("inf")


def _attention_words(report: EngineReport) -> str:
    fused = sum(found.state == "fused-fp8" for found in report.attentions)
    return f"{fused}/{len(report.attentions)} fused in FP8"


def _size_words(fp16: EngineReport | None, quantized: EngineReport, *, tower: str) -> str:
    if fp16 is None:
        return f"{tower} plan {quantized.plan_bytes} bytes, no FP16 engine beside it"
    plan = f"plan {_ratio(quantized.plan_bytes, fp16.plan_bytes):.2f}x"
    if not (fp16.has_memory and quantized.has_memory):
        return f"{tower} {plan}"
    return f"{tower} weights {_ratio(quantized.weights_bytes, fp16.weights_bytes):.2f}x, {plan}"


def _figures(
    fp16: EngineReport | None, quantized: EngineReport, tower: str
) -> dict[str, int | float | str | bool]:
    figures: dict[str, int | float | str | bool] = {
        f"{tower}_fp8_gemm_nodes": quantized.fp8_gemm_nodes,
        f"{tower}_plan_bytes": quantized.plan_bytes,
    }
    if fp16 is not None:
        figures[f"{tower}_plan_ratio"] = _ratio(quantized.plan_bytes, fp16.plan_bytes)
    if fp16 is None or not (fp16.has_memory and quantized.has_memory):
        return figures
    return figures | {
        f"{tower}_weights_bytes": quantized.weights_bytes,
        f"{tower}_activation_bytes": quantized.activation_bytes,
        f"{tower}_weights_ratio": _ratio(quantized.weights_bytes, fp16.weights_bytes),
        f"{tower}_activation_ratio": _ratio(quantized.activation_bytes, fp16.activation_bytes),
    }


def _gemms_words(reports: Sequence[EngineReport]) -> str:
    """Return `48 of 49 linear in FP4, 1 in FP8`; what no narrow kernel computes is in FP8's 0."""
    of = sum(report.gemm_nodes for report in reports)
    counts = {
        name: sum(report.count_gemm_nodes(name) for report in reports)
        for name in narrow_precisions()
    }
    found = {name: number for name, number in counts.items() if number} or {"fp8": 0}
    (first, number), *rest = found.items()
    more = "".join(f", {other} in {name.upper()}" for name, other in rest)
    return f"{number} of {of} linear in {first.upper()}{more}"


def _judge_gemms(reports: Mapping[str, EngineReport], *, gate: EngineGate) -> Iterator[Verdict]:
    of = sum(reports[tower].gemm_nodes for tower in gate.towers)
    if not gate.least_gemms:
        yield _pass(
            _gemms_words([reports[tower] for tower in gate.towers]),
        )
    for precision, (least, key) in gate.least_gemms.items():
        found = sum(reports[tower].count_gemm_nodes(precision) for tower in gate.towers)
        name = precision.upper()
        text = f"{found} of {of} linear layers multiply {name} by {name}"
        if found >= least:
            yield _pass(
                text,
            )
            continue
        rest = [
            f"{node.node}: {node.precision or 'in no kernel of its own'}"
            for tower in gate.towers
            for node in reports[tower].nodes
            if node.op == "linear" and node.precision != precision
        ]
        limit = key if key == "min_fp8_gemms" else f"{key}.{precision}"
        yield _fail(
            f"too-few-{precision}",
            f"{text}, {limit} is {least} ({gate.where.of(key)})",
            brief=f"{found} of {of} linear layers in {name}, {limit} {least}",
            evidence=shorten(rest),
            cause="layers without Q/DQ on both operands run in half precision"
            if precision == "fp8"
            else f"these layers have no kernel that multiplies {name} by {name}: weights alone in "
            f"a narrow type, or another one, are computed in what is shown here",
            next_step="look at the export gate, then at the precision of these nodes",
        )


def _judge_excluded(
    report: EngineReport, tower: str, names: tuple[str, ...], gate: EngineGate
) -> Verdict | None:
    bits = narrow_precisions()
    found = [n for n in report.nodes if n.node in names and n.precision in bits]
    if not found:
        return None
    return _fail(
        "excluded-in-8-bits",
        f"{count(len(found), 'excluded layer')} of the {tower} engine run in "
        f"{min(bits[str(n.precision)] for n in found)} bits: "
        f"{listed([n.node for n in found])} ({gate.where})",
        cause="the exported graph quantizes them although the suite excludes them",
        next_step="look at the export gate",
    )


def _judge_attention(
    report: EngineReport, tower: str, excluded: tuple[str, ...], gate: EngineGate
) -> Verdict | None:
    if gate.attention is None:
        return None
    source = gate.where.of("attention")
    asked = [found for found in report.attentions if found.softmax not in excluded]
    if not asked:
        return _fail(
            "no-attention",
            f"no attention block was found in the {tower} engine ({source})",
            cause="the layer report shows no matmul pair around a softmax: layers were "
            "merged, or names lost",
            next_step="build the engine with a detailed profile, or leave attention out of "
            "this gate",
        )
    wanted = ("fused-fp8",) if gate.attention == "fused-fp8" else ("fused-fp8", "fused-half")
    other = [found for found in asked if found.state not in wanted]
    if not other:
        return _pass(f"{tower} attention {_attention_words(report)}")
    first = other[0]
    return _fail(
        "attention-not-fused",
        f"{len(other)} of {len(asked)} attention blocks of the {tower} engine are not "
        f"{gate.attention}: block {_block(first.block, first.index)} is {first.state}, "
        f"{first.reason} ({source})",
        brief=f"{len(other)} of {len(asked)} {tower} attention blocks not {gate.attention}",
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
        "recipe: fp8-attention; what no recipe reaches, as the coverage gate says, belongs into "
        "exclude"
    )


def _block(block: int | None, index: int) -> int:
    return index if block is None else block


def _judge_outputs(
    found: EngineOutputs | None, tower: str, max_change_db: float, gate: EngineGate
) -> list[Verdict]:
    """Return whether the engine computes what PyTorch and ONNX Runtime do, told by the noise."""
    source = gate.where.of("target")
    if found is None or not found.samples:
        return [
            _fail(
                "not-run",
                f"the {tower} engine was run on no samples ({source})",
                cause="the evaluation data is empty, or the engine was only built",
                next_step="give the gate data with samples",
            )
        ]
    if found.nonfinite:
        return [
            _fail(
                "nonfinite",
                f"the {tower} engine gives NaN or Inf on {found.nonfinite} of "
                f"{count(found.samples, 'sample')} ({source})",
                cause="a value that FP16 cannot hold, or a scale that is wrong in the engine",
                next_step="look at the parity gate, then build with layers excluded",
            )
        ]
    others = {"PyTorch": found.sqnr_torch_db}
    if found.sqnr_onnx_db is not None:
        others["ONNX Runtime"] = found.sqnr_onnx_db
    parts = []
    for name, expected in others.items():
        good = _is_same_noise(found.sqnr_engine_db, expected, max_change_db=max_change_db)
        parts.append(
            Verdict(
                gate=GATE,
                status=Status.PASS if good else Status.FAIL,
                headline=f"engine: {tower} SQNR against FP16 is {found.sqnr_engine_db:.1f} dB in "
                f"the engine and {expected:.1f} dB in {name} on {count(found.samples, 'sample')}, "
                f"{'within' if good else 'over'} {max_change_db:g} dB apart ({source})",
                brief=f"{tower} SQNR {found.sqnr_engine_db:.1f} dB, {name} {expected:.1f} dB",
                code="" if good else "engine.noise-changed",
                cause=""
                if good
                else "the engine is quantized less than the model"
                if found.sqnr_engine_db > expected
                else "the engine adds noise that the model does not have",
                next_step="" if good else "compare the precision of its layers with the recipe",
                figures={f"{tower}_sqnr_engine_db": found.sqnr_engine_db}
                if math.isfinite(found.sqnr_engine_db)
                else {},
            )
        )
    return parts


def _is_same_noise(found_db: float, expected_db: float, *, max_change_db: float) -> bool:
    if min(found_db, expected_db) > NOT_QUANTIZED_DB:
        return True
    # Two infinities below zero (nothing of the signal is left) are no agreement.
    return abs(found_db - expected_db) <= max_change_db


def judge(run: GateRun, gate: EngineGate) -> Judged:
    """Return whether the engines of the towers are what the suite asks for."""
    from pytest_quantgate.quantization.quantizers import owner_of
    from pytest_quantgate.runtimes.onnx_nodes import module_of_node

    quantized = {
        str(tower): run.stages.engine(variant="quantized", tower=tower, gate=gate)
        for tower in gate.towers
    }
    bases = {str(tower): run.stages.base_engine(tower=tower, gate=gate) for tower in gate.towers}
    outputs, not_executed = None, ""
    parity = run.suite.gates.one(ParityGate) or ParityGate(where=gate.where)
    try:
        outputs = run.stages.engine_outputs(gate, samples=parity.samples)
    except NotMeasured as error:
        not_executed = str(error)
    fused = list_excluded(run.audit)
    excluded = fused.union(owner_of(name) for _, names in run.audit.excludes for name in names)
    return Judged(
        verdict=judge_engine(
            fp16={tower: report for tower, report in bases.items() if report is not None},
            quantized=quantized,
            excluded_nodes={
                tower: (
                    *(n.node for n in report.nodes if module_of_node(n.node) in excluded),
                    *(a.softmax for a in report.attentions if module_of_node(a.softmax) in fused),
                )
                for tower, report in quantized.items()
            },
            onnx_digests={
                tower: run.stages.onnx_audit(
                    variant="quantized", tower=tower, precision=run.stages.shipped
                ).digest
                for tower in gate.towers
            },
            gate=gate,
            outputs=outputs,
            not_executed=not_executed,
            max_sqnr_change_db=parity.max_sqnr_change_db,
        )
    )


KIND = GateKind(
    section=EngineGate,
    help="TensorRT engines: precision, fusion, sizes",
    judge=judge,
    several=True,
    needs=("tensorrt-rtx",),
    follows={
        "engine.too-few-fp8": (*NOT_QUANTIZED, "export.quantizers-lost", "export.weights-in-full"),
        "engine.attention-not-fused": (
            *NOT_QUANTIZED,
            "export.quantizers-lost",
            "export.softmax-missing",
        ),
    },
)
