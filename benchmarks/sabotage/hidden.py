"""What an adversary would hide: models, graphs and texts that look right to whoever counts parts.

Quantizers are on, calibrated and called, and what is computed is something else; FP16 has lost
already what the variant loses; the texts or labels of a few classes are exchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from benchmarks.sabotage.bench import MODEL_GATES, Bench, Entry
from benchmarks.sabotage.export import EXPORT, FC1, Tower, edited, node_of, reconnect, tensor_of
from benchmarks.sabotage.folders import TOKENIZER, WEIGHTS, of_files, relabelled
from benchmarks.sabotage.quantizers import choose, released
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.sabotage import exchange

NEW_MODEL = tuple(kind for kind in MODEL_GATES if kind != "regression")


def hidden(
    name: str,
    code: str,
    make: Callable[[Bench], Case],
    *,
    judged: tuple[str, ...] = NEW_MODEL,
    cause: str = "",
    shipped: str = "torch",
    principle: str = "",
) -> Entry:
    return Entry(
        name=name,
        theme="hidden",
        make=make,
        gates=(code.partition(".")[0],),
        code=code,
        cause=cause,
        judged=judged,
        shipped=shipped,
        principle=principle,
        compared=False,
    )


def finished(name: str, finish: Callable[[Encoder], None]) -> Callable[[Bench], Case]:
    return lambda bench: released(bench, name, finish=finish)


# -- models ---------------------------------------------------------------------------------------


def multiply_as_it_was(model: Encoder) -> None:
    """Both quantizers run, and the product is that of what they were given."""
    layer: Any = model.module.get_submodule(FC1)

    def forward(value: torch.Tensor) -> torch.Tensor:
        layer.input_quantizer(value)
        layer.weight_quantizer(layer.weight)
        return functional.linear(value, layer.weight, layer.bias)

    layer.forward = forward


def round_nothing(model: Encoder) -> None:
    for quantizer in choose(model, f"{FC1}.*_quantizer"):
        quantizer._if_quant = False


def go_on_calibrating(model: Encoder) -> None:
    for quantizer in choose(model, f"{FC1}.*_quantizer"):
        quantizer._if_quant, quantizer._if_calib = False, True


def answer_in_fp16(bench: Bench) -> Case:
    """The quantized tower runs, and FP16's, a copy that is no part of the model, answers."""

    def finish(model: Encoder) -> None:
        tower: Any = model.module.get_submodule("vision_model")
        plain: Any = copy.deepcopy(bench.good.fp16.module.get_submodule("vision_model"))
        own = tower.forward

        def forward(*values: Any, **options: Any) -> Any:
            own(*values, **options)
            return plain(*values, **options)

        tower.forward = forward

    return released(bench, "answered in FP16", finish=finish)


def forget_the_scale(model: Encoder) -> None:
    with torch.no_grad():
        model.module.get_parameter("logit_scale").zero_()


def drop_at_random(model: Encoder) -> None:
    mlp: Any = model.module.get_submodule("vision_model.encoder.layers.1.mlp")
    own = mlp.forward
    mlp.forward = lambda value: functional.dropout(own(value), 0.02, training=True)


def both_quantized(bench: Bench) -> Case:
    """What is called FP16 is the quantized model, loaded twice."""
    good = bench.good
    same = {"quantized": good.quantized, "audit": good.audit, "sanity": good.sanity}
    key = digest_of(["FP16 is quantized", good.fp16_key])
    return exchange(
        good,
        **same,
        calibration_run=good.calibration_run,
        fp16=replace(good.quantized, module=copy.deepcopy(good.quantized.module)),
        fp16_key=key,
        variant_key=digest_of([key, good.variant_key]),
        _values={},
    )


def round_fp16(tensors: dict[str, torch.Tensor]) -> None:
    """A checkpoint that was in FP8, and was written out in float16."""
    for name, weight in tensors.items():
        if weight.ndim == 2 and name.endswith("weight") and "embedding" not in name:
            scale = weight.abs().max() / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn).float() * scale


def many_waivers(bench: Bench) -> Case:
    """Each names one block, all of them a tower."""
    until = (datetime.now(UTC).date() + timedelta(days=20)).isoformat()
    listed = ", ".join(
        f'{{modules: "*vision_model.encoder.layers.{block}.*", reason: kernel, until: {until}}}'
        for block in range(4)
    )
    edits = {
        "attention: [q, k, v, output]": f"attention: [q, k, v, output], waive: [{listed}]",
    }

    def finish(model: Encoder) -> None:
        for quantizer in choose(model, "*vision_model.encoder*_quantizer"):
            quantizer.disable()

    return released(bench, "many waivers", edits=edits, finish=finish)


# -- texts and labels -----------------------------------------------------------------------------


def exchange_words(tokenizer: dict[str, Any]) -> None:
    """The right vocabulary, of which two words stand for one another."""
    words = tokenizer["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]


def ring(label: int) -> int:
    return {0: 1, 1: 2, 2: 0}.get(label, label)


def rotate_shape(label: int) -> int:
    """Each label is that of another colour of the same shape."""
    return label // 10 * 10 + (label + 1) % 10


# -- graphs ---------------------------------------------------------------------------------------


def insert_behind(model: Any, node: Any, *nodes: Any) -> None:
    place = list(model.graph.node).index(node) + 1
    for offset, new in enumerate(nodes):
        model.graph.node.insert(place + offset, new)


def add_constant(model: Any, values: Any, name: str) -> None:
    model.graph.initializer.append(numpy_helper.from_array(values, name=name))


def store_as_int8(model: Any) -> None:
    """INT8 weights with a scale of their own in the place of FP8's."""
    pair = node_of(model, f"{FC1}.weight_quantizer", "DequantizeLinear")
    stored, scale = (tensor_of(model, name) for name in pair.input[:2])
    before = numpy_helper.to_array(scale)
    weights = numpy_helper.to_array(stored).astype(numpy.float32) * before.astype(numpy.float32)
    step = numpy.abs(weights).max() / 127
    model.graph.initializer.remove(stored)
    add_constant(model, numpy.round(weights / step).astype(numpy.int8), stored.name)
    add_constant(model, numpy.array(step, before.dtype), "int8.scale")
    add_constant(model, numpy.array(0, numpy.int8), "int8.zero")
    pair.input[1] = "int8.scale"
    if len(pair.input) > 2:
        pair.input[2] = "int8.zero"


def add_what_rounding_lost(model: Any) -> None:
    """A second weight in full precision is added to the 8-bit one."""
    pair = node_of(model, f"{FC1}.weight_quantizer", "DequantizeLinear")
    stored, scale = (tensor_of(model, name) for name in pair.input[:2])
    shape, dtype = tuple(stored.dims), numpy_helper.to_array(scale).dtype
    add_constant(model, numpy.full(shape, 1e-5, dtype), "lost")
    reconnect(model, pair.output[0], "mended")
    node = onnx.helper.make_node("Add", [pair.output[0], "lost"], ["mended"], name="/mend/Add")
    insert_behind(model, pair, node)


def read_past_the_pair(model: Any) -> None:
    """x + 0 * DQ(Q(x)): the pair is there, at its place, and says nothing."""
    first = node_of(model, f"{FC1}.input_quantizer", "QuantizeLinear")
    last = node_of(model, f"{FC1}.input_quantizer", "DequantizeLinear")
    dtype = numpy_helper.to_array(tensor_of(model, first.input[1])).dtype
    add_constant(model, numpy.array(0, dtype), "nought")
    reconnect(model, last.output[0], "kept")
    make = onnx.helper.make_node
    insert_behind(
        model,
        last,
        make("Mul", [last.output[0], "nought"], ["nothing"], name="/past/Mul"),
        make("Add", [first.input[0], "nothing"], ["kept"], name="/past/Add"),
    )


def lose_a_bias(model: Any) -> None:
    tensor = tensor_of(model, f"{FC1}.bias")
    zeros = numpy.zeros_like(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(zeros, name=tensor.name))


def exported(
    name: str, code: str, edit: Callable[[Any], None], *, tower: Tower = "vision", cause: str = ""
) -> Entry:
    make = edited(f"hidden-{name}", edit, tower=tower)
    return hidden(name, code, make, judged=EXPORT, shipped="onnx", cause=cause)


HIDDEN = (
    hidden(
        "quantizers that run, and a product of what they were given",
        "coverage.weights-escaped",
        finished("unused", multiply_as_it_was),
    ),
    hidden(
        "quantizers that are on and round nothing",
        "coverage.weights-escaped",
        finished("round nothing", round_nothing),
    ),
    hidden(
        "a calibration that never ended",
        "coverage.weights-escaped",
        finished("calibrating", go_on_calibrating),
    ),
    hidden(
        "a tower that runs, and FP16 that answers", "coverage.attention-bypassed", answer_in_fp16
    ),
    hidden(
        "another scale of the logits",
        "fidelity.scale-changed",
        finished("logit scale", forget_the_scale),
        cause="logit_scale is 0, FP16's 3.4",
    ),
    hidden("a dropout that is on", "calibration.two-answers", finished("dropout", drop_at_random)),
    hidden("FP16 is the quantized model", "fidelity.identical", both_quantized),
    hidden(
        "FP16 was rounded to FP8 before",
        "sanity.fp16-rounded",
        of_files("rounded before", model={WEIGHTS: round_fp16}),
    ),
    hidden(
        "waivers of a block each, together of a tower", "coverage.waivers-too-wide", many_waivers
    ),
    hidden(
        "a tokenizer in which two words are exchanged",
        "accuracy.floor",  # ten samples of a class are too few to name the ones exchanged
        of_files("two words", model={TOKENIZER: exchange_words}),
        judged=("sanity", "accuracy"),
    ),
    hidden(
        "the labels of three classes in a ring",
        "sanity.classes-exchanged",
        of_files("ring", test=relabelled(ring)),
        judged=("sanity", "accuracy"),
        principle="ten samples of a class do not tell three exchanged labels among a hundred from "
        "what FP16 mistakes by itself; fifty do, as in the digits, and so does `published`",
    ),
    hidden(
        "each label that of another colour of its shape",
        "sanity.fp16-at-chance",
        of_files("colours", test=relabelled(rotate_shape)),
        judged=("sanity", "accuracy"),
    ),
    exported(
        "weights of a layer in INT8",
        "export.values-differ",
        store_as_int8,
        cause="INT8 in the graph, E4M3 in the model",
    ),
    exported(
        "what rounding lost is added to a weight", "export.quantizers-lost", add_what_rounding_lost
    ),
    exported(
        "a pair at its place whose result is multiplied by 0",
        "export.quantizers-lost",
        read_past_the_pair,
    ),
    exported("a bias lost", "parity.embeddings-differ", lose_a_bias),
)
