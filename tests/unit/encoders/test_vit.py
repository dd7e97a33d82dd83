"""Vision encoders alone: what transformers computes, quantized, restored and exported."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.families import read_towers
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.parity import list_blocks
from pytest_quantgate.measure.roundtrip import measure_roundtrip
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.quantizers import find_quantizers
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes.onnx_blocks import cut_blocks
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.vision_encoders import KINDS, save_vision_encoder

pytestmark = pytest.mark.slow

TODAY = date(2026, 11, 1)
PATCHES = ("*patch_embed*",)

#: A kind, its folder, transformers' own module, and what the loader gives.
Made = tuple[str, Path, Any, Encoder]


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_spec: Callable[..., ModelSpec],
) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    module = save_vision_encoder(request.param, folder)
    return request.param, folder, module, load_fp16(model_spec(folder), environ={})


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            ids=tuple(f"{index}.{place}" for place in range(4)),
            inputs={"vision": {"pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}},
        )
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def quantized(
    made: Made, batches: list[Batch], make_recipe: Callable[[Any], Recipe]
) -> tuple[Encoder, Recipe]:
    recipe = make_recipe("fp8-attention")
    found = quantize(made[3], recipe=recipe, exclude=PATCHES, batches=batches)
    assert found.tower_batches == {"vision": 2}
    return found.model, recipe


def test_the_embedding_is_transformers_class_token(made: Made, batches: list[Batch]) -> None:
    kind, folder, module, encoder = made
    pixels = batches[0].pixel_values

    whole = module(pixel_values=pixels)
    named = {"clip": "pooler_output", "projection": "image_embeds"}.get(kind)
    wanted = getattr(whole, named) if named else whole.last_hidden_state[:, 0]

    assert read_towers(folder) == encoder.tower_names == ("vision",)
    torch.testing.assert_close(encoder.encode_image(pixels), wanted, rtol=1e-4, atol=1e-5)


def test_attention_sees_as_many_tokens_as_the_tower_says(made: Made, batches: list[Batch]) -> None:
    encoder = made[3]
    (tower,) = encoder.towers
    module: Any = encoder.module
    seen: list[torch.Size] = []
    attention = [child for child in module.modules() if type(child).__name__ in tower.attention]
    handle = attention[0].register_forward_pre_hook(
        lambda _module, inputs, named: seen.append((*inputs, *named.values())[0].shape),
        with_kwargs=True,
    )

    encoder.encode("vision", batches[0].inputs["vision"])
    handle.remove()

    assert len(attention) == len(list_blocks(encoder, tower="vision")) == 2
    assert seen == [torch.Size([4, tower.tokens, 32])]
    assert tower.inputs == {"pixel_values": (3, 32, 32)}


def test_a_text_is_not_taken(made: Made) -> None:
    with pytest.raises(ModelError, match="has no text tower: it has vision"):
        made[3].tokenize(["a cat"])


def test_every_block_is_covered(quantized: tuple[Encoder, Recipe], batches: list[Batch]) -> None:
    model, recipe = quantized
    audit = audit_quantizers(model, recipe=recipe, exclude=PATCHES, held_out=batches)
    gate = CoverageGate(where=Where(file="s.yaml", line=1), towers=("vision",))

    verdict = judge_coverage(audit, gate=gate, today=TODAY)

    assert verdict.passed, verdict.headline
    assert "attention q k v output in 2 blocks" in verdict.brief
    assert audit.towers == ("vision",)
    assert {quantizer.tower for quantizer in audit.quantizers} == {"vision"}
    assert {quantizer.block for quantizer in audit.quantizers if quantizer.slot == "q"} == {0, 1}


def test_a_tower_that_is_off_is_red(
    quantized: tuple[Encoder, Recipe], batches: list[Batch]
) -> None:
    model, recipe = quantized
    found = find_quantizers(model.module)
    enabled = [quantizer for quantizer in found.values() if quantizer.is_enabled]
    for quantizer in enabled:
        quantizer.disable()
    try:
        audit = audit_quantizers(model, recipe=recipe, exclude=PATCHES, held_out=batches)
    finally:
        for quantizer in enabled:
            quantizer.enable()
    gate = CoverageGate(where=Where(file="s.yaml", line=1), towers=("vision",))

    assert judge_coverage(audit, gate=gate, today=TODAY).code == "coverage.tower-off"


@pytest.mark.usefixtures("_forked_restores")
def test_a_restored_variant_is_bit_identical(
    quantized: tuple[Encoder, Recipe], batches: list[Batch], tmp_path: Path
) -> None:
    found = measure_roundtrip(quantized[0], batches=batches, directory=tmp_path)

    assert found.equal == {"vision": True}
    assert (found.amax_different, found.accepted) == ((), ())


def test_the_exported_tower_computes_the_same(
    quantized: tuple[Encoder, Recipe], batches: list[Batch], tmp_path: Path
) -> None:
    model, _ = quantized
    exported = export_tower(model, tower="vision", path=tmp_path / "vision.onnx")
    pixels = batches[0].inputs["vision"]

    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in pixels.items()})
    wanted = model.encode("vision", pixels)

    # Of most samples: a value on the edge between two steps may be rounded apart.
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4
    assert not exported.not_executed
    blocks = list_blocks(model, tower="vision")
    assert len(cut_blocks(exported.path, blocks=blocks, folder=tmp_path)) == 2 + 1
    assert len(exported.quantizers) == 2 * (2 * 6 + 4) + 2 * model.tower("vision").linears


def test_images_of_another_size_than_the_processor_makes_are_not_traced(
    made: Made, tmp_path: Path
) -> None:
    """What is exported takes one size, and its positions are those of that size."""
    kind, _, _, encoder = made
    path = export_tower(encoder, tower="vision", path=tmp_path / "vision.onnx").path
    other = torch.randn(1, 3, 40, 40).numpy()

    with pytest.raises(ModelError):
        OnnxRuntimeModel(path).embed({"pixel_values": other})
    assert encoder.tower("vision").tokens == 17 + 3 * (kind in ("registers", "dinov3"))
