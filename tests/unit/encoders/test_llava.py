"""The vision tower and projector of a LLaVA, out of a checkpoint of the whole model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.model_checks import find_unknown, inspect_checkpoint
from pytest_quantgate.measure.roundtrip import measure_roundtrip
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.llava_models import save_llava

MakeSpec = Callable[..., ModelSpec]

GATE = CoverageGate(where=Where(file="s.yaml", line=1), towers=("vision",))
TODAY = date(2026, 11, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llava")
    return folder, save_llava(folder)


@pytest.fixture(scope="module")
def encoder(saved: tuple[Path, Any], model_spec: MakeSpec) -> Encoder:
    return load_fp16(model_spec(saved[0]), environ={})


@pytest.fixture(scope="module")
def batch() -> Batch:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(ids=tuple("abcd"), inputs={"vision": {"pixel_values": pixels}})


@pytest.fixture(scope="module")
def quantized(
    encoder: Encoder, batch: Batch, make_recipe: Callable[[Any], Recipe]
) -> tuple[Encoder, Recipe]:
    recipe = make_recipe("fp8-attention")
    return quantize(encoder, recipe=recipe, batches=[batch]).model, recipe


def get_features(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return what the language model gets, by transformers alone, [N, T * D]."""
    with torch.no_grad():
        found = module.get_image_features(pixel_values=pixels).pooler_output
    return torch.stack(list(found)).flatten(start_dim=1)


def test_the_embedding_is_what_the_language_model_gets(
    saved: tuple[Path, Any], encoder: Encoder, batch: Batch
) -> None:
    wanted = get_features(saved[1], batch.pixel_values)

    found = encoder.encode_image(batch.pixel_values)

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert encoder.tower_names == ("vision",)
    assert inspect_checkpoint(saved[0]) == ()
    assert find_unknown(saved[0]) is None


def test_the_language_model_is_never_read(
    saved: tuple[Path, Any], encoder: Encoder, tmp_path: Path, model_spec: MakeSpec, batch: Batch
) -> None:
    """Nor what stands behind the block that is read: all of it may be anything."""
    from safetensors.torch import load_file, save_file

    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    unread = [n for n in weights if "language_model" in n or "lm_head" in n or "layers.2." in n]
    assert len(unread) > 10
    save_file(
        {n: t * torch.nan if n in unread else t for n, t in weights.items()},
        path,
        metadata={"format": "pt"},
    )

    found = load_fp16(model_spec(tmp_path), environ={})

    assert torch.equal(
        found.encode_image(batch.pixel_values), encoder.encode_image(batch.pixel_values)
    )
    assert not any("layers.2." in name for name, _ in found.module.named_modules())


@pytest.mark.parametrize("older", [True, False])
def test_the_names_of_older_files_are_taken(
    saved: tuple[Path, Any], tmp_path: Path, model_spec: MakeSpec, batch: Batch, older: bool
) -> None:
    from safetensors.torch import load_file, save_file

    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "model.safetensors"
    plain = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    inner = {
        re.sub(r"^vision_tower\.(?:vision_model\.)?", "vision_tower.vision_model.", name): tensor
        for name, tensor in plain.items()
    }
    named = inner if older else {f"model.{name}": tensor for name, tensor in inner.items()}
    save_file(named, path, metadata={"format": "pt"})

    found = load_fp16(model_spec(tmp_path), environ={}).encode_image(batch.pixel_values)

    torch.testing.assert_close(found, get_features(saved[1], batch.pixel_values))


@pytest.mark.usefixtures("_forked_restores")
def test_all_that_runs_is_covered(
    quantized: tuple[Encoder, Recipe], batch: Batch, tmp_path: Path
) -> None:
    model, recipe = quantized
    verdict = judge_coverage(
        audit_quantizers(model, recipe=recipe, held_out=[batch]), gate=GATE, today=TODAY
    )
    kept = measure_roundtrip(model, batches=[batch], directory=tmp_path)

    assert verdict.passed, verdict.headline
    assert "100.0 % of matrix weights, attention q k v output in 2 blocks" in verdict.brief
    assert kept.equal == {"vision": True}


def test_a_preset_that_leaves_the_projector_out_is_named(
    encoder: Encoder, batch: Batch, make_recipe: Callable[[Any], Recipe]
) -> None:
    """ModelOpt's presets mean a language model: what stands around one is off."""
    recipe = make_recipe("FP8_DEFAULT_CFG")
    found = quantize(encoder, recipe=recipe, batches=[batch]).model
    audit = audit_quantizers(found, recipe=recipe, held_out=[batch])

    verdict = judge_coverage(audit, gate=GATE, today=TODAY)

    assert verdict.status is Status.FAIL
    assert "multi_modal_projector" in " ".join((verdict.headline, *verdict.evidence))


def test_the_exported_tower_computes_the_same(
    quantized: tuple[Encoder, Recipe], batch: Batch, tmp_path: Path
) -> None:
    model, _ = quantized
    exported = export_tower(model, tower="vision", path=tmp_path / "vision.onnx")
    pixels = batch.inputs["vision"]

    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in pixels.items()})
    wanted = model.encode("vision", pixels)

    # Of most samples: a value on the edge between two steps may be rounded apart.
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4
    assert exported.not_executed == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model', the"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer names several blocks"),
        ({"vision_feature_layer": -9}, "vision_feature_layer is -9, there are 3 blocks"),
        ({"model_type": "llava_next"}, "'llava_next' is not taken yet: it cuts an image"),
    ],
)
def test_what_is_not_taken_is_said_before_a_run(
    saved: tuple[Path, Any],
    tmp_path: Path,
    model_spec: MakeSpec,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["architectures"] = None
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(ModelError, match=re.escape(said)):
        load_fp16(model_spec(tmp_path), environ={})
    assert main(["doctor", str(tmp_path)], environ={}) == 1
    assert said in capsys.readouterr().out


def test_another_normalization_is_named(saved: tuple[Path, Any], tmp_path: Path) -> None:
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (path,) = tmp_path.glob("pre*processor_config.json")
    settings = {**json.loads(path.read_text("utf-8")), "image_mean": [0.5, 0.5, 0.5]}
    path.write_text(json.dumps(settings), encoding="utf-8")

    (fault,) = inspect_checkpoint(tmp_path)

    assert fault.finding == "normalization"
    assert "are not the usual ones of llava" in fault.text


def test_the_sizes_of_a_language_model_are_not_looked_at(
    saved: tuple[Path, Any], tmp_path: Path, model_spec: MakeSpec, batch: Batch, encoder: Encoder
) -> None:
    """131,072 positions are usual there, and no text tower here has so many."""
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 131_072
    path.write_text(json.dumps(config), encoding="utf-8")

    found = load_fp16(model_spec(tmp_path), environ={})

    assert torch.equal(
        found.encode_image(batch.pixel_values), encoder.encode_image(batch.pixel_values)
    )


def test_init_writes_a_suite_for_the_tower(
    saved: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init", "--model", str(saved[0]), "--data", "scenes", "--target", "sm89"]

    assert main([*arguments, "--output", "-"], environ={}) == 0

    text = capsys.readouterr().out
    assert "# vision: 2 blocks of width 32, 2 heads, 17 tokens" in text
    assert "min_fp8_gemms: 14" in text
