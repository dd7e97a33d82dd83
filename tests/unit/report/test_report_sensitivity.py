"""The ranked table, the exclusion with its YAML, and the plot: text that a person reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.sensitivity import (
    Changed,
    Exclusion,
    GateCheck,
    GroupEffect,
    OutlierChannels,
    QuantizerGroup,
    Sensitivity,
    TowerNoise,
)
from pytest_quantgate.report.sensitivity import (
    draw_noise,
    render_exclusion,
    render_sensitivity,
    render_yaml,
    to_sqnr_db,
)
from pytest_quantgate.report.svg import draw_alone
from pytest_quantgate.statistics.intervals import Flips, drop_limits


def group(label: str, *patterns: str, extra_bytes: int = 2048) -> QuantizerGroup:
    return QuantizerGroup(
        label=label,
        tower="vision",
        block=0,
        kind="mlp",
        quantizers=("q",),
        patterns=patterns,
        extra_bytes=extra_bytes,
    )


def effect(label: str, only: float, without: float, **changes: Any) -> GroupEffect:
    values: dict[str, Any] = {
        "group": group(label, f"{label}.*"),
        "towers": ("vision",),
        "noise_only": only,
        "noise_without": without,
        "metric_only": 0.70,
        "metric_without": 0.79,
        **changes,
    }
    return GroupEffect(**values)


FOUND = Sensitivity(
    data="scenes/test",
    samples=256,
    texts=100,
    task="scenes/classification",
    metric="acc1",
    towers=(
        TowerNoise(tower="vision", samples=256, noise_all=0.01, noise_off=0.0),
        TowerNoise(tower="text", samples=100, noise_all=0.001, noise_off=0.0),
    ),
    metric_off=0.80,
    metric_all=0.75,
    effects=(
        effect("vision patch_embedding", 0.01, 0.001),
        effect("vision block 0 mlp", 1e-4, 0.0099),
        effect("vision block 1 mlp", 0.0, 0.01, towers=()),
    ),
    weights_bytes=100 * 1024,
    evaluations=11.8,
)


def test_the_table_has_what_each_group_costs() -> None:
    lines = list(render_sensitivity(FOUND, top=20))

    assert lines == [
        "3 groups of quantizers on 256 images and 100 texts of scenes/test",
        "  vision embeddings: SQNR 20.0 dB with every quantizer on",
        "  text embeddings: SQNR 30.0 dB with every quantizer on",
        "  scenes/classification acc1 on these samples: 80.00 % with every quantizer off, "
        "75.00 % with every one on",
        "",
        "                                       quantized alone                          left out",
        "  group                        SQNR  noise                      acc1      "
        "SQNR      acc1   weights",
        "  vision patch_embedding    20.0 dB  #############         -10.00 pp  "
        "+10.0 dB  +4.00 pp  +2.0 KiB",
        "  vision block 0 mlp        40.0 dB  #######               -10.00 pp   "
        "+0.0 dB  +4.00 pp  +2.0 KiB",
        "  vision block 1 mlp      never ran",
    ]


def test_a_change_has_limits_where_it_is_a_share_of_samples() -> None:
    counted = replace(
        FOUND.effects[0],
        metric_only=0.80 - 2 / 256,
        changed_only=Changed(lost=2, won=0, samples=256),
        changed_without=Changed(lost=2, won=12, samples=256),
    )
    found = replace(FOUND, effects=(counted, *FOUND.effects[1:]))
    limits = drop_limits(Flips(right_to_wrong=2, wrong_to_right=0, samples=256), confidence=0.95)

    lines = list(render_sensitivity(found, top=20))

    said = "in brackets: 95 % one-sided limits of a change in points; one sample of 256 is 0.39"
    assert lines[4].strip() == said
    # Two images of 256 are no evidence of a loss.
    assert limits.low < 0 < limits.high
    shown = f"-0.78 [{-limits.high * 100:.2f}, {-limits.low * 100:.2f}]"
    assert f"  {shown}  " in lines[8]
    assert "-10.00 pp" in lines[9]  # this one was not counted


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_to_the_width(width: int, counted: bool) -> None:
    changes: dict[str, Any] = {
        "group": group("vision block 11 attention qkv", "x"),
        "changed_only": Changed(lost=30, won=4, samples=256) if counted else None,
        "changed_without": Changed(lost=2, won=12, samples=256) if counted else None,
    }
    effects = tuple(replace(effect, **changes) for effect in FOUND.effects)

    lines = list(render_sensitivity(replace(FOUND, effects=effects), top=20, width=width))
    table = lines[lines.index("") + 1 :]

    assert max(map(len, table)) <= width
    told = " ".join(" ".join(table).split())
    assert ("-10.00 [-14.22, -6.52]" in told) == counted
    assert "+2.0 KiB" in told


def test_only_the_worst_are_shown() -> None:
    lines = list(render_sensitivity(FOUND, top=1))

    assert lines[-1] == "  ... and 2 groups more (--top)"
    assert not [line for line in lines if "block 0" in line]


def test_without_a_metric_there_is_no_column_of_it() -> None:
    effects = tuple(replace(item, metric_only=None, metric_without=None) for item in FOUND.effects)
    plain = replace(FOUND, metric="", task="", metric_off=None, metric_all=None, effects=effects)
    text = "\n".join(render_sensitivity(plain, top=5))

    assert "pp" not in text
    assert "20.0 dB  #############" in text


def test_nan_and_no_noise_are_words() -> None:
    effects = (
        effect("a", math.inf, 0.01),
        effect("b", 0.0, 0.01),
        effect("c", 0.1, 0.0),
        effect("d", 0.1, math.inf),
    )
    lines = list(render_sensitivity(replace(FOUND, effects=effects), top=9))[-4:]

    assert lines[0].split()[1:3] == ["NaN", "#" * 20]
    assert lines[1].split()[1:3] == ["no", "noise"]
    assert "  all  " in lines[2]
    assert "  NaN  " in lines[3]


def test_weights_that_are_not_fp16_s_are_said() -> None:
    towers = (replace(FOUND.towers[0], noise_off=0.1), FOUND.towers[1])
    text = "\n".join(render_sensitivity(replace(FOUND, towers=towers), top=3))

    assert "vision embeddings: SQNR 10.0 dB with every quantizer off: the weights are not" in text
    assert "text embeddings: SQNR inf" not in text


def check(after: str = "PASS") -> GateCheck:
    return GateCheck(
        gate="accuracy[scenes/classification-acc1]",
        before="FAIL",
        brief_before="79.36 -> 70.00 %",
        fp16_value=0.7936,
        value_before=0.70,
        predicted=0.79,
        after=after,
        brief_after="79.36 -> 79.10 %, drop 0.26 [-0.10, 0.60] within 1.00 pp",
        value_after=0.791,
    )


def show(found: Exclusion, exclude: tuple[str, ...] = ()) -> str:
    return "\n".join(
        render_exclusion(
            found, suite="clip", section="quantize", weights_bytes=100 * 1024, exclude=exclude
        )
    )


def test_an_exclusion_comes_with_its_figures_and_yaml() -> None:
    found = Exclusion(
        outcome="found",
        groups=(group("vision block 0 mlp", "a.0.*"), group("text qkv", 'b."[kqv]"*')),
        checks=(check(),),
        verifications=3,
        extra_bytes=4096,
        coverage="coverage: q is missing in block 0",
    )
    text = show(found, exclude=("*patch_embedding*",))

    assert text.startswith(
        "clip: leaving out 2 groups meets every limit (verified, 3 evaluations spent)\n"
        "  PASS  accuracy[scenes/classification-acc1]  79.36 -> 79.10 %, drop"
    )
    assert "FP16 79.36 %, before 70.00 % (FAIL), predicted 79.00 %, verified 79.10 %" in text
    assert "weights: 4.0 KiB more, 100.0 KiB -> 104.0 KiB (+4.0 %)" in text
    assert "then red: coverage: q is missing in block 0" in text
    pasted = yaml.safe_load(text[text.index("quantize:") :])
    assert pasted == {"quantize": {"exclude": ["*patch_embedding*", "a.0.*", 'b."[kqv]"*']}}


def test_a_pattern_is_listed_once() -> None:
    groups = (group("a", "*patch_embedding*", "x.*"), group("b", "x.*", "y.*"))
    pasted = yaml.safe_load(
        "\n".join(render_yaml(groups, section="quantized", exclude=("*patch_embedding*",)))
    )

    assert pasted["quantized"]["exclude"] == ["*patch_embedding*", "x.*", "y.*"]


def test_what_has_no_exclusion_says_why() -> None:
    none = Exclusion(outcome="none needed", groups=(), checks=(check(),), verifications=0)

    assert "nothing needs excluding, 1 gate passed" in show(none)
    assert "no exclusion meets the limits: not even FP16 passes: floor" in show(
        replace(none, outcome="impossible", reason="not even FP16 passes: floor")
    )
    text = show(replace(none, outcome="not found", verifications=6))
    assert "no exclusion meets the limits in 6 verified tries" in text
    assert "FAIL  accuracy[scenes/classification-acc1]  79.36 -> 70.00 %" in text
    assert "no limit says what to leave out" in show(replace(none, checks=()))
    assert "quantize:" not in text


def test_the_plot_is_whole_and_its_bars_follow_the_noise() -> None:
    effects = (*FOUND.effects, effect("<b> & NaN", math.inf, 0.01))
    chart = draw_noise(replace(FOUND, effects=effects), top=9)
    root = ElementTree.fromstring(draw_alone(chart))
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(bar.attrib["width"].rstrip("%")) for bar in root.iter(f"{space}rect")]
    titles = [title.text for title in root.iter(f"{space}title")]

    assert bars[3] > bars[0] > bars[1] > bars[2]
    assert max(bars) <= 100
    assert titles[0] == chart.title
    assert titles[1] == "vision patch_embedding: SQNR 20.0 dB"
    assert titles[4] == "<b> & NaN: SQNR NaN"


def test_results_survive_json() -> None:
    found = replace(FOUND, effects=(*FOUND.effects, effect("x", math.inf, math.inf)))

    assert from_json(Sensitivity, to_json(found)) == found


def test_decibels() -> None:
    assert to_sqnr_db(0.001) == 30.0
    assert to_sqnr_db(0.0) == math.inf
    assert to_sqnr_db(math.inf) == -math.inf


# -- outlier channels -----------------------------------------------------------------------------

OUTLIERS = OutlierChannels(
    quantizer="vision_model.encoder.layers.0.mlp.fc1.input_quantizer",
    place="mlp.fc1",
    format="INT8",
    channels=(46, 158),
    channels_count=160,
    largest_ratio=35.6,
    smallest_ratio=30.4,
    range_ratio=0.04,
    levels=3,
    levels_count=127,
    smoothable=True,
)


def with_outliers(*labels: str, apart: float = 1e-4, noise_off: float = 0.0) -> Sensitivity:
    effects = [effect(x, 0.01, 0.001, outliers=(OUTLIERS,), noise_apart=apart) for x in labels]
    towers = (TowerNoise(tower="vision", samples=256, noise_all=0.02, noise_off=noise_off),)
    return replace(FOUND, towers=towers, effects=tuple(effects))


def test_outlier_channels_follow_the_table() -> None:
    labels = [f"vision block {index} mlp" for index in range(6)]
    lines = list(render_sensitivity(with_outliers(*labels), top=5))
    text = lines[lines.index("  ... and 1 group more (--top)") + 1 :]

    assert text[:4] == [
        "",
        "outlier channels explain most of the noise of 5 groups",
        "  vision block 0 mlp: 2 of 160 input channels of mlp.fc1 (46, 158) reach 30 to 36 times "
        "the median channel, which has 3 of the 127 levels of INT8",
        "    quantized apart from the others: SQNR 40.0 dB",
    ]
    assert text[-1] == "  ... and 1 group more"
    assert len(text) == 2 + 4 * 2 + 1


def test_outlier_channels_that_explain_nothing_are_not_told() -> None:
    for found in (
        FOUND,
        with_outliers("vision block 0 mlp", apart=0.006),
        with_outliers("vision block 0 mlp", noise_off=0.03),  # the weights are not FP16's
    ):
        assert "outlier" not in "\n".join(render_sensitivity(found, top=20))


def test_outlier_channels_are_stored_and_read_back() -> None:
    found = with_outliers("vision block 0 mlp")

    assert from_json(Sensitivity, to_json(found)) == found
