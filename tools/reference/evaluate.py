"""Prints the reference model's figures: ``python -m tools.reference.evaluate``.

With ``--recipe`` the model is first quantized by ModelOpt, both towers, calibrated on scenes of
the calibration split; that is how the quantized figures of the model card were had.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_quantgate.reference import digits, scenes, weights_dir
from tools.reference import words
from tools.reference.embed import (
    embed_classes,
    embed_images,
    embed_texts,
    normalised,
)

RECIPES: tuple[str, ...] = ("none", "fp8", "int8", "int8-smoothquant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Shares in 0..1 and how many items each was counted on; ``encode_seconds`` is images only."""

    scenes_acc1: float
    scenes_count: int
    digits_acc1: float
    digits_count: int
    image_retrieval_recall1: float
    image_retrieval_recall5: float
    text_retrieval_recall1: float
    text_retrieval_recall5: float
    retrieval_count: int
    render_seconds: float
    encode_seconds: float


def evaluate(model: Any, *, scene_count: int = 5000, retrieval_count: int = 1000) -> Figures:
    """Returns the figures of a CLIPModel on the test splits; every digit of that split is used.

    Image retrieval finds the image of a caption, text retrieval the caption of an image.
    Raises ValueError when a count is not positive.
    """
    if scene_count < 1 or retrieval_count < 1:
        raise ValueError(f"counts must be positive, got {scene_count} and {retrieval_count}")
    model.eval()
    started_s = time.perf_counter()
    pictures = scenes.render_scenes(split="test", count=scene_count)
    rendered_s = time.perf_counter()
    features = embed_images(model, pictures.images)
    encoded_s = time.perf_counter()
    classes = embed_classes(model, names=scenes.CLASS_NAMES, templates=scenes.TEMPLATES)
    written = digits.load_digit_images(split="test")
    numbers = embed_classes(model, names=digits.CLASS_NAMES, templates=digits.TEMPLATES)
    pairs = scenes.render_retrieval(split="test", count=retrieval_count)
    scores = embed_images(model, pairs.images) @ embed_texts(model, pairs.captions).T
    return Figures(
        scenes_acc1=_top1(features, classes, torch.from_numpy(pictures.labels)),
        scenes_count=scene_count,
        digits_acc1=_top1(
            embed_images(model, written.images), numbers, torch.from_numpy(written.labels)
        ),
        digits_count=len(written.labels),
        image_retrieval_recall1=_recall(scores.T, k=1),
        image_retrieval_recall5=_recall(scores.T, k=5),
        text_retrieval_recall1=_recall(scores, k=1),
        text_retrieval_recall5=_recall(scores, k=5),
        retrieval_count=retrieval_count,
        render_seconds=rendered_s - started_s,
        encode_seconds=encoded_s - rendered_s,
    )


def quantize(model: Any, *, recipe: str) -> Any:
    """Returns the model with ModelOpt's fake quantizers, calibrated through both towers.

    ``fp8``: every Linear's weight and input and attention's q, k, v in E4M3, per tensor. ``int8``:
    every Linear's weight per output channel and input per tensor. ``int8-smoothquant``: the same
    with ModelOpt's SmoothQuant. Raises ValueError for an unknown recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"{recipe!r} is not a recipe; recipes: {', '.join(RECIPES)}")
    if recipe == "none":
        return model
    import modelopt.torch.quantization as mtq

    bits, weight_axis = ((4, 3), None) if recipe == "fp8" else (8, 0)
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    entries += [
        {
            "quantizer_name": f"*{part}_quantizer",
            "parent_class": "nn.Linear",
            "cfg": {"num_bits": bits, "axis": axis},
        }
        for part, axis in (("weight", weight_axis), ("input", None))
    ]
    if recipe == "fp8":
        entries.append(
            {"quantizer_name": "*[qkv]_bmm_quantizer", "cfg": {"num_bits": bits, "axis": None}}
        )
    shown = scenes.render_scenes(split="calibration", kind="mixed", count=512)
    ids = torch.from_numpy(words.encode(shown.captions, known=words.vocabulary()))
    written = digits.load_digit_images(split="train")

    def forward(quantized: Any) -> None:
        with torch.no_grad():
            for images in np.split(np.concatenate([shown.images, written.images[:128]]), 5):
                quantized.get_image_features(pixel_values=normalised(images))
            for part in torch.split(ids, 128):
                quantized.get_text_features(input_ids=part)

    algorithm = "smoothquant" if recipe == "int8-smoothquant" else "max"
    return mtq.quantize(model, {"quant_cfg": entries, "algorithm": algorithm}, forward)


def _top1(features: Tensor, classes: Tensor, labels: Tensor) -> float:
    right = int(((features @ classes.T).argmax(dim=1) == labels).sum())
    return right / len(labels)


def _recall(scores: Tensor, *, k: int) -> float:
    """Returns how often row i's own column i is among the k best of the row."""
    own = scores.diagonal()[:, None]
    better = (scores > own).sum(dim=1)
    return int((better < k).sum()) / len(scores)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and prints the figures."""
    from transformers import CLIPModel

    parser = argparse.ArgumentParser(description="figures of the reference model")
    parser.add_argument("--weights", type=Path, default=weights_dir(), help="checkpoint directory")
    parser.add_argument("--recipe", choices=RECIPES, default="none")
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = CLIPModel.from_pretrained(given.weights, dtype=torch.float32).eval()
    figures = evaluate(
        quantize(model, recipe=given.recipe),
        scene_count=given.scenes,
        retrieval_count=given.pairs,
    )
    print(f"recipe {given.recipe}")
    for what, share, count in (
        ("scenes, zero-shot top-1, 100 classes", figures.scenes_acc1, figures.scenes_count),
        ("digits, zero-shot top-1, 10 classes", figures.digits_acc1, figures.digits_count),
        ("image of a caption, recall@1", figures.image_retrieval_recall1, figures.retrieval_count),
        ("image of a caption, recall@5", figures.image_retrieval_recall5, figures.retrieval_count),
        ("caption of an image, recall@1", figures.text_retrieval_recall1, figures.retrieval_count),
        ("caption of an image, recall@5", figures.text_retrieval_recall5, figures.retrieval_count),
    ):
        print(f"{what:<38} {share:7.2%} of {count}")
    print(f"rendering {figures.render_seconds:.1f} s, encoding {figures.encode_seconds:.1f} s")


if __name__ == "__main__":
    main()
