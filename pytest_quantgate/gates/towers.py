"""The coverage gate's first part: whether anything is expected at all, and towers that are off."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.scope import list_intended
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_quantgate.evidence.audit import Audit, Quantizer, Tower
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.scope import Scope

GATE = "coverage"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)


def judge_expectation(audit: Audit, *, scope: Scope) -> Verdict:
    """An expectation that comes out empty proves nothing and must not pass."""
    where = scope.where
    if not audit.modules:
        return _fail(
            "no-layers",
            f"the model has no layers to quantize ({where})",
            next_step="name a model whose towers hold Linear layers or convolutions",
            cause="the model is not the one that was meant, or its layers are "
            "functions, not modules",
        )
    if not audit.quantizers:
        return _fail(
            "no-quantizers",
            f"the model holds no quantizer at all ({where})",
            cause="it was never quantized, or it was restored without its quantizers: ModelOpt "
            "loads a checkpoint without its state file as a plain model and says nothing",
            next_step="look at what ships, and restore it with its quantizer state",
        )
    if not audit.intended:
        return _fail(
            "recipe-matches-nothing",
            f"recipe {audit.recipe_name!r} means no layer of this model: its patterns match none "
            f"of {count(len(audit.modules), 'module')} ({where})",
            cause="patterns written for another model's names",
            next_step="compare the patterns with the module names of this model",
        )
    if not audit.operations:
        return _fail(
            "nothing-ran",
            f"no matrix operation ran in the audit's forward: nothing was seen running ({where})",
            next_step="look at the model's forward: no layer and no attention of its towers ran",
            cause="the forward does not go through the towers, or runs compiled code "
            "that nothing sees",
        )
    if not scope.towers:
        return _fail(
            "no-towers",
            f"coverage.towers is empty: nothing is expected ({where.of('towers')})",
            next_step="name towers: [vision, text]",
            cause="an empty list was written where all towers, or one, were meant",
        )
    return _pass(f"{len(audit.intended)} quantizers intended")


def judge_towers(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for each whole tower that is off, named by what switched it off."""
    off_by = dict(audit.disabled_by)
    for tower in scope.towers:
        if tower not in audit.towers:
            yield _fail(
                "tower-missing",
                f"the model has no {tower} tower, or its forward was not run "
                f"({scope.where.of('towers')})",
                next_step=f"leave {tower} out of coverage.towers if that is meant",
                cause="the suite expects a tower that this kind of model does not have",
            )
            continue
        whole = [quantizer for quantizer in list_intended(audit) if quantizer.tower == tower]
        deciding = decide_by(whole)
        if any(quantizer.enabled for quantizer in deciding):
            continue
        outside = sum(quantizer.enabled for quantizer in whole)
        found = deciding if outside else whole
        but = f" but for {count(outside, 'quantizer')} outside its blocks" if outside else ""
        # Neither an exclude list nor a waiver leaves out a tower that the suite expects. A waiver
        # that names its quantizers is not called unused: the tower is the finding.
        intended = [quantizer.name for quantizer in found]
        for name in intended:
            scope.waives(name)
        patterns = Counter(off_by[name] for name in intended if name in off_by)
        own = {pattern for pattern, _ in audit.excludes}
        # A pattern that took a part of the tower does not explain why all of it is off.
        explained = bool(intended) and sum(patterns.values()) == len(intended)
        words = ", switched off by " + " and ".join(
            f"pattern {pattern!r} of the {'exclude list' if pattern in own else 'recipe'}"
            for pattern, _ in patterns.most_common()
        )
        yield _fail(
            "tower-off",
            f"the whole {tower} tower is unquantized{but}: 0 of {len(intended)} intended "
            f"quantizers enabled{words if explained else ''} ({scope.where})",
            cause=_tower_cause(
                tower, recipe=audit.recipe_name, intended=len(intended), off=explained
            ),
            next_step=_mend_tower(
                tower,
                excluded=explained and any(pattern in own for pattern in patterns),
                disabled=bool(intended) and not explained,
            ),
        )


def _tower_cause(tower: Tower, *, recipe: str, intended: int, off: bool) -> str:
    if off:
        return (
            f"these patterns switch {tower} modules off by name, and ModelOpt says nothing as "
            f"long as another tower is quantized"
        )
    if intended:
        return "they were disabled after the quantization, or never switched on"
    return f"no pattern of recipe {recipe!r} matches the {tower} tower"


def _mend_tower(tower: Tower, *, excluded: bool, disabled: bool) -> str:
    if excluded:
        return f"remove the pattern, or leave {tower} out of coverage.towers if that is meant"
    if disabled:
        return "quantize again, and look for what touches the model after that"
    return "use recipe: fp8-attention, or an inline quant_cfg without these patterns"


def find_towers_off(audit: Audit) -> set[Tower]:
    """Return the towers that are off as a whole: one finding each, of `judge_towers`."""
    intended = list_intended(audit)
    towers = {q.tower for q in intended} - {"other"}
    deciding = {tower: decide_by([q for q in intended if q.tower == tower]) for tower in towers}
    return {tower for tower, found in deciding.items() if not any(q.enabled for q in found)}


def decide_by(found: Sequence[Quantizer]) -> Sequence[Quantizer]:
    """Return those of a tower's intended quantizers that say whether it is off: those of its blocks
    where it has some, since a patch embedding or a projection alone makes no quantized tower."""
    return [quantizer for quantizer in found if quantizer.block is not None] or found
