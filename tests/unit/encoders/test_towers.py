"""The vision towers of Qwen2.5-VL, Qwen3-VL and InternVL, out of checkpoints of the whole model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError
from pytest_quantgate.measure.model_checks import find_unknown, inspect_checkpoint
from pytest_quantgate.suite.specs import ModelSpec
from tests.tower_models import KINDS, SIDES, Kind, load_whole, save_tower_model

MakeSpec = Callable[..., ModelSpec]


class Saved(NamedTuple):
    kind: Kind
    folder: Path
    encoder: Encoder


@pytest.fixture(scope="module", params=KINDS)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_spec: MakeSpec
) -> Saved:
    folder = tmp_path_factory.mktemp(request.param)
    save_tower_model(request.param, folder)
    return Saved(request.param, folder, load_fp16(model_spec(folder), environ={}))


def draw_images(side: int) -> list[Any]:
    """Return three square images that are larger than the model's."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (side + 9, side + 9, 3), dtype=np.uint8) for _ in range(3)]


def get_features(kind: Kind, folder: Path, images: list[Any]) -> torch.Tensor:
    """Return what the language model gets of images, by transformers alone, [N, D]."""
    import transformers

    module = load_whole(kind, folder).model
    if kind == "internvl":
        processor: Any = transformers.GotOcr2ImageProcessor.from_pretrained(folder)
        pixels = processor(images=images, return_tensors="pt", crop_to_patches=False)
        found = module.get_image_features(**pixels).pooler_output
        return found.flatten(1)  # type: ignore[no-any-return]
    processor = transformers.Qwen2VLImageProcessor.from_pretrained(folder)
    made = processor(images=images, return_tensors="pt")
    output = module.visual(made["pixel_values"], grid_thw=made["image_grid_thw"])
    parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    return torch.cat([part.reshape(len(images), -1) for part in parts], dim=1)


def copy_to(folder: Path, saved: Saved) -> None:
    for path in saved.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def edit(path: Path, changes: dict[str, Any]) -> None:
    settings = json.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(settings), encoding="utf-8")


def test_the_embedding_is_what_the_language_model_gets(saved: Saved) -> None:
    images = draw_images(SIDES[saved.kind])

    with torch.no_grad():
        wanted = get_features(saved.kind, saved.folder, images)
    found = saved.encoder.encode_image(saved.encoder.preprocess(images))

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert saved.encoder.tower_names == ("vision",)
    assert inspect_checkpoint(saved.folder) == ()
    assert find_unknown(saved.folder) is None


def test_samples_of_a_batch_do_not_see_one_another(saved: Saved) -> None:
    pixels = saved.encoder.preprocess(draw_images(SIDES[saved.kind]))

    whole = saved.encoder.encode_image(pixels)
    alone = torch.cat([saved.encoder.encode_image(pixel[None]) for pixel in pixels])

    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


def test_the_language_model_is_never_read(
    saved: Saved, tmp_path: Path, model_spec: MakeSpec
) -> None:
    copy_to(tmp_path, saved)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    read = ("visual.", "vision_tower.", "multi_modal_projector.")
    unread = [n for n in weights if not n.removeprefix("model.").startswith(read)]
    assert len(unread) > 10
    spoiled = {n: t * torch.nan if n in unread else t for n, t in weights.items()}
    save_file(spoiled, path, metadata={"format": "pt"})
    pixels = saved.encoder.preprocess(draw_images(SIDES[saved.kind]))

    found = load_fp16(model_spec(tmp_path), environ={})

    assert torch.equal(found.encode_image(pixels), saved.encoder.encode_image(pixels))
    assert not any("language" in name for name, _ in found.module.named_modules())


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_the_tower_alone_is_the_same(kind: Kind, tmp_path: Path, model_spec: MakeSpec) -> None:
    images = draw_images(SIDES[kind])
    found = []
    for alone in (False, True):
        folder = tmp_path / str(alone)
        save_tower_model(kind, folder, alone=alone)
        encoder = load_fp16(model_spec(folder), environ={})
        found.append(encoder.encode_image(encoder.preprocess(images)))

    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("kind", "file", "changes", "said"),
    [
        (
            "qwen2_5_vl",
            "preprocessor_config.json",
            {"size": {"shortest_edge": 3136, "longest_edge": 1003520}},
            "min_pixels is 3136 and max_pixels 1003520: each image would set a grid of its own, "
            "and an engine has one: set both to the area of a square whose side is a multiple of "
            "16, such as 200704 (448 x 448)",
        ),
        (
            "qwen2_5_vl",  # whole patches, and no whole windows
            "preprocessor_config.json",
            {"size": {"shortest_edge": 24 * 24, "longest_edge": 24 * 24}},
            "a square whose side is a multiple of 16",
        ),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            {"size": {"shortest_edge": 1000, "longest_edge": 1000}},
            "a square whose side is a multiple of 8",
        ),
        ("qwen3_vl", "config.json", {"vision_config": {"depth": 0}}, "depth is 0: expected 1 to"),
        (
            "qwen3_vl",
            "config.json",
            {"vision_config": {"deepstack_visual_indexes": [3]}},
            "deepstack_visual_indexes is [3], there are 3",
        ),
        (
            "internvl",
            "config.json",
            {"vision_feature_layer": -4},
            "vision_feature_layer is -4, vision_feature_select_strategy 'default' and "
            "downsample_ratio 0.5; -1, 'default' and 0.5 are taken: make it by a function of your "
            "own (model: {source: factory})",
        ),
        (
            "internvl",
            "config.json",
            {"vision_config": {"image_size": [36, 36]}},
            "9 x 9 patches are no squares of four",
        ),
        ("internvl", "config.json", {"model_type": "internvl_chat"}, "it brings code of its own"),
        ("qwen3_vl", "config.json", {"model_type": "qwen2_vl"}, "'qwen2_vl' is not taken yet"),
    ],
)
def test_what_is_not_taken_is_said_before_a_run(
    tmp_path: Path,
    model_spec: MakeSpec,
    capsys: pytest.CaptureFixture[str],
    kind: Kind,
    file: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    save_tower_model(kind, tmp_path)
    edit(tmp_path / file, changes)
    if "model_type" in changes:
        edit(tmp_path / file, {"architectures": []})

    with pytest.raises(ModelError, match=re.escape(said)):
        load_fp16(model_spec(tmp_path), environ={})
    assert main(["doctor", str(tmp_path)], environ={}) == 1
    assert said in " ".join(capsys.readouterr().out.split())


def test_init_counts_the_linear_layers_of_the_tower(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init", "--model", str(saved.folder), "--data", "scenes", "--target", "sm89"]

    assert main([*arguments, "--output", "-"], environ={}) == 0

    linears = sum(type(m) is torch.nn.Linear for m in saved.encoder.module.modules())
    assert f"min_fp8_gemms: {linears}" in capsys.readouterr().out


def test_another_normalization_is_named(saved: Saved, tmp_path: Path) -> None:
    copy_to(tmp_path, saved)
    edit(tmp_path / "preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]})

    (fault,) = inspect_checkpoint(tmp_path)

    assert fault.finding == "normalization"
    assert saved.kind in fault.text
