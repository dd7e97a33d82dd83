"""The coverage gate's part on attention: each block has what is wanted around its products."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail
from pytest_quantgate.gates.fused import advise_fused, list_fused
from pytest_quantgate.gates.idle import advise_idle
from pytest_quantgate.gates.scope import SLOT_NAMES
from pytest_quantgate.gates.towers import find_towers_off
from pytest_quantgate.text.words import count, list_groups, list_groups_of, listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_quantgate.evidence.audit import Audit, Operation, Quantizer, Slot
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.scope import Scope

GATE = "coverage"
_fail = partial(fail, GATE)


def judge_attention(audit: Audit, *, scope: Scope, attention: str) -> Iterator[Verdict]:
    """Yield a FAIL where a block of a tower has not each wanted slot quantized, or it never ran."""
    if not scope.slots:
        return
    where = scope.where.of("attention")
    by_owner: dict[str, dict[Slot, Quantizer]] = {}
    for quantizer in audit.quantizers:
        if quantizer.slot in SLOT_NAMES:
            by_owner.setdefault(quantizer.module, {})[quantizer.slot] = quantizer
    blocks = [
        m
        for m in audit.modules
        if m.kind in ("attention", "mha") and m.tower in (*scope.towers, "other")
    ]
    ran = {op.module for op in audit.operations if op.function in ("attention", "mha", "matmul")}
    blocks = [m for m in blocks if m.name in ran or m.name in by_owner or m.kind == "mha"]
    absent = [tower for tower in scope.towers if not any(m.tower == tower for m in blocks)]
    if absent:
        yield _fail(
            "attention-not-found",
            f"no attention block was found in the {' and '.join(absent)} tower, although "
            f"{listed([SLOT_NAMES[slot] for slot in scope.slots])} quantizers are expected "
            f"({where})",
            cause="attention is called as a function outside any attention module",
            next_step="put the call into a module, or write coverage: {attention: []} if that is "
            "meant",
        )
        return
    missing: dict[str, list[str]] = {}
    idle: list[Quantizer] = []
    blocks = [m for m in blocks if m.name not in scope.excluded]
    for slot in scope.slots:
        for module in blocks:
            found = by_owner.get(module.name, {}).get(slot)
            problem = _attention_problem(found, audit=audit)
            if problem is None:
                continue
            name = found.name if found else f"{module.name}.{SLOT_NAMES[slot]}"
            if scope.takes(name):
                continue
            missing.setdefault(f"{SLOT_NAMES[slot]} {problem}", []).append(module.name)
            if found is not None and found.enabled and found.own_calls == 0:
                idle.append(found)
    if not missing:
        return
    worst, names = next(iter(missing.items()))
    fused = {name for found in missing.values() for name in found}
    if fused <= list_fused(audit):
        hint = advise_fused(sorted(fused), audit=audit)
    elif idle:
        hint = advise_idle(idle, among=audit.quantizers, attention=attention)
        if scope.asks_attention and any(q.slot == "softmax" for q in idle):
            hint = (hint[0], f"{hint[1]}, and leave softmax out of coverage.attention")
    else:
        hint = _attention_hint(missing)
    yield _fail(
        "attention-missing",
        f"attention is not quantized as expected: {worst} in {len(names)} of {len(blocks)} blocks "
        f"({where})",
        evidence=list_groups_of(missing),
        cause=hint[0],
        next_step=hint[1],
        figures={"attention_slots_missing": sum(len(found) for found in missing.values())},
    )


def _attention_problem(quantizer: Quantizer | None, *, audit: Audit) -> str | None:
    if quantizer is None:
        return "has no quantizer"
    if not quantizer.enabled:
        return "is off"
    if quantizer.own_calls == 0:
        amax = "with an amax" if quantizer.amax_count else "without an amax"
        return f"is enabled {amax} and never called"
    if audit.formats and quantizer.format not in audit.formats:
        return f"has format {quantizer.format}"
    return None


def _attention_hint(missing: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    text = " ".join(missing)
    if "has no quantizer" in text:
        return (
            "scaled_dot_product_attention is a function that a walker over modules never sees: the "
            "attention class was not replaced",
            "use recipe: fp8-attention",
        )
    return (
        "the recipe does not switch these quantizers on, or a pattern switches them off",
        "use recipe: fp8-attention, or leave the slots out of coverage.attention",
    )


def judge_calls(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for attention calls on operands that did not come out of a quantizer."""
    slots_of: dict[str, list[Quantizer]] = {}
    for quantizer in audit.quantizers:
        slots_of.setdefault(quantizer.module, []).append(quantizer)
    whole_off = find_towers_off(audit)
    bypassed = [
        operation
        for operation in audit.operations
        if operation.function == "attention"
        and operation.tower in (*scope.towers, "other")
        and operation.tower not in whole_off
        and not _touched(operation, slots_of.get(operation.module, []), slots=scope.slots)
        and not scope.takes(operation.module)
    ]
    if bypassed:
        yield _fail(
            "attention-bypassed",
            f"{count(len(bypassed), 'attention call')} ran on operands that no quantizer "
            f"touched ({scope.where.of('attention')})",
            evidence=list_groups(op.module for op in bypassed),
            cause="the call goes around the quantizers of its block",
            next_step="use recipe: fp8-attention with attn_implementation: sdpa",
        )


def _touched(
    operation: Operation, quantizers: Sequence[Quantizer], *, slots: Sequence[Slot]
) -> bool:
    """Return whether every wanted operand of an attention call came out of a quantizer.

    An operand whose own quantizer is off or never ran is the finding of `judge_attention`.
    """
    answered = {q.slot for q in quantizers if not q.enabled or q.own_calls == 0}
    return all(
        quantized or name not in slots or name in answered
        for name, quantized in zip(operation.operands, operation.operands_quantized, strict=True)
    )
