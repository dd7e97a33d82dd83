"""Calibration that went wrong, and weights that are not those that were calibrated."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.sabotage.bench import MODEL_GATES, Bench, Entry
from benchmarks.sabotage.names import rename
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import choose, names_of, released
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.measure.embeddings import make_batches
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.quantizers import find_quantizers
from pytest_quantgate.run.case import Case
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples

#: Every layer is quantized, also the first one, which sees the pixels.
ALL_LAYERS = {'exclude: ["*patch_embedding*"]': "exclude: []"}
#: The baseline is of another exclude list.
NO_BASELINE = tuple(kind for kind in MODEL_GATES if kind != "regression")

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


def pixels(change: Callable[[torch.Tensor], torch.Tensor]) -> Pipeline:
    """Return a pipeline whose calibration images come out otherwise."""

    def pairs(batches: list[Batch]) -> list[Batch]:
        return [
            batch.with_inputs("vision", {"pixel_values": change(batch.pixel_values)})
            for batch in batches
        ]

    return Pipeline(pairs=pairs)


def noise(values: torch.Tensor) -> torch.Tensor:
    return torch.randn(values.shape, generator=torch.Generator().manual_seed(0))


def with_nan(values: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    changed[3, 0, 5, 5] = float("nan")
    return changed


def from_raw(scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what the images are without normalisation, times `scale`."""
    return lambda values: (values * STD + MEAN) * scale


def images_only(model: Encoder, batches: Sequence[Batch]) -> None:
    for batch in batches:
        model.encode_image(batch.pixel_values)


def nothing(_model: Encoder, _batches: Sequence[Batch]) -> None:
    """The loop over an empty data set."""


def one_sample(batches: list[Batch]) -> list[Batch]:
    return [batches[0].take(slice(1))]


def empty_texts(batches: list[Batch]) -> list[Batch]:
    return [
        batch.with_inputs(
            "text",
            {
                name: torch.zeros_like(value) if name == "input_ids" else torch.ones_like(value)
                for name, value in batch.tokens.items()
            },
        )
        for batch in batches
    ]


def on_test_set(_samples: Samples) -> Samples:
    return load_samples(
        "scenes/test", datasets={}, samples=256, environ={}, purpose="classification"
    )


def repeat_held_out(samples: Samples) -> Samples:
    return load_samples(
        "scenes/calibration", datasets={}, samples=384, environ={}, purpose="pairs"
    ).take(128, 384)


def ranges(name: str, pattern: str, change: Callable[[Any], None]) -> Callable[[Bench], Case]:
    def make(bench: Bench) -> Case:
        def finish(model: Encoder) -> None:
            for quantizer in choose(model, pattern):
                if hasattr(quantizer, "_amax"):  # those of embeddings are off and have none
                    change(quantizer)

        return released(bench, name, finish=finish)

    return make


def scale_by(factor: float) -> Callable[[Any], None]:
    return lambda quantizer: quantizer._amax.mul_(factor)


def fill_with(value: float) -> Callable[[Any], None]:
    return lambda quantizer: quantizer._amax.fill_(value)


def forget(quantizer: Any) -> None:
    delattr(quantizer, "_amax")


def stale_ranges(bench: Bench) -> Case:
    """The amax of another checkpoint, put into this one because the names fit."""

    def finish(model: Encoder) -> None:
        good = bench.good
        other = other_revision(good.fp16)
        batches = list(make_batches(good.fp16, good.held_out(64), batch_size=64))
        calibrated = quantize(
            other, recipe=good.recipe, exclude=good.suite.variant.exclude, batches=batches
        )
        mine, theirs = find_quantizers(model.module), find_quantizers(calibrated.model.module)
        for name, quantizer in mine.items():
            if hasattr(quantizer, "_amax") and hasattr(theirs[name], "_amax"):
                quantizer._amax.copy_(theirs[name]._amax)

    return released(bench, "stale ranges", finish=finish)


def other_revision(fp16: Encoder) -> Encoder:
    """Return the model as it was some training steps before: every matrix a little other."""
    module = copy.deepcopy(fp16.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                step = torch.randn(parameter.shape, generator=generator) * parameter.std()
                parameter.mul_(0.7).add_(0.25 * step)
    return replace(fp16, module=module)


def outlier_to_half(model: Encoder) -> Encoder:
    """A range of 100,000, which is Inf in half precision."""
    for quantizer in choose(model, "vision*.1.mlp.fc2.input_quantizer"):
        quantizer._amax.fill_(1e5)
    return to_half(model)


def to_half(model: Encoder) -> Encoder:
    return replace(model, module=model.module.half(), compute_dtype="float16")


CALIBRATIONS = (
    Entry(
        name="no batch was calibrated on",
        theme="calibration",
        make=lambda bench: released(bench, "no batches", Pipeline(calibrate=nothing)),
        gates=("calibration",),
        cause="no batch was ever calibrated on",
    ),
    Entry(
        name="calibrated with images only",
        theme="calibration",
        make=lambda bench: released(bench, "images only", Pipeline(calibrate=images_only)),
        gates=("calibration",),
        cause="text tower was never calibrated",
    ),
    Entry(
        name="calibrated on random noise",
        theme="calibration",
        make=lambda bench: released(bench, "noise", pixels(noise)),
        gates=("calibration", "fidelity"),
        cause="calibration data unlike the real data|wider than",
    ),
    Entry(
        name="calibrated on black images",
        theme="calibration",
        make=lambda bench: released(bench, "black", pixels(torch.zeros_like)),
        gates=("calibration",),
        cause="calibration data unlike the real data",
    ),
    Entry(
        name="calibrated on one sample",
        theme="calibration",
        make=lambda bench: released(bench, "one sample", Pipeline(pairs=one_sample)),
        gates=("calibration",),
        cause="too few samples",
    ),
    Entry(
        name="calibrated without normalisation",
        theme="calibration",
        make=lambda bench: released(
            bench, "not normalised", pixels(from_raw(1.0)), edits=ALL_LAYERS
        ),
        gates=("calibration",),
        cause="other preprocessing",
        judged=NO_BASELINE,
    ),
    Entry(
        name="calibrated on pixels from 0 to 255",
        theme="calibration",
        make=lambda bench: released(bench, "0 to 255", pixels(from_raw(255.0)), edits=ALL_LAYERS),
        gates=("calibration",),
        cause="(?s)wider than anything.*other preprocessing",
        judged=NO_BASELINE,
    ),
    Entry(
        name="pixels from 0 to 255, with the first layer excluded",
        theme="calibration",
        make=lambda bench: released(bench, "0 to 255, excluded", pixels(from_raw(255.0))),
        gates=("calibration",),
        cause="other preprocessing",
        principle="no harm is done: the first LayerNorm takes the scale away before any quantizer "
        "sees it, every range fits held-out data and no answer gets worse; a gate that looks at "
        "the released model finds a good one",
    ),
    Entry(
        name="calibrated on texts of padding",
        theme="calibration",
        make=lambda bench: released(bench, "empty texts", Pipeline(pairs=empty_texts)),
        gates=("calibration",),
        cause="calibration data unlike the real data",
    ),
    Entry(
        name="NaN in a calibration image",
        theme="calibration",
        make=lambda bench: released(bench, "NaN pixels", pixels(with_nan)),
        gates=("calibration",),
        cause="calibration data holds NaN or Inf",
    ),
    Entry(
        name="calibrated on the test images",
        theme="calibration",
        make=lambda bench: released(bench, "test images", Pipeline(source=on_test_set)),
        gates=("calibration",),
        cause="evaluation samples? by content also calibrated",
    ),
    Entry(
        name="calibrated on the held-out images",
        theme="calibration",
        make=lambda bench: released(bench, "held-out images", Pipeline(source=repeat_held_out)),
        gates=("calibration",),
        cause="held-out samples? by content also calibrated",
    ),
    Entry(
        name="ranges of another checkpoint",
        theme="calibration",
        make=stale_ranges,
        gates=("calibration",),
        cause="ranges of another checkpoint|were changed after",
    ),
    Entry(
        name="one range missing",
        theme="calibration",
        make=ranges("one missing", "vision_model.encoder.layers.1.mlp.fc1.input_quantizer", forget),
        gates=("calibration",),
        cause=r"(?s)no amax.*layers\.1\.mlp\.fc1",
    ),
    Entry(
        name="one range NaN",
        theme="calibration",
        make=ranges("one NaN", "*text_model*.0.mlp.fc2.input_quantizer", fill_with(float("nan"))),
        gates=("calibration",),
        cause=r"(?s)NaN or Inf.*layers\.0\.mlp\.fc2",
    ),
    Entry(
        name="one range zero",
        theme="calibration",
        make=ranges("one zero", "*text_model*.0.mlp.fc2.input_quantizer", fill_with(0.0)),
        gates=("calibration",),
        cause=r"(?s)not positive.*layers\.0\.mlp\.fc2",
    ),
    Entry(
        name="one range a quarter of what it was",
        theme="calibration",
        make=ranges("one quarter", "vision*.2.mlp.fc1.input_quantizer", scale_by(0.25)),
        gates=("calibration",),
        cause=r"(?s)clips? more.*layers\.2\.mlp\.fc1",
    ),
    Entry(
        name="one range a million times what it was",
        theme="calibration",
        make=ranges("one million", "vision*.2.mlp.fc1.input_quantizer", scale_by(1e6)),
        gates=("calibration",),
        cause=r"(?s)wider than.*layers\.2\.mlp\.fc1",
    ),
    Entry(
        name="weight ranges far too wide",
        theme="calibration",
        make=ranges("wide weights", "*weight_quantizer", scale_by(1e5)),
        gates=("calibration",),
        cause="not those of the weights",
    ),
    Entry(
        name=".half() after the calibration, a range does not fit",
        theme="calibration",
        make=lambda bench: released(bench, "half, outlier", Pipeline(finish=outlier_to_half)),
        gates=("calibration",),
        cause=r"(?s)NaN or Inf.*layers\.1\.mlp\.fc2",
    ),
    Entry(
        name=".half() after the calibration, every range fits",
        theme="calibration",
        make=lambda bench: released(bench, "half", Pipeline(finish=to_half)),
        gates=("calibration",),
        cause="half",
        principle="no harm is done: rounding to half moves a range by 2^-11 at most, less than a "
        "step of FP8, and no answer gets worse; a range that half cannot hold becomes 0 or Inf, "
        "and that is caught",
    ),
)


# -- weights -------------------------------------------------------------------------------------


def weights_after(name: str, change: Callable[[Encoder], None]) -> Callable[[Bench], Case]:
    def make(bench: Bench) -> Case:
        def finish(model: Encoder) -> None:
            with torch.no_grad():
                change(model)

        return released(bench, name, finish=finish)

    return make


def weight_of(model: Encoder, name: str) -> torch.Tensor:
    parameter: torch.Tensor = model.module.get_parameter(rename(name, names_of(model)))
    return parameter


FC1 = "vision_model.encoder.layers.{}.mlp.fc1.weight"


def swap_layers(model: Encoder) -> None:
    first, second = (weight_of(model, FC1.format(block)) for block in (0, 3))
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def zero_layer(model: Encoder) -> None:
    weight_of(model, FC1.format(2)).zero_()


def reset_norm(model: Encoder) -> None:
    weight_of(model, "vision_model.post_layernorm.weight").fill_(1.0)
    weight_of(model, "vision_model.post_layernorm.bias").zero_()


def fine_tune(model: Encoder) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.module.named_parameters():
        if parameter.dim() > 1 and name.endswith("weight") and "embedding" not in name:
            step = torch.randn(parameter.shape, generator=generator) * parameter.std()
            parameter.add_(0.1 * step)


def truncate(model: Encoder) -> None:
    """The last shard is not there: what it held is as the constructor left it."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.module.named_parameters():
        if re.search(r"layers?\.[23]|blocks\.[23]", name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def transpose(model: Encoder) -> None:
    weight = weight_of(model, "vision_model.encoder.layers.1.self_attn.q_proj.weight")
    weight.copy_(weight.T.clone())


WEIGHTS = (
    Entry(
        name="two layers swapped after the calibration",
        theme="weights",
        make=weights_after("swapped", swap_layers),
        gates=("calibration", "fidelity"),
        cause=r"(?s)layers\.[03]\.mlp\.fc1",
    ),
    Entry(
        name="one layer zeroed",
        theme="weights",
        make=weights_after("zeroed", zero_layer),
        gates=("fidelity", "calibration"),
        cause=r"(?s)layers\.2\.mlp\.fc1",
    ),
    Entry(
        name="last LayerNorm at its initial values",
        theme="weights",
        make=weights_after("reset norm", reset_norm),
        gates=("fidelity",),
        cause="under min_",
    ),
    Entry(
        name="last shard of the checkpoint missing",
        theme="weights",
        make=weights_after("truncated", truncate),
        gates=("fidelity", "calibration"),
        cause=r"(?s)layers\.[23]\.",
    ),
    Entry(
        name="another revision was quantized",
        theme="weights",
        make=lambda bench: released(bench, "revision", Pipeline(weights=other_revision)),
        gates=("fidelity",),
        cause="under min_",
    ),
    Entry(
        name="fine-tuned after the calibration",
        theme="weights",
        make=weights_after("fine-tuned", fine_tune),
        gates=("calibration",),
        cause="changed after (it was|they were|the) calibrat",
    ),
    Entry(
        name="one matrix transposed",
        theme="weights",
        make=weights_after("transposed", transpose),
        gates=("fidelity",),
        cause=r"(?s)layers\.1\.self_attn\.q_proj",
    ),
)
