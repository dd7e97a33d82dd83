"""Runs an exported tower in ONNX's own reference evaluator: what the standard says, in NumPy.

For graphs that ONNX Runtime has no kernels for: version 1.24 has none for E2M1, and so none for
NVFP4 and MXFP4. It is slow, and a stand-in: what a graph means is measured, no runtime that ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.runtimes.onnx_model import parse_model
from pytest_quantgate.runtimes.onnxruntime_session import (
    NoKernel,
    OnnxRuntimeModel,
    Optimization,
)

if TYPE_CHECKING:
    import numpy as np


class ReferenceModel:
    """One exported tower, with the methods of `OnnxRuntimeModel` that measure what it computes.

    `why` says in words why it is not ONNX Runtime that runs it; `name` is the evaluator's.
    """

    optimization: Optimization = "none"

    def __init__(self, path: Path, *, why: str) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.path, self.why = path, why
        self.name = f"the reference evaluator of ONNX {onnx.__version__}"
        self._session = ReferenceEvaluator(parse_model(path.read_bytes(), path=path))

    def embed(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Return float32 [N, D], not normalised, for the inputs of the graph, [N, ...] by name."""
        return next(iter(self.run(inputs).values()))

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Return every output by its name, as float32; `feeds` are all inputs by name.

        Raises ModelError where an operator refuses its values.
        """
        import numpy as np

        try:
            with np.errstate(all="ignore"):
                results = self._session.run(None, dict(feeds))
        except Exception as error:  # of NumPy, or of whatever an operator is written in
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{self.path}: {self.name} stopped: {reason}") from error
        names = self._session.output_names
        return {
            name: np.asarray(value, dtype=np.float32)
            for name, value in zip(names, results, strict=True)
        }


def open_graph(
    path: Path, *, workers: int | None = None, optimization: Optimization | None = None
) -> OnnxRuntimeModel | ReferenceModel:
    """Return an exported tower ready to run: in ONNX Runtime, or by reference where that cannot.

    Raises as `OnnxRuntimeModel` does, but for `NoKernel`.
    """
    try:
        return OnnxRuntimeModel(path, workers=workers, optimization=optimization)
    except NoKernel as error:
        return ReferenceModel(path, why=str(error))
