"""SigLIP 2 NaFlex on one grid, and a tokenizer like Gemma's, which SigLIP 2 has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.model_checks import (
    find_unknown,
    inspect_checkpoint,
    read_texts_of_files,
)
from pytest_quantgate.measure.sanity import read_texts_of
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.siglip_models import TOKENS, save_gemma_tokenizer, save_naflex, save_siglip

MakeSpec = Callable[..., ModelSpec]

TEXTS = ["a cat", "A red dog", "Ünïcode: 4 cats, and more than there is room for"]
HEAD = ("*head.attention*",)


@pytest.fixture(scope="module", params=[16, 36])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose images have as many patches as were trained, and more."""
    found = tmp_path_factory.mktemp("naflex")
    save_naflex(found, patches=request.param)
    return found


@pytest.fixture(scope="module")
def encoder(folder: Path, model_spec: MakeSpec) -> Encoder:
    return load_fp16(model_spec(folder), environ={})


def draw_images() -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (50, 50, 3), dtype=np.uint8) for _ in range(3)]


def test_the_embeddings_are_those_of_transformers(folder: Path, encoder: Encoder) -> None:
    """Of square images, whose patches are all of the grid: none is masked."""
    from transformers import AutoTokenizer, Siglip2ImageProcessor, Siglip2Model

    module = Siglip2Model.from_pretrained(folder, dtype=torch.float32).eval()
    made = Siglip2ImageProcessor.from_pretrained(folder)(images=draw_images(), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )

    with torch.no_grad():
        images = module.get_image_features(**made).pooler_output
        texts = module.get_text_features(input_ids=tokens["input_ids"]).pooler_output

    assert int(made["pixel_attention_mask"].min()) == 1
    found = encoder.encode_image(encoder.preprocess(draw_images()))
    torch.testing.assert_close(found, images, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        encoder.encode_text(encoder.tokenize(TEXTS)), texts, rtol=1e-5, atol=1e-6
    )
    assert "one grid of" in encoder.notes[0]


def test_its_files_are_looked_at(folder: Path) -> None:
    assert inspect_checkpoint(folder) == ()
    assert find_unknown(folder) is None


@pytest.mark.parametrize("name", ["fp8-attention", "int8"])
def test_every_block_is_covered_and_exported(
    encoder: Encoder, make_recipe: Callable[[Any], Recipe], tmp_path: Path, name: str
) -> None:
    batch = Batch.of_pairs(
        pixel_values=encoder.preprocess(draw_images()),
        tokens=encoder.tokenize(TEXTS),
        ids=("a", "b", "c"),
    )
    recipe = make_recipe(name)
    model = quantize(encoder, recipe=recipe, exclude=HEAD, batches=[batch]).model
    audit = audit_quantizers(model, recipe=recipe, exclude=HEAD, held_out=[batch])

    gate = CoverageGate(where=Where(file="s.yaml", line=1))
    verdict = judge_coverage(audit, gate=gate, today=date(2026, 11, 1))

    assert verdict.passed, (verdict.headline, *verdict.evidence)
    for tower in ("vision", "text"):
        exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx")
        inputs = {key: value.numpy() for key, value in batch.inputs[tower].items()}
        found = torch.from_numpy(OnnxRuntimeModel(exported.path).embed(inputs))
        wanted = model.encode(tower, batch.inputs[tower])
        # Of most samples: a value on the edge between two steps may be rounded apart.
        errors = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert float(errors.median()) < 1e-4
        assert exported.not_executed == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_num_patches": 20}, "max_num_patches is 20: an engine has one grid, that of a "),
        ({"patch_size": 16}, "patch_size is 16, the vision tower takes 8"),
        ({"max_num_patches": 0}, "0 patches of 8 pixels a side"),
        ({"max_num_patches": 160_000}, "images of 3200 x 3200 pixels: at most 1024 a side"),
    ],
)
def test_what_is_not_taken_is_said_before_a_run(
    tmp_path: Path,
    model_spec: MakeSpec,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    save_naflex(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps(settings), encoding="utf-8")

    with pytest.raises(ModelError, match=re.escape(said)):
        load_fp16(model_spec(tmp_path), environ={})
    assert main(["doctor", str(tmp_path)], environ={}) == 1
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "GemmaTokenizer"])
def test_a_fixed_siglip_2_reads_texts_with_a_tokenizer_like_gemmas(
    tmp_path: Path, model_spec: MakeSpec, kind: str
) -> None:
    """Its file says that letters are lowered. transformers' class of Gemma takes that out, the one
    of SigLIP 2 puts it in: files alone do not say how a text is read, and are not asked."""
    save_siglip(tmp_path)
    grow_table(tmp_path, words=save_gemma_tokenizer(tmp_path, kind=kind))

    encoder = load_fp16(model_spec(tmp_path), environ={})
    ids = encoder.tokenize(TEXTS)["input_ids"]
    small, large = (encoder.tokenize([text])["input_ids"] for text in ("a cat", "A CAT"))

    assert inspect_checkpoint(tmp_path) == ()
    assert read_texts_of_files(tmp_path) is None
    assert read_texts_of(encoder).read(TEXTS).distinct == len(TEXTS)
    assert [row.count(1) for row in ids.tolist()] == [1, 1, 1]
    assert small.equal(large) == (kind == "Siglip2Tokenizer")


def test_padding_on_the_side_of_the_class_is_red(tmp_path: Path) -> None:
    """Gemma's tokenizer pads on the left, SigLIP 2 was trained with padding on the right."""
    save_siglip(tmp_path)
    grow_table(tmp_path, words=save_gemma_tokenizer(tmp_path, padding_side="left"))

    (fault,) = inspect_checkpoint(tmp_path)

    assert fault.finding == "padding-side"


def grow_table(folder: Path, *, words: int) -> None:
    """Give the token table of a saved SigLIP so many rows."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "text_model.embeddings.token_embedding.weight"
    rows = torch.randn(words, weights[name].shape[1], generator=torch.Generator().manual_seed(0))
    save_file({**weights, name: (0.1 * rows).half()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["text_config"]["vocab_size"] = words
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
