"""Waivers of coverage: in use, for a time, and for little."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.terminal import BRIEF_LENGTH
from pytest_quantgate.suite.where import Where
from tests.unit.gates.coverage_builders import DEEP, TODAY, fail, judge, parts_of
from tests.unit.gates.gate_builders import (
    FILE,
    SAME_EXAMPLES,
    add,
    all_text,
    at,
    change_operations,
    change_quantizers,
    exclude,
    make_audit,
    make_operation,
    make_waiver,
    switch_off,
)


def test_waiver_holds_on_its_last_day_and_not_after() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    waiver = make_waiver("*layers.0.mlp*", until=date(2030, 6, 30))

    assert judge(audit, today=date(2030, 6, 30), waive=(waiver,)).passed
    verdict = judge(audit, today=date(2030, 7, 1), waive=(waiver,))

    assert (verdict.status, verdict.code) == (Status.FAIL, "coverage.waiver-expired")
    assert verdict.cause.startswith("what was to be mended by that day was not")
    assert verdict.next_step.startswith("quantize these modules, or decide anew")
    assert verdict.headline == (
        f"coverage: the waiver for *layers.0.mlp* expired on 2030-06-30 ({at('until')})"
    )
    assert verdict.evidence == ("its reason was: no FP8 kernel yet",)


def test_waiver_that_covers_nothing_fails() -> None:
    verdict = fail(DEEP, waive=(make_waiver("*layers.0.mlp*"),))

    assert verdict.code == "coverage.waiver-unused"
    assert verdict.headline == (
        "coverage: the waiver for *layers.0.mlp* is not used: nothing that it names is uncovered "
        f"({FILE}:10)"
    )
    assert verdict.next_step == "remove the waiver"
    assert verdict.evidence == ("its reason was: no FP8 kernel yet",)


def test_each_waiver_must_be_used() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    used, idle = make_waiver("vision_model.layers.0.mlp"), make_waiver("text_model.layers.0.mlp")

    assert judge(audit, waive=(used,)).passed
    assert "text_model.layers.0.mlp is not used" in fail(audit, waive=(used, idle)).headline


def test_layer_that_is_excluded_needs_no_waiver() -> None:
    audit = exclude(DEEP, "vision*layers.0.mlp*")

    assert "is not used" in fail(audit, waive=(make_waiver("*layers.0.mlp*"),)).headline


def test_waiver_covers_wrong_formats_and_layers_that_never_ran() -> None:
    audit = change_quantizers(DEEP, "vision*layers.0.mlp*", format="INT8")
    audit = change_quantizers(audit, "text*layers.0.mlp*", tower_calls={})

    assert judge(audit, waive=(make_waiver("*.layers.0.mlp"),)).passed


def test_waiver_for_a_block_does_not_cover_its_neighbour() -> None:
    audit = switch_off(DEEP, "vision*mlp*")

    verdict = fail(audit, waive=(make_waiver("vision_model.layers.0"),))

    assert "14 of 32 intended layer quantizers are off" in verdict.headline
    assert "layers.{1-7}" in all_text(verdict)
    assert "layers.0" not in all_text(verdict)


def test_waiver_stands_on_the_line_of_its_gate_with_what_it_names_and_may_name() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    waiver = make_waiver("vision_model.layers.0.mlp", until=date(2030, 8, 30))

    verdict = judge(audit, waive=(waiver,))

    assert verdict.brief == "1 waiver until 2030-08-30, 12.5 % of at most 25 %; E4M3 on 93.8 %"
    assert len(verdict.brief) <= BRIEF_LENGTH
    assert verdict.headline.endswith(
        "; waived: 4.2 % of the vision tower's quantizers and 12.5 % of its matrix weights"
    )
    assert verdict.evidence == (
        "waived until 2030-08-30 (in 61 of at most 366 days): vision_model.layers.0.mlp "
        "(no FP8 kernel yet)",
    )
    assert verdict.figures["waivers"] == 1
    assert verdict.figures["waived_until"] == "2030-08-30"
    assert verdict.figures["waived_weights_share"] == 0.125


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        (["*"], "100.0 % of the vision tower's quantizers"),
        (["text*"], "100.0 % of the text tower's quantizers"),
        (["[a-z]*"], "100.0 % of the vision tower's quantizers"),
        (["*layers.[0-2]*"], "37.5 % of the vision tower's quantizers"),
        (["*input_quantizer"], "100.0 % of its matrix weights"),
        (["*.mlp.fc1"], "33.3 % of the vision tower's quantizers"),
        (["vision*.0.*", "vision*.1", "vision_model.layers.2"], "37.5 % of the vision tower's"),
    ],
)
def test_waivers_name_at_most_a_quarter_of_a_tower(patterns: list[str], named: str) -> None:
    """All of them together, and by what they name: one layer that is off is no blank cheque."""
    audit = switch_off(DEEP, "*layers.0.mlp*")
    waivers = [make_waiver(pattern) for pattern in patterns]

    verdict = judge(audit, waive=(make_waiver("*.0.mlp"), *waivers))
    found = next(line for line in parts_of(verdict) if "the waivers name" in line)

    assert verdict.status is Status.FAIL
    assert named in found
    assert ": at most 25 % (" in found
    assert f"({', '.join([f'{FILE}:10'] * (1 + len(waivers)))})" in found


@given(data=st.data(), blocks=st.integers(1, 12))
@SAME_EXAMPLES
def test_waiver_passes_up_to_a_quarter_of_the_weights(data: st.DataObject, blocks: int) -> None:
    audit = make_audit(blocks=blocks)
    waived = [f"text_model.layers.{n}.mlp" for n in range(data.draw(st.integers(1, blocks)))]
    for name in waived:
        audit = switch_off(audit, f"{name}.*")

    assert judge(audit, waive=(make_waiver(*waived),)).passed == (4 * len(waived) <= blocks)


@pytest.mark.parametrize(("days", "green"), [(366, True), (367, False), (2_900_000, False)])
def test_waiver_lasts_a_year_at_most(days: int, green: bool) -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    until = TODAY + timedelta(days=days)

    verdict = judge(audit, waive=(make_waiver("vision*.0.mlp", until=until),))

    assert verdict.passed == green
    if not green:
        assert verdict.code == "coverage.waiver-too-long"
        assert verdict.headline == (
            f"coverage: the waiver for vision*.0.mlp holds until {until}, {days} days from today: "
            f"at most 366 ({at('until')})"
        )
        assert verdict.next_step == "write until: 2031-07-01 or earlier, and decide anew then"
        assert verdict.cause.startswith("a waiver without an end in sight")
        assert verdict.evidence == ("its reason was: no FP8 kernel yet",)


def test_a_pass_counts_what_its_waivers_name() -> None:
    audit = switch_off(DEEP, "vision*layers.0.mlp*")
    later = make_waiver("vision*layers.0.mlp*", until=date(2030, 7, 9))

    figures = judge(audit, waive=(later,)).figures
    assert {name: value for name, value in figures.items() if "waive" in name} == {
        "waivers": 1,
        "waived_until": "2030-07-09",
        "waived_quantizers_share": 2 / 48,
        "waived_weights_share": 1 / 8,
        "max_waived_share": 0.25,
        "max_waiver_days": 366,
    }
    still = change_operations(audit, "*", weights_count=0)
    assert judge(still, waive=(later,)).figures["waived_weights_share"] == 0


def test_waivers_are_weighed_over_the_whole_model_too() -> None:
    """What is of no tower is in none of their shares."""
    fusion = make_operation("fusion.fc", tower="other", quantized=False, weights_count=90_000)
    there = Where(file=FILE, line=10, keys={"modules": 29})
    found = fail(add(DEEP, fusion), waive=(make_waiver("fusion.fc", where=there),))

    assert f"at most 25 % ({FILE}:29)" in found.headline
    assert found.cause.startswith("a waiver is for single layers that wait for a mend")
    assert found.next_step.startswith("name single layers")
    assert found.evidence == ("waived: fusion.fc",)
    assert found.code == "coverage.waivers-too-wide"
    assert "0.0 % of the model's quantizers and 84.9 % of its matrix weights" in found.headline
