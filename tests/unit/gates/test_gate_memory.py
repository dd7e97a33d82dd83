"""The memory gate: exact comparison of bytes, both sides in every message."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.memory import (
    MIB,
    MemoryFigures,
    MemoryGate,
    figures_of,
    judge_memory,
    judge_sizes,
)
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import SAME_EXAMPLES, all_text
from tests.unit.gates.test_gate_engine import make_report

FILE = "suites/clip.quantgate.yaml"
KEYS = {
    "max_plan_ratio": 41,
    "max_weights_ratio": 42,
    "max_activation_ratio": 43,
    "max_plan": 44,
    "max_weights": 45,
    "max_activation": 46,
}
WHERE = Where(file=FILE, line=40, keys=KEYS)
SUBJECT = "vision, batch 1, tensorrt-rtx sm89"

FP16 = MemoryFigures(
    plan_bytes=1000 * MIB,
    weights_bytes=800 * MIB,
    activation_bytes=100 * MIB,
)
QUANTIZED = MemoryFigures(
    plan_bytes=560 * MIB,
    weights_bytes=400 * MIB,
    activation_bytes=150 * MIB,
)
RATIOS = {"plan": "max_plan_ratio", "weights": "max_weights_ratio"}
RATIOS["activation"] = "max_activation_ratio"
NAMES = {"plan": "plan", "weights": "weights", "activation": "activation memory"}
SIZES = {
    "plan": "max_plan",
    "weights": "max_weights",
    "activation": "max_activation",
}


def make_limits(texts: dict[str, str]) -> MemoryGate:
    """Return a gate with limits from the keys of a suite: ratios, and sizes in MiB."""
    values: dict[str, Any] = {
        name if name.endswith("_ratio") else f"{name}_bytes": (
            Fraction(text) if name.endswith("_ratio") else int(text) * MIB
        )
        for name, text in texts.items()
    }
    return MemoryGate(where=WHERE, target="sm89", **values)


def judge(
    *, fp16: MemoryFigures = FP16, quantized: MemoryFigures = QUANTIZED, **limits: str
) -> Verdict:
    verdict = judge_memory(
        fp16=fp16,
        quantized=quantized,
        limits=make_limits(limits),
        subject=SUBJECT,
    )
    assert len(verdict.brief) <= 70
    assert FILE in verdict.headline
    return verdict


def test_ratios_within_their_limits_pass() -> None:
    verdict = judge(max_plan_ratio="0.58", max_weights_ratio="0.51", max_activation_ratio="1.5")
    assert verdict.status is Status.PASS
    assert verdict.headline == (
        f"memory: {SUBJECT}: plan 560.0 MiB vs FP16 1000.0 MiB: ratio 0.560, within "
        f"max_plan_ratio 0.58 ({FILE}:41)"
    )
    assert verdict.brief == "plan 0.560x, weights 0.500x, activation 1.500x of FP16"
    assert (verdict.gate, verdict.cause, verdict.next_step) == ("memory", "", "")
    assert len(verdict.evidence) == 2
    assert verdict.figures == {
        "fp16_plan_bytes": 1000 * MIB,
        "quantized_plan_bytes": 560 * MIB,
        "plan_ratio": 0.56,
        "max_plan_ratio": 0.58,
        "fp16_weights_bytes": 800 * MIB,
        "quantized_weights_bytes": 400 * MIB,
        "weights_ratio": 0.5,
        "max_weights_ratio": 0.51,
        "fp16_activation_bytes": 100 * MIB,
        "quantized_activation_bytes": 150 * MIB,
        "activation_ratio": 1.5,
        "max_activation_ratio": 1.5,
    }


def test_a_size_within_its_limit_keeps_both() -> None:
    verdict = judge(max_plan="600")
    assert verdict.figures == {"quantized_plan_bytes": 560 * MIB, "max_plan_bytes": 600 * MIB}
    assert (verdict.cause, verdict.next_step) == ("", "")
    assert verdict.brief == "plan 560.0 MiB"
    over = judge(max_plan="500")
    assert over.gate == "memory"
    assert over.brief == "plan 560.000 MiB over 500 MiB"


def test_a_size_that_is_none_names_the_limit_that_needs_it() -> None:
    nothing = judge(quantized=replace(QUANTIZED, plan_bytes=0), max_plan="500")
    missing = judge(quantized=replace(QUANTIZED, plan_bytes=None), max_plan="500")
    assert nothing.headline == (
        f"memory: {SUBJECT}: plan of quantized is 0 bytes, which is no size ({FILE}:44)"
    )
    assert missing.headline == (
        f"memory: {SUBJECT}: plan of quantized was not measured, and max_plan needs it ({FILE}:44)"
    )


@pytest.mark.parametrize(
    ("quantized", "fp16", "shown"),
    [
        (10 * MIB, 20 * MIB, "plan 10.0 MiB vs FP16 20.0 MiB: ratio 0.500,"),
        (10 * MIB - 512, 20 * MIB, "plan 10.000 MiB vs FP16 20.0 MiB: ratio 0.500,"),
        (MIB // 2, MIB, "plan 0.500 MiB vs FP16 1.000 MiB: ratio 0.500,"),
        (1, 4, "plan 0.000 MiB vs FP16 0.000 MiB: ratio 0.250,"),
    ],
)
def test_small_sizes_have_more_decimals(quantized: int, fp16: int, shown: str) -> None:
    verdict = judge(
        fp16=replace(FP16, plan_bytes=fp16),
        quantized=replace(QUANTIZED, plan_bytes=quantized),
        max_plan_ratio="1",
    )
    assert shown in verdict.headline


def test_figures_and_brief_bear_the_name_of_the_tower() -> None:
    verdict = judge_memory(
        fp16=FP16,
        quantized=QUANTIZED,
        limits=make_limits({"max_plan_ratio": "1/2"}),
        subject=SUBJECT,
        prefix="text_",
    )
    assert verdict.brief == "text plan 560.0 MiB vs 1000.0 MiB, 0.560 over 0.5"
    assert verdict.headline.startswith(f"memory: {SUBJECT}: plan 560.0 MiB")
    assert set(verdict.figures) == {
        "text_fp16_plan_bytes",
        "text_quantized_plan_bytes",
        "text_plan_ratio",
        "text_max_plan_ratio",
    }


@pytest.mark.parametrize("length", [26, 27])
def test_a_brief_is_cut_where_a_table_ends(length: int) -> None:
    (check,) = judge_sizes(
        gate="memory",
        fp16=FP16,
        quantized=QUANTIZED,
        limits=make_limits({"max_plan_ratio": "1"}),
        prefix="x" * length,
    )
    whole = f"{'x' * length}plan 560.0 MiB vs 1000.0 MiB, 0.560 within 1"
    assert check.brief == (whole if length == 26 else f"{whole[:67]}...")
    assert len(check.brief) == 70


def test_sizes_of_no_subject_and_no_tower_stand_alone() -> None:
    (check,) = judge_sizes(
        gate="memory",
        fp16=FP16,
        quantized=QUANTIZED,
        limits=make_limits({"max_plan": "600"}),
    )
    assert check.headline.startswith("memory: plan 560.000 MiB")
    assert check.brief == "plan 560.000 MiB within 600 MiB"
    assert set(check.figures) == {"quantized_plan_bytes", "max_plan_bytes"}


@pytest.mark.parametrize(
    ("key", "limit", "shown"),
    [
        ("max_plan_ratio", "0.55", "plan 560.0 MiB vs FP16 1000.0 MiB: ratio 0.560, over"),
        ("max_weights_ratio", "0.4", "weights 400.0 MiB vs FP16 800.0 MiB: ratio 0.500, over"),
        ("max_activation_ratio", "1.2", "activation memory 150.0 MiB vs FP16 100.0 MiB: ratio 1.5"),
    ],
)
def test_a_ratio_over_its_limit_fails(key: str, limit: str, shown: str) -> None:
    verdict = judge(**{key: limit})  # type: ignore[arg-type]
    assert verdict.status is Status.FAIL
    assert shown in verdict.headline
    assert f"over {key} {limit} ({FILE}:{KEYS[key]})" in verdict.headline
    assert verdict.cause
    assert verdict.next_step
    assert f"over {limit}" in verdict.brief
    assert judge(**{key: "9"}).evidence == ()  # type: ignore[arg-type]


def test_each_kind_of_memory_has_its_cause_and_its_next_step() -> None:
    tight = dict.fromkeys(RATIOS.values(), "0.1")
    found = {
        key: (judge(**{key: limit}).cause, judge(**{key: limit}).next_step)  # type: ignore[arg-type]
        for key, limit in tight.items()
    }
    assert len({cause for cause, _ in found.values()}) == len({n for _, n in found.values()}) == 3
    for part, key in RATIOS.items():
        same = judge(**{SIZES[part]: "1"})  # type: ignore[arg-type]
        assert (same.cause, same.next_step) == found[key]


@pytest.mark.parametrize("part", SIZES)
def test_a_limit_in_mib_is_exact(part: str) -> None:
    key, size = SIZES[part], getattr(QUANTIZED, f"{part}_bytes")
    limit = str(size // MIB)
    at_limit = judge(**{key: limit})  # type: ignore[arg-type]
    assert at_limit.status is Status.PASS
    assert f"within {key} {limit} MiB ({FILE}:{KEYS[key]})" in at_limit.headline
    assert f"{part} {limit}.0 MiB" in at_limit.brief
    over = judge(quantized=replace(QUANTIZED, **{f"{part}_bytes": size + 1}), **{key: limit})  # type: ignore[arg-type]
    assert over.status is Status.FAIL
    assert f"{part}" in over.headline
    assert f"{limit}.0000" in over.headline  # as many decimals as show that it is over
    assert f"({size + 1} bytes), over {key} {limit} MiB" in over.headline


def test_one_byte_over_a_ratio_is_over_it_and_shows() -> None:
    one_more = replace(QUANTIZED, plan_bytes=560 * MIB + 1)
    verdict = judge(quantized=one_more, max_plan_ratio="0.56")
    assert verdict.status is Status.FAIL
    assert verdict.evidence == ("1 byte less of plan would be within max_plan_ratio",)
    assert judge(max_plan_ratio="0.56").status is Status.PASS


def test_ratios_and_sizes_are_both_in_the_brief() -> None:
    verdict = judge(max_weights_ratio="0.6", max_weights="500", max_plan="600")
    assert verdict.brief == "weights 0.500x of FP16; plan 560.0 MiB"
    assert len(verdict.evidence) == 2


def test_all_limits_fit_the_brief() -> None:
    limits = dict.fromkeys(RATIOS.values(), "9") | dict.fromkeys(SIZES.values(), "9999")
    verdict = judge(**limits)  # type: ignore[arg-type]
    assert verdict.passed
    assert len(verdict.brief) <= 70
    assert len(verdict.evidence) == 5


@pytest.mark.parametrize("part", RATIOS)
@pytest.mark.parametrize("sides", [("FP16",), ("quantized",), ("FP16", "quantized")])
def test_a_missing_figure_is_not_measured(part: str, sides: tuple[str, ...]) -> None:
    nothing: dict[str, Any] = {f"{part}_bytes": None}
    verdict = judge(
        fp16=replace(FP16, **nothing) if "FP16" in sides else FP16,
        quantized=replace(QUANTIZED, **nothing) if "quantized" in sides else QUANTIZED,
        **{RATIOS[part]: "9"},
    )
    assert verdict.status is Status.NOT_MEASURED
    assert f"of {' and '.join(sides)} was not measured" in verdict.headline
    assert f"{RATIOS[part]} needs it ({FILE}:{KEYS[RATIOS[part]]})" in verdict.headline
    assert verdict.brief == f"{NAMES[part]} of {' and '.join(sides)} not measured"
    assert verdict.next_step == (
        f"measure with a runtime or device that tells it, or drop {RATIOS[part]}"
    )


def test_a_limit_in_mib_needs_only_the_quantized_side() -> None:
    assert judge(fp16=MemoryFigures(), max_plan="600").status is Status.PASS
    missing = judge(quantized=MemoryFigures(), max_weights="600")
    assert missing.status is Status.NOT_MEASURED
    assert "weights of quantized" in missing.headline


def test_a_failure_leads_a_missing_figure() -> None:
    verdict = judge(
        quantized=replace(QUANTIZED, weights_bytes=None),
        max_activation_ratio="1.2",
        max_weights="9",
    )
    assert verdict.status is Status.FAIL
    assert "NOT_MEASURED: memory" in all_text(verdict)


@pytest.mark.parametrize(("part", "size"), [("plan", 0), ("weights", -1), ("activation", -1)])
@pytest.mark.parametrize("side", ["FP16", "quantized"])
def test_what_is_no_size_fails(part: str, size: int, side: str) -> None:
    wrong: dict[str, Any] = {f"{part}_bytes": size}
    verdict = judge(
        fp16=replace(FP16, **wrong) if side == "FP16" else FP16,
        quantized=replace(QUANTIZED, **wrong) if side == "quantized" else QUANTIZED,
        **{RATIOS[part]: "9"},
    )
    assert verdict.status is Status.FAIL
    assert f"of {side} is {size} bytes, which is no size" in verdict.headline
    assert verdict.brief == f"{NAMES[part]} of {side} is no size"
    assert verdict.cause
    assert verdict.next_step == "measure again"


def test_no_activations_at_all_are_a_size() -> None:
    none_before = replace(FP16, activation_bytes=0)
    both = judge(
        fp16=none_before,
        quantized=replace(QUANTIZED, activation_bytes=0),
        max_activation_ratio="1",
    )
    assert both.status is Status.PASS
    assert both.brief == "activation 0 MiB vs 0 of FP16"
    assert "activation_ratio" not in both.figures
    more = judge(fp16=none_before, max_activation_ratio="9")
    assert more.status is Status.FAIL
    assert "ratio not defined, over" in more.headline


def test_a_gate_without_limits_gives_no_verdict() -> None:
    """Its suite is refused when it is read; nothing is green that checked nothing."""
    with pytest.raises(ValueError, match="has no checks to combine"):
        judge_memory(fp16=FP16, quantized=QUANTIZED, limits=make_limits({}))


def test_without_a_subject_the_headline_starts_with_the_figure() -> None:
    verdict = judge_memory(
        fp16=FP16,
        quantized=QUANTIZED,
        limits=make_limits({"max_plan_ratio": "1"}),
    )
    assert verdict.headline.startswith("memory: plan 560.0 MiB")


sizes = st.integers(1, 10**12)


@given(before=sizes, after=sizes, saved=sizes, limit=st.fractions("0.01", 10))
@SAME_EXAMPLES
def test_the_verdict_is_the_exact_comparison_and_saving_never_hurts(
    before: int, after: int, saved: int, limit: Fraction
) -> None:
    fp16 = replace(FP16, weights_bytes=before)

    def judge_size(size: int) -> Verdict:
        return judge(
            fp16=fp16,
            quantized=replace(QUANTIZED, weights_bytes=size),
            max_weights_ratio=str(limit),
            max_weights="1000000000",
        )

    verdict = judge_size(after)
    assert verdict.passed is (Fraction(after, before) <= limit)
    smaller = judge_size(max(1, after - saved))
    assert smaller.passed or not verdict.passed
    if limit >= 1 and after <= before:
        assert verdict.passed  # an improvement never fails


def test_sizes_of_another_gate_bear_its_name_and_that_of_the_tower() -> None:
    (check,) = judge_sizes(
        gate="engine",
        fp16=FP16,
        quantized=QUANTIZED,
        limits=make_limits({"max_plan_ratio": "1"}),
        subject="text",
        prefix="text_",
    )
    assert check.gate == "engine"
    assert check.headline.startswith("engine: text: plan 560.0 MiB vs FP16 1000.0 MiB")
    assert check.brief.startswith("text plan 560.0 MiB")
    assert check.figures["text_plan_ratio"] == 0.56


def test_figures_are_those_that_a_builder_tells() -> None:
    whole = make_report("vision")

    assert figures_of(None) == MemoryFigures()
    assert figures_of(whole) == MemoryFigures(
        plan_bytes=60 * MIB, weights_bytes=50 * MIB, activation_bytes=10 * MIB
    )
    without_log = make_report("vision", has_memory=False)
    assert figures_of(without_log) == MemoryFigures(plan_bytes=60 * MIB)
