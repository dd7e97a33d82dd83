"""Coverage of a variant whose formats were searched: layers that were left alone, and bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.evidence.audit import Audit, FormatSearch
from tests.unit.gates.coverage_builders import DEEP, fail, judge
from tests.unit.gates.gate_builders import FILE, exclude, switch_off

#: Every block but two of eight; a recipe that meant so few would be one for another model.
LEFT = "vision_model.layers.[2-7].mlp.fc1.*"


def searched(audit: Audit, *, bits: float | None = 6.25, asked_bits: float = 8.0) -> Audit:
    """Return an audit after a search that left the layers of most blocks in full precision."""
    left = switch_off(audit, LEFT)
    off = {q.name for q in left.quantizers if not q.enabled}
    layers = {
        module.name: "" if f"{module.name}.weight_quantizer" in off else "fp8"
        for module in left.modules
        if module.kind == "linear"
    }
    search = FormatSearch(asked_bits=asked_bits, layers=layers, bits=bits)
    intended = tuple(name for name in left.intended if name not in off)
    return replace(left, search=search, intended=intended)


def test_layers_that_a_search_left_are_no_blocks_left_out() -> None:
    audit = searched(DEEP)

    assert judge(audit).passed
    verdict = fail(replace(audit, search=None))

    assert verdict.code == "coverage.blocks-left-out"
    assert "2 of 8 blocks of the vision tower" in verdict.headline


def test_a_pass_says_what_the_search_chose() -> None:
    evidence = judge(searched(DEEP)).evidence

    assert "6.25 of at most 8 bits a weight" in evidence
    assert "full precision: vision_model.layers.{2-7}.mlp.fc1 (6)" in evidence
    assert any(line.startswith("fp8: ") for line in evidence)
    assert not any("bits a weight" in line for line in judge(searched(DEEP, bits=None)).evidence)


@pytest.mark.parametrize(("bits", "is_over"), [(6.0, False), (6.1, True)])
def test_more_bits_than_asked_fail(bits: float, is_over: bool) -> None:
    verdict = judge(searched(DEEP, bits=bits, asked_bits=6.0))

    assert verdict.passed is not is_over
    if is_over:
        assert verdict.code == "coverage.bits-over"
        assert verdict.headline == (
            "coverage: an average weight takes 6.100 bits, and recipe 'fp8-attention' allows 6 "
            f"({FILE}:10)"
        )
        assert verdict.figures["weight_bits"] == 6.1


def test_what_an_exclude_names_and_the_search_left_anyway_is_not_held_against_it() -> None:
    audit = exclude(searched(DEEP), LEFT)

    assert judge(audit).passed
    assert fail(replace(audit, search=None)).code in (
        "coverage.exclude-without-effect",
        "coverage.blocks-left-out",
    )
