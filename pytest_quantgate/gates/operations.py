"""The coverage gate's part on operations: weights that a matrix product used as they are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail
from pytest_quantgate.gates.fused import advise_fused, list_fused
from pytest_quantgate.gates.towers import find_towers_off
from pytest_quantgate.text.words import list_groups_of, percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_quantgate.evidence.audit import Audit, Operation, Quantizer
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.scope import Scope

GATE = "coverage"
_fail = partial(fail, GATE)


def judge_operations(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for weights that an operation used and that came out of no quantizer."""
    by_module: dict[str, list[Quantizer]] = {}
    for quantizer in audit.quantizers:
        by_module.setdefault(quantizer.module, []).append(quantizer)
    escaped: dict[str, list[Operation]] = {}
    whole_off = find_towers_off(audit)
    for operation in audit.operations:
        if operation.tower not in (*scope.towers, "other") or operation.tower in whole_off:
            continue
        if operation.function == "attention" or not operation.weights_count:
            continue
        quantizers = by_module.get(operation.module, [])
        if is_covered(operation) or _is_judged_as_layer(quantizers):
            continue
        if not scope.takes(operation.module):
            escaped.setdefault(_call_words(operation), []).append(operation)
    if not escaped:
        return
    lost = sum(op.weights_count for found in escaped.values() for op in found)
    total = sum(op.weights_count for op in audit.operations)
    names = {op.module for found in escaped.values() for op in found}
    cause, next_step = (
        advise_fused(sorted(names), audit=audit)
        if names <= list_fused(audit)
        else (
            "a function was called with the weight: a walker over modules never sees it",
            "replace the call by a module, register a quantized class, or waive it with a "
            "reason and a day",
        )
    )
    yield _fail(
        "weights-escaped",
        f"{percent(lost / total, 1)} of the weights escaped the quantization: "
        f"{', '.join(f'{len(found)} {words}' for words, found in escaped.items())} "
        f"({scope.where})",
        evidence=list_groups_of(
            {
                words: [op.module or "(the model itself)" for op in found]
                for words, found in escaped.items()
            }
        ),
        cause=cause,
        next_step=next_step,
        figures={"escaped_weights": lost},
    )


def _call_words(operation: Operation) -> str:
    if operation.function == "mha":
        return "fused calls of nn.MultiheadAttention"
    return f"{operation.function} calls on unquantized operands"


def is_covered(operation: Operation) -> bool:
    """Return whether the weight of an operation came out of a quantizer that ran."""
    flags = dict(zip(operation.operands, operation.operands_quantized, strict=True))
    return flags.get("weight", any(operation.operands_quantized))


def _is_judged_as_layer(quantizers: Sequence[Quantizer]) -> bool:
    """Return whether `judge_layers` or the exclude list already answers for a bare weight.

    It does where the weight's quantizer is off or never ran. Where that runs and the operation
    sees a bare weight all the same, the call goes around it.
    """
    return any(q.slot == "weight" and (not q.enabled or q.own_calls == 0) for q in quantizers)
