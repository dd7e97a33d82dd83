"""What the tests of the coverage gate's parts judge, and how."""

from __future__ import annotations

from datetime import date
from typing import Any

from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.coverage import judge_coverage
from tests.unit.gates.gate_builders import (
    FILE,
    all_text,
    coverage_gate,
    make_audit,
)

TODAY = date(2030, 6, 30)
AUDIT = make_audit()
#: So deep that one layer of it is little: waivers name at most a quarter of a tower.
DEEP = make_audit(blocks=8)
PATCH = "vision_model.patch_embedding"


def judge(audit: Audit, *, today: date = TODAY, **gate: Any) -> Verdict:
    return judge_coverage(audit, gate=coverage_gate(**gate), today=today)


def parts_of(verdict: Verdict) -> list[str]:
    """Return the headlines of everything that is not green."""
    others = [line.removeprefix("FAIL: ") for line in verdict.evidence if line.startswith("FAIL: ")]
    return [verdict.headline, *others]


#: What the headline of each finding says.
FINDINGS = {
    "block-partial": "are no whole blocks",
    "branch-idle": "adds nothing to the output",
    "branch-missing": "no low-rank branch",
    "scales-ignored": "double quantization does nothing",
    "attention-bypassed": "ran on operands that no quantizer touched",
    "attention-missing": "attention is not quantized as expected",
    "attention-not-found": "no attention block was found",
    "bits-over": "bits, and recipe",
    "blocks-left-out": "means only",
    "exclude-enabled": "are enabled all the same",
    "exclude-matches-nothing": "matches none of",
    "exclude-without-effect": "it excludes nothing",
    "layers-off": "intended layer quantizers are off",
    "never-ran": "never ran in their tower's forward",
    "no-layers": "the model has no layers to quantize",
    "no-quantizers": "the model holds no quantizer at all",
    "no-towers": "coverage.towers is empty",
    "nothing-ran": "nothing was seen running",
    "other-format": "have another format than the recipe's",
    "other-scaling": "in another way than the recipe says",
    "range-per-channel": "have a range per channel",
    "recipe-matches-nothing": "means no layer of this model",
    "tower-missing": "or its forward was not run",
    "tower-off": "tower is unquantized",
    "unasked": "enabled that nobody asked for",
    "waiver-expired": "expired on",
    "waiver-too-long": "days from today",
    "waiver-unused": "is not used",
    "waivers-too-wide": "the waivers name",
    "weights-escaped": "escaped the quantization",
}


def fail(audit: Audit, *, parts: int | None = 1, **gate: Any) -> Verdict:
    """Judge what must fail, with as many findings as expected: one cause is one finding."""
    verdict = judge(audit, **gate)
    assert verdict.status is Status.FAIL
    if parts is not None:
        assert len(parts_of(verdict)) == parts, all_text(verdict)
    kind, _, finding = verdict.code.partition(".")
    assert kind == verdict.gate == "coverage"
    assert FINDINGS[finding] in verdict.headline
    assert f"({FILE}:" in verdict.headline
    assert verdict.cause
    assert verdict.next_step
    return verdict
