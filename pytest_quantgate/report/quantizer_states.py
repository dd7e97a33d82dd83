"""The state of every quantizer of a model, as a coverage map shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pytest_quantgate.evidence.audit import Audit, Module, Quantizer, Slot
from pytest_quantgate.formats.table import keeps_amax
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.gates.scope import find_waiver
from pytest_quantgate.quantization.quantizers import SLOTS, owner_of, slot_of
from pytest_quantgate.report.model import QuantizerFacts, QuantizerState

ATTENTION_SLOTS: tuple[Slot, ...] = ("q", "k", "v", "softmax", "attention_output")


def describe_quantizers(
    audit: Audit, *, gate: CoverageGate, slots: Sequence[Slot]
) -> tuple[QuantizerFacts, ...]:
    """Return every quantizer with its state, and those that should be there and are not.

    `slots` are the attention slots that the suite wants in every block of its towers.
    """
    modules = {module.name: module for module in audit.modules}
    found = tuple(
        _describe(quantizer, audit=audit, gate=gate, slots=slots, modules=modules)
        for quantizer in audit.quantizers
    )
    return found + tuple(_absent(audit, gate=gate, slots=slots, modules=modules))


def _describe(
    quantizer: Quantizer,
    *,
    audit: Audit,
    gate: CoverageGate,
    slots: Sequence[Slot],
    modules: Mapping[str, Module],
) -> QuantizerFacts:
    module = modules.get(quantizer.module)
    wanted = quantizer.slot in slots and quantizer.tower in (*gate.towers, "other")
    state, reason = _judge(quantizer, meant=wanted or quantizer.name in audit.intended, audit=audit)
    waiver = find_waiver(quantizer.name, gate.waive)
    if waiver is not None and state in ("missing", "unexpected"):
        state, reason = "excluded", f"waived until {waiver.until} ({waiver.reason}): {reason}"
    return QuantizerFacts(
        name=quantizer.name,
        module=quantizer.module,
        kind=module.kind if module else "other",
        slot=quantizer.slot,
        tower=quantizer.tower,
        block=quantizer.block,
        state=state,
        reason=reason,
        enabled=quantizer.enabled,
        format=quantizer.format,
        granularity=quantizer.granularity,
        dynamic=quantizer.dynamic,
        amax_min=quantizer.amax_min,
        amax_max=quantizer.amax_max,
        amax_count=quantizer.amax_count,
        calls=quantizer.calls,
        clipped=quantizer.clipped,
        seen=quantizer.seen,
    )


def _judge(quantizer: Quantizer, *, meant: bool, audit: Audit) -> tuple[QuantizerState, str]:
    if not quantizer.enabled:
        return _judge_off(quantizer, meant=meant, audit=audit)
    if not meant:
        return "unexpected", "it is on, and nobody asked for it"
    if quantizer.calls == 0:
        return "missing", "it is on, and no forward calls it"
    if audit.formats and quantizer.format not in audit.formats:
        return "missing", f"it is {quantizer.format}, the recipe means {', '.join(audit.formats)}"
    if keeps_amax(quantizer.format, dynamic=quantizer.dynamic):
        if quantizer.amax_min is None or quantizer.amax_max is None:
            return "uncalibrated", "it has no amax"
        if not quantizer.amax_finite:
            return "uncalibrated", "its amax is NaN or Inf"
        if quantizer.amax_max <= 0:
            return "uncalibrated", "its amax is 0"
    return "on", ""


def _judge_off(quantizer: Quantizer, *, meant: bool, audit: Audit) -> tuple[QuantizerState, str]:
    if not meant:
        return "off", "nobody asked for it"
    for pattern, matched in audit.excludes:
        if quantizer.name in matched:
            return "excluded", f"exclude {pattern!r}"
    pattern = dict(audit.disabled_by).get(quantizer.name, "")
    return "missing", f"pattern {pattern!r} switched it off" if pattern else "it is off"


def _absent(
    audit: Audit,
    *,
    gate: CoverageGate,
    slots: Sequence[Slot],
    modules: Mapping[str, Module],
) -> Iterator[QuantizerFacts]:
    """Yield what the recipe or the suite means and the model does not have."""
    known = {quantizer.name for quantizer in audit.quantizers}
    names = {slot: name for name, slot in SLOTS.items()}
    for name in audit.intended:
        if name not in known:
            known.add(name)
            yield _missing(name, slot=slot_of(name), module=modules.get(owner_of(name)))
    owned = {(quantizer.module, quantizer.slot) for quantizer in audit.quantizers}
    ran = {op.module for op in audit.operations if op.function in ("attention", "mha", "matmul")}
    for module in audit.modules:
        if module.kind not in ("attention", "mha") or module.tower not in (*gate.towers, "other"):
            continue
        if module.name not in ran and module.kind != "mha":
            continue
        for slot in slots:
            name = f"{module.name}.{names[slot]}"
            if (module.name, slot) not in owned and name not in known:
                yield _missing(name, slot=slot, module=module)


def _missing(name: str, *, slot: Slot, module: Module | None) -> QuantizerFacts:
    facts = QuantizerFacts(
        name=name,
        module=owner_of(name),
        kind="other",
        slot=slot,
        tower="other",
        block=None,
        state="missing",
        reason="the model has no such quantizer",
        enabled=False,
        format="",
        granularity="",
        dynamic=False,
        amax_min=None,
        amax_max=None,
        amax_count=0,
        calls=0,
        clipped=0,
        seen=0,
    )
    if module is None:
        return facts
    return replace(facts, kind=module.kind, tower=module.tower, block=module.block)
