"""The family of SigLIP: transformers' `SiglipModel`, a vision and a text tower without projections,
and each of them alone.

Its text tower sees the padding: every text is filled up to the full length, no token is masked, and
the last position is pooled, whatever token stands there. Its vision tower has no class token: a
head with an attention of its own (`nn.MultiheadAttention` over a trained probe) pools the patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained, TokenizerClass
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec

if TYPE_CHECKING:
    import torch

ATTENTION = ("SiglipAttention",)


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return both towers of a `SiglipModel`; raises ValueError for one that pools no image."""
    return (describe_vision(config.vision_config), describe_text(config.text_config))


def describe_vision(config: Any) -> TowerSpec:
    """Return the vision tower of a `SiglipModel`; raises ValueError for one that pools no image."""
    if not getattr(config, "vision_use_head", True):
        raise ValueError("vision_use_head is false: the vision tower has no embedding of an image")
    return TowerSpec(
        name="vision",
        parts=("vision_model",),
        inputs={"pixel_values": (config.num_channels, config.image_size, config.image_size)},
        embeddings="vision_model.embeddings",
        attention=ATTENTION,
        tokens=(config.image_size // config.patch_size) ** 2,
        config=config,
        embed=embed_images,
        linears=2,  # of the head's MLP
        fused=("vision_model.head.attention",),
    )


def describe_text(config: Any) -> TowerSpec:
    """Return the text tower of a `SiglipModel`."""
    positions = config.max_position_embeddings
    return TowerSpec(
        name="text",
        parts=("text_model",),
        inputs={"input_ids": (positions,)},
        embeddings="text_model.embeddings",
        attention=ATTENTION,
        tokens=positions,
        config=config,
        embed=embed_texts,
        linears=1,
        # The ids of begin and end in its config are those of CLIP, and no tower reads them.
        text=TextSpec(vocabulary=config.vocab_size, end_id=None, begin_id=None, pools_end=False),
    )


def describe_vision_alone(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a `SiglipVisionModel`; raises ValueError as `describe_vision`."""
    tower = replace(
        describe_vision(config),
        parts=("embeddings", "encoder", "post_layernorm", "head"),
        embeddings="embeddings",
        embed=embed_images_alone,
        fused=("head.attention",),
    )
    return (tower,)


def describe_text_alone(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a `SiglipTextModel`."""
    tower = replace(
        describe_text(config),
        parts=("embeddings", "encoder", "final_layer_norm", "head"),
        embeddings="embeddings",
        embed=embed_texts_alone,
    )
    return (tower,)


def embed_images(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.vision_model(**inputs).pooler_output
    return found


def embed_texts(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.text_model(**inputs).pooler_output
    return found


def embed_images_alone(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.encoder(inputs_embeds=module.embeddings(inputs["pixel_values"]))
    found: torch.Tensor = module.head(module.post_layernorm(hidden.last_hidden_state))
    return found


def embed_texts_alone(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.encoder(inputs_embeds=module.embeddings(input_ids=inputs["input_ids"]))
    found: torch.Tensor = module.head(module.final_layer_norm(hidden.last_hidden_state)[:, -1])
    return found


VISION_SETTINGS: Mapping[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}

TEXT_SETTINGS: Mapping[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}

PROCESSING: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}

TOKENIZER = TokenizerClass(
    names=("SiglipTokenizer",),
    special={"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    from_file=False,  # it lowers case and takes out punctuation by itself
)

FAMILY = EncoderFamily(
    name="siglip",
    pretrained={
        "siglip": Pretrained(
            towers=("vision", "text"),
            describe_towers=describe_towers,
            config="SiglipConfig",
            model="SiglipModel",
            image_processor="SiglipImageProcessor",
            settings={"vision_config": VISION_SETTINGS, "text_config": TEXT_SETTINGS},
            processing=PROCESSING,
            tokenizer=TOKENIZER,
        ),
        "siglip_vision_model": Pretrained(
            towers=("vision",),
            describe_towers=describe_vision_alone,
            config="SiglipVisionConfig",
            model="SiglipVisionModel",
            image_processor="SiglipImageProcessor",
            settings={"": VISION_SETTINGS},
            processing=PROCESSING,
            inside="vision_model",
        ),
        "siglip_text_model": Pretrained(
            towers=("text",),
            describe_towers=describe_text_alone,
            config="SiglipTextConfig",
            model="SiglipTextModel",
            settings={"": TEXT_SETTINGS},
            tokenizer=TOKENIZER,
            inside="text_model",
        ),
    },
    refused={
        "siglip2": "it takes patches of each image's own shape (NaFlex): take a checkpoint of one "
        "size, whose model_type is siglip (siglip2-base-patch16-224 and the like)",
    },
)
