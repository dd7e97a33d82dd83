"""The vision towers of Qwen2.5-VL and Qwen3-VL, of a whole checkpoint or of the tower alone.

The language model is neither made nor read. Such a tower takes a grid of patches that each image
sets by its own shape; an engine has one. The preprocessor's `min_pixels` and `max_pixels` say
which: both the area of one square, to which every image is brought. The grid is a constant of the
tower here: patches are cut inside it, in the order of transformers' processor, so its input is an
image. The embedding is all that the language model gets of an image, in a row: the merged patches,
and for Qwen3-VL those of its deepstack behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders import clip
from pytest_quantgate.encoders.family import Composed, EncoderFamily, Pretrained, without_patch
from pytest_quantgate.encoders.one_grid import (
    SIDE,
    check_side,
    make_processor,
    note_grid,
    read_processor_settings,
)
from pytest_quantgate.encoders.source import CONFIG
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ModelError, UnsupportedModel

if TYPE_CHECKING:
    import torch

#: Sizes of a tower, by the size of a model of transformers whose bound they have.
_SIZES = {
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_size": "hidden_size",
    "out_hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "in_channels": "num_channels",
    "patch_size": "patch_size",
    "temporal_patch_size": "patch_size",
    "spatial_merge_size": "patch_size",
    "window_size": "image_size",
    "num_position_embeddings": "max_position_embeddings",
}

#: The side that a refusal names where no file says one.
_USUAL_SIDE = 448

#: The base of the angles of positions; no file says another one.
_ANGLE_BASE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The patches of a square image: `rows` a side, in blocks of `merge` that become one token.

    `window` is how many patches a side the attention of most blocks sees, 0 for all of them;
    `width` the size of a head; `trained` how many positions a side were trained, 0 for none. What
    follows from them is computed once, outside of any trace: it is constant in a graph.
    """

    rows: int
    merge: int
    width: int
    window: int = 0
    trained: int = 0

    @property
    def patches(self) -> int:
        return self.rows**2

    @property
    def tokens(self) -> int:
        return self.patches // self.merge**2

    @property
    def windows(self) -> int:
        """How many windows the image has."""
        return max(self.rows // self.window, 1) ** 2 if self.window else 1

    @cached_property
    def tables(self) -> Tables:
        import torch
        from transformers import vision_utils

        shape = torch.tensor([[1, self.rows, self.rows]])
        with torch.inference_mode(False), torch.no_grad():
            places = vision_utils.get_vision_position_ids(shape, self.merge)
            order = torch.arange(self.tokens)
            if self.window:
                order, _ = vision_utils.get_vision_window_index(
                    shape, spatial_merge_size=self.merge, window_size=self.window, patch_size=1
                )
            corners = None
            if self.trained:
                corners = vision_utils.get_vision_bilinear_indices_and_weights(
                    shape, num_grid_per_side=self.trained, spatial_merge_size=self.merge
                )
            steps = torch.arange(0, self.width // 2, 2, dtype=torch.float32) / (self.width // 2)
            angles = (places.unsqueeze(-1) / _ANGLE_BASE**steps).flatten(1)
            angles = torch.cat((angles, angles), dim=-1).reshape(self.tokens, -1, self.width)
            angles = angles[order].reshape(self.patches, 1, self.width)
            return Tables(
                order=order,
                back=order.argsort(),
                turn=(angles.cos(), angles.sin()),
                corners=corners,
            )

    def freeze(self, _tower: Any) -> None:
        """Compute the tables, so that no trace holds how."""
        assert self.tables

    def cut(self, pixels: torch.Tensor, *, edge: int, frames: int) -> torch.Tensor:
        """Return images [N, C, H, W] as patches [N * T, C * frames * edge²], each in all frames."""
        merged, channels = self.rows // self.merge, pixels.shape[1]
        shape = (-1, channels, merged, self.merge, edge, merged, self.merge, edge)
        cut = pixels.reshape(shape).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 1, edge * edge)
        return cut.expand(-1, frames, -1).reshape(-1, channels * frames * edge * edge)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What follows from a grid: the tokens window by window [T / merge²] and `back` again, cosine
    and sine of the angles of every patch in that order [T, 1, D], and of every patch the trained
    positions around it and their shares, [4, T] each (None without trained ones)."""

    order: torch.Tensor
    back: torch.Tensor
    turn: tuple[torch.Tensor, torch.Tensor]
    corners: tuple[torch.Tensor, torch.Tensor] | None


@dataclass(frozen=True, kw_only=True)
class QwenTower(Composed):
    """A vision tower of Qwen, whose class stands in the module `source` of transformers.

    `is_whole` is whether files are those of the whole model.
    """

    source: str
    is_whole: bool

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        path = directory / CONFIG
        found: Any = settings.get("vision_config") if self.is_whole else settings
        tower = {**self.settings[""], **(found if isinstance(found, Mapping) else {})}
        for key, name in _SIZES.items():
            if key in tower and not bounds.is_size(name, tower[key], pair=False):
                raise ModelError(
                    f"{path}: {key} is {tower[key]!r:.40}: expected 1 to {bounds.MODEL_SIZES[name]}"
                )
        for key in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            blocks = tower.get(key, ())
            if not isinstance(blocks, (list, tuple)) or not all(
                type(block) is int and 0 <= block < tower["depth"] for block in blocks
            ):
                raise ModelError(f"{path}: {key} is {blocks!r:.60}, there are {tower['depth']}")
        tower.pop("model_type", None)
        return {**tower, SIDE: read_side(directory, settings=tower, usual=self.processing)}

    def list_notes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return (note_grid(settings, patch=settings["patch_size"]),)

    def place(self, name: str, *, settings: Mapping[str, Any]) -> str | None:
        if not self.is_whole:
            return name
        name = name.removeprefix("model.")
        return name.removeprefix("visual.") if name.startswith("visual.") else None

    def _find_class(self) -> Any:
        import importlib

        return getattr(importlib.import_module(f"transformers.models.{self.source}"), self.model)

    def make_config(self, settings: Mapping[str, Any]) -> Any:
        return self._find_class().config_class.from_dict(dict(settings))

    def make_module(self, config: Any, *, attention: str) -> torch.nn.Module:
        return rewrite(
            without_patch(self._find_class(), "_from_config")(config, attn_implementation=attention)
        )

    def read_processor(self, folder: Path, *, config: Any) -> Any:
        import transformers

        own = transformers.Qwen2VLImageProcessor.from_pretrained(folder, local_files_only=True)
        return make_processor(own, side=getattr(config, SIDE))


def read_side(directory: Path, *, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> int:
    """Return the side in pixels of the square to which every image is brought.

    Raises UnsupportedModel where the files leave images a grid of their own, and for a square that
    is not made of whole blocks and windows.
    """
    path, found = read_processor_settings(directory)
    size = {**usual["size"], **(found.get("size") or {})}
    least = found.get("min_pixels") or size.get("min_pixels") or size["shortest_edge"]
    most = found.get("max_pixels") or size.get("max_pixels") or size["longest_edge"]
    block = settings["patch_size"] * settings["spatial_merge_size"]
    window = settings.get("window_size", 0)
    has_windows = window and len(settings["fullatt_block_indexes"]) < settings["depth"]
    step = math.lcm(block, window) if has_windows else block
    if has_windows and window % block:
        raise UnsupportedModel(
            f"{directory / CONFIG}: window_size is {window}, no multiple of the {block} pixels of "
            f"a merged patch: {_INSTEAD}"
        )
    side = math.isqrt(least) if type(least) is int and least > 0 else 0
    is_square = least == most and side * side == least and side % block == 0
    if not is_square or (has_windows and side > window and side % window):
        near = max(round(_USUAL_SIDE / step), 1) * step
        raise UnsupportedModel(
            f"{path}: min_pixels is {least!r:.20} and max_pixels {most!r:.20}: each image would "
            f"set a grid of its own, and an engine has one: set both to the area of a square whose "
            f"side is a multiple of {step}, such as {near * near} ({near} x {near})"
        )
    return check_side(side, path=path)


_INSTEAD = "make it by a function of your own (model: {source: factory})"


def rewrite(module: Any) -> torch.nn.Module:
    """Make the attention of every block one that takes samples in a batch, in place."""
    from pytest_quantgate.encoders.split_attention import WindowAttention

    for block in module.blocks:
        block.attn = WindowAttention(block.attn)
    found: torch.nn.Module = module
    return found


def describe_qwen25(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a Qwen2.5-VL: windows in most blocks, and five layers a block."""
    grid = _make_grid(config, window=config.window_size // config.patch_size)
    whole = frozenset(config.fullatt_block_indexes)
    return (
        _describe(
            config,
            parts=("patch_embed", "blocks", "merger"),
            embed=partial(embed_qwen25, grid=grid, whole=whole),
            freeze=grid.freeze,
            linears=2 - config.depth,
        ),
    )


def describe_qwen3(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a Qwen3-VL: trained positions, deepstack, four layers a block."""
    grid = _make_grid(config, trained=math.isqrt(config.num_position_embeddings))
    taken = tuple(config.deepstack_visual_indexes)
    return (
        _describe(
            config,
            parts=("patch_embed", "pos_embed", "blocks", "merger", "deepstack_merger_list"),
            embed=partial(embed_qwen3, grid=grid, taken=taken),
            freeze=grid.freeze,
            linears=2 * (1 + len(taken)) - 2 * config.depth,
        ),
    )


def _make_grid(config: Any, **more: int) -> Grid:
    return Grid(
        rows=getattr(config, SIDE) // config.patch_size,
        merge=config.spatial_merge_size,
        width=config.hidden_size // config.num_heads,
        **more,
    )


def _describe(config: Any, **own: Any) -> TowerSpec:
    side = getattr(config, SIDE)
    return TowerSpec(
        name="vision",
        inputs={"pixel_values": (config.in_channels, side, side)},
        embeddings="patch_embed",
        attention=("WindowAttention",),
        tokens=(side // config.patch_size) ** 2,
        config=SimpleNamespace(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
        ),
        **own,
    )


def embed_qwen25(
    module: Any, inputs: Mapping[str, torch.Tensor], *, grid: Grid, whole: frozenset[int]
) -> torch.Tensor:
    """Return the merged patches of every image, [N, T / merge² * D]."""
    tables, count = grid.tables, inputs["pixel_values"].shape[0]
    hidden = _embed_patches(module, inputs, grid=grid)
    turn = tuple(part.to(hidden) for part in tables.turn)
    hidden = hidden.reshape(count, grid.tokens, grid.merge**2, -1)[:, tables.order]
    hidden = hidden.reshape(count, grid.patches, -1)
    for index, block in enumerate(module.blocks):
        windows = 1 if index in whole else grid.windows
        hidden = block(hidden, None, position_embeddings=turn, windows=windows)
    merged = module.merger(hidden).reshape(count, grid.tokens, -1)
    found: torch.Tensor = merged[:, tables.back].flatten(1)
    return found


def embed_qwen3(
    module: Any, inputs: Mapping[str, torch.Tensor], *, grid: Grid, taken: tuple[int, ...]
) -> torch.Tensor:
    """Return the merged patches of every image and those of the deepstack, [N, K * T * D]."""
    import torch

    tables, count = grid.tables, inputs["pixel_values"].shape[0]
    hidden = _embed_patches(module, inputs, grid=grid)
    turn = tuple(part.to(hidden) for part in tables.turn)
    assert tables.corners is not None  # its positions are trained
    corners, shares = (part.to(hidden.device) for part in tables.corners)
    positions = (module.pos_embed(corners) * shares.to(hidden).unsqueeze(-1)).sum(0)
    hidden = hidden.reshape(count, grid.patches, -1) + positions
    deep = []
    for index, block in enumerate(module.blocks):
        hidden = block(hidden, None, position_embeddings=turn)
        if index in taken:
            merger = module.deepstack_merger_list[taken.index(index)]
            deep.append(merger(hidden).reshape(count, -1))
    return torch.cat([module.merger(hidden).reshape(count, -1), *deep], dim=1)


def _embed_patches(module: Any, inputs: Mapping[str, torch.Tensor], *, grid: Grid) -> torch.Tensor:
    """Return the embeddings of the patches of all images, [N * T, D]."""
    embed = module.patch_embed
    _, _, frames, edge, _ = embed.proj.weight.shape
    found: torch.Tensor = embed(grid.cut(inputs["pixel_values"], edge=edge, frames=frames))
    return found


#: What `Qwen2VLImageProcessor` does; its `size` counts the pixels of an image.
PROCESSING: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "image_mean": clip.PROCESSING["image_mean"],
    "image_std": clip.PROCESSING["image_std"],
}

#: Qwen3-VL was trained with another mean.
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}

QWEN25: Mapping[str, Any] = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
}

QWEN3: Mapping[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (8, 16, 24),
}


def _list_kinds() -> dict[str, Pretrained]:
    described = {
        "qwen2_5_vl": (
            describe_qwen25,
            "qwen2_5_vl.modeling_qwen2_5_vl",
            "Qwen2_5_VisionTransformerPretrainedModel",
            QWEN25,
            PROCESSING,
        ),
        "qwen3_vl": (
            describe_qwen3,
            "qwen3_vl.modeling_qwen3_vl",
            "Qwen3VLVisionModel",
            QWEN3,
            {**PROCESSING, **HALF},
        ),
    }
    return {
        f"{name}{'' if is_whole else '_vision'}": QwenTower(
            towers=("vision",),
            describe_towers=describe,
            model=model,
            source=source,
            is_whole=is_whole,
            image_processor="Qwen2VLImageProcessor",
            size_is_area=True,
            settings={"": settings},
            processing=processing,
            since=(5, 14),
        )
        for name, (describe, source, model, settings, processing) in described.items()
        for is_whole in (True, False)
    }


FAMILY = EncoderFamily(
    name="qwen_vl",
    pretrained=_list_kinds(),
    refused={
        "qwen2_vl": f"those of Qwen2.5-VL and Qwen3-VL are taken: {_INSTEAD}",
        "qwen3_vl_moe": "its vision tower is that of Qwen3-VL: save it alone "
        "(model.visual.save_pretrained) and name its folder",
    },
)
