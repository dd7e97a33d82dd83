"""The family of Chinese CLIP: the vision tower of CLIP, and a BERT that pools its first token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained, TokenizerClass
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    vision, text = config.vision_config, config.text_config
    # 512 positions, of which Chinese CLIP was trained with 52.
    tokens = min(52, text.max_position_embeddings)
    return (
        TowerSpec(
            name="vision",
            parts=("vision_model", "visual_projection"),
            inputs={"pixel_values": (vision.num_channels, vision.image_size, vision.image_size)},
            embeddings="vision_model.embeddings",
            attention=("ChineseCLIPVisionAttention",),
            tokens=(vision.image_size // vision.patch_size) ** 2 + 1,  # and the class token
            config=vision,
            embed=embed_images,
            linears=1,
        ),
        TowerSpec(
            name="text",
            parts=("text_model", "text_projection"),
            inputs={"input_ids": (tokens,), "attention_mask": (tokens,)},
            embeddings="text_model.embeddings",
            attention=("ChineseCLIPTextSelfAttention",),
            tokens=tokens,
            config=text,
            embed=embed_texts,
            text=TextSpec(vocabulary=text.vocab_size, end_id=None, begin_id=None, pools_end=False),
            linears=1,
        ),
    )


def embed_images(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.visual_projection(module.vision_model(**inputs).pooler_output)
    return found


def embed_texts(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.text_model(**inputs).last_hidden_state
    found: torch.Tensor = module.text_projection(hidden[:, 0])
    return found


FAMILY = EncoderFamily(
    name="chinese_clip",
    pretrained={
        "chinese_clip": Pretrained(
            towers=("vision", "text"),
            describe_towers=describe_towers,
            config="ChineseCLIPConfig",
            model="ChineseCLIPModel",
            image_processor="ChineseCLIPImageProcessor",
            # What transformers takes where config.json and preprocessor_config.json say nothing:
            # for `quantgate validate`, `doctor` and `init`.
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
                    "vocab_size": 30522,
                    "max_position_embeddings": 512,
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_hidden_layers": 12,
                    "num_attention_heads": 12,
                },
            },
            processing={
                "do_resize": True,
                "size": {"shortest_edge": 224},
                "do_center_crop": True,
                "crop_size": 224,
                "image_mean": (0.48145466, 0.4578275, 0.40821073),
                "image_std": (0.26862954, 0.26130258, 0.27577711),
            },
            tokenizer=TokenizerClass(
                names=("BertTokenizer", "BertTokenizerFast"),
                special={"pad_token": "[PAD]", "unk_token": "[UNK]"},
            ),
        )
    },
)
