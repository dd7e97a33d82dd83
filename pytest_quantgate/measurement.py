"""What the measuring rooms hand to the gates: plain frozen values, no torch, no pytest.

Everything here can be written as JSON and read back (`to_json`, `from_json`), so a measurement
can be cached next to the variant that it belongs to.
"""

from __future__ import annotations

import base64
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any, Literal, TypeVar

from pytest_quantgate.errors import StoredValueError

Tower = Literal["vision", "text", "other"]

#: Where a quantizer sits. `input`, `weight` and `output` belong to a layer; `q`, `k`, `v` (the
#: operands of the two attention matmuls), `softmax` (the probabilities, ModelOpt's p_bmm or
#: softmax quantizer) and `attention_output` (bmm2_output) belong to an attention block.
Slot = Literal["input", "weight", "output", "q", "k", "v", "softmax", "attention_output", "other"]


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """One quantizer of a model, as found and as seen running.

    `format` is `E4M3`, `INT8`, `INT4`, ... (from num_bits), or `unknown(...)`.
    `granularity` is `per-tensor`, `per-channel` or `block`.
    `amax` fields are None where there is no amax; NaN and Inf are kept as `float`.
    `vision_calls` / `text_calls` count how often it ran in one forward of that tower;
    `changed` says whether its output ever differed from its input.
    `clipped` / `seen` count the values that were clipped and all values on held-out data (0 / 0
    where that was not measured), `largest` is the largest magnitude among them (None: not
    measured). A value is clipped where it lies above amax by more than half a step of the format:
    up to there rounding gives the largest level anyway. `clipped_samples` are the held-out samples
    that had any, `clipped_squares` the sum over samples of the square of their clipped values:
    values of one sample are not independent. `batch_dependent` says whether what it gives for a
    sample depends on the other samples in the batch.
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
    vision_calls: int
    text_calls: int
    changed: bool
    clipped: int = 0
    seen: int = 0
    largest: float | None = None
    clipped_samples: int = 0
    clipped_squares: int = 0
    batch_dependent: bool = False

    @property
    def calls(self) -> int:
        return self.vision_calls + self.text_calls


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
    `mha` (the fused nn.MultiheadAttention call). `operands_quantized` says for each tensor
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
class BatchInvariance:
    """How far the embeddings of one tower move with their batch, as a share of their length.

    `change` is between a batch of one and two batches with other samples, `floor` how far the
    model moves by itself; `samples` is 0 where there were too few to compare.
    """

    tower: Tower
    samples: int
    change: float
    floor: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All that was found in one quantized model, in the model's own order.

    `excludes` gives for every exclude pattern of the recipe the quantizers that it matched.
    `intended` are the quantizer names that the recipe meant to switch on *before* the
    excludes and before any preset's built-in disabling took them away; `disabled_by` names for
    each intended quantizer that is off the pattern (in the recipe) that switched it off.
    `algorithm` is the recipe's calibration algorithm by name, empty where it is not known.
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


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """How the quantizers got their ranges.

    `vision_batches` / `text_batches` are forwards really seen by each tower during calibration.
    `nonfinite` names what was NaN or Inf in the calibration data (`image 17`, `text 3`).
    `sample_hashes` / `held_out_hashes` are SHA-256 of the decoded pixels, each tagged with its
    sample id: (hash, id); `sample_looks` are the perceptual hashes of the samples in that order.
    `copies` counts the samples that repeat the picture and the label (or captions) of another.
    """

    data: str
    samples: int
    batches: int
    vision_batches: int
    text_batches: int
    nonfinite: tuple[str, ...]
    sample_hashes: tuple[tuple[str, str], ...]
    held_out_samples: int
    held_out_hashes: tuple[tuple[str, str], ...]
    sample_looks: tuple[str, ...] = ()
    copies: int = 0


@dataclass(frozen=True, kw_only=True)
class NearCopy:
    """A sample that looks like one that was calibrated on, although its pixels are others.

    `sample` and `like` are their ids; `bits` how many of 256 bits of their hashes differ.
    """

    sample: str
    like: str
    bits: int


@dataclass(frozen=True, kw_only=True)
class TowerFidelity:
    """Embeddings of one tower against FP16's on the same samples.

    Cosine in [-1, 1]; SQNR in dB, 10 log10(sum x^2 / sum (x - y)^2), +inf where equal.
    `nonfinite` counts samples whose embedding holds NaN or Inf on either side.
    """

    tower: Tower
    samples: int
    cosine_mean: float
    cosine_worst: float
    cosine_worst_id: str
    sqnr_mean_db: float
    sqnr_worst_db: float
    sqnr_worst_id: str
    nonfinite: int


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Fidelity of both towers.

    `worst_layers` are (module, SQNR in dB) of every layer by itself, worst first, or empty.
    `copies` counts the images that repeat another.
    """

    data: str
    towers: tuple[TowerFidelity, ...]
    worst_layers: tuple[tuple[str, float], ...] = ()
    copies: int = 0


@dataclass(frozen=True, kw_only=True)
class QuantizerGroup:
    """Enabled quantizers that are left out together: one transformer block and kind.

    `label` is its name for people (`vision block 3 mlp`). `patterns` are the exclude patterns that
    match exactly these of all enabled quantizers; `extra_bytes` is what leaving the group out adds
    to the weights.
    """

    label: str
    tower: Tower
    block: int | None
    kind: str
    quantizers: tuple[str, ...]
    patterns: tuple[str, ...]
    extra_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class OutlierChannels:
    """A few channels so large that the range of one quantizer is theirs, and not the others'.

    `place` is where in its block the quantizer sits (`mlp.fc1`). `channels` are their indices, the
    largest first, of `channels_count`; they reach `largest_ratio` to `smallest_ratio` times the
    largest value of the median channel, which has `levels` of the `levels_count` levels above 0 of
    the `format` (None: of a format whose levels are not counted). `range_ratio` is the range that
    the other channels need by themselves, as a share of the one there is. `smoothable` says
    whether SmoothQuant would take the difference away.
    """

    quantizer: str
    place: str
    format: str
    channels: tuple[int, ...]
    channels_count: int
    largest_ratio: float
    smallest_ratio: float
    range_ratio: float
    levels: int | None
    levels_count: int | None
    smoothable: bool


@dataclass(frozen=True, kw_only=True)
class GroupEffect:
    """What one group does to the embeddings and to a task.

    Noise is a ratio of powers, sum (x - y)^2 / sum x^2 over all samples (SQNR is -10 log10 of it):
    0 where nothing changes, +inf for NaN or Inf. `noise_only` has this group alone quantized,
    `noise_without` all but it (NaN where that was not measured); `metric_*` are the task's metric
    in [0, 1] in the same states. A group that runs in both towers has the larger noise of the two.
    `towers` are those in which it ran, empty where it never did. `outliers` are the quantizers of
    the group with outlier channels, `noise_apart` is `noise_only` with these channels and all
    others rounded apart from each other (None: no outliers).
    """

    group: QuantizerGroup
    towers: tuple[Tower, ...]
    noise_only: float
    noise_without: float
    metric_only: float | None = None
    metric_without: float | None = None
    outliers: tuple[OutlierChannels, ...] = ()
    noise_apart: float | None = None


@dataclass(frozen=True, kw_only=True)
class TowerNoise:
    """The noise (see `GroupEffect`) of one tower with every quantizer on, and with every one off.

    `noise_off` is against FP16; the others are against the model with every quantizer off.
    """

    tower: Tower
    samples: int
    noise_all: float
    noise_off: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Which groups of quantizers cost what on `samples` images and `texts` texts of `data`.

    `effects` are ranked, the largest noise of one group alone first. `task` and `metric` are empty
    where no metric was measured; `metric_off` is that with every quantizer off. `evaluations` is
    the cost in plain evaluations: forwards of both variants over the same samples.
    """

    data: str
    samples: int
    texts: int
    task: str
    metric: str
    towers: tuple[TowerNoise, ...]
    metric_off: float | None
    metric_all: float | None
    effects: tuple[GroupEffect, ...]
    weights_bytes: int
    evaluations: float


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One gate of a suite before and after an exclusion; values in [0, 1], None where it has none.

    `before` and `after` are statuses, the briefs their figures; `after` is empty where nothing was
    verified. `predicted` is the value expected from the noise that the exclusion takes away.
    """

    gate: str
    before: str
    brief_before: str
    fp16_value: float | None = None
    value_before: float | None = None
    predicted: float | None = None
    after: str = ""
    brief_after: str = ""
    value_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """The smallest list of groups found whose exclusion makes every gate pass.

    `outcome` is `none needed`, `found`, `not found` (within the verifications that are spent on
    it; `groups` is then empty), or `impossible` (`reason` says why not even FP16 passes).
    `coverage` is what the coverage gate then says, empty where it passes or there is none.
    """

    outcome: Literal["none needed", "found", "not found", "impossible"]
    groups: tuple[QuantizerGroup, ...]
    checks: tuple[GateCheck, ...]
    verifications: int
    extra_bytes: int = 0
    reason: str = ""
    coverage: str = ""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A group of quantizers that a red gate names: its label, SQNR alone in dB, and patterns.

    `outliers` and `sqnr_apart_db` are as in `GroupEffect`, the noise as SQNR.
    """

    label: str
    towers: tuple[Tower, ...]
    sqnr_db: float
    patterns: tuple[str, ...]
    outliers: tuple[OutlierChannels, ...] = ()
    sqnr_apart_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class BlockParity:
    """One transformer block of the exported graph, given the hidden state that PyTorch's got.

    Errors are of a sample, relative to what the block adds to its hidden state,
    ||onnx - torch|| / ||added||, floors the same between PyTorch's block and itself with its hidden
    state changed by a random 1e-6. `error` is that of half of the samples and less, `floor` that of
    75 % of the nudged ones; `high_error` that of 90 % of the samples, `high_floor` the largest.
    """

    module: str
    error: float
    floor: float
    high_error: float = 0.0
    high_floor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TowerParity:
    """One exported tower against the PyTorch model on the same samples.

    Errors are of a sample, ||onnx - torch|| / ||torch||, floors the same between the PyTorch model
    and itself with each hidden state behind the embeddings changed by a random 1e-6 of it: what it
    moves by itself. `error`, `floor`, `high_error` and `high_floor` are as in `BlockParity`.
    `quantization_error` is PyTorch's error against FP16 over all samples; the SQNR are against
    FP16, in dB.
    `blocks` are compared one by one, each with PyTorch's own hidden state: no error of a block
    reaches the next one.
    """

    tower: Tower
    samples: int
    error: float
    floor: float
    quantization_error: float
    sqnr_torch_db: float
    sqnr_onnx_db: float
    nonfinite: int
    optimization: str
    blocks: tuple[BlockParity, ...] = ()
    high_error: float = 0.0
    high_floor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ShippedTower:
    """One exported tower in the number format that ships, each result rounded to it.

    `nonfinite` samples have a NaN or an Inf in their embedding; `first` is then the module with the
    first value that the format does not hold, and `largest` that value. The SQNR are in dB:
    `sqnr_db` of this tower against FP16 in float32, `rounding_db` of FP16 itself, rounded in the
    same way in PyTorch.
    """

    tower: Tower
    dtype: str
    samples: int
    nonfinite: int
    first: str
    largest: float
    sqnr_db: float
    rounding_db: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Parity of both towers, and of whose export."""

    towers: tuple[TowerParity, ...]
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Per-sample results of one variant on one task and metric.

    `ids`, `correct`, `answers` (index of the predicted class, or of the best match) and
    `labels` (class of the sample, -1 where the task has no classes) have one entry a sample.
    For retrieval a sample is a query, and `correct` says whether a match was in the first k.
    `clusters` numbers for each sample what it shares with others, such as the image that several
    captions describe: those are not independent. Empty: each stands for itself. `copies` counts the
    samples that repeat the picture and the label (or captions) of another.
    `data_parts` are the SHA-256 of what `data_digest` covers, part by part (`images`, `labels`,
    `templates`, ...), so that two data sets that differ can be told apart.
    `value` is the metric as clip-benchmark defines it, in [0, 1].
    """

    task: str
    metric: str
    variant: str
    ids: tuple[str, ...]
    correct: tuple[bool, ...]
    answers: tuple[int, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    value: float
    data_digest: str
    nonfinite: int = 0
    clusters: tuple[int, ...] = ()
    copies: int = 0
    data_parts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StoredOutcomes:
    """Per-sample results as a baseline keeps them: `correct` in the order of the sorted ids.

    `ids_digest` is the SHA-256 of the sorted ids, one a line; `correct_bits` is `pack_bits` of
    `correct`. `effective_samples` is how many independent samples these are worth where they come
    in clusters: of FP16 for the share that is right, of a variant for what it lost against FP16;
    `answers_changed` how many answers of a variant were not FP16's (None: not recorded).
    """

    samples: int
    ids_digest: str
    correct_bits: str
    value: float
    data_digest: str
    effective_samples: float | None = None
    answers_changed: int | None = None

    @cached_property
    def correct(self) -> tuple[bool, ...]:
        """Whether each sample is right; raises ValueError where the bits are damaged."""
        return unpack_bits(self.correct_bits, count=self.samples)


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """What a regression gate compares with: FP16, the variant accepted last, and the first.

    `first_fp16` is what FP16 gave when `first` was accepted.
    """

    fp16: StoredOutcomes
    accepted: StoredOutcomes
    first: StoredOutcomes
    first_fp16: StoredOutcomes


def pack_bits(bits: Sequence[bool]) -> str:
    """Return one bit a sample, first sample in the highest bit of the first byte, in base64."""
    packed = bytearray((len(bits) + 7) // 8)
    for index, bit in enumerate(bits):
        if bit:
            packed[index // 8] |= 0x80 >> (index % 8)
    return base64.b64encode(bytes(packed)).decode("ascii")


def unpack_bits(text: str, *, count: int) -> tuple[bool, ...]:
    """Return `count` bits out of `pack_bits`; raises ValueError where there are more or fewer."""
    packed = base64.b64decode(text, validate=True)
    if len(packed) != (count + 7) // 8:
        raise ValueError(f"{len(packed)} bytes cannot hold {count} outcomes")
    if count % 8 and packed[-1] & (0xFF >> (count % 8)):
        raise ValueError(f"there are more than {count} outcomes")
    return tuple(bool(packed[i // 8] & (0x80 >> (i % 8))) for i in range(count))


@dataclass(frozen=True, kw_only=True)
class Roundtrip:
    """A save and a restore in a fresh process.

    `outputs_equal` holds per tower; `amax_different` names amax that are not bit-identical;
    `refused` lists the damage that was planted and refused, `accepted` the damage that was
    planted and wrongly accepted (each a short phrase such as `state file missing`).
    """

    saved_bytes: int
    vision_equal: bool
    text_equal: bool
    max_abs_difference: float
    amax_count: int
    amax_different: tuple[str, ...]
    refused: tuple[str, ...]
    accepted: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextReading:
    """How the text tower reads `count` texts, of which `distinct` differ as far as it looks.

    A text tower pools one token, and what stands behind it is not read. `without_end` texts have
    no end token; of `pooled_elsewhere` another token is pooled than the end token behind the text.
    `example` is the first such text, `pooled` the token that is pooled instead, at `position`.
    `end_token` is the tokenizer's (empty where it names none), `commonest` the number of texts
    that read like the most frequent one.
    """

    count: int
    distinct: int
    commonest: int
    end_token: str
    without_end: int = 0
    pooled_elsewhere: int = 0
    example: str = ""
    pooled: str = ""
    position: int = 0


NO_TEXTS = TextReading(count=0, distinct=0, commonest=0, end_token="")


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two classes that cannot be told apart, by index and name; `pairs` says how many are so."""

    first: int
    second: int
    names: tuple[str, str]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a checkpoint's files, and the edit that mends it.

    `finding` is the second half of a verdict's code. Not `certain` is what harms some users only,
    or may be meant so.
    """

    finding: str
    text: str
    fix: str
    certain: bool = True


@dataclass(frozen=True, kw_only=True)
class TextPlaces:
    """Where the class names and the templates of a data set stand, `file:line` by index.

    Empty where they come with a package. `empty_templates` is a file of templates without any.
    """

    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    empty_templates: str = ""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How often FP16 is right on `samples` of a task, each with as many answers to choose from.

    For retrieval an image's first caption is its class. `chance` is the share that answers like
    these hit without looking: the sum over all classes of the share of answers times the share of
    samples, and at least one in `classes`. `seen` classes have samples. `whole` says that these
    are all samples of the task. `confused` are (label, answer, times, of) where another answer is
    commoner than the right one; where `swapped` they are a ring of classes, each answered with
    the next one: their names or labels are exchanged.
    """

    samples: int
    right: int
    chance: float
    classes: int
    seen: int
    whole: bool
    confused: tuple[tuple[str, str, int, int], ...] = ()
    swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class TaskSanity:
    """What must be true of a task whatever its limits are.

    `samples` and `first` are how many the task takes, as in its gate. `without_class` are the
    indices and texts of templates without `{c}`. `same_name`, `same_prompt` and `same_embedding`
    are classes with one name, with prompts that read alike, and with FP16 embeddings that are equal
    up to rounding. `images_alike` is the number of different images that FP16 embedded, all to one
    embedding, else 0; `nonfinite` of them hold NaN or Inf. `answers` is None where no model ran.
    """

    task: str
    data: str
    classes: int
    reading: TextReading
    samples: int | None = None
    first: bool = False
    answers: Answers | None = None
    images_alike: int = 0
    nonfinite: int = 0
    templates: int = 0
    without_class: tuple[tuple[int, str], ...] = ()
    same_name: Twins | None = None
    same_prompt: Twins | None = None
    same_embedding: Twins | None = None


@dataclass(frozen=True, kw_only=True)
class Sanity:
    """What must be true of a model, its tokenizer and its data before any limit means something.

    `data` is what calibrates; `reading` is of the texts of its first `pairs` pairs, which FP16
    embedded: `nonfinite_images` and `nonfinite_texts` of them to NaN or Inf. Their pixels lie
    between `lowest_pixel` and `highest_pixel` after the image processor. `faults` are those of the
    checkpoint's files.
    """

    data: str
    pairs: int
    reading: TextReading
    faults: tuple[Fault, ...] = ()
    lowest_pixel: float = 0.0
    highest_pixel: float = 0.0
    nonfinite_images: int = 0
    nonfinite_texts: int = 0
    tasks: tuple[TaskSanity, ...] = ()


Value = TypeVar("Value")


def to_json(value: Any) -> Any:
    """Return `value` (a dataclass of this module) as JSON-ready dicts, lists and scalars.

    Non-finite floats become the strings `nan`, `inf`, `-inf`, so that the file is strict JSON;
    a day becomes its ISO text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def from_json(kind: type[Value], data: Any) -> Value:
    """Return the dataclass `kind` read back from `to_json`'s form.

    Raises StoredValueError, a ValueError that names the place, where a field is missing, unknown
    or of the wrong shape.
    """
    try:
        return typing.cast(Value, _read(kind, data))
    except StoredValueError as error:
        name = getattr(kind, "__name__", str(kind))
        raise StoredValueError(f"{name}{error.place}: {error}") from error


def shorten(value: Any) -> str:
    """Return a value for a message: ten thousand digits help nobody."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _read(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is Literal:
        if data not in arguments:
            raise StoredValueError(f"{shorten(data)} is none of {arguments}")
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        # Of several scalars the one of the value's own type: 1 is no float where an int may stand.
        return _read(next((k for k in kinds if k is type(data)), kinds[0]), data)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise StoredValueError(f"expected a mapping, found {type(data).__name__}")
        return {name: _read_part(arguments[1], data[name], f".{name}") for name in data}
    if origin is tuple:
        if not isinstance(data, list):
            raise StoredValueError(f"expected a list, found {type(data).__name__}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(data)
        if len(data) != len(arguments):
            raise StoredValueError(f"expected {len(arguments)} items, found {len(data)}")
        return tuple(_read(a, item) for a, item in zip(arguments, data, strict=True))
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), data)
    if kind is float and (type(data) in (int, float) or data in ("nan", "inf", "-inf")):
        try:
            return float(data)
        except OverflowError as error:
            raise StoredValueError(
                f"expected float, found an integer out of range: {error}"
            ) from error
    if kind in (int, bool, str) and type(data) is kind:
        return data
    if kind is date and isinstance(data, str):
        with suppress(ValueError):
            return date.fromisoformat(data)
    raise StoredValueError(f"expected {getattr(kind, '__name__', kind)}, found {shorten(data)}")


def _read_part(kind: Any, data: Any, place: str) -> Any:
    try:
        return _read(kind, data)
    except StoredValueError as error:
        error.place = place + error.place
        raise


def _read_dataclass(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise StoredValueError(f"expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise StoredValueError(f"unknown fields {shorten(unknown)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read_part(hints[name], data[name], f".{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise StoredValueError(f"field {name!r} is missing")
    return kind(**values)


@dataclass(frozen=True, kw_only=True)
class EngineOutputs:
    """What a quantized engine gave on a device, as SQNR in dB against FP16 in PyTorch.

    `sqnr_onnx_db` is None where the exported file could not be run in ONNX Runtime. `nonfinite`
    samples of `samples` have a NaN or an Inf in the engine's embedding.
    """

    tower: str
    samples: int
    nonfinite: int
    sqnr_engine_db: float
    sqnr_torch_db: float
    sqnr_onnx_db: float | None


@dataclass(frozen=True, kw_only=True)
class QdqPair:
    """One QuantizeLinear/DequantizeLinear pair of an ONNX graph, or a lone half of one.

    `quantizer` is the quantizer it belongs to by its name, None where the name is of none; `slot`
    follows from it. `format` is `E4M3`, `INT8` or ONNX's name of the type. `scale_type` is the
    type the scale is stored in, `scale_digest` the SHA-256 of its values as float32;
    `amax` is the scale times the largest value of the format (448, 127). `symmetric` says whether
    all zero points are 0.
    `source` is `weight, 8 bit` (an 8-bit initializer, no QuantizeLinear), `weight, float` (a
    full-precision initializer behind QuantizeLinear: nothing is saved), or `activation`.
    `complete` says whether both halves are there with one scale and one type.
    `producer` is the module of the node whose value is quantized (None for weights and inputs),
    `consumers` the modules of those that read the result; nodes that only move values are
    looked through. `feeds_owner` says whether they include the module that the quantizer's name
    says it belongs to. `amax_deviation` is the largest relative difference between an amax of
    the graph and the calibrated one at the same place; None where they were not compared.
    """

    node: str
    quantizer: str | None
    slot: Slot
    format: str
    scale_type: str
    scale_min: float
    scale_max: float
    scale_count: int
    scale_digest: str
    amax_min: float
    amax_max: float
    symmetric: bool
    source: Literal["weight, 8 bit", "weight, float", "activation"]
    complete: bool
    producer: str | None
    consumers: tuple[str, ...]
    feeds_owner: bool
    amax_deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class OnnxOperation:
    """One Conv, Gemm or MatMul of an ONNX graph.

    `operands_quantized` says for the first two inputs whether they come out of a complete pair;
    `quantizers` names them (None for an input that is not quantized, or by a nameless pair).
    `weights_count` and `weight_type` describe the operand that is an initializer: 0 and None
    where there is none.
    """

    node: str
    module: str
    operator: str
    operands_quantized: tuple[bool, ...]
    quantizers: tuple[str | None, ...]
    weights_count: int
    weight_type: str | None


@dataclass(frozen=True, kw_only=True)
class OnnxAudit:
    """All that an ONNX file says about its quantization.

    `declared` are the quantizers that the exporter wrote into the file's metadata, `extra` those
    of them that were asked for beyond what the model simulates (softmax pairs); both are empty
    for a file of another exporter. `domains` are those of the opset imports and nodes ('' is
    standard ONNX). `weights_bytes` are the bytes of initializers by type. `problems` is what
    ONNX's own checker says, empty where the model is valid. `digest` is the file's SHA-256.
    """

    tower: str
    precision: str
    opset: int
    domains: tuple[str, ...]
    file_bytes: int
    digest: str
    dynamic_batch: bool
    weights_bytes: tuple[tuple[str, int], ...]
    declared: tuple[str, ...]
    extra: tuple[str, ...]
    pairs: tuple[QdqPair, ...]
    operations: tuple[OnnxOperation, ...]
    problems: tuple[str, ...]

    @property
    def lost(self) -> tuple[str, ...]:
        """Declared quantizers without a complete pair at their place."""
        held = {p.quantizer for p in self.pairs if p.complete and p.feeds_owner}
        return tuple(name for name in self.declared if name not in held)

    @property
    def undeclared(self) -> tuple[QdqPair, ...]:
        """Pairs of no quantizer that the exporter declared."""
        return tuple(p for p in self.pairs if p.quantizer not in self.declared)

    @property
    def unquantized(self) -> tuple[OnnxOperation, ...]:
        """Operations with at least one of two operands in full precision."""
        return tuple(op for op in self.operations if not all(op.operands_quantized))
