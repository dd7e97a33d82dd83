"""What the export gate says of files that were handed over: this model's, and by whom.

Part of the export gate.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates.deciding import fail
from pytest_quantgate.text.words import count, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_quantgate.evidence.onnx import OnnxAudit
    from pytest_quantgate.inspection.findings import Inspection
    from pytest_quantgate.suite.where import Where

GATE = "export"
_fail = partial(fail, GATE)


def name_tool(found: OnnxAudit) -> str:
    """Return what wrote a file that was handed over, where that was another tool; else nothing."""
    given = found.given
    return given.tool if given is not None and given.tool != "pytest-quantgate" else ""


def describe_given(found: OnnxAudit) -> list[str]:
    """Return what was proved of a file that was handed over."""
    given = found.given
    if given is None:
        return []
    lines = [
        f"{found.tower}: {given.same} of {given.tensors} tensors of {given.name} ({given.tool}) "
        f"are those of the model, value by value or code by code"
    ]
    if given.unproven:
        lines.append(
            f"{found.tower}: not found in the graph, so left to parity: "
            f"{'; '.join(shorten(given.unproven, most=3))}"
        )
    return lines


def judge_given(found: OnnxAudit, *, where: Where, has_parity: bool) -> list[Verdict]:
    """A file that was handed over holds this model's tensors, each at its place."""
    given = found.given
    if given is None:
        return []
    parts = []
    if given.differing:
        # A few are damage or a mix-up; most of them are another model.
        other = len(given.differing) > given.tensors / 2
        parts.append(
            _fail(
                "weights-differ",
                f"{len(given.differing)} of {given.tensors} tensors of the {found.tower} tower in "
                f"{given.name} are not the model's: {given.differing[0]} ({where})",
                brief=f"{len(given.differing)} of {given.tensors} {found.tower} tensors are others",
                evidence=shorten(given.differing[1:]),
                cause="it was exported from another model, or another revision of it"
                if other
                else "the file was changed after the export, or exported from weights of another "
                "revision",
                next_step="export the approved variant again, or name the model that it is of",
            )
        )
    if given.unmapped:
        parts.append(
            _fail(
                "not-mapped",
                f"{count(len(given.unmapped), 'product')} of {given.name} have no known place in "
                f"the {found.tower} tower: {given.unmapped[0]} ({where})",
                brief=f"{len(given.unmapped)} nodes of no known module in {found.tower}",
                evidence=shorten(given.unmapped[1:]),
                cause="its nodes are named otherwise than the model's modules, and their weights "
                "are not the model's",
                next_step="set artifacts.prefix to what its names have in front, or export it "
                "from this model",
            )
        )
    if given.unproven and not has_parity:
        parts.append(
            _fail(
                "weights-unproven",
                f"{len(given.unproven)} of {given.tensors} tensors of the {found.tower} tower were "
                f"not found in {given.name}: {given.unproven[0]} ({where})",
                evidence=shorten(given.unproven[1:]),
                cause="the exporter folded them into others, or left them out",
                next_step="add parity: {}, which runs the file",
            )
        )
    return parts


def judge_fp16(found: OnnxAudit, *, where: Where) -> list[Verdict]:
    """Return what is wrong with an FP16 file that was handed over; ratios are against it."""
    given = found.given
    if given is None:
        return []
    parts = []
    if found.pairs or any(any(op.operands_quantized) for op in found.operations):
        parts.append(
            _fail(
                "fp16-quantized",
                f"{given.name}, given as the FP16 file of the {found.tower} tower, holds "
                f"{count(len(found.pairs), 'quantized operand')} ({where})",
                cause="it is the quantized file, or another tool quantized it",
                next_step="give artifacts.fp16 the file before quantization",
            )
        )
    if given.differing:
        parts.append(
            _fail(
                "fp16-differs",
                f"{len(given.differing)} of {given.tensors} tensors of the {found.tower} tower in "
                f"{given.name}, given as FP16, are not the model's: {given.differing[0]} "
                f"({where})",
                evidence=shorten(given.differing[1:]),
                cause="it was exported from another model, or another revision of it",
                next_step="export model: again",
            )
        )
    return parts


#: Findings that TensorRT alone minds, or that are put right: an engine gate says the first, and
#: every later stage reads a sorted copy.
_OF_RUNTIMES = ("check.asymmetric", "check.not-sorted", "check.operators-refused")


def judge_graphs(
    found: Mapping[str, Inspection],
    *,
    rest: Sequence[Verdict],
    ignored: Sequence[str],
    where: Where,
) -> Verdict:
    """Return whether files that are all that there is of a variant are sound, by tower.

    Every finding is red under its own code, but for those `ignored`; one that is ignored and found
    nowhere is red too. `rest` is what else was judged of the files.
    """
    parts, lines = [*rest], []
    for tower, inspection in found.items():
        lines += [f"{tower}: {line}" for line in _describe(inspection)]
        for finding in inspection.findings:
            line = f"{tower}: {finding.headline}"
            if finding.code in ignored or finding.code in _OF_RUNTIMES:
                lines.append(f"{line} [{finding.code}]")
                continue
            parts.append(
                Verdict(
                    gate=GATE,
                    status=Status.FAIL,
                    headline=f"export: {line} ({where})",
                    code=finding.code,
                    evidence=shorten(finding.subjects),
                    cause=finding.cause,
                    next_step=f"{finding.next_step}; or, where it is meant, write "
                    f"export: {{ignore: [{finding.code}]}}",
                )
            )
    codes = {finding.code for inspection in found.values() for finding in inspection.findings}
    idle = [code for code in ignored if code not in codes and code != "check.float-behind-qdq"]
    if idle:
        parts.append(
            _fail(
                "ignores-nothing",
                f"ignore names {idle[0]}, which is not found ({where.of('ignore')})",
                cause="the file was mended, or the code is that of another finding",
                next_step=f"take {idle[0]} out of export.ignore",
            )
        )
    verdict = combine(gate=GATE, parts=tuple(parts))
    if verdict.passed:
        said = [f"{tower}: {one.headline}" for tower, one in found.items()]
        said += [part.headline.removeprefix("export: ") for part in rest]
        brief = "; ".join(one.headline.rpartition(": ")[2] for one in found.values())
        verdict = replace(verdict, headline=f"export: {'; '.join(said)}", brief=brief, evidence=())
    return replace(verdict, evidence=(*verdict.evidence, *lines))


def _describe(inspection: Inspection) -> Iterator[str]:
    for row in inspection.rows:
        about = f"{row.format} {row.scales}" if row.quantized else "not quantized"
        stored = f", stored in {row.stored}" if row.stored else ""
        yield f"{row.what}: {row.quantized} of {row.total} {about}{stored}"
    against = inspection.against
    if against is not None:
        worst = next(iter(against.layers), None)
        noise = f", the noisiest {worst.layer} (SQNR {worst.sqnr_db:.1f} dB)" if worst else ""
        of = PurePath(against.base).name
        yield f"{against.found} of {against.sought} layers are those of {of}{noise}"
        if against.compared:
            yield f"{against.same} of {against.compared} unquantized tensors are those of {of}"
    yield from inspection.notes
