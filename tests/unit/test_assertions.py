"""The plain assertions: on a model of the caller's own, without fixture or suite."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from pytest_quantgate.assertions import (
    assert_accuracy_drop,
    assert_calibrated,
    assert_fidelity,
    assert_quantizer_coverage,
    assert_roundtrip,
)
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.outcomes import Outcomes

pytestmark = pytest.mark.slow

MakeQuantized = Callable[..., Encoder]
MakePairs = Callable[..., list[Batch]]

PATCH = "*patch_embedding*"


@pytest.fixture(scope="module")
def quantized(make_quantized: MakeQuantized) -> Encoder:
    return make_quantized("fp8-attention", exclude=(PATCH,))


@pytest.fixture(scope="module")
def towers(make_pairs: MakePairs) -> Callable[[Encoder], dict[str, Any]]:
    """Forwards of a model's own methods, as a caller would write them."""
    batch = make_pairs(seed=9)[0]

    def make(model: Encoder) -> dict[str, Any]:
        module: Any = model.module
        return {
            "run_vision": lambda: module.get_image_features(pixel_values=batch.pixel_values),
            "run_text": lambda: module.get_text_features(**batch.tokens),
        }

    return make


def test_coverage_of_a_good_model(quantized: Encoder, towers: Any) -> None:
    verdict = assert_quantizer_coverage(
        quantized.module,
        **towers(quantized),
        recipe="fp8-attention",
        exclude=[PATCH],
        attention=["q", "k", "v", "output"],
    )

    assert "attention q k v output in 2+2 blocks" in verdict.headline


def test_coverage_without_a_recipe_expects_every_layer(quantized: Encoder, towers: Any) -> None:
    with pytest.raises(AssertionError, match="patch_embedding"):
        assert_quantizer_coverage(quantized.module, **towers(quantized))
    assert_quantizer_coverage(quantized.module, **towers(quantized), exclude=[PATCH])


def test_coverage_names_what_is_off(make_quantized: MakeQuantized, towers: Any) -> None:
    model = make_quantized("fp8", exclude=(PATCH,))

    with pytest.raises(AssertionError) as caught:
        assert_quantizer_coverage(
            model.module, **towers(model), recipe="fp8", exclude=[PATCH], attention=["q", "output"]
        )

    assert str(caught.value).startswith("FAIL coverage: ")
    assert "(assert_quantizer_coverage)" in str(caught.value)
    assert "next step: " in str(caught.value)


def test_coverage_of_a_model_with_one_tower(quantized: Encoder, make_pairs: MakePairs) -> None:
    tower: Any = quantized.module.vision_model
    pixel_values = make_pairs()[0].pixel_values

    check = partial(
        assert_quantizer_coverage,
        tower,
        run_vision=lambda: tower(pixel_values=pixel_values),
        run_text=None,
        exclude=[PATCH],
    )

    with pytest.raises(AssertionError, match=r"leaves 40\.0 % of the weights"):
        check()  # so small a model is mostly its first layer
    assert check(min_quantized="40%").passed


def test_a_waiver_needs_a_day_to_come(make_quantized: MakeQuantized, towers: Any) -> None:
    model = make_quantized("fp8", exclude=(PATCH, "*visual_projection*"))
    today = datetime.now(UTC).date()

    def check(until: date) -> None:
        assert_quantizer_coverage(
            model.module,
            **towers(model),
            recipe="fp8",
            exclude=[PATCH],
            waive={"*visual_projection*": ("overflow, ticket 12", until)},
        )

    check(today + timedelta(days=2))
    with pytest.raises(AssertionError, match="expired"):
        check(today - timedelta(days=2))


def test_a_bad_recipe_is_named(quantized: Encoder, towers: Any) -> None:
    with pytest.raises(ModelError, match="fp8-attention"):
        assert_quantizer_coverage(quantized.module, **towers(quantized), recipe="fp8-atention")


def test_calibrated(quantized: Encoder, towers: Any) -> None:
    assert assert_calibrated(quantized.module, **towers(quantized), max_clipped="49%").passed


def test_one_amax_missing(make_quantized: MakeQuantized, towers: Any) -> None:
    model = make_quantized("fp8")
    layer: Any = model.module.get_submodule("vision_model.encoder.layers.1.mlp.fc2")
    layer.input_quantizer.reset_amax()

    with pytest.raises(AssertionError, match=r"layers\.1\.mlp\.fc2\.input_quantizer: no amax"):
        assert_calibrated(model.module, **towers(model), max_clipped="20%")


def test_an_unquantized_model_is_never_calibrated(tiny_fp16: Encoder, towers: Any) -> None:
    with pytest.raises(AssertionError, match="no static quantizer is enabled"):
        assert_calibrated(tiny_fp16.module, **towers(tiny_fp16))
    with pytest.raises(AssertionError, match="FAIL coverage"):
        assert_quantizer_coverage(tiny_fp16.module, **towers(tiny_fp16))


def test_fidelity() -> None:
    fp16 = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    assert_fidelity(fp16=fp16, quantized=fp16 * 1.001, min_cosine=0.99, min_sqnr="40dB")
    with pytest.raises(AssertionError, match=r"vision mean SQNR .* under min_sqnr 40 dB"):
        assert_fidelity(fp16=fp16, quantized=fp16 * 1.1, min_cosine=0.99, min_sqnr="40dB")
    broken = fp16.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(AssertionError, match="text embeddings of 1 of 8 samples hold NaN"):
        assert_fidelity(fp16=fp16, quantized=broken, tower="text", min_worst_cosine=0.9)
    with pytest.raises(AssertionError, match="sets no limit"):
        assert_fidelity(fp16=fp16, quantized=fp16)
    with pytest.raises(ValueError, match=r"two \[N, D\], got \[8, 16\] and \[7, 16\]"):
        assert_fidelity(fp16=fp16, quantized=fp16[:7], min_cosine=0.9)
    with pytest.raises(ValueError, match=r"min_sqnr: 40 needs a unit: 40dB"):
        assert_fidelity(fp16=fp16, quantized=fp16, min_sqnr="40")


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
def test_accuracy_drop_takes_any_sequence(kind: Callable[[Any], Any]) -> None:
    fp16, quantized = kind([True] * 990 + [False] * 10), kind([1] * 989 + [0] * 11)

    verdict = assert_accuracy_drop(fp16=fp16, quantized=quantized, max_drop="1pp", floor="90%")

    assert "drop 0.10 pp" in verdict.headline
    assert "(assert_accuracy_drop)" in verdict.headline


def test_accuracy_drop_is_not_satisfied_by_few_samples() -> None:
    right = [True] * 100

    with pytest.raises(AssertionError, match="INCONCLUSIVE accuracy: outcomes"):
        assert_accuracy_drop(fp16=right, quantized=right, max_drop="1pp")


def test_accuracy_drop_fails_on_flips_that_cancel_out() -> None:
    fp16 = [True] * 1000 + [False] * 100 + [True] * 100
    quantized = [True] * 1000 + [True] * 100 + [False] * 100

    assert_accuracy_drop(fp16=fp16, quantized=quantized, max_drop="3pp")
    with pytest.raises(AssertionError, match="hits and misses changed"):
        assert_accuracy_drop(fp16=fp16, quantized=quantized, max_drop="3pp", max_flips="5%")


def test_accuracy_drop_refuses_what_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="3 FP16 and 2 quantized outcomes"):
        assert_accuracy_drop(fp16=[1, 1, 0], quantized=[1, 1], max_drop="1pp")
    with pytest.raises(ValueError, match=r"outcome 1 of quantized is 1\.5"):
        assert_accuracy_drop(fp16=[1, 1], quantized=[1, 1.5], max_drop="1pp")
    with pytest.raises(ValueError, match="no outcomes of FP16"):
        assert_accuracy_drop(fp16=[], quantized=[], max_drop="1pp")
    with pytest.raises(ValueError, match=r"max_drop: 1 needs a unit"):
        assert_accuracy_drop(fp16=[1], quantized=[1], max_drop="1")


def test_accuracy_drop_of_outcomes_knows_classes() -> None:
    labels = (0,) * 500 + (1,) * 500
    fp16 = Outcomes(
        task="mine",
        metric="acc1",
        variant="FP16",
        ids=tuple(map(str, range(1000))),
        correct=(True,) * 1000,
        answers=labels,
        labels=labels,
        class_names=("cat", "dog"),
        value=1.0,
        data_digest="",
    )
    lost = (0,) * 500 + (1,) * 450 + (0,) * 50
    right = tuple(answer == label for answer, label in zip(lost, labels, strict=True))
    quantized = Outcomes(
        **{**vars(fp16), "variant": "mine", "correct": right, "answers": lost, "value": 0.95}
    )

    with pytest.raises(AssertionError, match="class 'dog'"):
        assert_accuracy_drop(fp16=fp16, quantized=quantized, max_drop="10pp", max_class_drop="5pp")


def test_roundtrip(make_quantized: MakeQuantized, make_pairs: MakePairs) -> None:
    model, batch = make_quantized("fp8-attention"), make_pairs(seed=9)[0]

    verdict = assert_roundtrip(
        model.module,
        pixel_values=batch.pixel_values,
        tokens=batch.tokens,
    )

    assert "bit-identical in a new process" in verdict.headline
