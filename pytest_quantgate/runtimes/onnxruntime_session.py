"""Runs an exported tower in ONNX Runtime on the CPU.

ONNX Runtime's optimizer moves Q/DQ pairs about. On FP8 graphs that is not safe: ORT_ENABLE_BASIC
gives wrong numbers with no word on some graphs of opset 19 to 22, the higher levels build a
Transpose on float8 and refuse it (1.24). So a graph that holds FP8 runs as it is written; an INT8
graph needs the optimizer, which is what puts integer kernels in place of the pairs.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.runtimes.onnx_graph import parse_model

if TYPE_CHECKING:
    import numpy as np

Optimization = Literal["none", "basic", "extended", "all"]

#: Operators that compute with 8-bit integers.
INTEGER_OPERATORS = frozenset(
    (
        *("QLinearMatMul", "QLinearConv", "QGemm", "QAttention", "QLinearAdd", "QLinearMul"),
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger"),
        *("QLinearSigmoid", "QLinearSoftmax", "QLinearConcat"),
    )
)

_LEVELS: Mapping[Optimization, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True, kw_only=True)
class ExecutedKernel:
    """An operator that ran: how often in one forward, on which provider, whether on integers."""

    operator: str
    provider: str
    count: int
    integer: bool


class OnnxRuntimeModel:
    """One exported tower, ready to run. Batches in, float32 embeddings [N, D] out.

    `optimization` None takes the level that is right for the graph: `none` where it holds FP8,
    `all` elsewhere; `self.optimization` says which it became.
    """

    path: Path
    threads: int
    optimization: Optimization

    def __init__(
        self, path: Path, *, threads: int = 1, optimization: Optimization | None = None
    ) -> None:
        """Load the graph.

        Raises ModelError for a file that ONNX Runtime does not take, MissingPackage without it.
        """
        self.path = path
        self.threads = threads
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
        self.optimization = optimization or choose_optimization(content, path=path)
        self._session = _open(
            content, path=path, threads=threads, optimization=self.optimization, profile=None
        )
        self._inputs = {value.name: value for value in self._session.get_inputs()}

    def run_image(self, pixel_values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return float32 [N, D], not normalised, for pixel values [N, 3, H, W]."""
        return self._run({"pixel_values": pixel_values})

    def run_text(
        self, input_ids: np.ndarray[Any, Any], attention_mask: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Return float32 [N, D], not normalised, for token ids and attention mask [N, T]."""
        return self._run({"input_ids": input_ids, "attention_mask": attention_mask})

    def list_executed_kernels(self, *, batch: int = 1) -> tuple[ExecutedKernel, ...]:
        """Return what really ran in one forward of zeros, the most frequent first.

        Runs in a session of its own with ONNX Runtime's profiler, which this one does without.
        """
        with tempfile.TemporaryDirectory(prefix="quantgate-") as folder:
            session = _open(
                self.path.read_bytes(),
                path=self.path,
                threads=self.threads,
                optimization=self.optimization,
                profile=Path(folder) / "profile",
            )
            session.run(None, self._zeros(batch=batch))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        counts: Counter[tuple[str, str]] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                arguments = event["args"]
                counts[arguments["op_name"], arguments.get("provider", "")] += 1
        return tuple(
            ExecutedKernel(
                operator=operator,
                provider=provider,
                count=count,
                integer=operator in INTEGER_OPERATORS,
            )
            for (operator, provider), count in sorted(
                counts.items(), key=lambda item: (-item[1], item[0])
            )
        )

    def _run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        import numpy as np

        if set(feeds) != set(self._inputs):
            raise ModelError(
                f"{self.path}: takes {', '.join(sorted(self._inputs))}, was given "
                f"{', '.join(sorted(feeds))}: it is the other tower"
            )
        typed = {
            name: np.ascontiguousarray(value, dtype=_KINDS[self._inputs[name].type])
            for name, value in feeds.items()
        }
        try:
            result = self._session.run(None, typed)[0]
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelError(
                f"{self.path}: ONNX Runtime stopped at a batch of "
                f"{ {name: list(value.shape) for name, value in typed.items()} }: "
                f"{_first_line(error)}"
            ) from error
        return np.asarray(result, dtype=np.float32)

    def _zeros(self, *, batch: int) -> dict[str, np.ndarray[Any, Any]]:
        import numpy as np

        return {
            name: np.zeros(
                [size if isinstance(size, int) else batch for size in value.shape],
                dtype=_KINDS[value.type],
            )
            for name, value in self._inputs.items()
        }


_KINDS: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
}


def choose_optimization(content: bytes, *, path: Path) -> Optimization:
    """Return the level at which ONNX Runtime computes what the graph says (see the module)."""
    model = parse_model(content, path=path)
    import onnx

    eight_bits = {
        value for name, value in onnx.TensorProto.DataType.items() if name.startswith("FLOAT8")
    }
    tensors = [tensor.data_type for tensor in model.graph.initializer]
    tensors += [
        attribute.t.data_type
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    ]
    return "none" if eight_bits.intersection(tensors) else "all"


def _open(
    content: bytes,
    *,
    path: Path,
    threads: int,
    optimization: Optimization,
    profile: Path | None,
) -> Any:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")  # it has no type information
    except ImportError as error:
        raise MissingPackage(
            "onnxruntime", extra="onnx", purpose="running an exported model"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, _LEVELS[optimization]
    )
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise ModelError(
            f"{path}: ONNX Runtime does not take it (optimization {optimization}): "
            f"{_first_line(error)}: export with precision float32 and leave the level to this class"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
