"""The family of CLIP: transformers' `CLIPModel`, a vision and a text tower with projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained, TokenizerClass
from pytest_quantgate.encoders.towers import AttentionSpec, TextSpec, TowerSpec

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
            linears=1,
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
            linears=1,
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


def finish_tokenizer(tokenizer: Any, *, begin: tuple[str, int], end: tuple[str, int]) -> None:
    """Put in begin and end as `CLIPTokenizer` does, whatever tokenizer.json says."""
    from tokenizers.processors import RobertaProcessing

    tokenizer.post_processor = RobertaProcessing(end, begin, add_prefix_space=False)


#: What `CLIPImageProcessor` does where a file says nothing.
PROCESSING: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}

FAMILY = EncoderFamily(
    name="clip",
    pretrained={
        "clip": Pretrained(
            towers=("vision", "text"),
            config="CLIPConfig",
            model="CLIPModel",
            image_processor="CLIPImageProcessor",
            settings={
                "vision_config": {
                    "image_size": 224,
                    "patch_size": 32,
                    "num_channels": 3,
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 12,
                },
                "text_config": {
                    "vocab_size": 49408,
                    "max_position_embeddings": 77,
                    "bos_token_id": 49406,
                    "eos_token_id": 49407,
                    "hidden_size": 512,
                    "intermediate_size": 2048,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 8,
                },
            },
            processing=PROCESSING,
            tokenizer=TokenizerClass(
                names=("CLIPTokenizer", "CLIPTokenizerFast"),
                special={
                    "bos_token": "<|startoftext|>",
                    "eos_token": "<|endoftext|>",
                    "pad_token": "<|endoftext|>",
                },
                finish=finish_tokenizer,
            ),
        )
    },
    describe_towers=describe_towers,
)
