"""The coverage gate: what was meant to be quantized is, really runs, and nothing else is."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.evidence.verdict import Figure, Status, Verdict, combine
from pytest_quantgate.gates.blocks import branch_figures, describe_branches, judge_block_formats
from pytest_quantgate.gates.fused import advise_fused, list_attention, list_excluded, list_fused
from pytest_quantgate.gates.idle import INTERCEPTED, advise_idle, exclude_words
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.sections import TOWERS
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import (
    BadKey,
    choice_key,
    date_key,
    list_key,
    sections_key,
    text_key,
)
from pytest_quantgate.suite.where import Where
from pytest_quantgate.text.words import (
    closest,
    count,
    group,
    listed,
    percent,
    shorten,
    waivers_words,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_quantgate.evidence.audit import Audit, Module, Operation, Quantizer, Slot, Tower

GATE = "coverage"


#: The places around attention where a quantizer can be, as a suite names them.
AttentionSlot = Literal["q", "k", "v", "softmax", "output"]

#: What waits longer than a year does not wait: it is left out for good.
MAX_WAIVER_DAYS = 366


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """Modules (patterns as in `exclude`) that may stay unquantized until a day, and why."""

    where: Where
    modules: tuple[str, ...] = field(
        metadata=list_key(
            text_key(help="pattern"),
            help="module patterns; all waivers together name at most a quarter of a tower",
            single=True,
        )
    )
    reason: str = field(metadata=text_key(help="why they may stay unquantized", lines=True))
    until: date = field(
        metadata=date_key(
            help=f"the last day on which this holds, at most {MAX_WAIVER_DAYS} days from today"
        )
    )

    def check(self) -> None:
        """Refuse a waiver that names nothing. How much of a model one names, the gate counts."""
        if not self.modules:
            raise BadKey("modules", "is empty: name the layers that may wait")
        for pattern in self.modules:
            if not re.search(r"[^\W_]", pattern):
                raise BadKey(
                    "modules",
                    f"{pattern!r} names every module: name the layers that may wait, such as "
                    f"'*visual_projection*'",
                )

    def last_day(self, today: date) -> date:
        """Return the last day until which a waiver may hold, seen from `today`."""
        return today + timedelta(days=MAX_WAIVER_DAYS)

    def lasts_too_long(self, today: date) -> bool:
        return self.until > self.last_day(today)


@dataclass(frozen=True, kw_only=True)
class CoverageGate(GateSection):
    """`attention` lists the slots that must be quantized in every block; empty: none needed.

    `attention=None` means: what the recipe by its own name promises.
    """

    kind = GATE

    attention: tuple[AttentionSlot, ...] | None = field(
        default=None,
        metadata=list_key(
            choice_key("q", "k", "v", "softmax", "output", help="slot"),
            help="what must be quantized around attention in every block",
        ),
    )
    towers: tuple[Literal["vision", "text"], ...] = field(
        default=("vision", "text"), metadata=TOWERS
    )
    waive: tuple[Waiver, ...] = field(
        default=(),
        metadata=sections_key(Waiver, help="what may stay unquantized", single=False),
    )


#: All waivers together name at most this share of a tower.
MAX_WAIVED_SHARE = Fraction(1, 4)

#: The index of a block in a name: `layers.3.mlp`.
_INDEX = re.compile(r"\.\d+\.")

#: Names in a suite -> slots of the audit.
SLOTS: Mapping[AttentionSlot, Slot] = {
    "q": "q",
    "k": "k",
    "v": "v",
    "softmax": "softmax",
    "output": "attention_output",
}
_ATTENTION_NAMES = {slot: name for name, slot in SLOTS.items()}


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a suite takes out of the expectation, by whose word."""

    excluded: frozenset[str]
    waivers: tuple[Waiver, ...]

    def waiver_of(self, name: str) -> Waiver | None:
        """Return the waiver that covers a quantizer or a module."""
        for waiver in self.waivers:
            for pattern in waiver.modules:
                if any(fnmatch.fnmatch(part, pattern) for part in _with_parents(name)):
                    return waiver
        return None


def judge_coverage(
    audit: Audit, *, gate: CoverageGate, today: date, attention: str = INTERCEPTED
) -> Verdict:
    """Return whether a variant is quantized as its recipe means it.

    `attention` is the model's attention implementation, for advice.

    FAIL where an expectation comes out empty; where something intended is off, of another format,
    or never ran; where attention lacks a slot in a block; where something is quantized that nobody
    asked for; where an exclude pattern matches nothing; where a weight escapes; where blocks are
    not whole, their scales ignored or a low-rank branch idle; and where a waiver is expired or
    unused.
    """
    scope = Scope(
        excluded=list_excluded(audit).union(*(matched for _, matched in audit.excludes)),
        waivers=gate.waive,
    )
    modules = {module.name: module for module in audit.modules}
    used: set[int] = set()
    parts = [
        _judge_expectation(audit, gate=gate),
        _judge_towers(audit, gate=gate, scope=scope, used=used),
        _judge_layers(audit, gate=gate, scope=scope, used=used),
        _judge_blocks(audit, gate=gate, scope=scope, used=used),
        _judge_axis(audit, gate=gate, scope=scope, used=used),
        _judge_attention(
            audit, gate=gate, scope=scope, modules=modules, used=used, attention=attention
        ),
        _judge_unasked(audit, gate=gate, modules=modules, scope=scope, used=used),
        _judge_excludes(audit, gate=gate, modules=modules),
        _judge_operations(audit, gate=gate, scope=scope, used=used),
        *judge_block_formats(audit, where=gate.where),
    ]
    waived = measure_waived(audit, gate=gate, scope=scope)
    parts.append(_judge_waivers(gate=gate, waived=waived, today=today, used=used))
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    figures = {
        **_figures(audit, scope=scope),
        **branch_figures(audit.branches),
        **verdict.figures,
    }
    if not verdict.passed:
        return replace(verdict, figures=figures)
    headline, brief = _describe(audit, figures=figures)
    if gate.waive:
        headline = f"{headline}; waived: {_waived_words(waived)}"
        # The waiver stands first: it is what a reader of the one line must not miss.
        brief = (
            f"{waivers_words([figures])}, {percent(waived.share, 1)} of at most "
            f"{percent(MAX_WAIVED_SHARE, 0)}; {listed(audit.formats, most=1)} on "
            f"{percent(float(figures['weights_covered_share']), 1)}"
        )
    return Verdict(
        gate=GATE,
        status=Status.PASS,
        headline=headline,
        brief=brief,
        evidence=(
            *([branches] if (branches := describe_branches(audit.branches)) else ()),
            *_left_out(audit, scope=scope, today=today),
        ),
        figures=figures,
    )


def _fail(finding: str, headline: str, **more: object) -> Verdict:
    return Verdict(
        gate=GATE,
        status=Status.FAIL,
        headline=f"coverage: {headline}",
        code=f"{GATE}.{finding}",
        **more,  # type: ignore[arg-type]
    )


def _pass(headline: str) -> Verdict:
    return Verdict(gate=GATE, status=Status.PASS, headline=f"coverage: {headline}")


# -- what was expected at all -------------------------------------------------------------


def _judge_expectation(audit: Audit, *, gate: CoverageGate) -> Verdict:
    """An expectation that comes out empty proves nothing and must not pass."""
    where = gate.where
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
    if not gate.towers:
        return _fail(
            "no-towers",
            f"coverage.towers is empty: nothing is expected ({where.of('towers')})",
            next_step="name towers: [vision, text]",
            cause="an empty list was written where all towers, or one, were meant",
        )
    return _pass(f"{len(audit.intended)} quantizers intended")


def _judge_towers(
    audit: Audit, *, gate: CoverageGate, scope: Scope, used: set[int]
) -> Verdict | None:
    """A whole tower that is off is one finding, named by what switched it off."""
    failures = []
    off_by = dict(audit.disabled_by)
    by_name = {q.name: q for q in audit.quantizers}
    for tower in gate.towers:
        if tower not in audit.towers:
            failures.append(
                _fail(
                    "tower-missing",
                    f"the model has no {tower} tower, or its forward was not run "
                    f"({gate.where.of('towers')})",
                    next_step=f"leave {tower} out of coverage.towers if that is meant",
                    cause="the suite expects a tower that this kind of model does not have",
                )
            )
            continue
        intended = [
            name for name in audit.intended if name in by_name and by_name[name].tower == tower
        ]
        if any(by_name[name].enabled for name in intended):
            continue
        # Neither an exclude list nor a waiver leaves out a tower that the suite expects. A waiver
        # that names its quantizers is not called unused: the tower is the finding.
        waivers = [scope.waiver_of(name) for name in intended]
        used.update(scope.waivers.index(waiver) for waiver in waivers if waiver is not None)
        patterns = Counter(off_by[name] for name in intended if name in off_by)
        own = {pattern for pattern, _ in audit.excludes}
        # A pattern that took a part of the tower does not explain why all of it is off.
        explained = bool(intended) and sum(patterns.values()) == len(intended)
        words = " and ".join(
            f"pattern {pattern!r} of the {'exclude list' if pattern in own else 'recipe'}"
            for pattern, _ in patterns.most_common()
        )
        failures.append(
            _fail(
                "tower-off",
                f"the whole {tower} tower is unquantized: 0 of {len(intended)} intended quantizers "
                f"enabled{f', switched off by {words}' if explained else ''} ({gate.where})",
                cause=_tower_cause(
                    tower, recipe=audit.recipe_name, intended=len(intended), off=explained
                ),
                next_step=_mend_tower(
                    tower,
                    excluded=explained and any(pattern in own for pattern in patterns),
                    disabled=bool(intended) and not explained,
                ),
            )
        )
    return combine(gate=GATE, parts=tuple(failures)) if failures else None


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


# -- layers -------------------------------------------------------------------------------


def _judge_layers(audit: Audit, *, gate: CoverageGate, scope: Scope, used: set[int]) -> Verdict:
    """Every intended layer quantizer is on, of an expected format, and ran."""
    by_name = {q.name: q for q in audit.quantizers}
    off_by = dict(audit.disabled_by)
    whole_off = _towers_off(audit)
    off: dict[str, list[str]] = {}
    wrong: list[Quantizer] = []
    idle: list[Quantizer] = []
    intended = 0
    for name in audit.intended:
        quantizer = by_name.get(name)
        if quantizer is not None and (
            quantizer.slot in _ATTENTION_NAMES or quantizer.tower in whole_off
        ):
            continue
        intended += 1
        if quantizer is not None and quantizer.enabled:
            if audit.formats and quantizer.format not in audit.formats:
                wrong.append(quantizer)
            elif quantizer.own_calls == 0:
                idle.append(quantizer)
        elif not _take(scope, name, used):
            off.setdefault(off_by.get(name, ""), []).append(name)
    idle = [q for q in idle if not _take(scope, q.name, used)]
    wrong = [q for q in wrong if not _take(scope, q.name, used)]
    parts = []
    if off:
        missing = [name for names in off.values() for name in names]
        patterns = [pattern for pattern in off if pattern]
        parts.append(
            _fail(
                "layers-off",
                f"{len(missing)} of {intended} intended layer quantizers are off"
                f"{': ' + _patterns(patterns) if patterns else ''} ({gate.where})",
                evidence=shorten(
                    [
                        f"off{f' by {pattern!r}' if pattern else ''}: {line}"
                        for pattern, names in off.items()
                        for line in group(names)
                    ],
                    noun="groups",
                ),
                cause=(
                    "a pattern inside the recipe switches them off again"
                    if patterns
                    else "they were never switched on, or were disabled after the quantization"
                ),
                next_step="name them in exclude if that is meant, or waive them with a "
                "reason and a day",
            )
        )
    if wrong:
        found = Counter(q.format for q in wrong)
        parts.append(
            _fail(
                "other-format",
                f"{len(wrong)} quantizers have another format than the recipe's "
                f"{listed(audit.formats)}: {', '.join(f'{n} {f}' for f, n in found.most_common())} "
                f"({gate.where})",
                evidence=shorten([f"{q.name}: {q.format}" for q in wrong]),
                cause="an entry of the recipe, or a change after it, gives them another one",
                next_step="let the recipe give them its format, and quantize again",
            )
        )
    if idle:
        parts.append(
            _fail(
                "never-ran",
                f"{len(idle)} enabled quantizers never ran in their tower's forward ({gate.where})",
                evidence=shorten(group(q.name for q in idle), noun="groups"),
                cause="the layer's weight is used by a functional call that goes around the module",
                next_step="exclude them, or change the module so that its quantized forward runs",
            )
        )
    return (
        combine(gate=GATE, parts=tuple(parts)) if parts else _pass(f"{intended} layer quantizers")
    )


def _judge_blocks(
    audit: Audit, *, gate: CoverageGate, scope: Scope, used: set[int]
) -> Verdict | None:
    """A recipe that means less than half of the blocks of a tower is one of another depth.

    One that leaves out a few on purpose, such as the first and the last, is a recipe.
    """
    intended = set(audit.intended)
    alike: dict[tuple[Tower, str], list[Quantizer]] = {}
    for quantizer in audit.quantizers:
        if quantizer.slot == "weight" and quantizer.block is not None:
            pattern = _INDEX.sub(".*.", quantizer.name, count=1)
            alike.setdefault((quantizer.tower, pattern), []).append(quantizer)
    left_out: list[Quantizer] = []
    of: dict[Tower, tuple[int, int]] = {}
    for (tower, _), found in alike.items():
        meant = sum(q.name in intended for q in found)
        if tower in gate.towers and 0 < 2 * meant < len(found):
            of.setdefault(tower, (meant, len(found)))
            left_out += [q for q in found if q.name not in intended and not q.enabled]
    left_out = [q for q in left_out if not _take(scope, q.name, used)]
    if not left_out:
        return None
    towers = " and ".join(
        f"{meant} of {count(total, 'block')} of the {tower} tower"
        for tower, (meant, total) in of.items()
    )
    return _fail(
        "blocks-left-out",
        f"recipe {audit.recipe_name!r} means only {towers}: {len(left_out)} weights are left out "
        f"({gate.where})",
        evidence=shorten(group(q.name for q in left_out), noun="groups"),
        cause="a pattern that names single blocks, or the block numbers of another model",
        next_step="let the pattern match every block of this model",
        figures={"weights_left_out": len(left_out)},
    )


def _judge_axis(
    audit: Audit, *, gate: CoverageGate, scope: Scope, used: set[int]
) -> Verdict | None:
    """An activation with a scale for each of the channels that a matmul sums over has no kernel."""
    found = [
        quantizer
        for quantizer in audit.quantizers
        if quantizer.enabled
        and quantizer.slot not in ("weight", "other")
        and quantizer.granularity == "per-channel"
        and not quantizer.dynamic
    ]
    found = [q for q in found if not _take(scope, q.name, used)]
    if not found:
        return None
    return _fail(
        "range-per-channel",
        f"{count(len(found), 'activation quantizer')} have a range per channel ({gate.where})",
        evidence=shorten(group(q.name for q in found), noun="groups"),
        cause="a wrong axis: a matmul sums over these channels, so their scales cannot be taken "
        "out of the sum, and a runtime falls back to full precision",
        next_step="write axis: null for activations (one range for the whole tensor)",
        figures={"per_channel_activations": len(found)},
    )


def _towers_off(audit: Audit) -> set[Tower]:
    """Return the towers that are off as a whole: one finding each, of `_judge_towers`."""
    by_name = {q.name: q for q in audit.quantizers}
    intended = [by_name[name] for name in audit.intended if name in by_name]
    return {q.tower for q in intended} - {q.tower for q in intended if q.enabled} - {"other"}


# -- attention ----------------------------------------------------------------------------


def wanted_slots(audit: Audit, *, gate: CoverageGate) -> tuple[Slot, ...]:
    """Return the attention slots that must be quantized: the suite's, else the recipe's own."""
    if gate.attention is not None:
        return tuple(SLOTS[name] for name in gate.attention)
    by_name = {q.name: q for q in audit.quantizers}
    meant = {by_name[name].slot for name in audit.intended if name in by_name}
    return tuple(slot for slot in SLOTS.values() if slot in meant)


def _judge_attention(
    audit: Audit,
    *,
    gate: CoverageGate,
    scope: Scope,
    modules: Mapping[str, Module],
    used: set[int],
    attention: str,
) -> Verdict | None:
    """Every block of every tower has each wanted slot quantized, and it ran."""
    slots = wanted_slots(audit, gate=gate)
    if not slots:
        return None
    where = gate.where.of("attention")
    by_owner: dict[str, dict[Slot, Quantizer]] = {}
    for quantizer in audit.quantizers:
        if quantizer.slot in _ATTENTION_NAMES:
            by_owner.setdefault(quantizer.module, {})[quantizer.slot] = quantizer
    blocks = [
        m
        for m in modules.values()
        if m.kind in ("attention", "mha") and m.tower in (*gate.towers, "other")
    ]
    ran = {op.module for op in audit.operations if op.function in ("attention", "mha", "matmul")}
    blocks = [m for m in blocks if m.name in ran or m.name in by_owner or m.kind == "mha"]
    absent = [tower for tower in gate.towers if not any(m.tower == tower for m in blocks)]
    if absent:
        return _fail(
            "attention-not-found",
            f"no attention block was found in the {' and '.join(absent)} tower, although "
            f"{listed([_ATTENTION_NAMES[s] for s in slots])} quantizers are expected ({where})",
            cause="attention is called as a function outside any attention module",
            next_step="put the call into a module, or write coverage: {attention: []} if that is "
            "meant",
        )
    missing: dict[str, list[str]] = {}
    idle: list[Quantizer] = []
    blocks = [m for m in blocks if m.name not in scope.excluded]
    for slot in slots:
        for module in blocks:
            found = by_owner.get(module.name, {}).get(slot)
            problem = _attention_problem(found, audit=audit)
            if problem is None:
                continue
            name = found.name if found else f"{module.name}.{_ATTENTION_NAMES[slot]}"
            if _take(scope, name, used):
                continue
            missing.setdefault(f"{_ATTENTION_NAMES[slot]} {problem}", []).append(module.name)
            if found is not None and found.enabled and found.own_calls == 0:
                idle.append(found)
    if not missing:
        return _pass(
            f"attention {' '.join(_ATTENTION_NAMES[s] for s in slots)} in {len(blocks)} blocks"
        )
    worst, names = next(iter(missing.items()))
    fused = {name for found in missing.values() for name in found}
    if fused <= list_fused(audit):
        hint = advise_fused(sorted(fused), audit=audit)
    elif idle:
        hint = advise_idle(idle, among=audit.quantizers, attention=attention)
        if gate.attention and any(q.slot == "softmax" for q in idle):
            hint = (hint[0], f"{hint[1]}, and leave softmax out of coverage.attention")
    else:
        hint = _attention_hint(missing)
    return _fail(
        "attention-missing",
        f"attention is not quantized as expected: {worst} in {len(names)} of {len(blocks)} blocks "
        f"({where})",
        evidence=shorten(
            [f"{what}: {line}" for what, found in missing.items() for line in group(found)],
            noun="groups",
        ),
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


# -- what nobody asked for, and exclusions ------------------------------------------------


def _judge_unasked(
    audit: Audit,
    *,
    gate: CoverageGate,
    modules: Mapping[str, Module],
    scope: Scope,
    used: set[int],
) -> Verdict:
    """Inputs of norms and weights of embeddings cost accuracy and make nothing faster."""
    intended = set(audit.intended)
    wanted = wanted_slots(audit, gate=gate)
    found: dict[str, list[str]] = {}
    unasked: list[Quantizer] = []
    for quantizer in audit.quantizers:
        if not quantizer.enabled or quantizer.name in intended or quantizer.slot in wanted:
            continue
        module = modules.get(quantizer.module)
        kind = module.kind if module is not None else "other"
        if not _take(scope, quantizer.name, used):
            found.setdefault(kind, []).append(quantizer.name)
            unasked.append(quantizer)
    if not found:
        return _pass("nothing is quantized that was not asked for")
    total = sum(len(names) for names in found.values())
    kinds = ", ".join(f"{len(names)} on {kind} modules" for kind, names in found.items())
    return _fail(
        "unasked",
        f"{count(total, 'quantizer')} enabled that nobody asked for: {kinds} ({gate.where})",
        evidence=shorten(
            [f"{kind}: {line}" for kind, names in found.items() for line in group(names)],
            noun="groups",
        ),
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


def _judge_excludes(
    audit: Audit, *, gate: CoverageGate, modules: Mapping[str, Module]
) -> Verdict | None:
    """Every exclude pattern matched a quantizer, and what it matched is off."""
    if not audit.excludes:
        return None
    by_name = {q.name: q for q in audit.quantizers}
    for pattern, matched in audit.excludes:
        fused = any(fnmatch.fnmatch(name, pattern) for name in list_excluded(audit))
        if not matched and fused:  # a module without quantizers
            continue
        if not matched:
            parts = sorted({part for name in modules for part in name.split(".")})
            near = closest(pattern.strip("*"), parts)
            hint = f": did you mean '*{near}*'?" if near and f"*{near}*" != pattern else ""
            return _fail(
                "exclude-matches-nothing",
                f"exclude {pattern!r} matches none of {len(audit.quantizers)} quantizers{hint} "
                f"({gate.where})",
                cause="a typing error, another model's names, or a regular expression: these are "
                "shell patterns that match the whole quantizer name",
                next_step="write it as '*name*'",
            )
        on = [name for name in matched if name in by_name and by_name[name].enabled]
        if on:
            return _fail(
                "exclude-enabled",
                f"exclude {pattern!r} matched {len(matched)} quantizers, {len(on)} of them are "
                f"enabled all the same ({gate.where})",
                evidence=shorten(group(on), noun="groups"),
                cause="they were switched on again after the exclusion",
                next_step="quantize again, and switch nothing on afterwards",
            )
        # Norms and embeddings are never intended, and a bare '*input_quantizer' switches them on:
        # whether this recipe does cannot be seen any more once they are excluded.
        may_be_on = any(
            modules[by_name[name].module].kind in ("norm", "embedding")
            for name in matched
            if name in by_name and by_name[name].module in modules
        )
        if not may_be_on and not fused and not set(matched) & set(audit.intended):
            return _fail(
                "exclude-without-effect",
                f"exclude {pattern!r} matches {count(len(matched), 'quantizer')} that the recipe "
                f"does not switch on: it excludes nothing ({gate.where})",
                evidence=shorten(group(matched), noun="groups"),
                next_step="remove the pattern",
                cause="the recipe leaves these quantizers off by itself",
            )
    return _pass(f"{count(len(audit.excludes), 'exclude pattern')} matched")


# -- operations ---------------------------------------------------------------------------


def _judge_operations(audit: Audit, *, gate: CoverageGate, scope: Scope, used: set[int]) -> Verdict:
    """Weights used by an operation whose operands did not come out of a quantizer escaped."""
    by_module: dict[str, list[Quantizer]] = {}
    for quantizer in audit.quantizers:
        by_module.setdefault(quantizer.module, []).append(quantizer)
    escaped: dict[str, list[Operation]] = {}
    attention: list[Operation] = []
    slots = wanted_slots(audit, gate=gate)
    whole_off = _towers_off(audit)
    for operation in audit.operations:
        if operation.tower not in (*gate.towers, "other") or operation.tower in whole_off:
            continue
        quantizers = by_module.get(operation.module, [])
        if operation.function == "attention":
            if _touched(operation, quantizers, slots=slots):
                continue
            found = attention
        else:
            if operation.weights_count == 0 or _is_covered(operation):
                continue
            if _is_judged_as_layer(quantizers):
                continue
            found = escaped.setdefault(_call_words(operation), [])
        if not _take(scope, operation.module, used):
            found.append(operation)
    escaped = {words: found for words, found in escaped.items() if found}
    parts = []
    if attention:
        parts.append(
            _fail(
                "attention-bypassed",
                f"{count(len(attention), 'attention call')} ran on operands that no quantizer "
                f"touched ({gate.where.of('attention')})",
                evidence=shorten(group(op.module for op in attention), noun="groups"),
                cause="the call goes around the quantizers of its block",
                next_step="use recipe: fp8-attention with attn_implementation: sdpa",
            )
        )
    if escaped:
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
        parts.append(
            _fail(
                "weights-escaped",
                f"{percent(lost / total, 1)} of the weights escaped the quantization: "
                f"{', '.join(f'{len(found)} {words}' for words, found in escaped.items())} "
                f"({gate.where})",
                evidence=shorten(
                    [
                        f"{words}: {line}"
                        for words, found in escaped.items()
                        for line in group(op.module or "(the model itself)" for op in found)
                    ],
                    noun="groups",
                ),
                cause=cause,
                next_step=next_step,
                figures={"escaped_weights": lost},
            )
        )
    return combine(gate=GATE, parts=tuple(parts)) if parts else _pass("no weight escaped")


def _call_words(operation: Operation) -> str:
    if operation.function == "mha":
        return "fused calls of nn.MultiheadAttention"
    return f"{operation.function} calls on unquantized operands"


def _is_covered(operation: Operation) -> bool:
    """Return whether the weight of an operation came out of a quantizer that ran."""
    flags = dict(zip(operation.operands, operation.operands_quantized, strict=True))
    return flags.get("weight", any(operation.operands_quantized))


def _is_judged_as_layer(quantizers: Sequence[Quantizer]) -> bool:
    """Return whether `_judge_layers` or the exclude list already answers for a bare weight.

    It does where the weight's quantizer is off or never ran. Where that runs and the operation
    sees a bare weight all the same, the call goes around it.
    """
    return any(q.slot == "weight" and (not q.enabled or q.own_calls == 0) for q in quantizers)


def _touched(
    operation: Operation, quantizers: Sequence[Quantizer], *, slots: Sequence[Slot]
) -> bool:
    """Return whether every wanted operand of an attention call came out of a quantizer.

    An operand whose own quantizer is off or never ran is the finding of `_judge_attention`.
    """
    answered = {q.slot for q in quantizers if not q.enabled or q.own_calls == 0}
    return all(
        quantized or name not in slots or name in answered
        for name, quantized in zip(operation.operands, operation.operands_quantized, strict=True)
    )


# -- waivers ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Waived:
    """What all waivers together name in one tower (or in the whole model), used or not.

    Shares are of the quantizers that the recipe means, and of the weights of matrix operations.
    """

    subject: str
    quantizers_share: Fraction
    weights_share: Fraction

    @property
    def share(self) -> Fraction:
        return max(self.quantizers_share, self.weights_share)


def measure_waived(audit: Audit, *, gate: CoverageGate, scope: Scope) -> Waived:
    """Return what the waivers name where they name the largest share."""
    slots_of: dict[str, list[str]] = {}
    for quantizer in audit.quantizers:
        slots_of.setdefault(quantizer.module, []).append(quantizer.name)

    def measure(subject: str, towers: Sequence[Tower]) -> Waived:
        names = [q.name for q in audit.quantizers if q.tower in towers]
        intended = set(audit.intended).intersection(names)
        weighed = [op for op in audit.operations if op.tower in towers and op.weights_count]
        # A matrix product is in full precision where its weight or its other operand is.
        named = [
            op.weights_count
            for op in weighed
            if any(map(scope.waiver_of, (op.module, *slots_of.get(op.module, ()))))
        ]
        return Waived(
            subject=subject,
            quantizers_share=_share(
                sum(scope.waiver_of(name) is not None for name in intended), of=len(intended)
            ),
            weights_share=_share(sum(named), of=sum(op.weights_count for op in weighed)),
        )

    found = [measure(f"the {tower} tower's", (tower,)) for tower in gate.towers]
    found.append(measure("the model's", (*gate.towers, "other")))
    return max(found, key=lambda waived: waived.share)


def _share(part: int, *, of: int) -> Fraction:
    return Fraction(part, of) if of else Fraction(0)


def _judge_waivers(
    *, gate: CoverageGate, waived: Waived, today: date, used: set[int]
) -> Verdict | None:
    """A waiver is in use, ends soon, and all of them together leave the variant what it is."""
    if not gate.waive:
        return None
    failures = []
    for index, waiver in enumerate(gate.waive):
        names = listed(waiver.modules)
        until = waiver.where.of("until")
        reason = (f"its reason was: {waiver.reason}",)
        if today > waiver.until:
            failures.append(
                _fail(
                    "waiver-expired",
                    f"the waiver for {names} expired on {waiver.until} ({until})",
                    evidence=reason,
                    next_step="quantize these modules, or decide anew until when they may wait",
                    cause="what was to be mended by that day was not, or its waiver "
                    "was not renewed",
                )
            )
        elif index not in used:
            failures.append(
                _fail(
                    "waiver-unused",
                    f"the waiver for {names} is not used: nothing that it names is uncovered "
                    f"({waiver.where})",
                    evidence=reason,
                    next_step="remove the waiver",
                    cause="what it names is quantized by now, or its pattern names something else",
                )
            )
        if waiver.lasts_too_long(today):
            failures.append(
                _fail(
                    "waiver-too-long",
                    f"the waiver for {names} holds until {waiver.until}, "
                    f"{(waiver.until - today).days} days from today: at most {MAX_WAIVER_DAYS} "
                    f"({until})",
                    evidence=reason,
                    next_step=f"write until: {waiver.last_day(today)} or earlier, and decide anew "
                    f"then",
                    cause="a waiver without an end in sight is an exception that "
                    "nobody looks at again",
                )
            )
    if waived.share > MAX_WAIVED_SHARE:
        failures.append(
            _fail(
                "waivers-too-wide",
                f"the waivers name {_waived_words(waived)}: at most "
                f"{percent(MAX_WAIVED_SHARE, 0)} "
                f"({', '.join(waiver.where.of('modules') for waiver in gate.waive)})",
                evidence=shorten([f"waived: {name}" for w in gate.waive for name in w.modules]),
                cause="a waiver is for single layers that wait for a mend: with this much in full "
                "precision it is another variant than its recipe promises",
                next_step="name single layers; what this variant leaves out for good belongs into "
                "exclude, a whole tower out of coverage.towers",
            )
        )
    if failures:
        return combine(gate=GATE, parts=tuple(failures))
    return replace(
        _pass(f"{count(len(gate.waive), 'waiver')} in use"),
        figures={
            "waivers": len(gate.waive),
            "waived_until": min(waiver.until for waiver in gate.waive).isoformat(),
            "waived_quantizers_share": float(waived.quantizers_share),
            "waived_weights_share": float(waived.weights_share),
            "max_waived_share": float(MAX_WAIVED_SHARE),
            "max_waiver_days": MAX_WAIVER_DAYS,
        },
    )


def _waived_words(waived: Waived) -> str:
    return (
        f"{percent(waived.quantizers_share, 1)} of {waived.subject} quantizers and "
        f"{percent(waived.weights_share, 1)} of its matrix weights"
    )


def _take(scope: Scope, name: str, used: set[int]) -> bool:
    """Return whether a quantizer or module may be uncovered; remember the waiver that says so."""
    if name in scope.excluded:
        return True
    waiver = scope.waiver_of(name)
    if waiver is None:
        return False
    used.add(next(i for i, known in enumerate(scope.waivers) if known is waiver))
    return True


# -- words and figures --------------------------------------------------------------------


def _figures(audit: Audit, *, scope: Scope) -> dict[str, Figure]:
    weighed = [op for op in audit.operations if op.weights_count]
    total = sum(op.weights_count for op in weighed)
    covered = sum(op.weights_count for op in weighed if _is_covered(op))
    enabled = [q for q in audit.quantizers if q.enabled]
    return {
        "quantizers": len(audit.quantizers),
        "quantizers_enabled": len(enabled),
        "quantizers_intended": len(audit.intended),
        "quantizers_excluded": len(scope.excluded & set(audit.intended)),
        "weights_covered_share": covered / total if total else 0.0,
    }


def _describe(audit: Audit, *, figures: Mapping[str, Figure]) -> tuple[str, str]:
    """Return the headline of a PASS and its brief form."""
    layers: dict[str, set[str]] = {}
    for quantizer in audit.quantizers:
        if quantizer.enabled and quantizer.slot == "weight" and quantizer.own_calls:
            layers.setdefault(quantizer.module_class, set()).add(quantizer.module)
    known = Counter(m.class_name for m in audit.modules)
    words = [f"{len(names)} of {known[name]} {name}" for name, names in layers.items()]
    running = [
        q for q in audit.quantizers if q.enabled and q.slot in _ATTENTION_NAMES and q.own_calls
    ]
    attention = ""
    if running:
        slots = {q.slot for q in running}
        blocks = Counter(tower for tower, _ in {(q.tower, q.module) for q in running})
        where = "+".join(str(blocks[tower]) for tower in audit.towers)
        names = " ".join(name for name, slot in SLOTS.items() if slot in slots)
        attention = f"attention {names} in {where} blocks"
        words.append(attention)
    share = float(figures["weights_covered_share"])
    formats = listed(audit.formats)
    brief = f"{formats} on {percent(share, 1)} of matrix weights"
    return (
        f"coverage: {', '.join(words)} quantized ({formats}) and run, "
        f"{percent(share, 1)} of matrix weights",
        f"{brief}, {attention}" if attention else brief,
    )


def _left_out(audit: Audit, *, scope: Scope, today: date) -> tuple[str, ...]:
    lines = [
        f"waived until {w.until} (in {(w.until - today).days} of at most {MAX_WAIVER_DAYS} days): "
        f"{listed(w.modules)} ({w.reason})"
        for w in scope.waivers
    ]
    lines += [
        f"excluded by {pattern!r}: {line}"
        for pattern, matched in audit.excludes
        for line in group(name for name in matched if name in audit.intended)
    ]
    attention = list_attention(audit)
    lines += [
        f"excluded, {'nn.MultiheadAttention' if name in attention else 'a Parameter'}: {name}"
        for name in sorted(list_excluded(audit))
    ]
    return shorten(lines)


def _patterns(patterns: Iterable[str]) -> str:
    return listed([f"switched off by {pattern!r}" for pattern in patterns])


def _with_parents(name: str) -> list[str]:
    """Return a dotted name and every prefix of it: a waiver for a block covers what is inside."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def judge(run: GateRun, gate: CoverageGate) -> Judged:
    """Return whether all that should be quantized is."""
    return Judged(
        verdict=judge_coverage(
            run.audit,
            gate=gate,
            today=run.today,
            attention=run.suite.model.attn_implementation,
        )
    )


#: Findings that say: something that was meant is not quantized, so no later stage can have it.
NOT_QUANTIZED = (
    "coverage.attention-bypassed",
    "coverage.attention-missing",
    "coverage.blocks-left-out",
    "coverage.layers-off",
    "coverage.never-ran",
    "coverage.no-quantizers",
    "coverage.other-format",
    "coverage.recipe-matches-nothing",
    "coverage.tower-off",
    "coverage.weights-escaped",
)

KIND = GateKind(
    section=CoverageGate,
    help="what is quantized, and really runs",
    judge=judge,
    needs_torch=lambda _: True,
)
