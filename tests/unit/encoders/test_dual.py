"""Models that are built as CLIP is: ChineseCLIP, AltCLIP, OWL-ViT and OWLv2."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.model_checks import find_unknown, inspect_checkpoint
from pytest_quantgate.measure.roundtrip import measure_roundtrip
from pytest_quantgate.measure.sanity import read_texts_of
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import resolve_recipe
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec, QuantizeSpec
from pytest_quantgate.suite.where import Where
from tests.dual_models import KINDS, TOKENS, save_dual

WHERE = Where(file="s.yaml", line=1)
TEXTS = ["a red circle", "a dog", "a small blue square above a cat", "a green star"]
EXCLUDE = ("*patch_embedding*",)


class Made(NamedTuple):
    kind: str
    folder: Path
    module: Any
    fp16: Encoder
    batch: Batch


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint, what transformers makes of it, what is made of it here, and a batch."""
    folder = tmp_path_factory.mktemp(request.param)
    module = save_dual(request.param, folder)
    fp16 = load_fp16(ModelSpec(where=WHERE, source="transformers", id=str(folder)), environ={})
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = Batch.of_pairs(pixel_values=pixels, tokens=fp16.tokenize(TEXTS), ids=tuple("abcd"))
    return Made(request.param, folder, module, fp16, batch)


@pytest.fixture(scope="module", params=["fp8-attention", "int8"])
def quantized(made: Made, request: pytest.FixtureRequest) -> tuple[str, Encoder]:
    recipe = resolve_recipe(QuantizeSpec(where=WHERE, recipe=request.param), environ={})
    found = quantize(made.fp16, recipe=recipe, exclude=EXCLUDE, batches=[made.batch])
    return request.param, found.model


def test_embeddings_are_those_of_transformers(made: Made) -> None:
    images = made.module.get_image_features(pixel_values=made.batch.pixel_values).pooler_output
    texts = made.module.get_text_features(**made.batch.tokens).pooler_output

    torch.testing.assert_close(
        made.fp16.encode_image(made.batch.pixel_values), images, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(made.fp16.encode_text(made.batch.tokens), texts, rtol=0, atol=1e-6)
    assert read_texts_of(made.fp16).read(TEXTS).distinct == len(TEXTS)
    assert made.fp16.tower("text").tokens == TOKENS


def test_every_layer_and_block_is_covered(made: Made, quantized: tuple[str, Encoder]) -> None:
    name, model = quantized
    recipe = resolve_recipe(QuantizeSpec(where=WHERE, recipe=name), environ={})
    audit = audit_quantizers(model, recipe=recipe, exclude=EXCLUDE, held_out=[made.batch])

    verdict = judge_coverage(audit, gate=CoverageGate(where=WHERE), today=date(2026, 11, 1))

    assert verdict.passed, verdict.headline
    if name == "fp8-attention":
        assert "attention q k v output in 2+2 blocks" in verdict.brief


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_exported_tower_computes_the_same(
    made: Made, quantized: tuple[str, Encoder], tmp_path: Path, tower: Any
) -> None:
    exported = export_tower(quantized[1], tower=tower, path=tmp_path / "tower.onnx")
    inputs = made.batch.inputs[tower]

    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in inputs.items()})
    wanted = quantized[1].encode(tower, inputs)

    # Of most samples: a value on the edge between two steps may be rounded apart.
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4
    assert exported.not_executed == ()


@pytest.mark.slow
def test_a_restored_variant_is_bit_identical(
    made: Made, quantized: tuple[str, Encoder], tmp_path: Path
) -> None:
    if (made.kind, quantized[0]) != ("altclip", "fp8-attention"):
        pytest.skip("a process each: one of them shows it")
    found = measure_roundtrip(quantized[1], batches=[made.batch], directory=tmp_path)

    assert found.equal == {"vision": True, "text": True}


def test_its_files_are_checked(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_checkpoint(made.folder) == ()
    assert find_unknown(made.folder) is None
    arguments = ["init", "--model", str(made.folder), "--data", "scenes", "--output", "-"]
    assert main([*arguments, "--target", "sm89"], environ={}) == 0
    text = capsys.readouterr().out
    assert "# text: 2 blocks of width 32, 2 heads, 16 tokens" in text
    linears = 14 if made.kind == "altclip" else 13
    assert f"towers: [text], min_fp8_gemms: {linears}" in text


def test_padding_is_masked_where_the_tokenizer_gives_no_mask(made: Made) -> None:
    if made.kind.startswith("owl"):
        pytest.skip("its text tower is causal: no token sees the padding behind it")
    given = made.fp16.tokenize(TEXTS)
    made.fp16.tokenizer.model_input_names = ["input_ids"]
    found = made.fp16.tokenize(TEXTS)
    made.fp16.tokenizer.model_input_names = ["input_ids", "attention_mask"]

    assert torch.equal(found["attention_mask"], given["attention_mask"])
    assert int(given["attention_mask"].min()) == 0


def test_the_towers_of_a_detector_are_taken_and_its_heads_are_named(
    made: Made, tmp_path: Path, model_spec: Callable[..., ModelSpec]
) -> None:
    if not made.kind.startswith("owl"):
        pytest.skip("it detects nothing")
    for path in made.folder.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["architectures"] = [f"{KINDS[made.kind][0]}ForObjectDetection"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stored = load_file(made.folder / "model.safetensors")
    whole = {f"{made.kind}.{name}": tensor for name, tensor in stored.items()}
    whole["class_head.dense0.weight"] = torch.ones(2, 2)
    save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})

    encoder = load_fp16(model_spec(tmp_path), environ={})

    wanted = made.fp16.encode_image(made.batch.pixel_values)
    assert torch.equal(encoder.encode_image(made.batch.pixel_values), wanted)
    assert "its heads for boxes and classes are left out" in encoder.notes[0]
