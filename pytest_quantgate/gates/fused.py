"""Calls on weights that no quantizer can get into.

`nn.MultiheadAttention` is one call with all of its weights: ModelOpt has no quantized class of it,
its products have no quantizers, and those of its `out_proj` are never called, whether they are on
or not. A Parameter that a module multiplies with by itself is no layer. Both stay in FP16 by the
suite's word, or are red.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_quantgate.evidence.audit import Audit

WHY_FUSED = (
    "ModelOpt has no quantized class of nn.MultiheadAttention: it hands all of its weights to one "
    "function, and never calls its out_proj"
)
WHY_BARE = "the model multiplies with a Parameter of its own, and ModelOpt quantizes layers"


def list_fused(audit: Audit) -> frozenset[str]:
    """Return the names of modules whose call ran on weights that no quantizer could touch.

    Those are fused attention, and modules without a quantizer that multiply with a Parameter.
    """
    return list_attention(audit) | frozenset(
        operation.module
        for operation in audit.operations
        if operation.function == "matmul"
        and operation.weights_count
        and not any(operation.operands_quantized)
        and not any(f"{q.module}.".startswith(f"{operation.module}.") for q in audit.quantizers)
    )


def list_attention(audit: Audit) -> frozenset[str]:
    """Return the names of fused attention modules whose weights no quantizer touched."""
    return frozenset(
        operation.module
        for operation in audit.operations
        if operation.function == "mha" and not any(operation.operands_quantized)
    )


def list_excluded(audit: Audit) -> frozenset[str]:
    """Return those of `list_fused` that a pattern of `quantize.exclude` names by the module."""
    return frozenset(
        name
        for name in list_fused(audit)
        if any(fnmatch.fnmatch(name, pattern) for pattern, _ in audit.excludes)
    )


def advise_fused(names: Iterable[str], *, audit: Audit) -> tuple[str, str]:
    """Return why these modules stay in FP16, and the edit that says that they may."""
    names = list(names)
    others = [q.name for q in audit.quantizers if q.enabled]
    patterns = dict.fromkeys(name_fused(name, others=others) for name in names)
    listing = ", ".join(f'"{pattern}"' for pattern in patterns)
    why = WHY_FUSED if list_attention(audit).intersection(names) else WHY_BARE
    return why, f"add exclude: [{listing}], where it may stay in FP16"


def name_fused(name: str, *, others: Iterable[str] = ()) -> str:
    """Return a short pattern for a module, alike in all blocks, that names no other quantizer.

    It is made of the last two or more parts of the name that are no numbers.
    """
    parts = ["*" if part.isdigit() else part for part in name.split(".")]
    for start in range(len(parts) - 2, 0, -1):
        tail = parts[start:]
        pattern = f"*{'.'.join(tail)}*"
        outside = (other for other in others if not fnmatch.fnmatch(other, f"{'.'.join(parts)}.*"))
        if tail[0] != "*" and not any(fnmatch.fnmatch(other, pattern) for other in outside):
            return pattern
    return f"{'.'.join(parts)}*"
