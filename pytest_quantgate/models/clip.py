"""The family of CLIP: transformers' `CLIPModel`, a vision and a text tower with projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_quantgate.models.family import EncoderFamily, Pretrained
from pytest_quantgate.models.towers import AttentionSpec, TextSpec, TowerSpec

if TYPE_CHECKING:
    import torch

ATTENTION = AttentionSpec(class_name="CLIPAttention")


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return both towers of a `CLIPModel`."""
    vision, text = config.vision_config, config.text_config
    positions = text.max_position_embeddings
    return (
        TowerSpec(
            name="vision",
            parts=("vision_model", "visual_projection"),
            inputs={"pixel_values": (vision.num_channels, vision.image_size, vision.image_size)},
            embeddings="vision_model.embeddings",
            attention=ATTENTION,
            tokens=(vision.image_size // vision.patch_size) ** 2 + 1,  # and the class token
            config=vision,
            embed=embed_images,
        ),
        TowerSpec(
            name="text",
            parts=("text_model", "text_projection"),
            inputs={"input_ids": (positions,), "attention_mask": (positions,)},
            embeddings="text_model.embeddings",
            attention=ATTENTION,
            tokens=positions,
            config=text,
            embed=embed_texts,
            text=TextSpec(
                vocabulary=text.vocab_size,
                end_id=text.eos_token_id,
                begin_id=text.bos_token_id,
                pools_end=True,
            ),
        ),
    )


def embed_images(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.visual_projection(module.vision_model(**inputs).pooler_output)
    return found


def embed_texts(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.text_projection(module.text_model(**inputs).pooler_output)
    return found


FAMILY = EncoderFamily(
    name="clip",
    pretrained={
        "clip": Pretrained(
            towers=("vision", "text"),
            config="CLIPConfig",
            model="CLIPModel",
            image_processor="CLIPImageProcessor",
        )
    },
    describe_towers=describe_towers,
)
