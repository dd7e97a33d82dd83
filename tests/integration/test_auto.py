"""`recipe: auto`: a format for each layer within a number of bits, from the suite to the engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

pytestmark = pytest.mark.slow

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize:
  recipe: {{auto: {{bits: {bits}, formats: [{formats}]}}}}
  exclude: ["*text_projection*"]
gates:
  coverage: {{}}
  calibration: {{max_clipped: 49%}}
  fidelity: {{data: scenes/test, samples: 16, min_cosine: 0.01}}
  roundtrip: {{}}
  export: {{}}
  parity: {{samples: 8}}
  engine: [{{target: sm120, max_plan_ratio: 9x}}]
"""


@pytest.fixture
def make_auto(
    tmp_path: Path,
    tiny_clip: Path,
    make_case: Callable[..., Case],
    assume_sane: Callable[[Case], Case],
) -> Callable[..., Case]:
    def make(*, bits: float, formats: str, name: str = "tiny") -> Case:
        path = tmp_path / f"{name}.quantgate.yaml"
        path.write_text(SUITE.format(model=tiny_clip, bits=bits, formats=formats))
        return assume_sane(make_case(load_suite(path)))

    return make


def test_it_goes_from_the_suite_to_the_export(make_auto: Callable[..., Case]) -> None:
    case = make_auto(bits=7, formats="int4, fp8-per-channel")

    assert case.search is not None
    assert set(case.search.layers.values()) == {"", "int4", "fp8-per-channel"}
    for kind in ("coverage", "calibration", "fidelity", "roundtrip", "export", "parity"):
        verdict = case.judge(kind=kind).verdict
        assert verdict.passed, verdict.headline
    audit = case.audit
    assert audit.search is not None
    assert audit.search.bits is not None
    assert 5 < audit.search.bits <= 7
    # Each layer is in the format that was chosen for it, and the excluded one in none.
    built = {q.module: q.format for q in audit.quantizers if q.enabled and q.slot == "weight"}
    words = {"int4": "INT4", "fp8-per-channel": "E4M3"}
    assert built == {m: words[r] for m, r in case.search.layers.items() if r}
    assert case.search.layers["text_projection"] == ""
    assert "text_projection" not in built
    # What was chosen is part of the key, and a second search chooses the same.
    again = make_auto(bits=7, formats="int4, fp8-per-channel", name="again")
    assert again.variant_key == case.variant_key
    vars(again)["search"] = replace(case.search, layers={**case.search.layers, "x": ""})
    vars(again).pop("variant_key")
    vars(again).pop("_built_by")
    assert again.variant_key != case.variant_key


#: Runs in a process of its own: the search of a suite, with nothing in its cache.
COLD = """\
import argparse, json, os, sys
from pathlib import Path
from pytest_quantgate.commands.case import open_case
from pytest_quantgate.evidence.codec import to_json

suite, cache, result = map(Path, sys.argv[1:])
places = argparse.Namespace(suite=suite, cache_dir=cache, device="cpu")
case = open_case(places, environ=os.environ)
found = {"search": to_json(case.search), "key": case.variant_key}
result.write_text(json.dumps(found))
"""


def test_two_cold_searches_in_two_processes_choose_the_same(
    make_auto: Callable[..., Case], tmp_path: Path
) -> None:
    suite = make_auto(bits=7, formats="int4, fp8-per-channel").suite.path
    found = []
    for seed in ("1", "2"):  # the order of sets differs
        cache, result = tmp_path / f"cache {seed}", tmp_path / f"{seed}.json"
        ran = subprocess.run(
            [sys.executable, "-c", COLD, str(suite), str(cache), str(result)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert any(cache.rglob("*")), "a search that was kept would show nothing"
        found.append(result.read_bytes())

    assert found[0] == found[1]
    layers = json.loads(found[0])["search"]["layers"]
    assert set(layers.values()) == {"", "int4", "fp8-per-channel"}


def test_an_engine_multiplies_in_both_formats(make_auto: Callable[..., Case]) -> None:
    """Attention's output goes straight into blocks of FP4, whose builder wants a known length."""
    pytest.importorskip("tensorrt_rtx")
    case = make_auto(bits=7, formats="nvfp4, fp8")

    verdict = case.judge(kind="engine", key="sm120").verdict

    assert verdict.passed, verdict.headline
    counted = re.search(r"(\d+) of (\d+) linear in FP4, (\d+) in FP8", verdict.brief)
    assert counted is not None, verdict.brief
    fp4, total, fp8 = map(int, counted.groups())
    assert case.search is not None
    assert list(case.search.layers.values()).count("nvfp4") == fp4
    assert fp8 > 0
    assert total <= len(case.search.layers)


def test_a_layer_in_another_format_than_the_chosen_one_is_red(
    make_auto: Callable[..., Case],
) -> None:
    case = make_auto(bits=7, formats="int4, fp8-per-channel")
    audit = case.audit
    swapped = {"INT4": "E4M3", "E4M3": "INT4"}
    first = next(q for q in audit.quantizers if q.enabled and q.slot == "weight")
    damaged = replace(first, format=swapped[first.format])
    quantizers = tuple(damaged if q is first else q for q in audit.quantizers)

    verdict = _judge(case, quantizers=quantizers)

    assert verdict.code == "coverage.other-format", verdict.headline
    assert first.name in "\n".join(verdict.evidence)


def test_more_bits_than_allowed_are_red(make_auto: Callable[..., Case]) -> None:
    case = make_auto(bits=7, formats="int4, fp8-per-channel")
    search = case.audit.search
    assert search is not None

    verdict = _judge(case, search=replace(search, bits=7.25))

    assert verdict.code == "coverage.bits-over", verdict.headline
    assert "takes 7.250 bits" in verdict.headline
    assert "allows 7" in verdict.headline
    assert _judge(case, search=replace(search, bits=7.0)).passed


def test_bits_are_counted_in_what_was_built(make_auto: Callable[..., Case]) -> None:
    from pytest_quantgate.quantization.quantizers import find_quantizers
    from pytest_quantgate.quantization.search import count_bits

    case = make_auto(bits=7, formats="int4, fp8-per-channel")
    module, search = case.quantized.module, case.audit.search
    assert search is not None
    counted = count_bits(module, layers=search.layers)
    assert counted == search.bits
    layer = next(layer for layer, recipe in search.layers.items() if recipe == "int4")
    weight = module.get_submodule(layer).get_parameter("weight")
    weights = sum(module.get_submodule(n).get_parameter("weight").numel() for n in search.layers)

    quantizer = find_quantizers(module)[f"{layer}.weight_quantizer"]
    quantizer.disable()
    try:
        more = count_bits(module, layers=search.layers) - counted
    finally:
        quantizer.enable()

    # Whole rows are blocks of 128 or padded to one, with a scale of 16 bits each.
    rows, length = weight.shape
    blocks = rows * -(-length // 128)
    assert more == pytest.approx((12 * weight.numel() - 16 * blocks) / weights)


def test_bits_that_cannot_be_reached_are_an_error_with_the_least(
    make_auto: Callable[..., Case],
) -> None:
    verdict = make_auto(bits=4.2, formats="int4").judge(kind="coverage").verdict

    assert verdict.status is Status.NOT_MEASURED or not verdict.passed
    assert "finds no formats with 4.2 bits among int4" in verdict.headline
    assert "text_projection" in verdict.headline


def _judge(case: Case, **changes: Any) -> Any:
    (gate,) = case.suite.gates.all(CoverageGate)
    return judge_coverage(replace(case.audit, **changes), gate=gate, today=case.today)
