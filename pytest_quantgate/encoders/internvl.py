"""The vision tower and the projector of an InternVL (transformers' layout), of a whole checkpoint.

The language model is neither made nor read. InternVL cuts a large image into tiles of one size; a
tile is what the tower takes, so an image is one tile here. The embedding is what the language model
gets of it: four patches side by side as one token, projected, all tokens in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders import vit
from pytest_quantgate.encoders.family import Composed, EncoderFamily, Pretrained
from pytest_quantgate.encoders.source import CONFIG
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ModelError, UnsupportedModel

if TYPE_CHECKING:
    import torch

#: Where settings keep what the whole model does with the tower.
TAKEN = "internvl"

_INSTEAD = "make it by a function of your own (model: {source: factory})"

VISION_SETTINGS: Mapping[str, Any] = {
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


@dataclass(frozen=True, kw_only=True)
class InternVLTower(Composed):
    """InternVL's vision tower and the projector behind it."""

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        path = directory / CONFIG
        vision = settings.get("vision_config")
        vision = {**VISION_SETTINGS, **(vision if isinstance(vision, Mapping) else {})}
        vision.pop("model_type", None)
        text = settings.get("text_config")
        width = text.get("hidden_size") if isinstance(text, Mapping) else None
        taken = {
            "ratio": settings.get("downsample_ratio", 0.5),
            "width": width,
            "act": str(settings.get("projector_hidden_act", "gelu")),
        }
        layer = settings.get("vision_feature_layer", -1)
        strategy = settings.get("vision_feature_select_strategy", "default")
        if layer != -1 or strategy != "default" or taken["ratio"] != 0.5:
            raise UnsupportedModel(
                f"{path}: vision_feature_layer is {layer!r:.40}, vision_feature_select_strategy "
                f"{strategy!r:.40} and downsample_ratio {taken['ratio']!r:.40}; -1, 'default' and "
                f"0.5 are taken: {_INSTEAD}"
            )
        if not bounds.is_size("hidden_size", width):
            raise ModelError(f"{path}: text_config.hidden_size is {width!r:.40}")
        return {**vision, TAKEN: taken}

    def list_notes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        del settings
        return ("an image is one tile: the cutting into tiles is not part of the tower",)

    def place(self, name: str, *, settings: Mapping[str, Any]) -> str | None:
        del settings
        name = name.removeprefix("model.")
        if name.startswith("multi_modal_projector."):
            return name
        return name.removeprefix("vision_tower.") if name.startswith("vision_tower.") else None

    def make_module(self, config: Any, *, attention: str) -> torch.nn.Module:
        from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

        module: Any = Pretrained.make_module(self, config, attention=attention)
        taken = getattr(config, TAKEN)
        module.multi_modal_projector = InternVLMultiModalProjector(
            SimpleNamespace(
                vision_config=config,
                text_config=SimpleNamespace(hidden_size=taken["width"]),
                downsample_ratio=taken["ratio"],
                projector_hidden_act=taken["act"],
            )
        )
        found: torch.nn.Module = module
        return found

    def read_processor(self, folder: Path, *, config: Any) -> Any:
        import transformers

        del config
        return transformers.GotOcr2ImageProcessor.from_pretrained(
            folder, local_files_only=True, crop_to_patches=False
        )


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of an InternVL; raises ValueError for tiles of an odd number of rows."""
    height, width = vit.as_pair(config.image_size)
    rows, columns = vit.as_pair(config.patch_size)
    grid = (height // rows, width // columns)
    if grid[0] != grid[1] or grid[0] % 2:
        raise ValueError(f"{grid[0]} x {grid[1]} patches are no squares of four")
    tower = TowerSpec(
        name="vision",
        parts=("embeddings", "encoder", "layernorm", "multi_modal_projector"),
        inputs={"pixel_values": (config.num_channels, height, width)},
        embeddings="embeddings",
        attention=("InternVLVisionAttention",),
        tokens=grid[0] * grid[1] + 1,  # and the class token
        config=config,
        embed=partial(embed_patches, rows=grid[0]),
        freeze=freeze_positions,
        linears=2,
    )
    return (tower,)


def embed_patches(module: Any, inputs: Mapping[str, torch.Tensor], *, rows: int) -> torch.Tensor:
    """Return the projected states of all patches, four at a time, [N, T / 4 * D]."""
    hidden = module.encoder(module.embeddings(inputs["pixel_values"])).last_hidden_state
    hidden = module.layernorm(hidden)[:, 1:]
    count, _, width = hidden.shape
    hidden = hidden.reshape(count, rows, rows // 2, 2 * width).permute(0, 2, 1, 3)
    hidden = hidden.reshape(count, rows // 2, rows // 2, 4 * width).permute(0, 2, 1, 3)
    hidden = hidden.reshape(count, rows * rows // 4, 4 * width)
    found: torch.Tensor = module.multi_modal_projector(hidden).flatten(start_dim=1)
    return found


def freeze_positions(tower: Any) -> None:
    """Leave the positions as they are, which are interpolated in every trace."""
    embeddings = tower.embeddings
    embeddings.interpolate_pos_encoding = lambda *_: embeddings.position_embeddings


FAMILY = EncoderFamily(
    name="internvl",
    pretrained={
        "internvl": InternVLTower(
            towers=("vision",),
            describe_towers=describe_towers,
            config="InternVLVisionConfig",
            model="InternVLVisionModel",
            image_processor="GotOcr2ImageProcessor",
            settings={"": VISION_SETTINGS},
            processing={
                "do_resize": True,
                "size": {"height": 448, "width": 448},
                "image_mean": (0.485, 0.456, 0.406),
                "image_std": (0.229, 0.224, 0.225),
            },
        ),
    },
    refused={
        "internvl_chat": "it brings code of its own: take the checkpoint in transformers' layout "
        "(model_type internvl, such as OpenGVLab/InternVL3-1B-hf)",
    },
)
