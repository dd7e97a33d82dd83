"""Tiny vision encoders of several classes, made by transformers itself and saved as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}

#: By name: the class, its configuration and its image processor, with what differs from `SIZES`.
KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", "ViTImageProcessor", {"intermediate_size": 64}),
    "clip": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        "CLIPImageProcessor",
        {"intermediate_size": 64},
    ),
    "projection": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        "CLIPImageProcessor",
        {"intermediate_size": 64, "projection_dim": 16},
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", "BitImageProcessor", {"mlp_ratio": 2}),
    "registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        "BitImageProcessor",
        {"mlp_ratio": 2, "num_register_tokens": 3},
    ),
    "dinov3": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        "DINOv3ViTImageProcessor",
        {"intermediate_size": 64, "num_register_tokens": 3},
    ),
    # Trained on larger images than its processor makes, as the released checkpoints are.
    "smaller": ("Dinov2Model", "Dinov2Config", "BitImageProcessor", {"image_size": 48}),
}

#: Those that no family of this package takes: examples/plugin/ does.
OTHERS = {"deit": ("DeiTModel", "DeiTConfig", "DeiTImageProcessor", {"intermediate_size": 64})}


def save_vision_encoder(kind: str, folder: Path) -> Any:
    """Write a seeded checkpoint of a kind in float16, and return what transformers reads of it."""
    import torch
    import transformers

    model, config, processor, changes = {**KINDS, **OTHERS}[kind]
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**{**SIZES, **changes})
    module: Any = getattr(transformers, model)(settings).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    module.half().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    if processor in ("ViTImageProcessor", "DINOv3ViTImageProcessor"):
        getattr(transformers, processor)(size=size).save_pretrained(folder)
    else:
        made = getattr(transformers, processor)(size={"shortest_edge": 32}, crop_size=size)
        made.save_pretrained(folder)
    read: Any = type(module).from_pretrained(folder, dtype=torch.float32)
    return read.eval().requires_grad_(False)


def save_vision_tower(clip: Path, folder: Path) -> Path:
    """Write the vision tower of a CLIP checkpoint as a model of its own, without a projection."""
    import shutil

    import transformers

    whole = transformers.CLIPModel.from_pretrained(clip)
    tower: Any = transformers.CLIPVisionModel(whole.config.vision_config)
    tower.load_state_dict(
        {
            name if name in tower.state_dict() else name.removeprefix("vision_model."): value
            for name, value in whole.state_dict().items()
            if name.startswith("vision_model.")
        }
    )
    tower.half().save_pretrained(folder)
    shutil.copy(clip / "preprocessor_config.json", folder)
    return folder
