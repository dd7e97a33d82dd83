"""The product's own recipes, as data: what weights, inputs and attention are quantized to.

A new one is one row. Each names Linear layers, or convolutions too, and no others: a bare
`*input_quantizer` would also switch on the inputs of LayerNorm, `*weight_quantizer` the weights of
Embedding. Formats, block sizes and algorithms are those of ModelOpt 0.47's presets
(`configs/ptq/presets/model`); those switch every vision tower off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import (
    E4M3,
    INT4,
    INT8,
    MXFP8,
    NVFP4,
    TABLE,
    read_blocks,
    read_format,
)

#: What a quantizer is configured by, in ModelOpt's words.
Settings = Mapping[str, Any]

#: Bits of a weight that is not quantized, and of a scale in full precision.
FULL_BITS = 16

#: Blocks along the inputs of a layer have no place in a convolution's kernel.
_LINEAR = ("nn.Linear",)
_LAYERS = ("nn.Linear", "nn.Conv2d")

_ATTENTION = ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")

_OFF = {"quantizer_name": "*", "enable": False}


@dataclass(frozen=True, kw_only=True)
class NamedRecipe:
    """One row. `weight` has several settings where one format is rounded to after another.

    `activation` is None where the inputs of layers stay as they are, `attention` where q, k, v and
    the output of attention do. `algorithm` is ModelOpt's; None where no range is calibrated.
    `says` is what it is in words.
    """

    name: str
    says: str
    weight: tuple[Settings, ...]
    activation: Settings | None = None
    attention: Settings | None = None
    layers: tuple[str, ...] = _LAYERS
    algorithm: Any = "max"

    @property
    def weight_bits(self) -> float:
        """Bits of one weight in whole blocks, with its share of their scales."""
        blocks = read_blocks(self.weight[-1].get("block_sizes"))
        size = math.lcm(*blocks.values())
        return self.count_bits((size, size)) / size**2

    def count_bits(self, shape: Sequence[int]) -> int:
        """Return the bits that a weight takes, with the scales of its blocks."""
        settings = self.weight[-1]
        kind = read_format(settings["num_bits"], block_sizes=settings.get("block_sizes"))
        assert kind is not None
        blocks = read_blocks(settings.get("block_sizes"))
        return kind.count_bits(shape, blocks=blocks, full_bits=FULL_BITS)

    def to_entries(self, prefix: str) -> list[dict[str, Any]]:
        """Return the entries of `quant_cfg` for the quantizers whose names start with `prefix`."""
        slots = {"weight": self.weight[-1], "input": self.activation}
        return [
            {"quantizer_name": f"{prefix}{slot}_quantizer", "cfg": dict(settings)}
            for slot, settings in slots.items()
            if settings is not None
        ]

    def to_config(self) -> dict[str, Any]:
        """Return ModelOpt's configuration: `quant_cfg` as an ordered list, and `algorithm`."""
        weight: Any = [dict(settings) for settings in self.weight]
        slots = {"*weight_quantizer": weight if len(weight) > 1 else weight[0]}
        if self.activation is not None:
            slots["*input_quantizer"] = dict(self.activation)
        entries: list[dict[str, Any]] = [dict(_OFF)]
        entries += [
            {"quantizer_name": pattern, "parent_class": parent, "cfg": settings}
            for parent in self.layers
            for pattern, settings in slots.items()
        ]
        if self.attention is not None:
            entries += [
                {"quantizer_name": f"*{slot}_quantizer", "cfg": dict(self.attention)}
                for slot in _ATTENTION
            ]
        return {"quant_cfg": entries, "algorithm": self.algorithm}


def _whole(kind: NumberFormat, *, axis: int | None = None) -> Settings:
    """Return the settings of one range for a tensor, or for each index of an axis."""
    return {"num_bits": kind.num_bits, "axis": axis}


def _blocks(kind: NumberFormat, *, size: int | None = None, type_: str = "dynamic") -> Settings:
    """Return the settings of a format in blocks of the last axis."""
    blocks: dict[Any, Any] = {-1: size or kind.block_size, "type": type_}
    if kind.scale_bits is not None:
        blocks["scale_bits"] = kind.scale_bits
    return {"num_bits": kind.num_bits, "block_sizes": blocks}


def _mx(name: str, *, says: str) -> NamedRecipe:
    row = next(row for row in TABLE if row.name == name)
    settings = _blocks(row)
    return NamedRecipe(
        name=name.lower(),
        says=says,
        weight=(settings,),
        activation=settings,
        layers=_LINEAR,
        algorithm=None,
    )


_E4M3 = _whole(E4M3)
_E4M3_PER_CHANNEL = _whole(E4M3, axis=0)
_E4M3_PER_TOKEN = {"num_bits": E4M3.num_bits, "type": "dynamic", "block_sizes": {-1: None}}
_INT8 = _whole(INT8)
_INT8_PER_CHANNEL = _whole(INT8, axis=0)
_INT4 = _blocks(INT4, size=128, type_="static")
_NVFP4 = _blocks(NVFP4)
_AWQ = {"method": "awq_lite", "alpha_step": 0.1}

_ROWS = (
    NamedRecipe(
        name="fp8",
        says="W8A8, E4M3, per-tensor, static, max calibration, both towers",
        weight=(_E4M3,),
        activation=_E4M3,
    ),
    NamedRecipe(
        name="fp8-attention",
        says="`fp8`, and q, k, v and output quantizers around attention: NVIDIA's published CLIP "
        "recipe",
        weight=(_E4M3,),
        activation=_E4M3,
        attention=_E4M3,
    ),
    NamedRecipe(
        name="fp8-per-channel",
        says="`fp8` with a range for each output channel of a weight",
        weight=(_E4M3_PER_CHANNEL,),
        activation=_E4M3,
    ),
    NamedRecipe(
        name="fp8-per-token",
        says="the same, and the inputs of Linear layers with a range for each token, from the "
        "values at hand",
        weight=(_E4M3_PER_CHANNEL,),
        activation=_E4M3_PER_TOKEN,
        layers=_LINEAR,
    ),
    NamedRecipe(
        name="fp8-blocks",
        says="weights in E4M3 in blocks of 128 x 128",
        weight=({"num_bits": E4M3.num_bits, "block_sizes": {-1: 128, -2: 128}},),
        layers=_LINEAR,
    ),
    NamedRecipe(
        name="int8",
        says="weights per-channel, activations per-tensor, static",
        weight=(_INT8_PER_CHANNEL,),
        activation=_INT8,
    ),
    NamedRecipe(
        name="int8-smoothquant",
        says="the same after SmoothQuant",
        weight=(_INT8_PER_CHANNEL,),
        activation=_INT8,
        algorithm="smoothquant",
    ),
    NamedRecipe(
        name="int8-weight-only",
        says="weights per-channel, activations as they are",
        weight=(_INT8_PER_CHANNEL,),
    ),
    NamedRecipe(
        name="int4",
        says="weights in blocks of 128 inputs, activations as they are",
        weight=(_INT4,),
        layers=_LINEAR,
    ),
    NamedRecipe(
        name="int4-awq",
        says="the same after AWQ",
        weight=(_INT4,),
        layers=_LINEAR,
        algorithm=_AWQ,
    ),
    NamedRecipe(
        name="w4a8-awq",
        says="weights in INT4 blocks of 128 and then in E4M3, activations in E4M3, after AWQ",
        weight=(_INT4, _E4M3),
        activation=_E4M3,
        layers=_LINEAR,
        algorithm="awq_lite",
    ),
    NamedRecipe(
        name="nvfp4",
        says="W4A4, NVFP4: blocks of 16 with E4M3 scales under a calibrated range of the tensor",
        weight=(_NVFP4,),
        activation=_NVFP4,
        layers=_LINEAR,
    ),
    NamedRecipe(
        name="nvfp4-attention",
        says="the same, and FP8 quantizers around attention",
        weight=(_NVFP4,),
        activation=_NVFP4,
        attention=_E4M3,
        layers=_LINEAR,
    ),
    NamedRecipe(
        name="nvfp4-weight-only",
        says="`nvfp4` with activations as they are",
        weight=(_NVFP4,),
        layers=_LINEAR,
    ),
    NamedRecipe(
        name="nvfp4-mse",
        says="`nvfp4` with the scale of each block of a weight searched for the least squared "
        "error",
        weight=(_blocks(NVFP4, type_="static"),),
        activation=_NVFP4,
        layers=_LINEAR,
        algorithm={"method": "mse", "fp8_scale_sweep": True},
    ),
    NamedRecipe(
        name="nvfp4-awq",
        says="`nvfp4` after AWQ",
        weight=(_NVFP4,),
        activation=_NVFP4,
        layers=_LINEAR,
        algorithm="awq_lite",
    ),
    NamedRecipe(
        name="nvfp4-svdquant",
        says="`nvfp4` after SVDQuant: a branch of rank 32 beside each layer, in full precision",
        weight=(_NVFP4,),
        activation=_NVFP4,
        layers=_LINEAR,
        algorithm={"method": "svdquant", "lowrank": 32},
    ),
    _mx("MXFP8", says="weights and inputs of Linear layers in MXFP8: no range is calibrated"),
    _mx("MXFP6", says="the same in MXFP6 (E3M2)"),
    _mx("MXFP4", says="the same in MXFP4"),
    _mx("MXINT8", says="the same in MXINT8"),
    NamedRecipe(
        name="mxfp8-weight-only",
        says="weights in MXFP8, activations as they are",
        weight=(_blocks(MXFP8),),
        layers=_LINEAR,
        algorithm=None,
    ),
)

RECIPES: Mapping[str, NamedRecipe] = {row.name: row for row in _ROWS}

#: Recipes that can be mixed layer by layer: of each, a layer's range comes from its own values.
SEARCHED: Mapping[str, NamedRecipe] = {
    name: row
    for name, row in RECIPES.items()
    if row.attention is None and len(row.weight) == 1 and row.algorithm in (None, "max")
}


@dataclass(frozen=True, kw_only=True)
class AutoRecipe:
    """For each layer one of the recipes `formats` or full precision, to be searched.

    At most `bits` for an average weight, scales of blocks included.
    """

    bits: float
    formats: tuple[str, ...]

    @property
    def rows(self) -> tuple[NamedRecipe, ...]:
        return tuple(SEARCHED[name] for name in self.formats)


def read_auto(recipe: Any) -> AutoRecipe | None:
    """Return the search that a suite's recipe asks for, None for one that is written out.

    Raises ValueError with what is wrong with it.
    """
    if not isinstance(recipe, Mapping) or "auto" not in recipe:
        return None
    asked = recipe["auto"]
    if len(recipe) > 1 or not isinstance(asked, Mapping) or set(asked) != {"bits", "formats"}:
        raise ValueError("auto takes bits and formats and nothing else: {bits: 6, formats: [...]}")
    bits, formats = asked["bits"], asked["formats"]
    if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 < bits < FULL_BITS:
        raise ValueError(f"auto.bits is {bits!r}: expected a number between 0 and {FULL_BITS}")
    if not isinstance(formats, (list, tuple)) or not formats:
        raise ValueError(f"auto.formats is {formats!r}: expected a list of recipes")
    for name in formats:
        if not isinstance(name, str) or name not in SEARCHED:
            known = (
                " is not chosen layer by layer"
                if isinstance(name, str) and name in RECIPES
                else " is unknown"
            )
            raise ValueError(f"auto.formats: {name!r}{known}; one of {', '.join(SEARCHED)}")
    if len(set(formats)) < len(formats):
        raise ValueError("auto.formats names a recipe twice")
    lowest = min(formats, key=lambda name: SEARCHED[name].weight_bits)
    if SEARCHED[lowest].weight_bits > bits:
        raise ValueError(
            f"auto.bits is {bits:g}, and {lowest}, the narrowest of its formats, takes "
            f"{SEARCHED[lowest].weight_bits:g} a weight: ask for more, or name a narrower one"
        )
    return AutoRecipe(bits=float(bits), formats=tuple(formats))
