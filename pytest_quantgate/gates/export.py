"""The export gate: the ONNX files hold the quantizers that were audited, and nothing else."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.evidence.verdict import Figure, Verdict, combine
from pytest_quantgate.formats.table import find_format, keeps_amax
from pytest_quantgate.gates.coverage import NOT_QUANTIZED, CoverageGate
from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.given_graph import (
    describe_given,
    judge_fp16,
    judge_given,
    judge_graphs,
    name_tool,
)
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.run import VARIANTS, GateRun, Judged
from pytest_quantgate.gates.shipped import judge_shipped
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import BadKey, choice_key, list_key, ratio_key, text_key
from pytest_quantgate.text.words import count, list_groups, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.audit import Audit, Quantizer
    from pytest_quantgate.evidence.onnx import OnnxAudit, QdqPair

GATE = "export"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)

#: Weights in full precision behind Q/DQ, where a suite allows them.
FLOATS = "float-weights"


@dataclass(frozen=True, kw_only=True)
class ExportGate(GateSection):
    """What the ONNX files of both towers must hold.

    `allow` names what may be in the graph although the PyTorch model does not simulate it:
    `softmax` puts a pair behind Softmax in every attention block, which FP8 attention needs in
    TensorRT; `float-weights` lets a file that is handed over keep its weights in full precision
    behind Q/DQ, as exporters of others do. `max_size_ratio` compares the files with FP16's, both
    towers together. `ignore` are findings that are meant, where the graphs are all that there is.
    """

    kind = GATE

    allow: tuple[Literal["softmax", "float-weights"], ...] = field(
        default=(),
        metadata=list_key(
            choice_key("softmax", "float-weights", help="what"),
            help="what the graph may hold although PyTorch does not simulate it",
        ),
    )
    max_size_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="both files against FP16's")
    )
    ignore: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="code of a finding of quantgate check"),
            help="findings (check.…) that are meant, in a suite of ONNX files alone",
            single=True,
        ),
    )

    def check(self) -> None:
        for code in self.ignore:
            if not code.startswith("check."):
                raise BadKey("ignore", f"{code!r} is no code of quantgate check (check.…)")


#: How far a stored scale may be from the calibrated amax, by the type it is stored in. The graph
#: for TensorRT holds half scales: rounding to them costs up to 2^-11, and more below 2^-14.
SCALE_TOLERANCES = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}

#: Below 2^-14 halves are this far apart, and rounding costs up to half of it.
HALF_STEP = 2.0**-24


def judge_export(
    audit: Audit,
    *,
    quantized: Sequence[OnnxAudit],
    fp16_file_bytes: int,
    dtype: str,
    gate: ExportGate,
    left_out: Sequence[str] = (),
    has_parity: bool = False,
) -> Verdict:
    """Return whether the ONNX files of a variant are what its PyTorch audit approved.

    `quantized` are the files of both towers; they compute in `dtype`. Every quantizer that is
    enabled and ran must be there as one complete pair at its place, of its format and range, its
    weight stored in 8 bits; no pair may be there that is none of them, but for what `allow` names;
    excluded layers stay unquantized; the files are valid standard ONNX. `left_out` are towers that
    the suite leaves in FP16: their files hold no pair at all. A file that was handed over must
    also hold the tensors of the model; those that cannot be found in it are left to parity, where
    the suite `has_parity`.
    """
    towers = {found.tower for found in quantized}
    missing = [tower for tower in audit.towers if tower not in towers]
    if missing or not quantized:
        return _fail(
            "tower-missing",
            f"no ONNX file of the {' and '.join(missing) or 'model'}{' tower' if missing else ''} "
            f"({gate.where})",
            cause="the export of that tower failed, or the suite does not name its file",
            next_step="export every tower, or name those that there are",
        )
    parts = [
        part
        for found in quantized
        for part in (
            _judge_precision(found, dtype=dtype, gate=gate),
            *judge_given(found, where=gate.where, has_parity=has_parity),
            *_judge_tower(audit, found, gate=gate, left_out=found.tower in left_out),
        )
        if part is not None
    ]
    parts.append(_judge_size(quantized, fp16_file_bytes=fp16_file_bytes, gate=gate))
    verdict = combine(gate=GATE, parts=tuple(parts))
    pairs_there = sum(len(found.pairs) for found in quantized)
    figures = {**verdict.figures, "onnx_pairs": pairs_there}
    if not verdict.passed:
        return replace(verdict, figures=figures)
    pairs = sum(len(_expected(audit, found)) for found in quantized)
    # Judged already: a softmax pair that no quantizer stands for is one that `allow` names.
    extra = pairs_there - pairs
    declared = f" and {count(extra, 'declared softmax pair')}" if extra else ""
    ratio = f"{figures['onnx_size_ratio']:.2f}x of FP16's size"
    lines = tuple(line for found in quantized for line in describe_given(found))
    return _pass(
        f"{pairs} quantizers are {pairs} Q/DQ pairs at their places{declared}, "
        f"nothing lost, nothing added; {_say_storage(quantized)}, scales are the calibrated amax; "
        f"{ratio}",
        evidence=lines,
        brief=f"{pairs} of {pairs} quantizers as Q/DQ{' + softmax' if extra else ''}, none added; "
        f"{ratio}",
        figures=figures,
    )


def _bits_words(audits: Sequence[OnnxAudit]) -> str:
    """Return how many bits the stored weights have: `8`, `4 and 8`."""
    kinds = {
        kind.bits
        for audit in audits
        for pair in audit.pairs
        if pair.source == "weight, 8 bit" and (kind := find_format(pair.format)) is not None
    }
    return " and ".join(str(bits) for bits in sorted(kinds)) or "8"


def _say_storage(quantized: Sequence[OnnxAudit]) -> str:
    wide = sum(pair.source == "weight, float" for found in quantized for pair in found.pairs)
    if wide:
        return f"{wide} weights in full precision as allowed"
    return f"weights in {_bits_words(quantized)} bits"


def _expected(audit: Audit, found: OnnxAudit) -> dict[str, Quantizer]:
    """Return the quantizers that run in a tower, by name: what its graph must hold."""
    return {q.name: q for q in audit.quantizers if q.enabled and q.tower_calls.get(found.tower)}


def _judge_tower(
    audit: Audit, found: OnnxAudit, *, gate: ExportGate, left_out: bool
) -> list[Verdict]:
    expected = _expected(audit, found)
    if left_out and not expected:
        lost = _pass(f"{found.tower}: left in FP16, as coverage.towers says")
    else:
        lost = _judge_lost(found, expected=expected, gate=gate)
    parts = [
        _judge_form(found, gate=gate),
        lost,
        _judge_added(audit, found, expected=expected, gate=gate),
        _judge_doubled(found, expected=expected, gate=gate),
        _judge_values(found, expected=expected, gate=gate),
        _judge_storage(found, expected=expected, gate=gate),
        _judge_softmax(found, expected=expected, gate=gate),
    ]
    return [part for part in parts if part is not None]


def _judge_precision(found: OnnxAudit, *, dtype: str, gate: ExportGate) -> Verdict | None:
    if found.precision == dtype:
        return None
    return _fail(
        "other-precision",
        f"the {found.tower} graph computes in {found.precision}, the suite ships {dtype} "
        f"({gate.where})",
        cause="the file was exported for another number format, or by another exporter",
        next_step="export the approved checkpoint again, or set model.dtype to what ships",
    )


def _judge_form(found: OnnxAudit, *, gate: ExportGate) -> Verdict | None:
    foreign = [domain for domain in found.domains if domain]
    if foreign:
        return _fail(
            "foreign-operators",
            f"the {found.tower} graph uses operators of {', '.join(map(repr, foreign))}, which no "
            f"standard runtime knows ({gate.where})",
            cause=f"{name_tool(found)} computes with operators of its own"
            if name_tool(found)
            else "the exporter left its own Q/DQ operators in the graph",
            next_step="export with opset 19 or newer and the standard QuantizeLinear operators",
        )
    if found.problems:
        return _fail(
            "invalid-onnx",
            f"the {found.tower} graph is not valid ONNX: {found.problems[0]} ({gate.where})",
            evidence=shorten(found.problems[1:]),
            cause="the exporter, or a tool that edited the file after it, wrote "
            "something else than ONNX",
            next_step="export again; onnx.checker.check_model shows the same",
        )
    return None


def _judge_lost(found: OnnxAudit, *, expected: dict[str, Quantizer], gate: ExportGate) -> Verdict:
    held = {p.quantizer for p in found.pairs if p.complete and p.feeds_owner}
    lost = [name for name in expected if name not in held]
    if not expected:
        return _fail(
            "tower-idle",
            f"no quantizer runs in the {found.tower} tower: its file shows nothing ({gate.where})",
            next_step="look at the coverage gate",
            cause="the recipe means no layer of this tower, or its forward was never run",
        )
    if not lost:
        return _pass(f"{found.tower}: {len(expected)} of {len(expected)} quantizers are there")
    halves = {p.quantizer for p in found.pairs if p.quantizer in lost}
    words = f", {len(halves)} of them as half a pair or at another place" if halves else ""
    return _fail(
        "quantizers-lost",
        f"{len(lost)} of {len(expected)} quantizers of the {found.tower} tower are not in its "
        f"graph{words} ({gate.where})",
        brief=f"{len(lost)} of {len(expected)} {found.tower} quantizers lost in the export",
        evidence=list_groups(lost),
        cause=(
            "the file was exported from another variant (FP16?)"
            if len(lost) == len(expected) and not halves
            else f"{name_tool(found)} leaves these operands in full precision"
            if name_tool(found)
            else "the exporter does not write these, or a later step took them out"
        ),
        next_step="export again; if they stay away, exclude them, so that what is approved is "
        "what ships",
        figures={f"{found.tower}_quantizers_lost": len(lost)},
    )


def _judge_added(
    audit: Audit, found: OnnxAudit, *, expected: dict[str, Quantizer], gate: ExportGate
) -> Verdict | None:
    added = [pair for pair in found.pairs if pair.quantizer not in expected]
    softmax = [pair for pair in added if pair.slot == "softmax"]
    if "softmax" in gate.allow:
        added = [pair for pair in added if pair.slot != "softmax"]
    if not added:
        return None
    by_exclude = {name: pattern for pattern, names in audit.excludes for name in names}
    excluded = [p.quantizer for p in added if p.quantizer in by_exclude]
    if excluded:
        first = str(excluded[0])
        return _fail(
            "excluded-came-back",
            f"{count(len(excluded), 'quantizer')} of the {found.tower} tower came back in the "
            f"export although {by_exclude[first]!r} excludes {first} ({gate.where})",
            brief=f"{count(len(excluded), 'excluded quantizer')} came back in the {found.tower} "
            "graph",
            evidence=list_groups(str(name) for name in excluded),
            cause="ModelOpt's exporter quantizes every convolution weight, excluded or not",
            next_step="export with pytest_quantgate.runtimes.onnx_export.export_tower",
        )
    return _fail(
        "pairs-added",
        f"{count(len(added), 'Q/DQ pair')} of the {found.tower} graph belong to no quantizer that "
        f"was approved ({gate.where})",
        evidence=list_groups(pair.quantizer or pair.node for pair in added),
        cause=(
            "pairs behind Softmax were put in for TensorRT; the PyTorch model did not simulate them"
            if len(softmax) == len(added)
            else f"{name_tool(found)} quantizes more than the recipe does"
            if name_tool(found)
            else "the exporter adds pairs of its own"
        ),
        next_step="declare them (export: {allow: [softmax]}) and judge accuracy with stage: onnx"
        if len(softmax) == len(added)
        else "export again without them",
    )


def _judge_softmax(
    found: OnnxAudit, *, expected: dict[str, Quantizer], gate: ExportGate
) -> Verdict | None:
    """What is declared is there: a pair behind Softmax in every block with quantized attention."""
    if "softmax" not in gate.allow:
        return None
    blocks = [quantizer.module for quantizer in expected.values() if quantizer.slot == "v"]
    pairs = [pair for pair in found.pairs if pair.slot == "softmax" and pair.complete]
    there = {owner for pair in pairs for owner in (pair.producer, *pair.consumers)}
    missing = [block for block in blocks if block not in there]
    if not missing:
        return None
    return _fail(
        "softmax-missing",
        f"{len(missing)} of {count(len(blocks), 'attention block')} of the {found.tower} graph "
        f"have no declared softmax pair ({gate.where.of('allow')})",
        brief=f"{len(missing)} of {len(blocks)} {found.tower} blocks without a softmax pair",
        evidence=list_groups(missing),
        cause="the exporter did not put it in, so that FP8 attention does not fuse in TensorRT",
        next_step="export with softmax=True, or take softmax out of export.allow",
    )


def _judge_doubled(
    found: OnnxAudit, *, expected: dict[str, Quantizer], gate: ExportGate
) -> Verdict | None:
    uses = Counter(pair.quantizer for pair in found.pairs if pair.quantizer in expected)
    doubled = [str(name) for name, times in uses.items() if times > 1]
    if not doubled:
        return None
    return _fail(
        "pairs-doubled",
        f"{count(len(doubled), 'quantizer')} of the {found.tower} graph "
        f"{'has' if len(doubled) == 1 else 'have'} more than one pair ({gate.where})",
        evidence=list_groups(doubled),
        cause="a later step put pairs in under the names of others",
        next_step="export again without them",
    )


def _judge_values(
    found: OnnxAudit, *, expected: dict[str, Quantizer], gate: ExportGate
) -> Verdict | None:
    wrong = []
    for pair in found.pairs:
        quantizer = expected.get(pair.quantizer or "")
        if quantizer is None:
            continue
        problem = _value_problem(pair, quantizer)
        if problem:
            wrong.append(f"{quantizer.name}: {problem}")
    if not wrong:
        return None
    return _fail(
        "values-differ",
        f"{count(len(wrong), 'pair')} of the {found.tower} graph "
        f"{'is' if len(wrong) == 1 else 'are'} not what was calibrated: {wrong[0]} ({gate.where})",
        brief=f"{len(wrong)} scales or formats differ from the calibration",
        evidence=shorten(wrong[1:]),
        cause=f"{name_tool(found)} wrote it, with ranges that are not those of the calibration"
        if name_tool(found) and len(wrong) > 1
        else "the file was exported from another calibration, or changed afterwards",
        next_step="export the approved checkpoint again",
    )


def _value_problem(pair: QdqPair, quantizer: Quantizer) -> str | None:
    if pair.scale_type == "computed":
        return "its scale is computed in every run, the model's was calibrated"
    if pair.format != quantizer.format:
        return f"{pair.format} in the graph, {quantizer.format} in the model"
    if not pair.symmetric:
        return "a zero point that is not 0"
    kind = find_format(quantizer.format)
    if kind is not None and kind.scale_bits is not None and quantizer.slot == "weight":
        if pair.amax_deviation is None:
            return "the scales of its blocks are not as many as those of the model"
        if pair.amax_deviation <= SCALE_TOLERANCES["float32"]:
            return None
        return (
            f"the scales of its blocks differ from those of the model, by up to "
            f"{pair.amax_deviation:.3g} of one"
        )
    if not keeps_amax(quantizer.format, dynamic=quantizer.dynamic):
        # Each row or block is divided by its own range, or scale, before it comes to the pair.
        has_scales = kind is not None and kind.scale_bits is not None
        fixed, of = (kind.largest, "block") if kind is not None and has_scales else (1.0, "token")
        ends, tolerance = (pair.amax_min, pair.amax_max), SCALE_TOLERANCES["float32"]
        if all(abs(found / fixed - 1) <= tolerance for found in ends):
            return None
        return f"amax {pair.amax_max:.6g} behind a range of each {of}, not {fixed:g}"
    if pair.scale_count != quantizer.amax_count:
        return f"{pair.scale_count} scales in the graph, {quantizer.amax_count} amax in the model"
    if pair.scale_min <= 0:
        return f"a scale of {pair.scale_min:g}"
    tolerance = SCALE_TOLERANCES.get(pair.scale_type, 0.0)
    largest = pair.amax_max / pair.scale_max
    step = HALF_STEP / 2 * largest if pair.scale_type == "float16" else 0.0
    for name, stored, wanted in (
        ("smallest", pair.amax_min, quantizer.amax_min),
        ("largest", pair.amax_max, quantizer.amax_max),
    ):
        if wanted is None or not math.isfinite(stored) or not math.isfinite(wanted):
            return f"{name} amax {stored} in the graph, {wanted} in the model"
        if abs(stored - wanted) > max(tolerance * abs(wanted), step) * 1.01:
            return (
                f"{name} amax {stored:.6g} in the graph ({pair.scale_type}), {wanted:.6g} in the "
                f"model"
            )
    smallest = quantizer.amax_min or 0.0
    deviation = pair.amax_deviation
    if deviation is not None and not deviation <= max(tolerance, step / smallest) * 1.01:
        return (
            f"the {pair.scale_count} scales differ from the calibrated amax of their channels, by "
            f"up to {deviation:.3g} of it"
        )
    return None


def _judge_storage(
    found: OnnxAudit, *, expected: dict[str, Quantizer], gate: ExportGate
) -> Verdict | None:
    if found.given is not None and FLOATS in gate.allow:
        return None
    wide = [
        pair.quantizer
        for pair in found.pairs
        if pair.quantizer in expected
        and expected[pair.quantizer].slot == "weight"
        and pair.source != "weight, 8 bit"
    ]
    if not wide:
        return None
    return _fail(
        "weights-in-full",
        f"{count(len(wide), 'quantized weight')} of the {found.tower} graph "
        f"{'is' if len(wide) == 1 else 'are'} not stored in 8 bits ({gate.where})",
        brief=f"{len(wide)} weights behind Q/DQ are stored in full precision",
        evidence=list_groups(str(name) for name in wide),
        cause="the graph holds full-precision weights and quantizes them at load",
        next_step="fold QuantizeLinear into the stored weights (export_tower does), or declare it "
        "for a file that is handed over (export: {allow: [float-weights]})",
    )


def _judge_size(
    quantized: Sequence[OnnxAudit], *, fp16_file_bytes: int, gate: ExportGate
) -> Verdict:
    file_bytes = sum(found.file_bytes for found in quantized)
    limit = gate.max_size_ratio
    ratio = file_bytes / fp16_file_bytes if fp16_file_bytes else math.inf
    figures: dict[str, Figure] = {
        "onnx_file_bytes": file_bytes,
        "onnx_size_ratio": ratio if fp16_file_bytes else 0.0,
    }
    if limit is None:
        return _pass(f"{file_bytes} bytes, FP16 {fp16_file_bytes}", figures=figures)
    text = (
        f"{file_bytes} bytes against FP16's {fp16_file_bytes}, {ratio:.3f}x, "
        f"{'within' if file_bytes <= limit * fp16_file_bytes else 'over'} max_size_ratio "
        f"{float(limit):.3f}x ({gate.where.of('max_size_ratio')})"
    )
    if file_bytes <= limit * fp16_file_bytes:
        return _pass(text, figures=figures)
    return _fail(
        "too-large",
        text,
        brief=f"{ratio:.2f}x of FP16's size, over {float(limit):.2f}x",
        cause="too few weights are quantized, or they are not stored in 8 bits",
        next_step="look at the coverage gate for what is not quantized, or raise "
        "max_size_ratio on purpose",
        figures=figures,
    )


def judge(run: GateRun, gate: ExportGate) -> Judged:
    """Return whether the ONNX files hold what was audited, and run in the format that ships."""
    coverage, stages = run.suite.gates.one(CoverageGate), run.stages
    audits = {
        variant: [
            stages.onnx_audit(variant=variant, tower=tower, precision=stages.shipped)
            for tower in run.towers
        ]
        for variant in VARIANTS
    }
    fp16_file_bytes = sum(found.file_bytes for found in audits["fp16"])
    if run.suite.is_onnx_alone:
        verdict = judge_graphs(
            {tower: stages.inspect_graph(tower) for tower in run.towers},
            rest=[
                part
                for found in audits["quantized"]
                if (part := _judge_precision(found, dtype=stages.shipped, gate=gate))
            ]
            + [_judge_size(audits["quantized"], fp16_file_bytes=fp16_file_bytes, gate=gate)],
            ignored=(*gate.ignore, *(("check.float-behind-qdq",) if FLOATS in gate.allow else ())),
            where=gate.where,
        )
    else:
        verdict = judge_export(
            run.audit,
            quantized=audits["quantized"],
            fp16_file_bytes=fp16_file_bytes,
            dtype=stages.shipped,
            left_out=[tower for tower in run.towers if coverage and tower not in coverage.towers],
            has_parity=run.suite.gates.one(ParityGate) is not None,
            gate=gate,
        )
    base = tuple(part for found in audits["fp16"] for part in judge_fp16(found, where=gate.where))
    if base:
        verdict = combine(gate=GATE, parts=(verdict, *base))
    if run.suite.gates.one(ParityGate) is not None:  # which runs the files
        return Judged(verdict=verdict)
    usual = ParityGate(where=gate.where)
    parts = judge_shipped(
        stages.shipped_towers(samples=usual.samples),
        gate=GATE,
        where=gate.where,
        torch_db={},
        max_change_db=usual.max_sqnr_change_db,
    )
    red = tuple(part for part in parts if not part.passed)
    if red:
        return Judged(verdict=combine(gate=GATE, parts=(*red, verdict)))
    lines = tuple(part.headline for part in parts)
    return Judged(verdict=replace(verdict, evidence=(*verdict.evidence, *lines)))


KIND = GateKind(
    section=ExportGate,
    help="the ONNX files hold what was audited",
    judge=judge,
    follows={
        f"{GATE}.{finding}": NOT_QUANTIZED
        for finding in ("softmax-impossible", "softmax-missing", "tower-idle", "too-large")
    },
)
