"""Cosine and SQNR of embeddings, and which layer the noise comes from."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.measure.fidelity import (
    compare_embeddings,
    compare_scales,
    rank_layers,
    sum_of_squares,
    to_db,
)

IDS = ("a", "b", "c", "d")


def embeddings(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))


def test_equal_embeddings_have_no_noise() -> None:
    x = embeddings()
    found = compare_embeddings(tower="vision", fp16=x, quantized=x, ids=IDS)

    assert found.cosine_mean == pytest.approx(1.0)
    assert found.sqnr_mean_db == found.sqnr_worst_db == math.inf
    assert found.nonfinite == 0


def test_a_known_noise_has_its_sqnr() -> None:
    x = embeddings()
    found = compare_embeddings(tower="text", fp16=x, quantized=x * 1.1, ids=IDS)

    assert found.sqnr_mean_db == pytest.approx(20.0, abs=1e-4)  # 10 log10(1 / 0.1^2)
    assert found.cosine_mean == pytest.approx(1.0)


def test_the_scale_of_the_logits_is_compared(tiny_fp16: Encoder) -> None:
    """No embedding shows it, and every probability is made of it."""

    def change(name: str, value: float) -> Encoder:
        module = copy.deepcopy(tiny_fp16.module)
        with torch.no_grad():
            module.get_parameter(name).fill_(value)
        return replace(tiny_fp16, module=module)

    scale = tiny_fp16.module.get_parameter("logit_scale").detach()
    before, as_bfloat16 = float(scale), float(scale.bfloat16())

    assert compare_scales(fp16=tiny_fp16, quantized=change("logit_scale", as_bfloat16)) == ()
    assert compare_scales(fp16=tiny_fp16, quantized=change("logit_scale", 0.0)) == (
        ("logit_scale", before, 0.0),
    )
    ((_, _, spoiled),) = compare_scales(fp16=tiny_fp16, quantized=change("logit_scale", math.nan))
    assert math.isnan(spoiled)
    gone = change("logit_scale", before)
    del gone.module.logit_scale
    ((_, _, absent),) = compare_scales(fp16=tiny_fp16, quantized=gone)
    assert math.isnan(absent)


def test_the_worst_sample_is_named() -> None:
    x = embeddings()
    y = x.clone()
    y[2] += 3 * embeddings(1)[2]
    found = compare_embeddings(tower="text", fp16=x, quantized=y, ids=IDS)

    assert found.cosine_worst_id == found.sqnr_worst_id == "c"
    assert found.cosine_worst < 0.9 < found.cosine_mean + 0.3


def test_nan_makes_every_figure_nan() -> None:
    x, y = embeddings(), embeddings()
    y[3, 0] = torch.inf
    found = compare_embeddings(tower="vision", fp16=x, quantized=y, ids=IDS)

    assert (found.nonfinite, found.cosine_worst_id) == (1, "d")
    assert math.isnan(found.cosine_mean)
    assert math.isnan(found.sqnr_mean_db)


def test_decibels_at_the_ends() -> None:
    assert to_db(1.0, 0.0) == math.inf
    assert to_db(0.0, 1.0) == -math.inf
    assert to_db(100.0, 1.0) == pytest.approx(20.0)


@pytest.fixture
def on_threads() -> Iterator[Callable[[int, Callable[[], Any]], Any]]:
    """Return what runs a function on a number of threads."""
    before = torch.get_num_threads()

    def run(threads: int, function: Callable[[], Any]) -> Any:
        torch.set_num_threads(threads)
        return function()

    yield run
    torch.set_num_threads(before)


def test_no_digit_depends_on_the_number_of_threads(
    on_threads: Callable[[int, Callable[[], Any]], Any],
) -> None:
    for seed in range(3):
        chance = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(20_000, 16, generator=chance) for _ in range(2))
        ids = tuple(map(str, range(len(x))))
        sums, found = set(), set()
        for threads in (1, 2, 3):
            sums.add(on_threads(threads, partial(sum_of_squares, x)))
            compare = partial(compare_embeddings, tower="text", fp16=x, quantized=y, ids=ids)
            found.add(on_threads(threads, compare))
        assert len(sums) == len(found) == 1


def test_an_embedding_of_zeros_has_no_direction() -> None:
    x = embeddings()
    found = compare_embeddings(tower="text", fp16=x, quantized=torch.zeros_like(x), ids=IDS)

    assert found.cosine_mean == found.cosine_worst == 0.0
    assert found.sqnr_mean_db == 0.0


@pytest.mark.parametrize(
    "name", ["vision_model.encoder.layers.1.mlp.fc2", "text_model.encoder.layers.0.mlp.fc1"]
)
def test_a_spoiled_layer_is_ranked_first(
    name: str,
    tiny_fp16: Encoder,
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
) -> None:
    model = make_quantized("fp8")
    layer: Any = model.module.get_submodule(name)
    layer.weight_quantizer.amax = layer.weight_quantizer.amax / 50

    ranked = rank_layers(fp16=tiny_fp16, quantized=model, batch=make_pairs(seed=5)[0])

    assert ranked[0][0] == name
    assert ranked[0][1] < ranked[1][1] - 3
    assert [db for _, db in ranked] == sorted(db for _, db in ranked)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["nvfp4", "mxfp8"])
def test_layers_in_an_emulated_format_are_ranked_too(
    recipe: str,
    tiny_fp16: Encoder,
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
) -> None:
    """A layer is called by itself there, in no forward of its encoder."""
    model = make_quantized(recipe)

    ranked = rank_layers(fp16=tiny_fp16, quantized=model, batch=make_pairs(seed=5)[0])

    assert len(ranked) == 27
    assert all(0 < noise < 60 or "patch_embedding" in name for name, noise in ranked)


def test_a_variant_in_half_precision_is_ranked_too(
    tiny_fp16: Encoder,
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
) -> None:
    """`.half()` after the calibration, while FP16 is computed in float32 on a CPU."""
    model = make_quantized("fp8")
    model.module.half()

    ranked = rank_layers(fp16=tiny_fp16, quantized=model, batch=make_pairs(seed=5)[0])

    assert len(ranked) >= 20
    assert all(math.isfinite(db) for _, db in ranked)
