"""Values that the number format which ships cannot hold, and embeddings that hang on a batch."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.sabotage.bench import MODEL_GATES, Bench, Entry
from benchmarks.sabotage.evaluation import OtherPixels
from benchmarks.sabotage.export import Tower, with_files
from benchmarks.sabotage.folders import SOURCE, WEIGHTS, Edit, of_files
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import released
from pytest_quantgate.run.case import Case

#: The reference model's embedding of a scene reaches 1 to 3.
PAST_FLOAT16, NEAR_30_000 = 2.0**15, 10_240.0

OTHER_MODEL = tuple(kind for kind in MODEL_GATES if kind != "regression")
SHIPPED = (*OTHER_MODEL, "export", "parity")


def scaled(factor: float) -> Edit:
    """The same function in FP32: a LayerNorm divides the factor out."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("patch_embedding.weight", "class_embedding", "position_embedding.weight"):
            tensors[f"vision_model.embeddings.{name}"] *= factor

    return edit


def in_float16_all_the_same(bench: Bench) -> Case:
    """The suite ships in bfloat16, the files were exported in float16."""
    case = bench.load(edits={SOURCE: "{source: reference, dtype: bfloat16}"})

    def choose(_case: Case, tower: Tower, precision: str) -> Path:
        shipped = "float16" if precision == "bfloat16" else precision
        return Path(case.stages._onnx_folder("quantized", tower, shipped))

    return with_files(case, "float16 for bfloat16", choose)


class Centred(OtherPixels):
    """A layer that was left in training mode: it takes the mean of its batch off."""

    def reload(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values - 0.2 * pixel_values.mean(dim=0, keepdim=True)


OVERFLOWS = (
    Entry(
        name="Inf in FP16 on some photographs, and fine in FP32",
        theme="overflow",
        make=of_files("past float16", model={WEIGHTS: scaled(PAST_FLOAT16)}),
        gates=("fidelity",),
        code="fidelity.overflow",
        cause=r"first in vision_model\.embeddings\.patch_embedding",
        judged=OTHER_MODEL,
        compared=False,
    ),
    Entry(
        name="the float16 graph of it gives Inf",
        theme="overflow",
        make=of_files("past float16, exported", model={WEIGHTS: scaled(PAST_FLOAT16)}),
        gates=("parity",),
        code="parity.nonfinite",
        cause="vision_model.embeddings",
        judged=("export", "parity"),
        shipped="onnx",
        compared=False,
    ),
    Entry(
        name="shipped in bfloat16, exported in float16",
        theme="overflow",
        make=in_float16_all_the_same,
        gates=("export",),
        code="export.other-precision",
        judged=("export", "parity"),
        shipped="onnx",
    ),
    Entry(
        name="an embedding depends on what else is in its batch",
        theme="overflow",
        make=lambda bench: released(
            bench, "centred", Pipeline(finish=lambda model: Centred(**vars(model)))
        ),
        gates=("calibration",),
        code="calibration.batch-dependent",
    ),
)
