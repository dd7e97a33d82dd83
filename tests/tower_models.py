"""Tiny models of vision and language with random weights, saved whole or as their tower alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

Kind = Literal["qwen2_5_vl", "qwen3_vl", "internvl"]

KINDS: tuple[Kind, ...] = ("qwen2_5_vl", "qwen3_vl", "internvl")

#: Pixels a side of the images of each.
SIDES = {"qwen2_5_vl": 32, "qwen3_vl": 32, "internvl": 32}

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64}


def make_config(kind: Kind) -> Any:
    """Return the configuration of a whole model."""
    import transformers

    text = {**SIZES, "hidden_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    if kind == "internvl":
        vision = transformers.InternVLVisionConfig(
            **SIZES, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4
        )
        return transformers.InternVLConfig(
            vision_config=vision.to_dict(), text_config={**text, "model_type": "qwen2"}
        )
    shared = {**SIZES, "depth": 3, "num_heads": 2, "out_hidden_size": 48, "patch_size": 4}
    angles = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    if kind == "qwen2_5_vl":
        own = {"window_size": 16, "fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(
            vision_config={**shared, **own}, text_config={**text, "rope_parameters": angles}
        )
    own = {"num_position_embeddings": 36, "deepstack_visual_indexes": [0]}
    return transformers.Qwen3VLConfig(
        vision_config={**shared, **own},
        text_config={**text, "head_dim": 12, "rope_parameters": angles},
    )


def get_class(kind: Kind) -> Any:
    import transformers

    names = {
        "internvl": "InternVLForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
    }
    return getattr(transformers, names[kind])


def load_whole(kind: Kind, folder: Path) -> Any:
    """Return the whole module in float32, by transformers alone."""
    import torch

    return get_class(kind).from_pretrained(folder, dtype=torch.float32).eval()


def save_tower_model(kind: Kind, folder: Path, *, alone: bool = False) -> None:
    """Write a seeded checkpoint in float16, of the whole model or of its tower."""
    import torch
    import transformers

    torch.manual_seed(0)
    module: Any = get_class(kind)(make_config(kind)).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    saved = module.half().model.visual if alone else module.half()
    saved.save_pretrained(folder)
    side = SIDES[kind]
    if kind == "internvl":
        processor: Any = transformers.GotOcr2ImageProcessor(
            size={"height": side, "width": side},
            crop_to_patches=True,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
    else:
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "qwen3_vl" else {}
        area = {"min_pixels": side * side, "max_pixels": side * side}
        processor = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, **area, **half)
    processor.save_pretrained(folder)
