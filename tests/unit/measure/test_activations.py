"""The largest values inside a model are found, by layer and by sample, also where masks are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.evidence.audit import LayerActivation
from pytest_quantgate.measure.activations import (
    ActivationRecorder,
    highest_finite,
    measure_activations,
)

MakePairs = Callable[..., list[Batch]]
HALF = highest_finite("float16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_highest_value_is_the_last_that_rounds_to_a_finite_one(dtype: str) -> None:
    kind, highest = getattr(torch, dtype), highest_finite(dtype)

    def rounded(value: float) -> float:
        return float(torch.tensor(value, dtype=torch.float64).to(kind))

    assert rounded(highest) == torch.finfo(kind).max
    assert math.isinf(rounded(highest * (1 + 2.0**-23)))


def test_float32_has_no_narrower_format_to_fear() -> None:
    assert highest_finite("float32") == math.inf


def measure(model: Encoder, pairs: list[Batch]) -> dict[str, LayerActivation]:
    return {x.module: x for x in measure_activations(model, batches=pairs, highest=HALF)}


def changed(fp16: Encoder, change: Callable[[Any], None]) -> Encoder:
    """Return a copy whose module was changed in place."""
    module = copy.deepcopy(fp16.module)
    with torch.no_grad():
        change(module)
    return replace(fp16, module=module)


def test_every_layer_that_ran_is_there_with_its_largest_value(
    tiny_fp16: Encoder, make_pairs: MakePairs
) -> None:
    found = measure(tiny_fp16, make_pairs())
    seen: list[torch.Tensor] = []
    fc1 = tiny_fp16.module.get_submodule("vision_model.encoder.layers.1.mlp.fc1")
    handle = fc1.register_forward_hook(lambda _m, inputs, output: seen.extend([*inputs, output]))
    for batch in make_pairs():
        tiny_fp16.encode_image(batch.pixel_values)
    handle.remove()

    layer = found["vision_model.encoder.layers.1.mlp.fc1"]
    assert layer.largest == max(float(value.abs().max()) for value in seen)
    assert layer.tower == "vision"
    assert found["text_model.encoder.layers.0.self_attn"].tower == "text"
    assert not any(layer.overflowing for layer in found.values())
    assert "text_projection" in found
    assert "vision_model.embeddings.patch_embedding" in found


def test_first_layer_is_the_one_that_overflows_not_the_block_around_it(
    tiny_fp16: Encoder, make_pairs: MakePairs
) -> None:
    """What follows, a LayerNorm, divides the factor out again: the same embeddings."""

    def scale(module: Any) -> None:
        embeddings = module.vision_model.embeddings
        for tensor in (
            embeddings.patch_embedding.weight,
            embeddings.class_embedding,
            embeddings.position_embedding.weight,
        ):
            tensor.mul_(3e4)

    model = changed(tiny_fp16, scale)
    pairs = make_pairs()
    over = [layer for layer in measure(model, pairs).values() if layer.overflowing]

    assert [layer.module for layer in over] == [
        "vision_model.embeddings.patch_embedding",
        "vision_model.embeddings",
        "vision_model.pre_layrnorm",
    ]
    assert {layer.overflowing for layer in over} == {8}
    assert torch.isfinite(model.encode_image(pairs[0].pixel_values)).all()


def test_only_the_samples_that_overflow_are_counted(
    tiny_fp16: Encoder, make_pairs: MakePairs
) -> None:
    pairs = make_pairs()
    pairs[1].pixel_values[2] *= 1e6

    found = measure(tiny_fp16, pairs)

    assert found["vision_model.embeddings.patch_embedding"].overflowing == 1


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_products_of_attention_are_seen_and_its_mask_is_not(
    implementation: str, tiny_fp16: Encoder, make_pairs: MakePairs
) -> None:
    """No module returns q k^T; a mask holds the lowest float, which overflows nothing."""

    def scale(module: Any) -> None:
        module.set_attn_implementation(implementation)
        attention = module.text_model.encoder.layers[1].self_attn
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(2e3)
            projection.bias.mul_(2e3)

    sound = changed(tiny_fp16, lambda module: module.set_attn_implementation(implementation))
    loud = measure(changed(tiny_fp16, scale), make_pairs())

    assert not any(x.overflowing for x in measure(sound, make_pairs()).values())
    assert [x.module for x in loud.values() if x.overflowing] == [
        "text_model.encoder.layers.1.self_attn"
    ]


def test_values_that_are_no_numbers_overflow() -> None:
    recorder = ActivationRecorder(highest=HALF)
    layer = nn.Identity()
    with recorder.record(layer, tower="vision"):
        layer(torch.tensor([[1.0, 2.0], [math.nan, 0.0], [math.inf, 0.0]]))

    (found,) = recorder.describe()
    assert (found.overflowing, found.largest) == (2, math.inf)


@pytest.mark.parametrize(
    ("rows", "over"),
    [
        ([[0.0, -math.inf], [0.0, 0.0]], 0),  # a mask that layers hand on
        ([[-math.inf, -math.inf], [-math.inf, -math.inf]], 2),
        ([[1.0, -math.inf], [0.0, 0.0]], 1),
    ],
)
def test_a_mask_of_infinities_is_told_from_an_overflow(rows: list[list[float]], over: int) -> None:
    recorder = ActivationRecorder(highest=HALF)
    layer = nn.Identity()
    with recorder.record(layer, tower="text"):
        layer(torch.tensor(rows))

    assert recorder.describe()[0].overflowing == over


def test_grouped_queries_are_multiplied_as_they_are() -> None:
    class Attention(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)

    recorder = ActivationRecorder(highest=HALF)
    layer = Attention()
    query, key = torch.full((2, 4, 3, 16), 300.0), torch.full((2, 2, 3, 16), 100.0)
    with recorder.record(layer, tower="vision"):
        layer(query, key)

    (found,) = recorder.describe()
    assert found.largest == pytest.approx(300 * 100 * 16 / 4)
    assert found.overflowing == 2
