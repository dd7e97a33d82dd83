"""How much room a variant takes, against FP16 and in MiB: the memory gate, and a part of engine's.

Bytes are compared exactly, as integers: a plan that is one byte over its limit is over it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Figure, Status, Verdict, combine
from pytest_quantgate.gates.coverage import NOT_QUANTIZED
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.sections import EngineSizes
from pytest_quantgate.gates.timed import show_ratio
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.where import Where
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_quantgate.runtimes.engine_layers import EngineReport

GATE = "memory"


@dataclass(frozen=True, kw_only=True)
class MemoryGate(EngineSizes):
    """How much room the engines of the towers take, each by itself, against FP16 and in bytes.

    The activation memory of an FP8 engine can be larger than FP16's: a limit on it is a real gate.
    """

    kind = GATE

    def check(self) -> None:
        super().check()
        self.refuse_no_limit("a max_...")


MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryFigures:
    """What one variant of one tower needs, in bytes; None where it was not measured.

    `plan_bytes` is the size of the plan or ONNX file, `weights_bytes` that of the weights in it,
    `activation_bytes` what one context needs besides.
    """

    plan_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One kind of memory on both sides, with its limits and the keys that set them."""

    key: str
    name: str
    fp16_bytes: int | None
    quantized_bytes: int | None
    max_ratio: Fraction | None
    max_bytes: int | None
    may_be_zero: bool = False


def figures_of(report: EngineReport | None) -> MemoryFigures:
    """Return the sizes of an engine, as its builder tells them; none of what nobody told."""
    if report is None:
        return MemoryFigures()
    if not report.has_memory:
        return MemoryFigures(plan_bytes=report.plan_bytes)
    return MemoryFigures(
        plan_bytes=report.plan_bytes,
        weights_bytes=report.weights_bytes,
        activation_bytes=report.activation_bytes,
    )


def judge_sizes(
    *,
    gate: str,
    fp16: MemoryFigures,
    quantized: MemoryFigures,
    limits: EngineSizes,
    subject: str = "",
    prefix: str = "",
) -> tuple[Verdict, ...]:
    """Return a verdict of `gate` for each limit; none where no limit is set.

    `subject` says what was measured, `prefix` starts the names of the figures (`vision_`).
    """
    opening = f"{gate}: {subject}: " if subject else f"{gate}: "
    return tuple(
        replace(
            check,
            gate=gate,
            headline=f"{opening}{check.headline}",
            brief=_cut(f"{prefix.replace('_', ' ')}{check.brief}"),
            figures={f"{prefix}{name}": figure for name, figure in check.figures.items()},
            code=check.code.replace(GATE, gate, 1),
        )
        for part in _list_parts(fp16=fp16, quantized=quantized, limits=limits)
        for check in _judge_part(part, where=limits.where)
    )


def judge_memory(
    *,
    fp16: MemoryFigures,
    quantized: MemoryFigures,
    limits: EngineSizes,
    subject: str = "",
    prefix: str = "",
) -> Verdict:
    """Return whether a variant needs no more memory than its suite allows.

    `subject` says what was measured (`vision, batch 8, tensorrt-rtx sm89`), `prefix` starts the
    names of the figures. A figure that is missing where a limit needs it is NOT_MEASURED, sizes
    that are none are FAIL. Limits that are none raise ValueError; their suite is refused.
    """
    parts = list(_list_parts(fp16=fp16, quantized=quantized, limits=limits))
    checks = judge_sizes(
        gate=GATE,
        fp16=fp16,
        quantized=quantized,
        limits=limits,
        subject=subject,
        prefix=prefix,
    )
    verdict = combine(gate=GATE, parts=checks)
    return replace(verdict, brief=_brief_pass(parts)) if verdict.passed else verdict


def _list_parts(
    *, fp16: MemoryFigures, quantized: MemoryFigures, limits: EngineSizes
) -> Iterator[_Part]:
    """Yield the kinds of memory that have a limit."""
    for key, name in _NAMES.items():
        part = _Part(
            key=key,
            name=name,
            fp16_bytes=getattr(fp16, f"{key}_bytes"),
            quantized_bytes=getattr(quantized, f"{key}_bytes"),
            max_ratio=getattr(limits, f"max_{key}_ratio"),
            max_bytes=getattr(limits, f"max_{key}_bytes"),
            may_be_zero=key == "activation",
        )
        if part.max_ratio is not None or part.max_bytes is not None:
            yield part


#: The kinds of memory, and what a sentence calls them.
_NAMES = {
    "plan": "plan",
    "weights": "weights",
    "activation": "activation memory",
}


def _judge_part(part: _Part, *, where: Where) -> Iterator[Verdict]:
    if part.max_ratio is not None:
        key = f"max_{part.key}_ratio"
        yield _find_problem(
            part, sides=("FP16", "quantized"), key=key, where=where
        ) or _judge_ratio(part, key=key, where=where)
    if part.max_bytes is not None:
        key = f"max_{part.key}"
        yield _find_problem(part, sides=("quantized",), key=key, where=where) or _judge_absolute(
            part, key=key, where=where
        )


def _find_problem(part: _Part, *, sides: tuple[str, ...], key: str, where: Where) -> Verdict | None:
    """Return a verdict where a side has no figure, or one that is no size."""
    figures = {"FP16": part.fp16_bytes, "quantized": part.quantized_bytes}
    missing = [side for side in sides if figures[side] is None]
    if missing:
        return Verdict(
            gate=GATE,
            status=Status.NOT_MEASURED,
            headline=f"{part.name} of {' and '.join(missing)} was not measured, "
            f"and {key} needs it ({where.of(key)})",
            brief=f"{part.name} of {' and '.join(missing)} not measured",
            code="memory.not-measured",
            next_step=f"measure with a runtime or device that tells it, or drop {key}",
        )
    least = 0 if part.may_be_zero else 1
    wrong = [side for side in sides if (figures[side] or 0) < least]
    if wrong:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"{part.name} of {wrong[0]} is {figures[wrong[0]]} bytes, which is "
            f"no size ({where.of(key)})",
            brief=f"{part.name} of {wrong[0]} is no size",
            code="memory.no-size",
            cause="the measurement was not taken, or changed after it was taken",
            next_step="measure again",
        )
    return None


def _judge_ratio(part: _Part, *, key: str, where: Where) -> Verdict:
    before, after, limit = part.fp16_bytes, part.quantized_bytes, part.max_ratio
    assert before is not None
    assert after is not None
    assert limit is not None
    good = after <= limit * before
    word, allowed = "within" if good else "over", f"{float(limit):.12g}"
    ratio = _divide(after, before)
    shown = "not defined" if ratio is None else f"{show_ratio(ratio, limit=limit)}"
    figures: dict[str, Figure] = {f"fp16_{part.key}_bytes": before}
    if ratio is not None:
        figures[f"{part.key}_ratio"] = float(ratio)
    spare = (limit * before).__floor__() - after
    return Verdict(
        gate=GATE,
        status=Status.PASS if good else Status.FAIL,
        headline=f"{part.name} {_show_mib(after)} vs FP16 {_show_mib(before)}: ratio "
        f"{shown}, {word} {key} {allowed} ({where.of(key)})",
        brief=_cut(
            f"{part.name} {_show_mib(after)} vs {_show_mib(before)}, {shown} {word} {allowed}"
        ),
        evidence=()
        if good
        else (f"{count(-spare, 'byte')} less of {part.name} would be within {key}",),
        cause="" if good else _CAUSES[part.key],
        next_step="" if good else _NEXT_STEPS[part.key],
        figures={
            **figures,
            f"quantized_{part.key}_bytes": after,
            f"max_{part.key}_ratio": float(limit),
        },
        code="" if good else f"memory.{part.key}-ratio",
    )


def _judge_absolute(part: _Part, *, key: str, where: Where) -> Verdict:
    size, limit = part.quantized_bytes, part.max_bytes
    assert size is not None
    assert limit is not None
    good = size <= limit
    word, allowed = "within" if good else "over", f"{limit / MIB:.7g} MiB"
    shown = f"{show_ratio(Fraction(size, MIB), limit=Fraction(limit, MIB))} MiB"
    return Verdict(
        gate=GATE,
        status=Status.PASS if good else Status.FAIL,
        headline=f"{part.name} {shown} ({size} bytes), {word} {key} {allowed} ({where.of(key)})",
        brief=_cut(f"{part.name} {shown} {word} {allowed}"),
        cause="" if good else _CAUSES[part.key],
        next_step="" if good else _NEXT_STEPS[part.key],
        figures={f"quantized_{part.key}_bytes": size, f"{key}_bytes": limit},
        code="" if good else f"memory.{part.key}-bytes",
    )


_CAUSES = {
    "plan": "weights that stayed in 16 bits or more; a small model's plan is mostly code",
    "weights": "layers that were not quantized, or whose weights are stored in full precision",
    "activation": "quantized values kept next to full-precision ones; layers that are not fused",
}

_NEXT_STEPS = {
    "plan": "look at the weights of the export gate, or gate on max_weights_ratio alone",
    "weights": "look at the coverage and export gates for what is not in 8 bits",
    "activation": "look at the engine gate for attention that fell apart, or a smaller batch",
}


def _divide(above: int, below: int) -> Fraction | None:
    return Fraction(above, below) if below else None


def _show_mib(size_bytes: int) -> str:
    """Return a size in MiB with one decimal, three where it is small."""
    size = size_bytes / MIB
    return f"{size:.{1 if size >= 10 else 3}f} MiB" if size_bytes else "0 MiB"


def _brief_pass(parts: list[_Part]) -> str:
    """Return `plan 0.566x, weights 0.505x, activation memory 0.981x of FP16`."""
    ratios, sizes = [], []
    for part in parts:
        after, before, limit = part.quantized_bytes, part.fp16_bytes, part.max_ratio
        assert after is not None
        if limit is None:
            sizes.append(f"{part.key} {_show_mib(after)}")
            continue
        assert before is not None
        ratio = _divide(after, before)
        shown = f"{_show_mib(after)} vs 0" if ratio is None else f"{float(ratio):.3f}x"
        ratios.append(f"{part.key} {shown}")
    text = f"{', '.join(ratios)} of FP16" if ratios else ""
    return _cut("; ".join(piece for piece in (text, ", ".join(sizes)) if piece))


def _cut(text: str, *, length: int = 70) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def judge(run: GateRun, gate: MemoryGate) -> Judged:
    """Return whether the engines of the towers take no more room than the suite allows."""
    parts = tuple(
        judge_memory(
            fp16=figures_of(run.stages.base_engine(tower=tower, gate=gate)),
            quantized=figures_of(run.stages.engine(variant="quantized", tower=tower, gate=gate)),
            limits=gate,
            subject=f"{tower}, batch {gate.batch}, {gate.target}",
            prefix=f"{tower}_",
        )
        for tower in gate.towers
    )
    return Judged(verdict=combine(gate=GATE, parts=parts))


KIND = GateKind(
    section=MemoryGate,
    help="sizes of the engines against FP16's",
    judge=judge,
    several=True,
    needs=("tensorrt-rtx",),
    follows={
        "memory.weights-*": (*NOT_QUANTIZED, "export.quantizers-lost", "export.weights-in-full")
    },
)
