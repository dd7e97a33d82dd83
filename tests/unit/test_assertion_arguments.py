"""What an assertion is given by mistake: one sentence, at the line of the caller."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from pytest_quantgate import assertions
from pytest_quantgate.errors import QuantGateError

pytestmark = pytest.mark.slow

WRONG = {
    "a share": (
        'assert_accuracy_drop(fp16=0.79, quantized=0.78, max_drop="1pp")',
        "assert_accuracy_drop: fp16 must be one true or false, or a score in [0, 1], a sample (a "
        "list, array or tensor), or Outcomes; a float was given",
    ),
    "one of two": (
        'assert_accuracy_drop(fp16=[True], quantized=None, max_drop="1pp")',
        "quantized must be one true or false, or a score in [0, 1], a sample (a list, array or "
        "tensor), or Outcomes; None was given",
    ),
    "a name": (
        'assert_accuracy_drop(fp16="10", quantized="11", max_drop="1pp")',
        "a str was given",
    ),
    "logits": (
        'assert_accuracy_drop(fp16=torch.zeros(4, 10), quantized=[1], max_drop="1pp")',
        "one of shape [4, 10] was given",
    ),
    "a limit without a unit": (
        "assert_accuracy_drop(fp16=[True], quantized=[True], max_drop=0.01)",
        "assert_accuracy_drop: max_drop: 0.01 needs a unit",
    ),
    "embeddings as lists": (
        "assert_fidelity(fp16=[[1.0]], quantized=[[1.0]], min_cosine=0.9)",
        "assert_fidelity: fp16 must be a tensor [N, D]; a list was given",
    ),
    "one embedding": (
        "assert_fidelity(fp16=torch.zeros(8), quantized=torch.zeros(8), min_cosine=0.9)",
        "fp16 must be [N, D]; one of shape [8] was given",
    ),
    "an output in place of a forward": (
        "assert_calibrated(torch.nn.Linear(2, 2), run_vision=torch.zeros(2), run_text=None)",
        "run_vision must be a function that runs one forward of the vision tower, such as lambda: "
        "model(...), or None; a Tensor was given",
    ),
    "a path in place of a model": (
        'assert_calibrated("out/model.pt", run_vision=None, run_text=None)',
        "a torch.nn.Module comes first; a str was given",
    ),
    "one pattern": (
        'assert_quantizer_coverage(None, run_vision=None, run_text=None, exclude="*fc1*")',
        "exclude must be a list of patterns of module names; a str was given",
    ),
    "no slot": (
        'assert_quantizer_coverage(None, run_vision=None, run_text=None, attention=["qk"])',
        "attention must be a list of names of q, k, v, softmax, output; it holds 'qk'",
    ),
    "a waiver without a day": (
        'assert_quantizer_coverage(None, run_vision=None, run_text=None, waive={"*fc1*": "later"})',
        "waive must map a pattern of module names to (reason, last day as a datetime.date); "
        "'*fc1*' has 'later'",
    ),
    "ids in place of tokens": (
        "assert_roundtrip(torch.nn.Linear(2, 2), pixel_values=torch.zeros(1, 3, 8, 8), "
        "tokens=torch.zeros(1, 4))",
        "tokens must map input_ids, and attention_mask where there is one, to tensors [N, T]; a "
        "Tensor was given",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_a_sentence(mistake: str) -> None:
    call, sentence = WRONG[mistake]
    names: dict[str, Any] = {name: getattr(assertions, name) for name in dir(assertions)}

    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        eval(call, {**names, "torch": torch})

    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    "call",
    [
        WRONG["a share"][0],
        'assert_accuracy_drop(fp16=[True] * 400, quantized=[False] * 400, max_drop="1pp")',
    ],
)
@pytest.mark.parametrize("style", ["auto", "short"])
def test_a_failure_shows_the_callers_frame_alone(
    pytester: pytest.Pytester, call: str, style: str
) -> None:
    pytester.makepyfile(
        "from torch.nn import Linear\n"
        "from pytest_quantgate.assertions import *\n"
        f"def test_it():\n    {call}\n"
    )

    result = pytester.runpytest_inprocess(f"--tb={style}", "-p", "no:randomly")

    result.assert_outcomes(failed=1)
    shown = result.stdout.str().partition("= FAILURES =")[2].partition("= quantgate =")[0]
    assert "test_a_failure_shows_the_callers_frame_alone.py:4:" in shown
    assert "pytest_quantgate/" not in shown
    assert "def check(" not in shown


def test_a_bad_recipe_is_an_error_of_the_callers_line() -> None:
    with pytest.raises(QuantGateError, match="quant_cfg") as raised:
        assertions.assert_quantizer_coverage(
            torch.nn.Linear(2, 2), run_vision=None, run_text=None, recipe={"quant_cfg": 3}
        )

    assert [entry.name for entry in raised.traceback][1:] == ["check"]


def test_an_error_of_the_callers_own_forward_keeps_its_traceback(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        "from pytest_quantgate.assertions import _assertion\n"
        "def forward():\n    raise ValueError('no images')\n"
        "def test_it():\n"
        "    _assertion(forward)()\n"
    )

    result = pytester.runpytest_inprocess("-p", "no:randomly")

    result.stdout.fnmatch_lines(["    def forward():", "E *ValueError: no images"])
