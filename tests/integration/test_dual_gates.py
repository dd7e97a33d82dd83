"""ChineseCLIP, AltCLIP, OWL-ViT and OWLv2 through every gate of a suite, and what is done wrong to
them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.sabotage import exchange, whole_text
from pytest_quantgate.suite.load import load_suite
from tests.dual_models import KINDS, save_dual

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("timed_once")]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantize: {{recipe: {recipe}, exclude: ["*patch_embed*"]}}
gates:
{gates}"""

GATES = """\
  coverage: {}
  calibration: {max_clipped: 5%}
  fidelity: {min_sqnr: 8dB, samples: 32}
  roundtrip: {}
  export: {allow: [softmax]}
  parity: {samples: 16}
  latency: {tower: text, batch: 4, max_ratio: 1000x}
"""

ENGINE = """\
  engine:
    - {{target: sm89, towers: [vision], min_fp8_gemms: 13}}
    - {{target: sm89, towers: [text], min_fp8_gemms: {linears}}}
  memory: {{target: sm89, towers: [vision], max_weights_ratio: 0.9x}}
  trace: {{target: sm89}}
"""


def write_suite(folder: Path, *, model: Path, gates: str, recipe: str = "fp8-attention") -> Path:
    path = folder / "suites" / "dual.quantgate.yaml"
    path.parent.mkdir(exist_ok=True)
    text = SUITE.format(model=model, gates=gates, recipe=recipe)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_gate_passes(
    pytester: pytest.Pytester,
    tmp_path: Path,
    run_gates: Callable[..., pytest.RunResult],
    kind: str,
    recipe: str,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    save_dual(kind, tmp_path / kind)
    fp8 = recipe == "fp8-attention"
    linears = 14 if kind == "altclip" else 13
    more = ENGINE.format(linears=linears) if fp8 else "  trace: {}\n"
    gates = (GATES if fp8 else GATES.replace("allow: [softmax]", "")) + more
    write_suite(pytester.path, model=tmp_path / kind, gates=gates, recipe=recipe)

    result = run_gates()

    result.assert_outcomes(passed=12 if fp8 else 9)
    result.stdout.fnmatch_lines(["*% of matrix weights*"])


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param) / request.param
    save_dual(request.param, folder)
    return folder


@pytest.fixture
def judge(tmp_path: Path, make_case: Callable[..., Case]) -> Callable[..., Verdict]:
    """Judge one gate of a model in a folder, of which `spoil` changes the quantized one."""

    def make(
        gate: str,
        *,
        model: Path,
        recipe: str = "fp8-attention",
        spoil: Callable[[Encoder], Encoder] | None = None,
    ) -> Verdict:
        limits = {"fidelity": "{min_cosine: 0.98, min_sqnr: 8dB, samples: 16}"}.get(gate, "{}")
        gates = "" if gate == "sanity" else f"  {gate}: {limits}\n"
        path = write_suite(tmp_path, model=model, gates=gates or "  coverage: {}\n", recipe=recipe)
        case = make_case(load_suite(path))
        if spoil is not None:
            changed = spoil(case.quantized)
            case = exchange(case, quantized=changed, variant_key=f"spoiled-{tmp_path.name}")
        return case.judge(kind=gate).verdict

    return make


def in_text(change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Callable[..., Encoder]:
    """Return what makes a model whose text tower is fed otherwise."""

    def spoil(model: Encoder) -> Encoder:
        def feed(embed: Any) -> Any:
            return lambda module, inputs: embed(module, change(inputs))

        towers = tuple(
            replace(tower, embed=feed(tower.embed)) if tower.name == "text" else tower
            for tower in model.towers
        )
        return replace(model, towers=towers)

    return spoil


def roll(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Every token one position further: the one that is pooled is another."""
    return {name: value.roll(1, dims=1) for name, value in inputs.items()}


def exchange_texts(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Every text is the one before it."""
    return {name: value.roll(1, dims=0) for name, value in inputs.items()}


def drop_mask(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def test_another_pooling_position_is_red(saved: Path, judge: Callable[..., Verdict]) -> None:
    verdict = judge("fidelity", model=saved, spoil=in_text(roll))

    assert verdict.code == "fidelity.cosine"
    assert "text" in whole_text(verdict)


@pytest.mark.parametrize("saved", ["chinese_clip", "altclip"], indirect=True)
def test_a_dropped_mask_is_red(saved: Path, judge: Callable[..., Verdict]) -> None:
    verdict = judge("fidelity", model=saved, spoil=in_text(drop_mask))

    assert verdict.code == "fidelity.cosine"
    assert "text" in whole_text(verdict)
    assert judge("fidelity", model=saved).passed


@pytest.mark.parametrize("saved", ["owlvit", "owlv2"], indirect=True)
def test_padding_behind_the_pooled_token_needs_no_mask(
    saved: Path, judge: Callable[..., Verdict]
) -> None:
    """OWL-ViT attends to what stands before, and pools the end token: no answer changes."""
    good = judge("fidelity", model=saved)
    dropped = judge("fidelity", model=saved, spoil=in_text(drop_mask))

    assert good.passed
    assert dropped.figures["text_sqnr_db"] == pytest.approx(good.figures["text_sqnr_db"], abs=1e-3)


@pytest.mark.parametrize("saved", KINDS, indirect=True)
def test_texts_are_not_embedded_alike(saved: Path, judge: Callable[..., Verdict]) -> None:
    """Where they are, no limit of a cosine sees what is done to a text tower."""
    verdict = judge("fidelity", model=saved, spoil=in_text(exchange_texts))

    assert verdict.code == "fidelity.cosine"


def test_a_preset_whose_prefix_disables_a_tower_is_red(
    saved: Path, judge: Callable[..., Verdict]
) -> None:
    verdict = judge("coverage", model=saved, recipe="FP8_DEFAULT_CFG")

    assert verdict.code == "coverage.tower-off"
    assert "vision tower" in verdict.headline


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"size": {"height": 24, "width": 24}, "do_center_crop": False}, "sanity.image-size"),
        ({"do_normalize": False}, "sanity.pixel-range"),
    ],
)
def test_the_processor_of_another_family_is_red(
    saved: Path, judge: Callable[..., Verdict], tmp_path: Path, settings: Any, code: str
) -> None:
    folder = tmp_path / saved.name
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / "preprocessor_config.json"
    stored = {**json.loads(path.read_text("utf-8")), **settings}
    path.write_text(json.dumps(stored), encoding="utf-8")

    assert judge("sanity", model=folder).code == code
