"""The package of examples/plugin/ adds Chinese CLIP: one file, and nothing else changes.

Its text tower is as far from CLIP's as one gets: another attention class with other names, no
causal mask, and the first token pooled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.families import list_model_types
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.model_checks import inspect_checkpoint
from pytest_quantgate.measure.roundtrip import measure_roundtrip
from pytest_quantgate.measure.sanity import read_texts_of
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import resolve_recipe
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec, QuantizeSpec
from pytest_quantgate.suite.where import Where
from tests.plugin_package import write_metadata

WHERE = Where(file="s.yaml", line=1)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "猫", "狗", "车", "红", "蓝")
TEXTS = ["红猫", "蓝车", "狗", "红狗猫"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package is on the path, here and in every process that is started from here."""
    with pytest.MonkeyPatch.context() as patch:
        folders = write_metadata(tmp_path_factory.mktemp("site"))
        for folder in folders:
            patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chinese-clip")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """A tiny Chinese CLIP with random weights, as transformers makes and saves it."""
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    torch.manual_seed(0)
    config = ChineseCLIPConfig(
        text_config={**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 12},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    module: Any = ChineseCLIPModel(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    module.half().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ChineseCLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return module.float()


@pytest.fixture(scope="module")
def fp16(folder: Path, plain: Any) -> Encoder:
    del plain  # it wrote the folder
    return load_fp16(ModelSpec(where=WHERE, source="transformers", id=str(folder)), environ={})


@pytest.fixture(scope="module")
def batch(fp16: Encoder) -> Batch:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch.of_pairs(pixel_values=pixels, tokens=fp16.tokenize(TEXTS), ids=tuple("abcd"))


@pytest.fixture(scope="module")
def quantized(fp16: Encoder, batch: Batch) -> Encoder:
    recipe = resolve_recipe(QuantizeSpec(where=WHERE, recipe="fp8-attention"), environ={})
    return quantize(fp16, recipe=recipe, exclude=("*patch_embedding*",), batches=[batch]).model


def test_embeddings_are_those_of_transformers(plain: Any, fp16: Encoder, batch: Batch) -> None:
    assert "chinese_clip" in list_model_types()
    images = plain.get_image_features(pixel_values=batch.pixel_values).pooler_output
    texts = plain.get_text_features(**batch.tokens).pooler_output

    torch.testing.assert_close(fp16.encode_image(batch.pixel_values), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fp16.encode_text(batch.tokens), texts, rtol=1e-4, atol=1e-5)
    assert read_texts_of(fp16).read(TEXTS).distinct == len(TEXTS)


def test_padding_is_masked_where_the_tokenizer_gives_no_mask(fp16: Encoder) -> None:
    given = fp16.tokenize(TEXTS)
    fp16.tokenizer.model_input_names = ["input_ids"]
    made = fp16.tokenize(TEXTS)
    fp16.tokenizer.model_input_names = ["input_ids", "attention_mask"]

    assert torch.equal(made["attention_mask"], given["attention_mask"])
    assert int(given["attention_mask"].min()) == 0


def test_every_layer_and_block_is_covered(quantized: Encoder, batch: Batch) -> None:
    recipe = resolve_recipe(QuantizeSpec(where=WHERE, recipe="fp8-attention"), environ={})
    audit = audit_quantizers(
        quantized, recipe=recipe, exclude=("*patch_embedding*",), held_out=[batch]
    )

    verdict = judge_coverage(audit, gate=CoverageGate(where=WHERE), today=date(2026, 11, 1))

    assert verdict.passed, verdict.headline
    assert "attention q k v output in 2+2 blocks" in verdict.brief


@pytest.mark.usefixtures("_forked_restores")
def test_a_restored_variant_is_bit_identical(
    quantized: Encoder, batch: Batch, tmp_path: Path
) -> None:
    found = measure_roundtrip(quantized, batches=[batch], directory=tmp_path)

    assert found.equal == {"vision": True, "text": True}


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_exported_tower_computes_the_same(
    quantized: Encoder, batch: Batch, tmp_path: Path, tower: Any
) -> None:
    exported = export_tower(quantized, tower=tower, path=tmp_path / "tower.onnx")
    inputs = batch.inputs[tower]

    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in inputs.items()})
    wanted = quantized.encode(tower, inputs)

    # Of most samples: a value on the edge between two steps may be rounded apart.
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4
    assert exported.not_executed == ()


def test_its_files_are_checked(
    plain: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del plain

    assert inspect_checkpoint(folder) == ()
    arguments = ["init", "--model", str(folder), "--data", "scenes", "--output", "-"]
    assert main([*arguments, "--target", "sm89"], environ={}) == 0
    text = capsys.readouterr().out
    assert "# text: 2 blocks of width 32, 2 heads, 12 tokens" in text
    assert "towers: [text], min_fp8_gemms: 13" in text
    suite = tmp_path / "suites" / "chinese.quantgate.yaml"
    suite.parent.mkdir()
    suite.write_text(text, encoding="utf-8")
    assert main(["validate", "--deep", str(suite)], environ={}) == 0
