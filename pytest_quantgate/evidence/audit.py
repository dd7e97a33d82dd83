"""What was found in a variant: quantizers, modules, operations and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TowerName = Literal["vision", "text"]
Tower = Literal["vision", "text", "other"]

TOWERS: tuple[TowerName, ...] = ("vision", "text")


#: Where a quantizer sits. `input`, `weight` and `output` belong to a layer; `q`, `k`, `v` (the
#: operands of the two attention matmuls), `softmax` (the probabilities, ModelOpt's p_bmm or
#: softmax quantizer) and `attention_output` (bmm2_output) belong to an attention block.
Slot = Literal["input", "weight", "output", "q", "k", "v", "softmax", "attention_output", "other"]


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """One quantizer of a model, as found and as seen running.

    `format` is a name of the table of number formats (`E4M3`, `INT4`, `NVFP4`), or `unknown(...)`.
    `granularity` is `per-tensor`, `per-channel` or `block`; `block_sizes` are then those of the
    blocks, in the order of the axes.
    `amax` fields are None where there is no amax; NaN and Inf are kept as `float`.
    `tower_calls` counts how often it ran in one forward of each tower;
    `changed` says whether its output ever differed from its input.
    `clipped` / `seen` count the values that were clipped and all values on held-out data (0 / 0
    where that was not measured), `largest` is the largest magnitude among them (None: not
    measured). A value is clipped where it lies above amax by more than half a step of the format:
    up to there rounding gives the largest level anyway. `clipped_samples` are the held-out samples
    that had any, `clipped_squares` the sum over samples of the square of their clipped values:
    values of one sample are not independent. `batch_dependent` says whether what it gives for a
    sample depends on the other samples in the batch. `row_values` are the values along the last
    axis, which blocks are cut from (0: it never ran). `scales_ignored` says whether it declares a
    format for the scales of its blocks that ModelOpt passes over. `ranges_off` counts the ranges of
    a weight (of its channels or blocks) that are not the largest magnitude of their own values.
    """

    name: str
    module: str
    module_class: str
    slot: Slot
    tower: Tower
    block: int | None
    enabled: bool
    format: str
    granularity: str
    dynamic: bool
    amax_min: float | None
    amax_max: float | None
    amax_finite: bool
    amax_count: int
    tower_calls: Mapping[str, int]
    changed: bool
    clipped: int = 0
    seen: int = 0
    largest: float | None = None
    clipped_samples: int = 0
    clipped_squares: int = 0
    batch_dependent: bool = False
    block_sizes: tuple[int, ...] = ()
    row_values: int = 0
    scales_ignored: bool = False
    ranges_off: int = 0

    @property
    def own_calls(self) -> int:
        """How often it ran in the forward of its own tower; of any, where it is of none."""
        return self.calls if self.tower == "other" else self.tower_calls.get(self.tower, 0)

    @property
    def calls(self) -> int:
        return sum(self.tower_calls.values())


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a recipe gives one quantizer, in the words of `Quantizer`."""

    format: str
    granularity: str
    dynamic: bool


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module that holds parameters or computes attention, quantized or not."""

    name: str
    class_name: str
    kind: Literal["linear", "conv", "embedding", "norm", "attention", "mha", "other"]
    tower: Tower
    block: int | None
    weights_count: int


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One matrix operation seen in a forward: who called it and which operands were quantized.

    `function` is `linear`, `conv`, `matmul`, `attention` (scaled_dot_product_attention) or
    `mha` (the fused nn.MultiheadAttention call), `low-rank` one of the two products of SVDQuant's
    branch. `operands_quantized` says for each tensor
    operand, in order, whether it came out of an enabled quantizer that really ran.
    """

    module: str
    module_class: str
    function: str
    tower: Tower
    block: int | None
    operands: tuple[str, ...]
    operands_quantized: tuple[bool, ...]
    weights_count: int


@dataclass(frozen=True, kw_only=True)
class LayerActivation:
    """The largest magnitude that one module took or gave on held-out data.

    `overflowing` counts the samples with a value that the number format which ships cannot hold.
    """

    module: str
    tower: Tower
    largest: float
    overflowing: int


@dataclass(frozen=True, kw_only=True)
class InputScale:
    """What SmoothQuant or AWQ multiplies the inputs of a layer by, in `count` values.

    `applied` says whether the layer's output changes with it; None where the layer never ran.
    """

    module: str
    tower: Tower
    count: int
    smallest: float
    largest: float
    finite: bool
    applied: bool | None


@dataclass(frozen=True, kw_only=True)
class LowRankBranch:
    """SVDQuant's branch beside a layer, in full precision.

    `output_share` is the length of what it adds to the layer's output, as a share of the length of
    that; None where the layer never ran.
    """

    module: str
    tower: Tower
    rank: int
    output_share: float | None


@dataclass(frozen=True, kw_only=True)
class BatchInvariance:
    """How far the embeddings of one tower move with their batch, as a share of their length.

    `change` is between a batch of one and two batches with other samples, `floor` how far the
    model moves by itself, `repeat` how far the same batch moves when it is embedded again;
    `samples` is 0 where there were too few to compare.
    """

    tower: Tower
    samples: int
    change: float
    floor: float
    repeat: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FormatSearch:
    """What a search for the format of each layer was asked for, and what it chose.

    `layers` gives the name of each layer's recipe, '' for full precision. `bits` are those of an
    average weight of these layers in the variant that was built, scales of blocks included and 16
    in full precision; None before it was.
    """

    asked_bits: float
    layers: Mapping[str, str]
    bits: float | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All that was found in one quantized model, in the model's own order.

    `excludes` gives for every exclude pattern of the recipe the quantizers that it matched.
    `intended` are the quantizer names that the recipe meant to switch on *before* the
    excludes and before any preset's built-in disabling took them away; `disabled_by` names for
    each intended quantizer that is off the pattern (in the recipe) that switched it off.
    `declared` gives for each intended quantizer what the recipe says of it.
    `search` is what chose the formats, None where the recipe did.
    `algorithm` is the recipe's calibration algorithm by name, `none` where it calibrates nothing,
    empty where it is not known.
    `invariance` has an entry a tower where whole embeddings were compared. `activations` are those
    of the held-out forwards, in the order in which the modules ran.
    """

    towers: tuple[Tower, ...]
    modules: tuple[Module, ...]
    quantizers: tuple[Quantizer, ...]
    operations: tuple[Operation, ...]
    excludes: tuple[tuple[str, tuple[str, ...]], ...]
    intended: tuple[str, ...]
    disabled_by: tuple[tuple[str, str], ...]
    recipe_name: str
    formats: tuple[str, ...]
    notes: tuple[str, ...] = ()
    algorithm: str = ""
    invariance: tuple[BatchInvariance, ...] = ()
    activations: tuple[LayerActivation, ...] = ()
    input_scales: tuple[InputScale, ...] = ()
    branches: tuple[LowRankBranch, ...] = ()
    declared: Mapping[str, Declared] = field(default_factory=dict)
    search: FormatSearch | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """How the quantizers got their ranges.

    `tower_batches` are forwards really seen by each tower during calibration.
    `nonfinite` names what was NaN or Inf in the calibration data (`image 17`, `text 3`).
    `sample_hashes` / `held_out_hashes` are SHA-256 of the decoded pixels, each tagged with its
    sample id: (hash, id); `sample_looks` are the perceptual hashes of the samples in that order.
    `given` is whether the checkpoint was handed over: which samples of the data it was calibrated
    on is not in it, so all of that data but the held-out samples stand in `sample_hashes`.
    `copies` counts the samples that repeat the picture and the label (or captions) of another.
    """

    data: str
    samples: int
    batches: int
    tower_batches: Mapping[str, int]
    nonfinite: tuple[str, ...]
    sample_hashes: tuple[tuple[str, str], ...]
    held_out_samples: int
    held_out_hashes: tuple[tuple[str, str], ...]
    sample_looks: tuple[str, ...] = ()
    copies: int = 0
    given: bool = False


@dataclass(frozen=True, kw_only=True)
class NearCopy:
    """A sample that looks like one that was calibrated on, although its pixels are others.

    `sample` and `like` are their ids; `bits` how many of 256 bits of their hashes differ.
    """

    sample: str
    like: str
    bits: int
