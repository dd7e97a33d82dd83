"""The family of SigLIP: transformers' `SiglipModel`, a vision and a text tower without projections.

Its text tower sees the padding: every text is filled up to the full length, no token is masked, and
the last position is pooled, whatever token stands there. Its vision tower has no class token: a
head with an attention of its own (`nn.MultiheadAttention` over a trained probe) pools the patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained, TokenizerClass
from pytest_quantgate.encoders.towers import AttentionSpec, TextSpec, TowerSpec

if TYPE_CHECKING:
    import torch

ATTENTION = AttentionSpec(class_name="SiglipAttention")


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return both towers of a `SiglipModel`; raises ValueError for one that pools no image."""
    vision, text = config.vision_config, config.text_config
    if not getattr(vision, "vision_use_head", True):
        raise ValueError("vision_use_head is false: the vision tower has no embedding of an image")
    positions = text.max_position_embeddings
    return (
        TowerSpec(
            name="vision",
            parts=("vision_model",),
            inputs={"pixel_values": (vision.num_channels, vision.image_size, vision.image_size)},
            embeddings="vision_model.embeddings",
            attention=ATTENTION,
            tokens=(vision.image_size // vision.patch_size) ** 2,
            config=vision,
            embed=embed_images,
            linears=2,  # of the head's MLP
            fused=("vision_model.head.attention",),
        ),
        TowerSpec(
            name="text",
            parts=("text_model",),
            inputs={"input_ids": (positions,)},
            embeddings="text_model.embeddings",
            attention=ATTENTION,
            tokens=positions,
            config=text,
            embed=embed_texts,
            linears=1,
            # The ids of begin and end in its config are those of CLIP, and no tower reads them.
            text=TextSpec(vocabulary=text.vocab_size, end_id=None, begin_id=None, pools_end=False),
        ),
    )


def embed_images(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.vision_model(**inputs).pooler_output
    return found


def embed_texts(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.text_model(**inputs).pooler_output
    return found


FAMILY = EncoderFamily(
    name="siglip",
    pretrained={
        "siglip": Pretrained(
            towers=("vision", "text"),
            describe_towers=describe_towers,
            config="SiglipConfig",
            model="SiglipModel",
            image_processor="SiglipImageProcessor",
            settings={
                "vision_config": {
                    "image_size": 224,
                    "patch_size": 16,
                    "num_channels": 3,
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 12,
                },
                "text_config": {
                    "vocab_size": 32000,
                    "max_position_embeddings": 64,
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 12,
                },
            },
            processing={
                "do_resize": True,
                "size": {"height": 224, "width": 224},
                "image_mean": (0.5, 0.5, 0.5),
                "image_std": (0.5, 0.5, 0.5),
            },
            tokenizer=TokenizerClass(
                names=("SiglipTokenizer",),
                special={"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
                from_file=False,  # it lowers case and takes out punctuation by itself
            ),
        )
    },
)
