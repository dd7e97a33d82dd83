"""What an exported tower gives in the number format that ships, and what rounding alone costs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.parity import ShippedTower
from pytest_quantgate.measure.activations import highest_finite
from pytest_quantgate.measure.fidelity import sum_of_squares, to_db
from pytest_quantgate.runtimes.onnx_reference import ReferenceModel, open_graph
from pytest_quantgate.runtimes.onnx_rounding import LARGEST, round_results
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

if TYPE_CHECKING:
    import torch

#: Samples on which FP16 itself is computed in the narrow format: slow on a CPU.
ROUNDED_SAMPLES = 4


def measure_shipped(
    path: Path,
    *,
    tower: TowerName,
    fp16: Encoder,
    batches: Sequence[Batch],
    dtype: Literal["float16", "bfloat16"],
    workers: int,
) -> ShippedTower:
    """Return what the graph at `path`, of type `dtype`, gives for these pairs.

    Raises ValueError for no batches, ModelError where ONNX Runtime does not take the graph.
    """
    import torch

    if not batches:
        raise ValueError("a shipped graph needs at least one batch of pairs")
    with tempfile.TemporaryDirectory(prefix="quantgate-") as folder:
        rounded = Path(folder) / "rounded.onnx"
        round_results(path, path=rounded)
        session = open_graph(rounded, workers=workers, optimization="none")
        found = torch.cat([_run(session, batch, tower=tower) for batch in batches]).double()
        bad = (~torch.isfinite(found).all(dim=1)).nonzero().flatten().tolist()
        first, largest = "", 0.0
        if bad:
            round_results(path, path=rounded, look=True)
            session = open_graph(rounded, optimization="none")
            first, largest = _find_first(
                session, batches, tower=tower, bad=bad[0], highest=highest_finite(dtype)
            )
    reference = torch.cat([_embed(fp16, batch, tower=tower) for batch in batches]).double()
    good = torch.isfinite(found).all(dim=1)
    noise = sum_of_squares((found - reference)[good])
    return ShippedTower(
        tower=tower,
        dtype=dtype,
        samples=len(found),
        nonfinite=len(bad),
        first=first,
        largest=largest,
        sqnr_db=to_db(sum_of_squares(reference[good]), noise),
        rounding_db=_measure_rounding(fp16, batches[0], tower=tower, dtype=dtype),
    )


def _embed(model: Encoder, batch: Batch, *, tower: TowerName) -> torch.Tensor:
    with quiet_libraries():
        return model.encode(tower, batch.inputs[tower]).cpu()


def _run(
    session: OnnxRuntimeModel | ReferenceModel, batch: Batch, *, tower: TowerName
) -> torch.Tensor:
    import torch

    feeds = {name: value.cpu().numpy() for name, value in batch.inputs[tower].items()}
    return torch.from_numpy(session.run(feeds)["embeddings"])


def _find_first(
    session: OnnxRuntimeModel | ReferenceModel,
    batches: Sequence[Batch],
    *,
    tower: TowerName,
    bad: int,
    highest: float,
) -> tuple[str, float]:
    """Return the module of the first value over `highest` for one sample, and that value."""
    for batch in batches:
        if bad < len(batch.ids):
            feeds = {
                name: value[bad : bad + 1].cpu().numpy()
                for name, value in batch.inputs[tower].items()
            }
            for name, value in session.run(feeds).items():
                if name.startswith(LARGEST) and not float(value) <= highest:
                    return name.removeprefix(LARGEST).partition(":")[2], float(value)
            break
        bad -= len(batch.ids)
    return "", 0.0


def _measure_rounding(fp16: Encoder, batch: Batch, *, tower: TowerName, dtype: str) -> float:
    """Return the SQNR of FP16 in a narrow format against float32: the noise of rounding alone."""
    import torch

    few = batch.take(slice(ROUNDED_SAMPLES))

    def embed(kind: str) -> torch.Tensor:
        module = copy.deepcopy(fp16.module).to(getattr(torch, kind))
        return _embed(replace(fp16, module=module, compute_dtype=kind), few, tower=tower).double()

    wide, narrow = embed("float32"), embed(dtype)
    good = torch.isfinite(narrow).all(dim=1)
    return to_db(sum_of_squares(wide[good]), sum_of_squares((narrow - wide)[good]))
