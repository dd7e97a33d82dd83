"""The coverage gate's part on what nobody asked for, and on what a suite excludes."""

from __future__ import annotations

import fnmatch
import math
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail, leave_open
from pytest_quantgate.gates.fused import list_excluded
from pytest_quantgate.gates.idle import exclude_words
from pytest_quantgate.gates.operations import is_covered
from pytest_quantgate.gates.towers import find_towers_off
from pytest_quantgate.text.words import closest, count, list_groups, list_groups_of, percent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from fractions import Fraction

    from pytest_quantgate.evidence.audit import Audit, Quantizer
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.scope import Scope

GATE = "coverage"
_fail = partial(fail, GATE)
_open = partial(leave_open, GATE)


def judge_unasked(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for quantizers that nobody asked for.

    Inputs of norms and weights of embeddings cost accuracy and make nothing faster.
    """
    modules = {module.name: module for module in audit.modules}
    intended = set(audit.intended)
    found: dict[str, list[str]] = {}
    unasked: list[Quantizer] = []
    for quantizer in audit.quantizers:
        if not quantizer.enabled or quantizer.name in intended or quantizer.slot in scope.slots:
            continue
        module = modules.get(quantizer.module)
        kind = module.kind if module is not None else "other"
        if not scope.takes(quantizer.name):
            found.setdefault(kind, []).append(quantizer.name)
            unasked.append(quantizer)
    if not found:
        return
    total = sum(len(names) for names in found.values())
    kinds = ", ".join(f"{len(names)} on {kind} modules" for kind, names in found.items())
    yield _fail(
        "unasked",
        f"{count(total, 'quantizer')} enabled that nobody asked for: {kinds} ({scope.where})",
        evidence=list_groups_of(found),
        cause=(
            "a bare '*input_quantizer' also switches on the inputs of LayerNorm, a bare "
            "'*weight_quantizer' the weights of Embedding"
            if found.keys() & {"norm", "embedding"}
            else "they were switched on after the recipe was applied"
        ),
        next_step=f"{exclude_words(unasked, among=audit.quantizers)}, or parent_class: nn.Linear "
        "to the entries of a recipe of your own",
        figures={"unasked_quantizers": total},
    )


def judge_excludes(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for the first exclude pattern that matches nothing, or switches nothing off."""
    modules = {module.name: module for module in audit.modules}
    by_name = {q.name: q for q in audit.quantizers}
    for pattern, matched in audit.excludes:
        fused = any(fnmatch.fnmatch(name, pattern) for name in list_excluded(audit))
        if not matched and fused:  # a module without quantizers
            continue
        if not matched:
            parts = sorted({part for name in modules for part in name.split(".")})
            near = closest(pattern.strip("*"), parts)
            hint = f": did you mean '*{near}*'?" if near and f"*{near}*" != pattern else ""
            yield _fail(
                "exclude-matches-nothing",
                f"exclude {pattern!r} matches none of {len(audit.quantizers)} quantizers{hint} "
                f"({scope.where})",
                cause="a typing error, another model's names, or a regular expression: these are "
                "shell patterns that match the whole quantizer name",
                next_step="write it as '*name*'",
            )
            return
        on = [name for name in matched if name in by_name and by_name[name].enabled]
        if on:
            yield _fail(
                "exclude-enabled",
                f"exclude {pattern!r} matched {len(matched)} quantizers, {len(on)} of them are "
                f"enabled all the same ({scope.where})",
                evidence=list_groups(on),
                cause="they were switched on again after the exclusion",
                next_step="quantize again, and switch nothing on afterwards",
            )
            return
        # Norms and embeddings are never intended, and a bare '*input_quantizer' switches them on:
        # whether this recipe does cannot be seen any more once they are excluded.
        may_be_on = any(
            modules[by_name[name].module].kind in ("norm", "embedding")
            for name in matched
            if name in by_name and by_name[name].module in modules
        )
        taken = {by_name[name].module for name in matched if name in by_name}
        if audit.search is not None and taken & audit.search.layers.keys():
            continue  # the search left them out
        if not may_be_on and not fused and not set(matched) & set(audit.intended):
            yield _fail(
                "exclude-without-effect",
                f"exclude {pattern!r} matches {count(len(matched), 'quantizer')} that the recipe "
                f"does not switch on: it excludes nothing ({scope.where})",
                evidence=list_groups(matched),
                next_step="remove the pattern",
                cause="the recipe leaves these quantizers off by itself",
            )
            return


def judge_share(audit: Audit, *, scope: Scope, least: Fraction) -> Iterator[Verdict]:
    """Yield INCONCLUSIVE where the exclude list takes more of the recipe's weights than it may.

    A tower that is left out as a whole is another finding, or named by `towers`.
    """
    off = find_towers_off(audit)
    meant = {q.module: q.name for q in audit.quantizers if q.slot == "weight"}
    kept, left_out = 0, 0
    for operation in audit.operations:
        if operation.tower not in scope.towers or operation.tower in off:
            continue
        if is_covered(operation):
            kept += operation.weights_count
        elif meant.get(operation.module) in scope.excluded & set(audit.intended):
            left_out += operation.weights_count
    if not left_out or kept >= float(least) * (kept + left_out):
        return
    share = kept / (kept + left_out)
    shown = math.floor(share * 1000) / 10
    yield _open(
        "mostly-excluded",
        f"exclude leaves {percent(share, 1)} of the weights that the recipe means, under "
        f"min_quantized {percent(least, 1)} ({scope.where.of('min_quantized')})",
        brief=f"exclude leaves {percent(share, 1)} of what the recipe means",
        evidence=list_groups(
            name for _, matched in audit.excludes for name in matched if name in audit.intended
        ),
        cause="patterns that match more than they were written for, or a variant that is FP16 for "
        "the most part",
        next_step="exclude less"
        + (
            f", or say that so much is meant: coverage: {{min_quantized: {shown:g}%}}"
            if shown
            else ""
        ),
        figures={"excluded_weights": left_out},
    )
