"""Variants that this product saves itself: good twins of several recipes, and damage."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.quantization.checkpoint import save_checkpoint
from tests.unit.inspection.quantized_files import (
    codes,
    inspect,
    read_safetensors,
    write_safetensors,
)

SAVED = "modelopt-save-fp8-attention"

RECIPES = {
    "fp8-attention": ("fp8-attention", 30.0),
    "int8": ("int8", 40.0),
    "int8-smoothquant": ("int8-smoothquant", 25.0),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_saved_variant_has_no_finding(
    make_quantized: Callable[..., Encoder],
    tiny_fp16: Encoder,
    tmp_path: Path,
    recipe: str,
) -> None:
    name, least = RECIPES[recipe]
    folder = tmp_path / "checkpoint"
    save_checkpoint(make_quantized(recipe), folder)
    tiny_fp16.module.save_pretrained(tmp_path / "base")  # type: ignore[operator]

    found = inspect(folder, base=tmp_path / "base")

    assert found.findings == ()
    assert found.headline.startswith(f"{name} checkpoint of pytest-quantgate with ModelOpt ")
    assert found.against is not None
    noise = [layer.sqnr_db for layer in found.against.layers]
    assert len(noise) > 20
    assert min(noise) > least


def test_a_file_that_was_changed_after_saving_is_named(
    make_quantized: Callable[..., Encoder], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(make_quantized("fp8-attention"), folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")

    found = inspect(folder)

    assert codes(found) == {"check.changed-after-saving"}
    assert "config.json was changed after it was saved" in found.findings[0].headline


def test_layers_that_transformers_renamed_are_found_by_their_ranges(
    handed_over: Path, tmp_path: Path
) -> None:
    """As ViT is saved: `encoder.layer.0.attention.attention.query` for `layers.0....q_proj`."""
    folder = tmp_path / "renamed"
    tensors, metadata = read_safetensors(handed_over / SAVED / "model.safetensors")
    renamed = {name.replace("encoder.layers", "encoder.layer"): t for name, t in tensors.items()}
    write_safetensors(folder / "model.safetensors", renamed, metadata=metadata)
    shutil.copyfile(handed_over / SAVED / "modelopt_state.pth", folder / "modelopt_state.pth")

    found = inspect(folder)

    assert codes(found) == set()
    assert "38 of 38 Linear layers FP8 (E4M3)" in found.headline
    assert any("other names in the file than in its state" in note for note in found.notes)


def switch_off(handed_over: Path, folder: Path, pattern: str, *, is_said: bool = False) -> Path:
    """Copy the saved model with the quantizers switched off whose names match a pattern.

    `is_said` adds the pattern to the recipe that the state keeps.
    """
    shutil.copytree(handed_over / SAVED, folder, copy_function=shutil.copyfile)
    path = folder / "modelopt_state.pth"
    state = torch.load(path, weights_only=True)
    for _, entry in state["modelopt_state_dict"]:
        if is_said and "quant_cfg" in entry["config"]:
            entry["config"]["quant_cfg"].append({"quantizer_name": pattern, "enable": False})
        for name, quantizer in entry["metadata"]["quantizer_state"].items():
            if fnmatch.fnmatch(name, pattern):
                quantizer["_disabled"] = True
    torch.save(state, path)
    return folder


@pytest.mark.parametrize(
    ("pattern", "code", "words"),
    [
        (
            "vis*",
            "check.tower-off",
            "the whole vision tower is unquantized: 0 of 25 Linear layers, 13 of 13 in the text "
            "tower",
        ),
        (
            "*layers.1*q_bmm_quantizer",
            "check.attention-partial",
            "attention q is not quantized in 2 blocks, where other operands of attention are: "
            "text_model.encoder.layers.1.self_attn, vision_model.encoder.layers.1.self_attn",
        ),
        (
            "*q_bmm_quantizer",
            "check.attention-operand-off",
            "attention q is not quantized in 6 blocks, where other operands of attention are: "
            "text_model.encoder.layers.{0-1}.self_attn (2), "
            "vision_model.encoder.layers.{0-3}.self_attn (4)",
        ),
        (
            "*layers.1.mlp.fc1.input_quantizer",
            "check.input-off",
            "2 layers with a quantized weight and an input that is not, so computed in full "
            "precision: text_model.encoder.layers.1.mlp.fc1, vision_model.encoder.layers.1.mlp.fc1",
        ),
        (
            "*layers.1.mlp.fc1.*_quantizer",
            "check.layers-off",
            "2 Linear layers unquantized, whose like in other blocks are quantized: "
            "text_model.encoder.layers.1.mlp.fc1, vision_model.encoder.layers.1.mlp.fc1",
        ),
    ],
)
def test_quantizers_that_were_switched_off_are_named(
    handed_over: Path, tmp_path: Path, pattern: str, code: str, words: str
) -> None:
    found = inspect(switch_off(handed_over, tmp_path / "off", pattern))

    assert codes(found) == {code}
    assert found.findings[0].headline == words


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*layers.1.mlp*", set()),
        ("*visual_projection*", set()),
        ("*visual*", {"check.projection-off"}),  # which names the projection by the way
    ],
)
def test_what_the_recipe_leaves_out_by_name_is_meant(
    handed_over: Path, tmp_path: Path, pattern: str, expected: set[str]
) -> None:
    folder = switch_off(handed_over, tmp_path / "off", pattern, is_said=True)

    assert codes(inspect(folder)) == expected
