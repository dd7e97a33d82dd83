"""The family of SigLIP: transformers' `SiglipModel`, a vision and a text tower without projections,
and each of them alone.

Its text tower sees the padding: every text is filled up to the full length, no token is masked, and
the last position is pooled, whatever token stands there. Its vision tower has no class token: a
head with an attention of its own (`nn.MultiheadAttention` over a trained probe) pools the patches.

SigLIP 2 NaFlex (`Siglip2Model`) takes patches of a grid that each image sets by its shape. Here it
has one grid, that of a square of as many patches as its processor makes at most (one_grid.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained, TokenizerClass
from pytest_quantgate.encoders.one_grid import (
    SIDE,
    check_side,
    make_processor,
    note_grid,
    read_processor_settings,
)
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec
from pytest_quantgate.errors import ModelError, UnsupportedModel

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


@dataclass(frozen=True, kw_only=True)
class NaFlex(Pretrained):
    """Both towers of a `Siglip2Model` on one grid."""

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        path, found = read_processor_settings(directory)
        vision = settings.get("vision_config")
        vision = vision if isinstance(vision, Mapping) else {}
        patch = vision.get("patch_size", NAFLEX_SETTINGS["patch_size"])
        most = found.get("max_num_patches", self.processing["max_num_patches"])
        made = found.get("patch_size", self.processing["patch_size"])
        if type(patch) is not int or patch < 1 or type(most) is not int or most < 1:
            raise ModelError(f"{path}: {most!r:.20} patches of {patch!r:.20} pixels a side")
        if made != patch:
            raise ModelError(
                f"{path}: patch_size is {made!r:.20}, the vision tower takes {patch} (config.json)"
            )
        rows = math.isqrt(most)
        if rows**2 != most:
            raise UnsupportedModel(
                f"{path}: max_num_patches is {most}: an engine has one grid, that of a square: set "
                f"it to {rows**2} ({rows} x {rows})"
            )
        return {**settings, SIDE: check_side(rows * patch, path=path)}

    def list_notes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        vision = {**NAFLEX_SETTINGS, **(settings.get("vision_config") or {})}
        return (note_grid(settings, patch=vision["patch_size"]),)

    def read_processor(self, folder: Path, *, config: Any) -> Any:
        import transformers

        own = transformers.Siglip2ImageProcessor.from_pretrained(folder, local_files_only=True)
        return make_processor(own, side=getattr(config, SIDE))


def describe_naflex(config: Any) -> tuple[TowerSpec, ...]:
    """Return both towers of a `Siglip2Model`; raises ValueError for one that pools no image."""
    vision, side = config.vision_config, getattr(config, SIDE)
    if not getattr(vision, "vision_use_head", True):
        raise ValueError("vision_use_head is false: the vision tower has no embedding of an image")
    rows = side // vision.patch_size
    tower = TowerSpec(
        name="vision",
        parts=("vision_model",),
        inputs={"pixel_values": (vision.num_channels, side, side)},
        embeddings="vision_model.embeddings",
        attention=NAFLEX_ATTENTION,
        tokens=rows**2,
        config=vision,
        embed=partial(embed_patches, rows=rows),
        freeze=partial(freeze_positions, rows=rows),
        linears=3,  # of the head's MLP, and one that embeds the patches
        fused=("vision_model.head.attention",),
    )
    return (tower, replace(describe_text(config.text_config), attention=NAFLEX_ATTENTION))


NAFLEX_ATTENTION = ("Siglip2Attention",)


def embed_patches(module: Any, inputs: Mapping[str, torch.Tensor], *, rows: int) -> torch.Tensor:
    """Return the embeddings of images [N, C, H, W], cut into patches as the processor does."""
    pixels, vision = inputs["pixel_values"], module.vision_model
    channels, edge = pixels.shape[1], pixels.shape[2] // rows
    cut = pixels.reshape(-1, channels, rows, edge, rows, edge).permute(0, 2, 4, 3, 5, 1)
    hidden = vision.embeddings.patch_embedding(cut.reshape(-1, rows**2, edge * edge * channels))
    hidden = hidden + resize_positions(vision.embeddings, rows=rows)
    hidden = vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
    found: torch.Tensor = vision.head(vision.post_layernorm(hidden), None)
    return found


def resize_positions(embeddings: Any, *, rows: int) -> torch.Tensor:
    """Return the trained positions on a square grid, [T, D]."""
    table: torch.Tensor = embeddings.position_embedding.weight
    trained = table.shape[0]
    if trained == rows**2:
        return table
    side = math.isqrt(trained)
    square = table.reshape(1, side, side, -1)[0].float()
    found: torch.Tensor = embeddings.resize_positional_embeddings(
        square, _shape_of(rows), max_length=rows**2
    )[0]
    return found.to(table.dtype)


def _shape_of(rows: int) -> torch.Tensor:
    import torch

    return torch.tensor([[rows, rows]])


def freeze_positions(tower: Any, *, rows: int) -> None:
    """Put the positions of one grid in the place of those that are resized for any."""
    import torch

    embeddings = tower.vision_model.embeddings
    with torch.no_grad():
        found = resize_positions(embeddings, rows=rows)
    frozen: Any = torch.nn.Embedding
    embeddings.position_embedding = frozen.from_pretrained(found)


NAFLEX_SETTINGS: Mapping[str, Any] = {
    "num_patches": 256,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}

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

#: SigLIP's own, and what SigLIP 2 has.
TOKENIZER = TokenizerClass(
    names=("SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast"),
    special={"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    from_file=False,  # they lower case, or take out what a file says of it, by themselves
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
        "siglip2": NaFlex(
            towers=("vision", "text"),
            describe_towers=describe_naflex,
            config="Siglip2Config",
            model="Siglip2Model",
            image_processor="Siglip2ImageProcessor",
            settings={"vision_config": NAFLEX_SETTINGS, "text_config": TEXT_SETTINGS},
            processing={
                "image_mean": PROCESSING["image_mean"],
                "image_std": PROCESSING["image_std"],
                "patch_size": 16,
                "max_num_patches": 256,
            },
            tokenizer=replace(
                TOKENIZER,
                special={"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
            ),
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
    refused=dict.fromkeys(
        ("siglip2_vision_model", "siglip2_text_model"),
        "name the folder of the whole model (model_type siglip2)",
    ),
)
