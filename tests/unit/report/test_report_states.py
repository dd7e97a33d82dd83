"""The state of a quantizer in the coverage map, and the words of its cell."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from pytest_quantgate.evidence.audit import Audit, Quantizer
from pytest_quantgate.gates.coverage import CoverageGate, wanted_slots
from pytest_quantgate.gates.scope import Waiver
from pytest_quantgate.report.coverage_map import describe_cell
from pytest_quantgate.report.model import QuantizerFacts
from pytest_quantgate.report.quantizer_states import describe_quantizers
from tests.report_builder import WHERE, make_audit

NAME = "vision_model.encoder.layers.1.mlp.fc1.weight_quantizer"


def change(audit: Audit, **changes: object) -> Audit:
    """Change the one quantizer NAME."""
    return replace(
        audit,
        quantizers=tuple(
            replace(q, **changes) if q.name == NAME else q  # type: ignore[arg-type]
            for q in audit.quantizers
        ),
    )


def state_of(audit: Audit, name: str = NAME, **gate: object) -> QuantizerFacts:
    coverage = CoverageGate(where=WHERE, **gate)  # type: ignore[arg-type]
    found = describe_quantizers(audit, gate=coverage, slots=wanted_slots(audit, gate=coverage))
    return next(facts for facts in found if facts.name == name)


def off(audit: Audit) -> Audit:
    return change(audit, enabled=False, amax_min=None, amax_max=None, tower_calls={})


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({}, "on", ""),
        ({"tower_calls": {}}, "missing", "it is on, and no forward calls it"),
        ({"format": "INT8"}, "missing", "it is INT8, the recipe means E4M3"),
        ({"amax_min": None, "amax_max": None}, "uncalibrated", "it has no amax"),
        ({"amax_finite": False}, "uncalibrated", "its amax is NaN or Inf"),
        ({"amax_min": 0.0, "amax_max": 0.0}, "uncalibrated", "its amax is 0"),
        ({"amax_min": None, "amax_max": None, "dynamic": True}, "on", ""),
        ({"enabled": False}, "missing", "it is off"),
    ],
)
def test_state_of_a_quantizer_that_is_meant(
    changes: dict[str, object], state: str, reason: str
) -> None:
    found = state_of(change(make_audit(), **changes))

    assert (found.state, found.reason) == (state, reason)


@pytest.mark.parametrize(("name", "state"), [("NVFP4", "uncalibrated"), ("MXFP8", "on")])
def test_dynamic_blocks_have_a_range_of_the_tensor_where_the_format_has_one(
    name: str, state: str
) -> None:
    bare = change(make_audit(), format=name, dynamic=True, amax_min=None, amax_max=None)

    assert state_of(replace(bare, formats=(name,))).state == state


def test_state_of_a_quantizer_that_is_not_meant() -> None:
    audit = make_audit()
    stranger = replace(audit, intended=tuple(name for name in audit.intended if name != NAME))

    assert state_of(stranger).state == "unexpected"
    assert state_of(off(stranger)).state == "off"


def test_off_by_exclusion_is_not_missing() -> None:
    audit = replace(off(make_audit()), excludes=(("*fc1*", (NAME,)),))

    assert (state_of(audit).state, state_of(audit).reason) == ("excluded", "exclude '*fc1*'")


def test_off_by_a_pattern_of_the_recipe_is_missing_and_names_it() -> None:
    audit = replace(off(make_audit()), disabled_by=((NAME, "*fc1*"),))

    assert state_of(audit).reason == "pattern '*fc1*' switched it off"


@pytest.mark.parametrize("changes", [{"enabled": False}, {"tower_calls": {}}])
def test_a_waiver_takes_what_is_missing_out(changes: dict[str, object]) -> None:
    waiver = Waiver(where=WHERE, modules=("*fc1*",), reason="INT-4", until=date(2027, 1, 1))
    found = state_of(change(make_audit(), **changes), waive=(waiver,))

    assert found.state == "excluded"
    assert found.reason.startswith("waived until 2027-01-01 (INT-4): it is o")


def test_attention_that_was_never_replaced_is_missing_in_every_block() -> None:
    audit = make_audit(blocks=3)
    kept = tuple(q for q in audit.quantizers if q.slot != "k")
    audit = replace(audit, quantizers=kept, intended=tuple(q.name for q in kept if q.enabled))
    coverage = CoverageGate(where=WHERE, attention=("q", "k"))
    found = describe_quantizers(audit, gate=coverage, slots=wanted_slots(audit, gate=coverage))

    absent = [facts for facts in found if facts.state == "missing"]
    assert len(absent) == 6
    assert {(facts.tower, facts.block, facts.slot) for facts in absent} == {
        (tower, block, "k") for tower in ("vision", "text") for block in range(3)
    }
    assert absent[0].reason == "the model has no such quantizer"


def test_an_intended_quantizer_that_is_not_there_is_missing() -> None:
    audit = make_audit()
    kept: tuple[Quantizer, ...] = tuple(q for q in audit.quantizers if q.name != NAME)

    assert state_of(replace(audit, quantizers=kept)).state == "missing"


def test_cell_says_state_and_numbers() -> None:
    found = state_of(change(make_audit(), amax_min=1.5, amax_max=2.25))

    assert describe_cell(found) == (
        f"{NAME}: on, E4M3 per-tensor, amax 1.5 to 2.25, 0.003 % clipped on held-out data, "
        "ran once a forward"
    )
