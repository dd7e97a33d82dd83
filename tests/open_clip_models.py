"""Small models of open_clip with random weights, saved as its own checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def save_open_clip(folder: Path) -> Path:
    """Write a seeded checkpoint in float16 into a folder, and return the folder."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module: Any = CLIP(**CONFIG["model_cfg"])
    weights = {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


#: Vision towers that timm makes, the smallest of each: side of an image, pooling, projection.
TRUNKS: dict[str, tuple[int, str, str | None]] = {
    "test_vit": (160, "token", None),
    "test_vit3": (160, "map", "none"),  # as SigLIP
    "eva02_tiny_patch14_224": (224, "token", None),
    "fastvit_mci0": (256, "avg", None),  # MobileCLIP2-S0
}


def save_trunk(name: str, folder: Path) -> Any:
    """Write a seeded checkpoint with a trunk of timm, and return open_clip's own module."""
    import torch
    from open_clip.model import CustomTextCLIP
    from safetensors.torch import save_file

    side, pool, projection = TRUNKS[name]
    model = {
        "embed_dim": 96 if projection == "none" else 32,
        "vision_cfg": {
            "image_size": side,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": pool,
            "timm_proj": projection,
        },
        "text_cfg": CONFIG["model_cfg"]["text_cfg"],
    }
    torch.manual_seed(0)
    module: Any = CustomTextCLIP(**model).eval().requires_grad_(False)
    for part, tensor in module.named_buffers():
        if part.endswith("running_mean"):
            tensor.normal_(0.0, 0.1)
        elif part.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    weights = {part: tensor.contiguous() for part, tensor in module.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {**CONFIG, "model_cfg": {**model, "custom_text": True}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return module
