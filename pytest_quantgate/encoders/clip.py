"""The family of CLIP: transformers' `CLIPModel`, each of its towers alone, and the models that are
built as it is: ChineseCLIP, AltCLIP, OWL-ViT and OWLv2.

The text tower alone, without a projection, conditions a diffusion model (Stable Diffusion,
AnimateDiff): what counts there is the last hidden state of every token, padding too, and no token
is masked. With a projection it is what CLIP compares, `text_embeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
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

#: The id that pools the largest one of a text.
LARGEST = 2

BERT_SETTINGS: Mapping[str, Any] = {
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "bos_token_id": None,
    "eos_token_id": None,
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


def describe_dual(
    config: Any,
    *,
    attention: tuple[str, str],
    tokens: int,
    embed: Callable[..., torch.Tensor],
    linears: int,
    starts_behind_padding: bool = False,
) -> tuple[TowerSpec, ...]:
    """Return the towers of a model that is CLIP's but for the text tower, which is a BERT with a
    mask: the classes of `attention` of both towers, and the `tokens` that it was trained with, of
    fewer where it has not so many positions."""
    vision, text = describe_towers(config)
    of_vision, of_text = attention
    assert text.text is not None
    spare = config.text_config.pad_token_id + 1 if starts_behind_padding else 0
    tokens = min(tokens, text.tokens - spare)
    return (
        replace(vision, attention=(of_vision,)),
        replace(
            text,
            attention=(of_text,),
            inputs={"input_ids": (tokens,), "attention_mask": (tokens,)},
            tokens=tokens,
            embed=embed,
            linears=linears,
            text=replace(text.text, end_id=None, begin_id=None, pools_end=False, takes_short=False),
        ),
    )


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


def embed_first_token(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    hidden = module.text_model(**inputs).last_hidden_state
    found: torch.Tensor = module.text_projection(hidden[:, 0])
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

#: OWL-ViT by its `model_type`: its name in transformers, and the size of its images.
OWLS = {"owlvit": ("OwlViT", 768, 32), "owlv2": ("Owlv2", 960, 16)}

#: Layers of a detector behind its towers.
DETECTION = ("class_head.", "box_head.", "layer_norm.", "objectness_head.")


@dataclass(frozen=True, kw_only=True)
class Owl(Pretrained):
    """Both towers of OWL-ViT or OWLv2, of a detector too, whose heads are left out."""

    def list_notes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        if "ForObjectDetection" not in str(settings.get("architectures")):
            return ()
        return (
            "a detector: the towers are judged by the embeddings of image and text, its heads for "
            "boxes and classes are left out",
        )


def make_owl(kind: str) -> Owl:
    """Return a kind of OWL-ViT: towers of CLIP, the text of which pools the largest id."""
    name, size, patch = OWLS[kind]

    def describe(config: Any) -> tuple[TowerSpec, ...]:
        vision, text = describe_towers(config)
        assert text.text is not None
        return (
            replace(vision, attention=(f"{name}Attention",)),
            replace(
                text,
                attention=(f"{name}Attention",),
                text=replace(text.text, end_id=LARGEST, begin_id=None, takes_short=False),
            ),
        )

    return Owl(
        towers=("vision", "text"),
        describe_towers=describe,
        config=f"{name}Config",
        model=f"{name}Model",
        image_processor=f"{name}ImageProcessor",
        unused=DETECTION,
        inside=kind,
        settings={
            "vision_config": {**VISION_SETTINGS, "image_size": size, "patch_size": patch},
            "text_config": {**TEXT_SETTINGS, "max_position_embeddings": 16},
        },
        processing={
            **PROCESSING,
            "do_center_crop": False,
            "size": {"height": size, "width": size},
        },
        tokenizer=replace(TOKENIZER, special={**TOKENIZER.special, "pad_token": "!"}),
    )


FAMILY = EncoderFamily(
    name="clip",
    pretrained={
        "clip": Pretrained(
            towers=("vision", "text"),
            describe_towers=describe_towers,
            config="CLIPConfig",
            model="CLIPModel",
            since=(4, 57),
            image_processor="CLIPImageProcessor",
            settings={"vision_config": VISION_SETTINGS, "text_config": TEXT_SETTINGS},
            processing=PROCESSING,
            tokenizer=TOKENIZER,
        ),
        "chinese_clip": Pretrained(
            towers=("vision", "text"),
            describe_towers=partial(
                describe_dual,
                attention=("ChineseCLIPVisionAttention", "ChineseCLIPTextSelfAttention"),
                tokens=52,
                embed=embed_first_token,
                linears=1,
            ),
            config="ChineseCLIPConfig",
            model="ChineseCLIPModel",
            image_processor="ChineseCLIPImageProcessor",
            unused=("text_model.pooler.",),
            settings={
                "vision_config": VISION_SETTINGS,
                "text_config": {**BERT_SETTINGS, "vocab_size": 30522},
            },
            processing=PROCESSING,
            tokenizer=TokenizerClass(
                names=("BertTokenizer", "BertTokenizerFast"),
                special={"pad_token": "[PAD]", "unk_token": "[UNK]"},
            ),
        ),
        "altclip": Pretrained(
            towers=("vision", "text"),
            describe_towers=partial(
                describe_dual,
                attention=("AltCLIPAttention", "AltRobertaSelfAttention"),
                tokens=77,
                embed=embed_first_token,
                linears=2,  # its states are projected twice
                starts_behind_padding=True,
            ),
            config="AltCLIPConfig",
            model="AltCLIPModel",
            image_processor="CLIPImageProcessor",
            settings={
                "vision_config": VISION_SETTINGS,
                "text_config": {
                    **BERT_SETTINGS,
                    "vocab_size": 250002,
                    "max_position_embeddings": 514,
                    "pad_token_id": 1,
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                },
            },
            processing=PROCESSING,
            tokenizer=TokenizerClass(
                names=("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
                special={"pad_token": "<pad>", "unk_token": "<unk>"},
            ),
        ),
        **{kind: make_owl(kind) for kind in OWLS},
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
)
