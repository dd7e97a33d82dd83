"""The vision tower and the projector of a LLaVA, out of the checkpoint of the whole model.

The language model is neither made nor read. LLaVA takes the hidden states of one block of CLIP's
vision tower, usually of the last but one: blocks behind that one never run, so they are left out
here and count nowhere as covered. The embedding is what the language model gets of an image: the
projected state of every patch, in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders import clip
from pytest_quantgate.encoders.family import Composed, EncoderFamily, Pretrained
from pytest_quantgate.encoders.source import CONFIG
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ModelError, UnsupportedModel

if TYPE_CHECKING:
    import torch

#: Where settings keep what the whole model does with the tower.
TAKEN = "llava"

#: What `LlavaConfig` takes for a tower that its file does not describe.
VISION_SETTINGS: Mapping[str, Any] = {
    **clip.VISION_SETTINGS,
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}

_BLOCK = "encoder.layers."
_PROJECTOR = "multi_modal_projector."

_INSTEAD = "save the tower alone (model.vision_tower.save_pretrained) and name its folder"


@dataclass(frozen=True, kw_only=True)
class LlavaTower(Composed):
    """CLIP's vision tower up to the block that LLaVA reads, and the projector behind it."""

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        path = directory / CONFIG
        vision = settings.get("vision_config")
        vision = {**VISION_SETTINGS, **(vision if isinstance(vision, Mapping) else {})}
        kind = vision.pop("model_type", "clip_vision_model")
        if kind != "clip_vision_model":
            raise UnsupportedModel(
                f"{path}: vision_config.model_type is {kind!r:.80}, the vision tower of CLIP is "
                f"taken out of a LLaVA: {_INSTEAD}"
            )
        layer = settings.get("vision_feature_layer", -2)
        count = vision["num_hidden_layers"]
        if isinstance(layer, list):
            raise UnsupportedModel(
                f"{path}: vision_feature_layer names several blocks, one is taken: {_INSTEAD}"
            )
        if not isinstance(count, int) or not isinstance(layer, int):
            raise ModelError(f"{path}: vision_feature_layer {layer!r:.40} of {count!r:.40} blocks")
        blocks = layer if layer >= 0 else count + 1 + layer
        if not 0 < blocks <= count:
            raise ModelError(f"{path}: vision_feature_layer is {layer}, there are {count} blocks")
        text = settings.get("text_config")
        width = text.get("hidden_size") if isinstance(text, Mapping) else None
        taken = {
            "whole_class_token": settings.get("vision_feature_select_strategy") == "full",
            "width": 4096 if width is None else width,
            "bias": bool(settings.get("multimodal_projector_bias", True)),
            "act": str(settings.get("projector_hidden_act", "gelu")),
        }
        if not isinstance(taken["width"], int) or not 0 < taken["width"] <= 65_536:
            raise ModelError(f"{path}: text_config.hidden_size is {taken['width']!r:.40}")
        return {**vision, "num_hidden_layers": blocks, TAKEN: taken}

    def place(self, name: str, *, settings: Mapping[str, Any]) -> str | None:
        name = name.removeprefix("model.")
        if name.startswith(_PROJECTOR):
            return name
        if not name.startswith("vision_tower."):
            return None
        name = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        if name.startswith("post_layernorm."):
            return None
        block = name.removeprefix(_BLOCK).partition(".")[0]
        blocks = int(settings["num_hidden_layers"])
        behind = name.startswith(_BLOCK) and block.isdecimal() and int(block) >= blocks
        return None if behind else name

    def make_module(self, config: Any, *, attention: str) -> torch.nn.Module:
        from torch import nn
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        module: Any = Pretrained.make_module(self, config, attention=attention)
        module.post_layernorm = nn.Identity()  # LLaVA reads the state in front of it
        taken = getattr(config, TAKEN)
        module.multi_modal_projector = LlavaMultiModalProjector(
            SimpleNamespace(
                vision_config=config,
                text_config=SimpleNamespace(hidden_size=taken["width"]),
                vision_feature_layer=-1,
                multimodal_projector_bias=taken["bias"],
                projector_hidden_act=taken["act"],
            )
        )
        found: torch.nn.Module = module
        return found


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a LLaVA."""
    taken = getattr(config, TAKEN)
    tower = replace(
        clip.describe_vision_alone(config),
        parts=("embeddings", "pre_layrnorm", "encoder", "multi_modal_projector"),
        embed=partial(embed_patches, first=0 if taken["whole_class_token"] else 1),
        linears=2,
    )
    return (tower,)


def embed_patches(module: Any, inputs: Mapping[str, torch.Tensor], *, first: int) -> torch.Tensor:
    """Return the projected states of all tokens from `first` on, [N, T * D]."""
    hidden = module.pre_layrnorm(module.embeddings(inputs["pixel_values"]))
    hidden = module.encoder(inputs_embeds=hidden).last_hidden_state
    found: torch.Tensor = module.multi_modal_projector(hidden[:, first:]).flatten(start_dim=1)
    return found


FAMILY = EncoderFamily(
    name="llava",
    pretrained={
        "llava": LlavaTower(
            towers=("vision",),
            describe_towers=describe_towers,
            config="CLIPVisionConfig",
            model="CLIPVisionModel",
            image_processor="CLIPImageProcessor",
            settings={"": VISION_SETTINGS},
            processing=clip.PROCESSING,
        ),
    },
    refused={
        "llava_next": f"it cuts an image into tiles: {_INSTEAD}",
        "llava_onevision": f"it cuts an image into tiles: {_INSTEAD}",
        "paligemma": f"its tower stands inside a larger model: {_INSTEAD}",
    },
)
