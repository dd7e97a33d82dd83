"""Variants that this product saves itself: good twins of several recipes, and damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pytest_quantgate.models.checkpoint import save_checkpoint
from pytest_quantgate.models.encoder import Encoder
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


def test_a_tower_whose_quantizers_were_switched_off_is_named(
    handed_over: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "off"
    shutil.copytree(handed_over / SAVED, folder, copy_function=shutil.copyfile)
    path = folder / "modelopt_state.pth"
    state = torch.load(path, weights_only=True)
    for _, entry in state["modelopt_state_dict"]:
        for name, quantizer in entry["metadata"]["quantizer_state"].items():
            if name.startswith("vis"):
                quantizer["_disabled"] = True
    torch.save(state, path)

    found = inspect(folder)

    assert codes(found) == {"check.tower-off"}
    assert found.findings[0].headline == (
        "the whole vision tower is unquantized: 0 of 25 Linear layers, 13 of 13 in the text tower"
    )
