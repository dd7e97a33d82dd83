"""The coverage gate's part on waivers: each is in use and ends, and together they stay small."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.scope import MAX_WAIVER_DAYS, find_waiver
from pytest_quantgate.text.words import count, listed, percent, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from pytest_quantgate.evidence.audit import Audit, Tower
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.scope import Scope

GATE = "coverage"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)

#: All waivers together name at most this share of a tower.
MAX_WAIVED_SHARE = Fraction(1, 4)


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


def measure_waived(audit: Audit, *, scope: Scope) -> Waived:
    """Return what the waivers name where they name the largest share."""
    slots_of: dict[str, list[str]] = {}
    for quantizer in audit.quantizers:
        slots_of.setdefault(quantizer.module, []).append(quantizer.name)

    def is_named(name: str) -> bool:
        return find_waiver(name, scope.waivers) is not None

    def measure(subject: str, towers: Sequence[Tower]) -> Waived:
        names = [q.name for q in audit.quantizers if q.tower in towers]
        intended = set(audit.intended).intersection(names)
        weighed = [op for op in audit.operations if op.tower in towers and op.weights_count]
        # A matrix product is in full precision where its weight or its other operand is.
        named = [
            op.weights_count
            for op in weighed
            if any(map(is_named, (op.module, *slots_of.get(op.module, ()))))
        ]
        return Waived(
            subject=subject,
            quantizers_share=_share(sum(map(is_named, intended)), of=len(intended)),
            weights_share=_share(sum(named), of=sum(op.weights_count for op in weighed)),
        )

    found = [measure(f"the {tower} tower's", (tower,)) for tower in scope.towers]
    found.append(measure("the model's", (*scope.towers, "other")))
    return max(found, key=lambda waived: waived.share)


def _share(part: int, *, of: int) -> Fraction:
    return Fraction(part, of) if of else Fraction(0)


def judge_waivers(*, scope: Scope, waived: Waived, today: date) -> Iterator[Verdict]:
    """Yield a FAIL for a waiver that is not in use or does not end soon, and where all of them
    together leave too little of the variant; else PASS with their figures, if there are any."""
    failures = [*_judge_each(scope, today=today)]
    if waived.share > MAX_WAIVED_SHARE:
        failures.append(_fail_wide(waived, scope=scope))
    if failures or not scope.waivers:
        yield from failures
        return
    yield _pass(
        f"{count(len(scope.waivers), 'waiver')} in use",
        figures={
            "waivers": len(scope.waivers),
            "waived_until": min(waiver.until for waiver in scope.waivers).isoformat(),
            "waived_quantizers_share": float(waived.quantizers_share),
            "waived_weights_share": float(waived.weights_share),
            "max_waived_share": float(MAX_WAIVED_SHARE),
            "max_waiver_days": MAX_WAIVER_DAYS,
        },
    )


def _judge_each(scope: Scope, *, today: date) -> Iterator[Verdict]:
    for number, waiver in enumerate(scope.waivers):
        names = listed(waiver.modules)
        until = waiver.where.of("until")
        reason = (f"its reason was: {waiver.reason}",)
        if today > waiver.until:
            yield _fail(
                "waiver-expired",
                f"the waiver for {names} expired on {waiver.until} ({until})",
                evidence=reason,
                next_step="quantize these modules, or decide anew until when they may wait",
                cause="what was to be mended by that day was not, or its waiver was not renewed",
            )
        elif number not in scope.used:
            yield _fail(
                "waiver-unused",
                f"the waiver for {names} is not used: nothing that it names is uncovered "
                f"({waiver.where})",
                evidence=reason,
                next_step="remove the waiver",
                cause="what it names is quantized by now, or its pattern names something else",
            )
        if waiver.lasts_too_long(today):
            yield _fail(
                "waiver-too-long",
                f"the waiver for {names} holds until {waiver.until}, "
                f"{(waiver.until - today).days} days from today: at most {MAX_WAIVER_DAYS} "
                f"({until})",
                evidence=reason,
                next_step=f"write until: {waiver.last_day(today)} or earlier, and decide anew then",
                cause="a waiver without an end in sight is an exception that nobody looks at again",
            )


def _fail_wide(waived: Waived, *, scope: Scope) -> Verdict:
    return _fail(
        "waivers-too-wide",
        f"the waivers name {describe_waived(waived)}: at most "
        f"{percent(MAX_WAIVED_SHARE, 0)} "
        f"({', '.join(waiver.where.of('modules') for waiver in scope.waivers)})",
        evidence=shorten([f"waived: {name}" for w in scope.waivers for name in w.modules]),
        cause="a waiver is for single layers that wait for a mend: with this much in full "
        "precision it is another variant than its recipe promises",
        next_step="name single layers; what this variant leaves out for good belongs into "
        "exclude, a whole tower out of coverage.towers",
    )


def describe_waived(waived: Waived) -> str:
    """Return what the waivers name: `12.5 % of the text tower's quantizers and ...`."""
    return (
        f"{percent(waived.quantizers_share, 1)} of {waived.subject} quantizers and "
        f"{percent(waived.weights_share, 1)} of its matrix weights"
    )
