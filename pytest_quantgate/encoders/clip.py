"""The family of CLIP: transformers' `CLIPModel`, and each of its towers alone.

The text tower alone, without a projection, conditions a diffusion model (Stable Diffusion,
AnimateDiff): what counts there is the last hidden state of every token, padding too, and no token
is masked. With a projection it is what CLIP compares, `text_embeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained, TokenizerClass
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec

if TYPE_CHECKING:
    import torch

ATTENTION = ("CLIPAttention",)

VISION_SETTINGS: Mapping[str, Any] = {
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}

TEXT_SETTINGS: Mapping[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}

#: What `CLIPImageProcessor` does where a file says nothing.
PROCESSING: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return both towers of a `CLIPModel`."""
    return (describe_vision(config.vision_config), describe_text(config.text_config))


def describe_vision(config: Any) -> TowerSpec:
    """Return a vision tower with a projection."""
    return TowerSpec(
        name="vision",
        parts=("vision_model", "visual_projection"),
        inputs={"pixel_values": (config.num_channels, config.image_size, config.image_size)},
        embeddings="vision_model.embeddings",
        attention=ATTENTION,
        tokens=(config.image_size // config.patch_size) ** 2 + 1,  # and the class token
        config=config,
        embed=embed_images,
        linears=1,
    )


def describe_text(config: Any) -> TowerSpec:
    """Return a text tower with a projection, which gets a mask though it changes nothing."""
    positions = config.max_position_embeddings
    return TowerSpec(
        name="text",
        parts=("text_model", "text_projection"),
        inputs={"input_ids": (positions,), "attention_mask": (positions,)},
        embeddings="text_model.embeddings",
        attention=ATTENTION,
        tokens=positions,
        config=config,
        embed=embed_texts,
        linears=1,
        text=TextSpec(
            vocabulary=config.vocab_size,
            end_id=config.eos_token_id,
            begin_id=config.bos_token_id,
            pools_end=True,
            takes_short=True,
        ),
    )


def describe_vision_alone(config: Any) -> TowerSpec:
    """Return the vision tower of a `CLIPVisionModel`: the class token behind the last norm."""
    return replace(
        describe_vision(config),
        parts=("embeddings", "pre_layrnorm", "encoder", "post_layernorm"),
        embeddings="embeddings",
        embed=embed_class_token,
        linears=0,
    )


def describe_text_alone(config: Any) -> TowerSpec:
    """Return the text tower of a `CLIPTextModel`: the hidden states of all tokens in a row."""
    with_projection = describe_text_unmasked(config)
    assert with_projection.text is not None
    return replace(
        with_projection,
        parts=("embeddings", "encoder", "final_layer_norm"),
        embeddings="embeddings",
        embed=embed_tokens,
        linears=0,
        text=replace(with_projection.text, pools_end=False),
    )


def describe_text_unmasked(config: Any) -> TowerSpec:
    """Return the text tower of a `CLIPTextModelWithProjection`, which diffusers runs unmasked."""
    return replace(describe_text(config), inputs={"input_ids": (config.max_position_embeddings,)})


def embed_images(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.visual_projection(module.vision_model(**inputs).pooler_output)
    return found


def embed_texts(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.text_projection(module.text_model(**inputs).pooler_output)
    return found


def embed_class_token(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.pre_layrnorm(module.embeddings(inputs["pixel_values"]))
    hidden = module.encoder(inputs_embeds=hidden).last_hidden_state
    found: torch.Tensor = module.post_layernorm(hidden[:, 0])
    return found


def embed_tokens(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the last hidden state of a text, [N, T * D]: a diffusion model reads all of it."""
    from transformers.masking_utils import create_causal_mask

    hidden = module.embeddings(input_ids=inputs["input_ids"])
    mask = create_causal_mask(
        config=module.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    hidden = module.encoder(
        inputs_embeds=hidden, attention_mask=mask, is_causal=True
    ).last_hidden_state
    found: torch.Tensor = module.final_layer_norm(hidden).flatten(start_dim=1)
    return found


def finish_tokenizer(tokenizer: Any, *, begin: tuple[str, int], end: tuple[str, int]) -> None:
    """Put in begin and end as `CLIPTokenizer` does, whatever tokenizer.json says."""
    from tokenizers.processors import RobertaProcessing

    tokenizer.post_processor = RobertaProcessing(end, begin, add_prefix_space=False)


TOKENIZER = TokenizerClass(
    names=("CLIPTokenizer", "CLIPTokenizerFast"),
    special={
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    finish=finish_tokenizer,
)

FAMILY = EncoderFamily(
    name="clip",
    pretrained={
        "clip": Pretrained(
            towers=("vision", "text"),
            describe_towers=describe_towers,
            config="CLIPConfig",
            model="CLIPModel",
            image_processor="CLIPImageProcessor",
            settings={"vision_config": VISION_SETTINGS, "text_config": TEXT_SETTINGS},
            processing=PROCESSING,
            tokenizer=TOKENIZER,
        ),
        "clip_vision_model": Pretrained(
            towers=("vision",),
            describe_towers=lambda config: (describe_vision_alone(config),),
            config="CLIPVisionConfig",
            model="CLIPVisionModel",
            image_processor="CLIPImageProcessor",
            settings={"": VISION_SETTINGS},
            processing=PROCESSING,
            inside="vision_model",
        ),
        "CLIPVisionModelWithProjection": Pretrained(
            towers=("vision",),
            describe_towers=lambda config: (describe_vision(config),),
            config="CLIPVisionConfig",
            model="CLIPVisionModelWithProjection",
            image_processor="CLIPImageProcessor",
            settings={"": VISION_SETTINGS},
            processing=PROCESSING,
        ),
        "clip_text_model": Pretrained(
            towers=("text",),
            describe_towers=lambda config: (describe_text_alone(config),),
            config="CLIPTextConfig",
            model="CLIPTextModel",
            settings={"": TEXT_SETTINGS},
            tokenizer=TOKENIZER,
            inside="text_model",
        ),
        "CLIPTextModelWithProjection": Pretrained(
            towers=("text",),
            describe_towers=lambda config: (describe_text_unmasked(config),),
            config="CLIPTextConfig",
            model="CLIPTextModelWithProjection",
            settings={"": TEXT_SETTINGS},
            tokenizer=TOKENIZER,
        ),
    },
    refused={
        "chinese_clip": "a package of yours takes it: examples/plugin in the source shows it whole",
        "altclip": "its text tower is a RoBERTa that projects twice: a package of yours could take "
        "it, as examples/plugin in the source does ChineseCLIP",
    },
)
