"""Shared by the tests of models: the tiny CLIP, pairs for it, quantized variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe, resolve_recipe
from pytest_quantgate.suite.specs import ModelSpec, QuantizeSpec
from pytest_quantgate.suite.where import Where

WHERE = Where(file="suites/tiny.quantgate.yaml", line=7)


@pytest.fixture(scope="session")
def model_spec(tiny_clip: Path) -> Callable[..., ModelSpec]:
    """Make the spec of the tiny CLIP, or of another folder."""

    def make(folder: Path | str = tiny_clip, **changes: Any) -> ModelSpec:
        return ModelSpec(where=WHERE, source="transformers", id=str(folder), **changes)

    return make


@pytest.fixture(scope="session")
def tiny_fp16(model_spec: Callable[..., ModelSpec]) -> Encoder:
    """The tiny CLIP as `load_fp16` gives it. Tests must not change it."""
    from pytest_quantgate.encoders.loading import load_fp16

    return load_fp16(model_spec(), environ={})


@pytest.fixture(scope="session")
def make_pairs(tiny_fp16: Encoder) -> Callable[..., list[Batch]]:
    """Make seeded batches of pairs for the tiny CLIP."""
    import torch

    def make(*, batches: int = 2, size: int = 4, seed: int = 0) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        words = ("red", "blue", "green", "circle", "square", "a", "photo", "of")
        made = []
        for index in range(batches):
            picks = torch.randint(len(words), (size, 5), generator=generator).tolist()
            made.append(
                Batch.of_pairs(
                    pixel_values=torch.randn(size, 3, 48, 48, generator=generator),
                    tokens=tiny_fp16.tokenize([" ".join(words[i] for i in row) for row in picks]),
                    ids=tuple(f"pair {index}.{place}" for place in range(size)),
                )
            )
        return made

    return make


@pytest.fixture(scope="session")
def make_recipe() -> Callable[[Any], Recipe]:
    """Resolve a recipe as a suite would."""

    def make(recipe: Any) -> Recipe:
        return resolve_recipe(QuantizeSpec(where=WHERE, recipe=recipe), environ={})

    return make


@pytest.fixture(scope="session")
def make_quantized(
    tiny_fp16: Encoder,
    make_pairs: Callable[..., list[Batch]],
    make_recipe: Callable[[Any], Recipe],
) -> Callable[..., Encoder]:
    """Build a quantized variant of the tiny CLIP, calibrated on two batches."""

    def make(recipe: Any = "fp8-attention", *, exclude: tuple[str, ...] = ()) -> Encoder:
        return quantize(
            tiny_fp16, recipe=make_recipe(recipe), exclude=exclude, batches=make_pairs()
        ).model

    return make
