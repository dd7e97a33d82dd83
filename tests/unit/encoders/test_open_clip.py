"""Models of open_clip: the same embeddings as its own code gives, and what is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import nn

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.encoders.split_attention import SplitAttention, split_attention
from pytest_quantgate.errors import ModelError
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.model_checks import find_unknown, inspect_checkpoint
from pytest_quantgate.measure.parity import list_blocks, relative_error
from pytest_quantgate.measure.roundtrip import measure_roundtrip
from pytest_quantgate.measure.sanity import read_texts_of, tokenize_short
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.open_clip_models import TRUNKS, save_open_clip, save_trunk

open_clip = pytest.importorskip("open_clip")

TEXTS = ["a photo of a cat", "a dog", "two birds, and a very long sentence that is cut off here"]
TODAY = date(2026, 11, 1)
PROJECTIONS = ("visual.proj*", "text.text_projection*")

MakeSpec = Callable[..., ModelSpec]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("open-clip"))


@pytest.fixture(scope="module")
def encoder(folder: Path, model_spec: MakeSpec) -> Encoder:
    return load_fp16(model_spec(folder), environ={})


@pytest.fixture(scope="module")
def original(folder: Path) -> Any:
    """What open_clip itself makes of the folder: model, preprocessing and tokenizer."""
    name = f"local-dir:{folder}"
    module, _, preprocess = open_clip.create_model_and_transforms(name)
    return module.eval().float(), preprocess, open_clip.get_tokenizer(name)


@pytest.fixture(scope="module")
def batch(encoder: Encoder) -> Batch:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch.of_pairs(pixel_values=pixels, tokens=encoder.tokenize(TEXTS), ids=("a", "b", "c"))


@pytest.fixture(scope="module")
def quantized(
    encoder: Encoder, batch: Batch, make_recipe: Callable[[Any], Recipe]
) -> tuple[Encoder, Recipe]:
    recipe = make_recipe("fp8-attention")
    return quantize(encoder, recipe=recipe, exclude=PROJECTIONS, batches=[batch]).model, recipe


@pytest.mark.parametrize("fast_path", [False, True])
def test_the_embeddings_are_those_of_open_clip(
    encoder: Encoder, original: Any, batch: Batch, fast_path: bool
) -> None:
    """Bit for bit where PyTorch does not take its native path, which adds in another order."""
    module = original[0]
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        with torch.no_grad():
            images = module.encode_image(batch.pixel_values)
            texts = module.encode_text(batch.tokens["input_ids"])
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

    found = (encoder.encode_image(batch.pixel_values), encoder.encode_text(batch.tokens))

    for value, wanted in zip(found, (images, texts), strict=True):
        if fast_path:
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(value, wanted)


def test_prompts_of_sanity_are_filled_up(encoder: Encoder) -> None:
    """Its attention has a mask of the full length alone."""
    found = tokenize_short(TEXTS[:2], model=encoder, reader=read_texts_of(encoder))

    assert torch.equal(found["input_ids"], encoder.tokenize(TEXTS[:2])["input_ids"])


def test_tokenizer_and_preprocessing_are_those_of_open_clip(
    encoder: Encoder, original: Any
) -> None:
    from PIL import Image

    _, preprocess, tokenizer = original
    generator = numpy.random.default_rng(0)
    pictures = [generator.integers(0, 256, size, dtype=numpy.uint8) for size in ((48, 40, 3),) * 2]

    wanted = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])

    assert torch.equal(encoder.preprocess(pictures), wanted)
    assert torch.equal(encoder.tokenize(TEXTS)["input_ids"], tokenizer(TEXTS))


@pytest.mark.parametrize("bias", [True, False])
def test_split_attention_is_the_attention_that_it_was(bias: bool) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(24, 3, bias=bias, batch_first=True).eval()
    model = nn.Sequential(whole)
    value = torch.randn(2, 5, 24)
    mask = torch.full((5, 5), float("-inf")).triu(1)
    with torch.no_grad():
        wanted = whole(value, value, value, need_weights=False, attn_mask=mask)[0]
        assert split_attention(model) == 1
        found = model[0](value, value, value, attn_mask=mask)[0]

    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert isinstance(model[0].core, SplitAttention)


@pytest.mark.parametrize("wrong", [{"kdim": 8, "vdim": 8}, {"add_bias_kv": True}])
def test_other_attention_is_not_split(wrong: dict[str, Any]) -> None:
    model = nn.Sequential(nn.MultiheadAttention(24, 3, batch_first=True, **wrong))

    with pytest.raises(ValueError, match="0 has keys or values of another size, or adds some"):
        split_attention(model)


def test_every_block_is_covered_and_each_projection_named(
    quantized: tuple[Encoder, Recipe], batch: Batch
) -> None:
    model, recipe = quantized

    def judge(exclude: tuple[str, ...]) -> Any:
        audit = audit_quantizers(model, recipe=recipe, exclude=exclude, held_out=[batch])
        gate = CoverageGate(where=Where(file="s.yaml", line=1))
        return judge_coverage(audit, gate=gate, today=TODAY)

    verdict = judge(PROJECTIONS)
    assert verdict.passed, verdict.headline
    assert "attention q k v output in 2+2 blocks" in verdict.brief
    assert verdict.figures["weights_covered_share"] < 1
    assert "excluded, a Parameter: visual.proj" in verdict.evidence

    verdict = judge(PROJECTIONS[:1])
    assert verdict.code == "coverage.weights-escaped"
    assert "text.text_projection" in "".join(verdict.evidence)
    assert 'add exclude: ["text.text_projection*"]' in verdict.next_step

    verdict = judge((*PROJECTIONS, "visual.porj*"))
    assert verdict.code == "coverage.exclude-matches-nothing"


@pytest.mark.usefixtures("_forked_restores")
def test_a_restored_variant_is_bit_identical(
    quantized: tuple[Encoder, Recipe], batch: Batch, tmp_path: Path
) -> None:
    found = measure_roundtrip(quantized[0], batches=[batch], directory=tmp_path)

    assert found.equal == {"vision": True, "text": True}
    assert (found.amax_different, found.accepted) == ((), ())


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_exported_tower_computes_the_same(
    quantized: tuple[Encoder, Recipe], batch: Batch, tmp_path: Path, tower: Any
) -> None:
    model, _ = quantized
    exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx")
    inputs = batch.inputs[tower]

    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in inputs.items()})
    wanted = model.encode(tower, inputs)

    # Of most samples: a value on the edge between two steps may be rounded apart.
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4
    assert exported.not_executed == ()
    assert len(exported.quantizers) == 2 * (2 * 6 + 4) + (2 if tower == "vision" else 0)


# -- sabotages, and what is refused ---------------------------------------------------------------


def test_whole_attention_is_named_with_its_cause(
    folder: Path, batch: Batch, make_recipe: Callable[[Any], Recipe], model_spec: MakeSpec
) -> None:
    """Without the split its quantizers are on and calibrated, and the fast path calls none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_quantgate.encoders.split_attention.split_attention", lambda _: 0)
        model = load_fp16(model_spec(folder), environ={})
    recipe = make_recipe("fp8-attention")
    found = quantize(model, recipe=recipe, exclude=PROJECTIONS, batches=[batch]).model
    audit = audit_quantizers(found, recipe=recipe, exclude=PROJECTIONS, held_out=[batch])

    gate = CoverageGate(where=Where(file="s.yaml", line=1))
    verdict = judge_coverage(audit, gate=gate, today=TODAY)

    assert verdict.code == "coverage.weights-escaped"
    assert "fused calls of nn.MultiheadAttention" in verdict.headline
    assert "ModelOpt has no quantized class of nn.MultiheadAttention" in verdict.cause


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "of timm's models ViT, EVA and"),
        ("vision_cfg", {"timm_model_name": "vit_relpos_small"}, "(model: {source: factory})"),
        ("vision_cfg", {"timm_model_name": "vit_of_nobody"}, "does not know: make it by a"),
        (
            "vision_cfg",
            {"timm_model_name": "test_vit", "image_size": 96},
            "vision_cfg.image_size is (96, 96), its trunk of timm takes (160, 160)",
        ),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "a text tower of transformers"),
        ("text_cfg", {"hf_tokenizer_name": "bert-base-uncased"}, "a tokenizer of the hub"),
        ("vision_cfg", {"attentional_pool": True}, "an attention that pools"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "is a ResNet"),
        ("text_cfg", {"qk_norm": True}, "a custom block"),
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/x"}}, "tokenizer_kwargs has bpe_path"),
        ("vision_cfg", {"width": 10**9}, "vision_cfg.width is 1000000000: expected 1 to"),
    ],
)
def test_what_is_not_taken_is_said_before_a_run(
    tmp_path: Path,
    model_spec: MakeSpec,
    capsys: pytest.CaptureFixture[str],
    section: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    folder = save_open_clip(tmp_path)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["model_cfg"][section].update(changes)
    path.write_text(json.dumps(config), encoding="utf-8")

    with pytest.raises(ModelError, match=re.escape(said)):
        load_fp16(model_spec(folder), environ={})
    assert main(["doctor", str(folder)], environ={}) == 1
    assert said in capsys.readouterr().out


def test_a_weight_that_is_missing_or_has_no_place_is_named(
    tmp_path: Path, model_spec: MakeSpec
) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_open_clip(tmp_path)
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    save_file({n: t for n, t in weights.items() if n != "visual.proj"}, path)
    with pytest.raises(ModelError, match="1 weights are missing or of another shape, first vis"):
        load_fp16(model_spec(folder), environ={})
    save_file({**weights, "visual.head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelError, match=r"1 weights have no place .* first visual.head.weight"):
        load_fp16(model_spec(folder), environ={})


def test_its_files_are_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_checkpoint(folder) == ()
    assert find_unknown(folder) is None
    assert main(["doctor", str(folder)], environ={}) == 0
    arguments = ["init", "--model", str(folder), "--data", "scenes", "--target", "sm89"]
    assert main([*arguments, "--output", "-"], environ={}) == 0
    text = capsys.readouterr().out
    assert 'exclude: ["visual.proj*", "text.text_projection*"]' in text
    assert "towers: [vision], min_fp8_gemms: 12" in text


class Trunk(NamedTuple):
    name: str
    folder: Path
    module: Any
    encoder: Encoder
    batch: Batch


@pytest.fixture(scope="module", params=TRUNKS)
def trunk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_spec: MakeSpec
) -> Trunk:
    """A checkpoint with a trunk of timm, in float32: convolutions are put together there."""
    folder = tmp_path_factory.mktemp(request.param)
    module = save_trunk(request.param, folder)
    found = load_fp16(replace(model_spec(folder), dtype="float32"), environ={})
    side = TRUNKS[request.param][0]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    batch = Batch.of_pairs(pixel_values=pixels, tokens=found.tokenize(TEXTS[:2]), ids=("a", "b"))
    return Trunk(request.param, folder, module, found, batch)


def test_a_trunk_of_timm_embeds_as_open_clip_does(trunk: Trunk) -> None:
    wanted = trunk.module.encode_image(trunk.batch.pixel_values)

    found = trunk.encoder.encode_image(trunk.batch.pixel_values)

    assert relative_error(found, wanted) < 1e-5
    assert find_unknown(trunk.folder) is None
    assert trunk.encoder.tower("vision").tokens == {
        "test_vit": 101,
        "test_vit3": 101,
        "eva02_tiny_patch14_224": 257,
        "fastvit_mci0": 64,
    }[trunk.name]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8-attention", "int8"])
def test_every_layer_of_a_trunk_is_covered_and_exported(
    trunk: Trunk, make_recipe: Callable[[Any], Recipe], tmp_path: Path, name: str
) -> None:
    tower = trunk.encoder.tower("vision")
    exclude = ("*text_projection*", *(f"{part}*" for part in tower.fused))
    recipe = make_recipe(name)
    model = quantize(trunk.encoder, recipe=recipe, exclude=exclude, batches=[trunk.batch]).model
    audit = audit_quantizers(model, recipe=recipe, exclude=exclude, held_out=[trunk.batch])

    gate = CoverageGate(where=Where(file="s.yaml", line=1))
    verdict = judge_coverage(audit, gate=gate, today=TODAY)
    exported = export_tower(model, tower="vision", path=tmp_path / "vision.onnx")
    plain = export_tower(trunk.encoder, tower="vision", path=tmp_path / "plain.onnx")
    pixels = trunk.batch.pixel_values
    found = OnnxRuntimeModel(plain.path).embed({"pixel_values": pixels.numpy()})

    assert verdict.passed, (verdict.headline, *verdict.evidence)
    assert exported.not_executed == ()
    assert relative_error(torch.from_numpy(found), trunk.encoder.encode_image(pixels)) < 1e-5
    blocks = list_blocks(model, tower="vision")
    assert len(blocks) == {"eva02_tiny_patch14_224": 12, "fastvit_mci0": 2}.get(
        trunk.name, len(blocks)
    )


def test_timm_fetches_no_weights(trunk: Trunk, tmp_path: Path, model_spec: MakeSpec) -> None:
    if trunk.name != "test_vit":
        pytest.skip("one shows it")
    for path in trunk.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["model_cfg"]["vision_cfg"]["timm_model_pretrained"] = True
    path.write_text(json.dumps(config), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models._builder.load_pretrained", pytest.fail)
        load_fp16(model_spec(tmp_path), environ={})
