"""The serves gate: what a loader made of the tensors, and what it may say of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.serving import Loaded
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.serves import ServesGate, judge_loaded
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.where import Where
from tests.suite_texts import SMALL

GATE = ServesGate(where=Where(file="s.yaml", line=7), runtime="vllm", python="venv/bin/python")

GOOD = Loaded(
    runtime="vLLM",
    version="0.32.0",
    folder="served",
    origin="what quantgate export wrote of this suite, unchanged",
    reads_as="CompressedTensorsConfig",
    tensors=141,
    codes=36,
    parameters=109,
)


def test_a_whole_load_passes_and_does_not_say_that_it_serves() -> None:
    verdict = judge_loaded(GOOD, gate=GATE)

    assert verdict.status is Status.PASS
    assert verdict.headline == (
        "serves: vLLM 0.32.0 loads served: 141 tensors in place, 36 of them codes, unchanged; it "
        "loads, nothing was served"
    )
    assert verdict.figures == {"tensors": 141, "codes": 36, "parameters": 109}
    assert verdict.evidence == (
        "served is what quantgate export wrote of this suite, unchanged",
        "it reads it as CompressedTensorsConfig",
        "its weights were made ready for its kernels",
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"error": "ValueError: no place for 'x'", "refused_at": "load"},
            "serves.refused",
            "vLLM 0.32.0 does not load served: ValueError: no place for 'x' (s.yaml:7)",
        ),
        (
            {"changed": ("a.weight", "b.weight")},
            "serves.codes-changed",
            "2 tensors are there with other values, or not as codes: a.weight, b.weight",
        ),
        ({"lost": ("q.k_scale",)}, "serves.tensors-lost", "1 tensor is nowhere in the model"),
        (
            {"unfilled": ("a.bias",)},
            "serves.parameters-unfilled",
            "1 parameter is without a value from the folder: a.bias",
        ),
    ],
)
def test_what_the_loader_did_is_named(changes: dict[str, Any], code: str, words: str) -> None:
    verdict = judge_loaded(replace(GOOD, **changes), gate=GATE)

    assert (verdict.status, verdict.code) == (Status.FAIL, code)
    assert words in verdict.headline
    assert verdict.next_step


def test_a_folder_of_another_origin_says_nothing_of_what_the_suite_judges() -> None:
    loose = replace(GOOD, origin="what quantgate export wrote of another suite, x", is_tied=False)

    verdict = judge_loaded(loose, gate=GATE)
    refused = judge_loaded(replace(loose, error="no place"), gate=GATE)

    assert (verdict.status, verdict.code) == (Status.INCOMPARABLE, "serves.folder-untied")
    assert "served is what quantgate export wrote of another suite, x" in verdict.headline
    assert refused.code == "serves.refused"


def test_weights_that_no_kernel_takes_here_are_told() -> None:
    found = replace(GOOD, unprepared="no kernel", reads_as="", unused=("logit_scale",))
    verdict = judge_loaded(found, gate=GATE)

    assert verdict.status is Status.PASS
    assert "140 tensors in place" in verdict.headline
    assert verdict.evidence[1:] == (
        "it reads it as not quantized",
        "its weights could not be made ready for its kernels here: no kernel",
        "it takes no logit_scale, which is in no embedding",
    )


def test_what_was_loaded_is_kept_as_json() -> None:
    assert from_json(Loaded, to_json(GOOD)) == GOOD


def test_a_suite_that_names_an_interpreter_says_that_it_trusts_it(tmp_path: Path) -> None:
    path = tmp_path / "s.quantgate.yaml"
    gates = "{serves: {runtime: vllm, python: ./venv/bin/python}}"
    text = SMALL.replace("{roundtrip: {}}", gates)
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SuiteError, match=r"serves.*trust: true"):
        load_suite(path, relative_to=tmp_path)

    path.write_text(f"{text}trust: true\n", encoding="utf-8")
    assert load_suite(path, relative_to=tmp_path).gates.one(ServesGate) is not None
