"""The coverage gate: what was meant to be quantized is, really runs, and nothing else is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.evidence.verdict import Figure, Status, Verdict, combine
from pytest_quantgate.gates.attention import judge_attention, judge_calls
from pytest_quantgate.gates.blocks import branch_figures, describe_branches, judge_block_formats
from pytest_quantgate.gates.exclusions import judge_excludes, judge_share, judge_unasked
from pytest_quantgate.gates.fused import list_attention, list_excluded
from pytest_quantgate.gates.idle import INTERCEPTED
from pytest_quantgate.gates.layers import judge_axis, judge_bits, judge_depth, judge_layers
from pytest_quantgate.gates.operations import is_covered, judge_operations
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.scope import (
    MAX_WAIVER_DAYS,
    SLOT_NAMES,
    SLOTS,
    AttentionSlot,
    Scope,
    Waiver,
    list_intended,
)
from pytest_quantgate.gates.sections import TOWERS
from pytest_quantgate.gates.towers import judge_expectation, judge_towers
from pytest_quantgate.gates.waivers import (
    MAX_WAIVED_SHARE,
    describe_waived,
    judge_waivers,
    measure_waived,
)
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import Reach, choice_key, list_key, percent_key, sections_key
from pytest_quantgate.text.words import group, listed, percent, shorten, waivers_words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from pytest_quantgate.evidence.audit import Audit, Slot

GATE = "coverage"


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
    min_quantized: Fraction = field(
        default=Fraction(1, 2),
        metadata=percent_key(
            help="of the weights that the recipe means, how many excludes must leave; default: 50%",
            reach=Reach(over="0%", why="no share is less"),
        ),
    )
    waive: tuple[Waiver, ...] = field(
        default=(),
        metadata=sections_key(Waiver, help="what may stay unquantized", single=False),
    )


def wanted_slots(audit: Audit, *, gate: CoverageGate) -> tuple[Slot, ...]:
    """Return the attention slots that must be quantized: the suite's, else the recipe's own."""
    if gate.attention is not None:
        return tuple(SLOTS[name] for name in gate.attention)
    meant = {quantizer.slot for quantizer in list_intended(audit)}
    return tuple(slot for slot in SLOTS.values() if slot in meant)


def judge_coverage(
    audit: Audit, *, gate: CoverageGate, today: date, attention: str = INTERCEPTED
) -> Verdict:
    """Return whether a variant is quantized as its recipe means it.

    `attention` is the model's attention implementation, for advice.

    FAIL where an expectation comes out empty; where something intended is off, of another format,
    or never ran; where searched formats take more bits than allowed; where attention lacks a slot
    in a block; where something is quantized that nobody asked for; where an exclude pattern
    matches nothing; where a weight escapes; where blocks are not whole, their scales ignored or a
    low-rank branch idle; and where a waiver is expired or unused.
    """
    scope = Scope(
        where=gate.where,
        towers=gate.towers,
        slots=wanted_slots(audit, gate=gate),
        asks_attention=bool(gate.attention),
        excluded=list_excluded(audit).union(*(matched for _, matched in audit.excludes)),
        waivers=gate.waive,
    )
    parts = [
        judge_expectation(audit, scope=scope),
        *judge_towers(audit, scope=scope),
        *judge_layers(audit, scope=scope),
        *judge_depth(audit, scope=scope),
        *judge_axis(audit, scope=scope),
        *judge_bits(audit, where=gate.where),
        *judge_attention(audit, scope=scope, attention=attention),
        *judge_unasked(audit, scope=scope),
        *judge_excludes(audit, scope=scope),
        *judge_share(audit, scope=scope, least=gate.min_quantized),
        *judge_calls(audit, scope=scope),
        *judge_operations(audit, scope=scope),
        *judge_block_formats(audit, where=gate.where),
    ]
    waived = measure_waived(audit, scope=scope)
    parts += judge_waivers(scope=scope, waived=waived, today=today)  # knows what the others used
    verdict = combine(gate=GATE, parts=tuple(parts))
    figures = {
        **_figures(audit, scope=scope),
        **branch_figures(audit.branches),
        **({"weight_bits": bits} if (bits := audit.search and audit.search.bits) else {}),
        **verdict.figures,
    }
    if not verdict.passed:
        return replace(verdict, figures=figures)
    headline, brief = _describe(audit, figures=figures)
    if gate.waive:
        headline = f"{headline}; waived: {describe_waived(waived)}"
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
            *_describe_search(audit),
            *_left_out(audit, scope=scope, today=today),
        ),
        figures=figures,
    )


def _figures(audit: Audit, *, scope: Scope) -> dict[str, Figure]:
    weighed = [op for op in audit.operations if op.weights_count]
    total = sum(op.weights_count for op in weighed)
    covered = sum(op.weights_count for op in weighed if is_covered(op))
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
    running = [q for q in audit.quantizers if q.enabled and q.slot in SLOT_NAMES and q.own_calls]
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


def _describe_search(audit: Audit) -> tuple[str, ...]:
    """Return what a search chose, a line for each recipe, and the bits that it takes."""
    search = audit.search
    if search is None or search.bits is None:
        return ()
    by_recipe: dict[str, list[str]] = {}
    for layer, name in search.layers.items():
        by_recipe.setdefault(name or "full precision", []).append(layer)
    chosen = [f"{name}: {line}" for name, layers in by_recipe.items() for line in group(layers)]
    return (f"{search.bits:.2f} of at most {search.asked_bits:g} bits a weight", *chosen)


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
