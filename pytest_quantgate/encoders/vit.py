"""Vision encoders alone: ViT, DINOv2 with registers and without, and DINOv3.

The embedding is the class token behind the last norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders import clip
from pytest_quantgate.encoders.family import EncoderFamily, Pretrained
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.evidence.audit import TowerName

if TYPE_CHECKING:
    import torch

ONE_TOWER: tuple[TowerName, ...] = ("vision",)


def describe_vit(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a `ViTModel`."""
    height, width = as_pair(config.image_size)
    rows, columns = as_pair(config.patch_size)
    tower = TowerSpec(
        name="vision",
        parts=("embeddings", "layers", "layernorm"),
        inputs={"pixel_values": (config.num_channels, height, width)},
        embeddings="embeddings",
        attention=("ViTAttention",),
        tokens=(height // rows) * (width // columns) + 1,  # and the class token
        config=config,
        embed=embed_vit,
    )
    return (tower,)


def describe_dinov2(config: Any, *, attention: str) -> tuple[TowerSpec, ...]:
    """Return the one tower of a `Dinov2Model`, whose attention is of the class `attention`."""
    height, width = as_pair(config.image_size)
    rows, columns = as_pair(config.patch_size)
    patches = (height // rows) * (width // columns)
    tower = TowerSpec(
        name="vision",
        parts=("embeddings", "encoder", "layernorm"),
        inputs={"pixel_values": (config.num_channels, height, width)},
        embeddings="embeddings",
        attention=(attention,),
        tokens=patches + 1 + getattr(config, "num_register_tokens", 0),
        config=config,
        embed=embed_dinov2,
        freeze=partial(freeze_positions, height=height, width=width),
    )
    return (tower,)


def describe_dinov3(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a `DINOv3ViTModel`."""
    height, width = as_pair(config.image_size)
    rows, columns = as_pair(config.patch_size)
    tower = TowerSpec(
        name="vision",
        parts=("embeddings", "rope_embeddings", "model", "norm"),
        inputs={"pixel_values": (config.num_channels, height, width)},
        embeddings="embeddings",
        attention=("DINOv3ViTAttention",),
        tokens=(height // rows) * (width // columns) + 1 + config.num_register_tokens,
        config=config,
        embed=embed_dinov3,
        freeze=partial(freeze_angles, height=height, width=width),
        linears=config.num_hidden_layers if getattr(config, "use_gated_mlp", False) else 0,
    )
    return (tower,)


def embed_vit(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.embeddings(inputs["pixel_values"])
    for layer in module.layers:
        hidden = layer(hidden)
    found: torch.Tensor = module.layernorm(hidden)[:, 0]
    return found


def embed_dinov2(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.encoder(module.embeddings(inputs["pixel_values"])).last_hidden_state
    found: torch.Tensor = module.layernorm(hidden)[:, 0]
    return found


def embed_dinov3(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    pixels = inputs["pixel_values"]
    hidden = module.model(module.embeddings(pixels), module.rope_embeddings(pixels))
    found: torch.Tensor = module.norm(hidden.last_hidden_state)[:, 0]
    return found


def freeze_angles(tower: Any, *, height: int, width: int) -> None:
    """Put the angles of one image size in the place of those that are computed for any."""
    import torch

    rope = tower.rope_embeddings
    like = tower.embeddings.cls_token
    with torch.no_grad():
        found = rope(torch.zeros(1, 1, height, width, dtype=like.dtype))
    for name, value in zip(("cosine", "sine"), found, strict=True):
        rope.register_buffer(name, value)
    rope.forward = lambda _pixels: (rope.cosine, rope.sine)


def freeze_positions(tower: Any, *, height: int, width: int) -> None:
    """Put the positions of one image size in the place of those that are interpolated for any."""
    import torch

    embeddings = tower.embeddings
    rows, columns = (size // embeddings.config.patch_size for size in (height, width))
    like = embeddings.position_embeddings
    with torch.no_grad():
        patches = torch.zeros(1, rows * columns + 1, like.shape[-1], dtype=like.dtype)
        positions = embeddings.interpolate_pos_encoding(patches, height, width).detach()
    embeddings.position_embeddings = torch.nn.Parameter(positions, requires_grad=False)
    embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embeddings


def as_pair(size: Any) -> tuple[int, int]:
    """Return height and width of a size, which may be one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _settings(*, patch_size: int, **others: int) -> Mapping[str, Mapping[str, Any]]:
    """Return the sizes that transformers takes where config.json says nothing: the base model's."""
    sizes = {"num_channels": 3, "hidden_size": 768, "num_hidden_layers": 12}
    heads = {"image_size": 224, "num_attention_heads": 12}
    return {"": {**sizes, **heads, "patch_size": patch_size, **others}}


_HALF = (0.5, 0.5, 0.5)

#: What `BitImageProcessor` does, with the mean and std of ImageNet, on which DINOv2 was trained.
_DINOV2 = {
    **clip.PROCESSING,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}

FAMILY = EncoderFamily(
    name="vit",
    pretrained={
        "vit": Pretrained(
            towers=ONE_TOWER,
            describe_towers=describe_vit,
            config="ViTConfig",
            model="ViTModel",
            image_processor="ViTImageProcessor",
            options={"add_pooling_layer": False},
            unused=("pooler.",),
            settings=_settings(patch_size=16, intermediate_size=3072),
            processing={
                "do_resize": True,
                "size": {"height": 224, "width": 224},
                "image_mean": _HALF,
                "image_std": _HALF,
            },
        ),
        "dinov2": Pretrained(
            towers=ONE_TOWER,
            describe_towers=partial(describe_dinov2, attention="Dinov2SelfAttention"),
            config="Dinov2Config",
            model="Dinov2Model",
            image_processor="BitImageProcessor",
            any_size=True,
            settings=_settings(patch_size=14),
            processing=_DINOV2,
        ),
        "dinov2_with_registers": Pretrained(
            towers=ONE_TOWER,
            describe_towers=partial(describe_dinov2, attention="Dinov2WithRegistersSelfAttention"),
            config="Dinov2WithRegistersConfig",
            model="Dinov2WithRegistersModel",
            image_processor="BitImageProcessor",
            any_size=True,
            settings=_settings(patch_size=16, num_register_tokens=4),
            processing=_DINOV2,
        ),
        "dinov3_vit": Pretrained(
            towers=ONE_TOWER,
            describe_towers=describe_dinov3,
            config="DINOv3ViTConfig",
            model="DINOv3ViTModel",
            image_processor="DINOv3ViTImageProcessor",
            any_size=True,
            settings={
                "": {
                    "image_size": 224,
                    "patch_size": 16,
                    "num_channels": 3,
                    "hidden_size": 384,
                    "intermediate_size": 1536,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 6,
                    "num_register_tokens": 0,
                }
            },
            processing={
                "do_resize": True,
                "size": {"height": 224, "width": 224},
                "image_mean": _DINOV2["image_mean"],
                "image_std": _DINOV2["image_std"],
            },
        ),
    },
    refused={
        "dinov3_convnext": "it has no transformer blocks: look at an ONNX file with "
        "`quantgate check`",
    },
)
