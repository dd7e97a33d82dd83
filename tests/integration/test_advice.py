"""What a red gate says to do is done here, to the letter: the finding must go."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"{model_keys}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}{quantize_keys}}}
gates:
  coverage: {{attention: [q, k, v{slots}]}}
  calibration: {{max_clipped: 49%}}
"""


def apply(advice: str, text: str) -> str:
    """Return the suite with the edits of a next step, as a reader would make them.

    Of alternatives (`..., or ...`) the first is taken. Raises AssertionError for advice that is
    no edit.
    """
    suite = yaml.safe_load(text)
    first = advice.split(", or ")[0]
    edited = False
    if found := re.search(r"set model\.(\w+): (\w+)", first):
        assert suite["model"].get(found[1]) != found[2], f"{first!r} is so already"
        suite["model"][found[1]] = found[2]
        edited = True
    if found := re.search(r"use recipe: ([\w-]+)", first):
        assert suite["quantize"]["recipe"] != found[1], f"{first!r} is so already"
        suite["quantize"]["recipe"] = found[1]
        edited = True
    if found := re.search(r"add exclude: (\[[^]]*\])", first):
        suite["quantize"].setdefault("exclude", []).extend(yaml.safe_load(found[1]))
        edited = True
    if found := re.search(r"leave (\w+) out of coverage\.attention", first):
        suite["gates"]["coverage"]["attention"].remove(found[1])
        edited = True
    assert edited, f"no edit in {advice!r}"
    return yaml.safe_dump(suite, default_flow_style=None, width=1000)


@pytest.mark.parametrize("gate", ["coverage", "calibration"])
@pytest.mark.parametrize(
    ("recipe", "model_keys", "quantize_keys", "slots"),
    [
        pytest.param("huggingface/vit/ptq/fp8", "", "", ", softmax", id="p_bmm under sdpa"),
        pytest.param(
            "fp8-attention",
            ", attn_implementation: eager",
            "",
            ", output",
            id="sdpa class in eager",
        ),
        pytest.param("fp8", "", "", "", id="no attention quantizers"),
        pytest.param("FP8_DEFAULT_CFG", "", "", "", id="a preset without the vision tower"),
    ],
)
def test_next_steps_until_nothing_is_left_of_a_finding(
    tmp_path: Path,
    tiny_clip: Path,
    make_case: Callable[..., Case],
    assume_sane: Callable[[Case], Case],
    recipe: str,
    model_keys: str,
    quantize_keys: str,
    slots: str,
    gate: str,
) -> None:
    """A step may uncover the next finding; the same one never comes back."""
    text = SUITE.format(
        model=tiny_clip,
        recipe=recipe,
        model_keys=model_keys,
        quantize_keys=quantize_keys,
        slots=slots,
    )
    seen: list[str] = []

    def judge(text: str) -> Verdict:
        path = tmp_path / f"step{len(seen)}.quantgate.yaml"
        path.write_text(text, encoding="utf-8")
        return assume_sane(make_case(load_suite(path))).judge(kind=gate).verdict

    verdict = judge(text)
    while not verdict.passed:
        assert verdict.code not in seen, f"{verdict.code} is still there after its advice"
        seen.append(verdict.code)
        assert len(seen) < 5, seen
        text = apply(verdict.next_step, text)
        verdict = judge(text)
