"""Runs an exported tower in ONNX Runtime: on the CPU, or in another of its providers on a GPU.

ONNX Runtime's optimizer moves Q/DQ pairs about. On FP8 graphs that is not safe: ORT_ENABLE_BASIC
gives wrong numbers with no word on some graphs of opset 19 to 22, the higher levels build a
Transpose on float8 and refuse it (1.24). So a graph that holds FP8 runs as it is written; an INT8
graph needs the optimizer, which is what puts integer kernels in place of the pairs.

A provider that cannot be loaded is no error to ONNX Runtime: the session then runs on the CPU, with
a line on standard error. Here that is NotMeasured: a time of the CPU is none of the GPU.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured
from pytest_quantgate.formats.table import INT8, TABLE

if TYPE_CHECKING:
    import numpy as np
    import torch

Provider = Literal["cpu", "cuda", "tensorrt"]

_PROVIDERS: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

Optimization = Literal["none", "basic", "extended", "all"]

_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+\(\d+\))")

LEVELS: Mapping[Optimization, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class NoKernel(NotMeasured):
    """A valid graph that this version of ONNX Runtime has no kernels for."""


#: Samples in one call where workers share a batch.
SLICE_SAMPLES = 8


class OnnxRuntimeModel:
    """One exported tower, ready to run. Batches in, float32 embeddings [N, D] out.

    ONNX Runtime's `threads` share each matrix product, and the last digits depend on how many they
    are. With `workers` a batch is cut into slices of a fixed size instead, each computed by one
    thread: the same digits on any number of cores.
    `optimization` None takes the level that is right for the graph: `none` for FP8 and 4 bits,
    `all` elsewhere; `self.optimization` says which it became. `stream` is the CUDA stream (as an
    integer, not the default one's 0) that a `provider` on the GPU works on.
    """

    path: Path
    threads: int
    optimization: Optimization

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        workers: int | None = None,
        optimization: Optimization | None = None,
        provider: Provider = "cpu",
        stream: int = 0,
    ) -> None:
        """Load the graph.

        Raises ModelError for a file that ONNX Runtime does not take, MissingPackage without it,
        NotMeasured where the provider is not there or cannot be loaded, NoKernel for number
        formats that this version cannot compute.
        """
        self.path = path
        self.threads = threads if workers is None else 1
        self.workers = workers
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
        self.optimization = optimization or choose_optimization(content, path=path)
        self._session = _open(
            content,
            path=path,
            threads=self.threads,
            optimization=self.optimization,
            provider=provider,
            stream=stream,
        )
        self._inputs = {value.name: value for value in self._session.get_inputs()}

    def embed(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Return float32 [N, D], not normalised, for the inputs of the graph, [N, ...] by name."""
        return self._run(dict(inputs))

    def bind(
        self, inputs: Mapping[str, torch.Tensor], *, device: str
    ) -> tuple[Callable[[], None], torch.Tensor]:
        """Return a call that runs once, and the tensor that it fills; both lie on `device`.

        On a GPU the call only puts the work on the session's stream: wait for that before you read.
        Raises ModelError as a run does.
        """
        import torch

        onnxruntime: Any = importlib.import_module("onnxruntime")
        self._check_names(inputs)
        kind, _, index = device.partition(":")
        io = self._session.io_binding()
        kept = []  # ONNX Runtime has bare pointers to them

        def place(tensor: torch.Tensor) -> dict[str, Any]:
            kept.append(tensor)
            return {
                "device_type": kind,
                "device_id": int(index or 0),
                "element_type": _element_type(str(tensor.dtype).removeprefix("torch.")),
                "shape": tuple(tensor.shape),
                "buffer_ptr": tensor.data_ptr(),
            }

        for name, value in inputs.items():
            dtype = getattr(torch, _KINDS[self._inputs[name].type])
            io.bind_input(name, **place(value.to(device=device, dtype=dtype).contiguous()))
        (output,) = self._session.get_outputs()
        (rows,) = {len(value) for value in inputs.values()}
        result = torch.empty(
            [size if isinstance(size, int) else rows for size in output.shape],
            dtype=getattr(torch, _KINDS[output.type]),
            device=device,
        )
        io.bind_output(output.name, **place(result))
        options = onnxruntime.RunOptions()
        if kind != "cpu":
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            torch.cuda.synchronize()  # the inputs were copied on another stream

        def run() -> None:
            assert len(kept) == len(inputs) + 1
            try:
                self._session.run_with_iobinding(io, options)
            except Exception as error:  # onnxruntime's errors share no base class
                raise ModelError(
                    f"{self.path}: ONNX Runtime stopped: {_first_line(error)}"
                ) from error

        return run, result

    def _run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Return the first output, the embeddings."""
        return next(iter(self.run(feeds).values()))

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Return every output by its name, as float32; `feeds` are all inputs by name."""
        import numpy as np

        self._check_names(feeds)
        typed = {
            name: np.ascontiguousarray(value, dtype=_KINDS[self._inputs[name].type])
            for name, value in feeds.items()
        }
        try:
            results = self._compute(typed)
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelError(
                f"{self.path}: ONNX Runtime stopped at a batch of "
                f"{ {name: list(value.shape) for name, value in typed.items()} }: "
                f"{_first_line(error)}"
            ) from error
        names = (value.name for value in self._session.get_outputs())
        return {
            name: np.asarray(result, dtype=np.float32)
            for name, result in zip(names, results, strict=True)
        }

    def _compute(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        samples, *others = {len(value) for value in feeds.values()}
        sizes = {v.shape[0] for v in self._inputs.values() if v.shape and type(v.shape[0]) is int}
        if len(sizes) == 1 and not others and sizes != {samples}:
            return self._compute_whole_batches(feeds, size=sizes.pop())
        if self.workers is None or others or samples <= SLICE_SAMPLES:
            return list(self._session.run(None, dict(feeds)))
        import numpy as np

        slices = [
            {name: value[start : start + SLICE_SAMPLES] for name, value in feeds.items()}
            for start in range(0, samples, SLICE_SAMPLES)
        ]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self.workers) as pool:
            parts = list(pool.map(lambda part: self._session.run(None, part), slices))
        return [np.concatenate(found) for found in zip(*parts, strict=True)]

    def _compute_whole_batches(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], *, size: int
    ) -> list[np.ndarray[Any, Any]]:
        """Run a graph that takes one size of a batch; the last one is filled with its last row."""
        import numpy as np

        samples = len(next(iter(feeds.values())))
        places = np.minimum(np.arange(-(-samples // size) * size), samples - 1).reshape(-1, size)
        parts = [self._session.run(None, {n: v[at] for n, v in feeds.items()}) for at in places]
        return [np.concatenate(found)[:samples] for found in zip(*parts, strict=True)]

    def _check_names(self, feeds: Mapping[str, Any]) -> None:
        if set(feeds) != set(self._inputs):
            raise ModelError(
                f"{self.path}: takes {', '.join(sorted(self._inputs))}, was given "
                f"{', '.join(sorted(feeds))}: it is the other tower"
            )


_KINDS: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
}


def choose_optimization(content: bytes, *, path: Path) -> Optimization:
    """Return the level at which ONNX Runtime computes what the graph says (see the module).

    Raises ModelError for weights in other files: ONNX Runtime, which is given the bytes alone,
    would look for them in the folder that it was started in.
    """
    from pytest_quantgate.runtimes.onnx_model import parse_model

    model = parse_model(content, path=path)
    import onnx

    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            raise ModelError(
                f"{path}: the weights of {tensor.name!r} are kept in another file ({location!r}), "
                f"which is not read: export the tower again"
            )
    unsafe = {row.onnx_type for row in TABLE} - {INT8.onnx_type}
    narrow = {
        value
        for name, value in onnx.TensorProto.DataType.items()
        if name.startswith("FLOAT8") or name.removeprefix("U") in unsafe
    }
    tensors = [tensor.data_type for tensor in model.graph.initializer]
    tensors += [
        attribute.t.data_type
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    ]
    return "none" if narrow.intersection(tensors) else "all"


def require_provider(provider: Provider) -> str:
    """Return the version of ONNX Runtime, which has this provider as installed.

    Raises MissingPackage without ONNX Runtime, NotMeasured where it was built without the provider,
    or torch sees no GPU for it. Whether its libraries load shows when a session is opened.
    """
    onnxruntime = _import()
    name, known = _PROVIDERS[provider], list(onnxruntime.get_available_providers())
    if name not in known:
        raise NotMeasured(
            f"this ONNX Runtime {onnxruntime.__version__} has no {name} (it has "
            f"{', '.join(known)}): pip install onnxruntime-gpu in the place of onnxruntime"
        )
    if provider != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise NotMeasured(f"{name} runs on an NVIDIA GPU, and torch sees none here")
    return str(onnxruntime.__version__)


def _import() -> Any:
    try:
        return importlib.import_module("onnxruntime")  # it has no type information
    except ImportError as error:
        raise MissingPackage(
            "onnxruntime", extra="onnx", purpose="running an exported model"
        ) from error


def _element_type(dtype: str) -> Any:
    """Return how ONNX Runtime is told a type: NumPy's, or ONNX's number where NumPy has none."""
    import numpy as np
    import onnx

    return onnx.TensorProto.BFLOAT16 if dtype == "bfloat16" else getattr(np, dtype)


def list_providers(provider: Provider, *, stream: int) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session in their order, with their options.

    https://onnxruntime.ai/docs/execution-providers/: TensorRT leaves what it does not take to CUDA,
    both leave shapes to the CPU. The stream must be given to both, or each has its own.
    """
    options = {"device_id": "0"}
    if stream:
        options |= {"has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    found: list[tuple[str, dict[str, str]]] = []
    if provider == "tensorrt":
        # Q/DQ pairs and half types of a graph are taken as they stand with these two.
        found.append(
            (_PROVIDERS["tensorrt"], {**options, "trt_fp16_enable": "1", "trt_int8_enable": "1"})
        )
    if provider != "cpu":
        found.append((_PROVIDERS["cuda"], options))
    return [*found, (_PROVIDERS["cpu"], {})]


def _open(
    content: bytes,
    *,
    path: Path,
    threads: int,
    optimization: Optimization,
    provider: Provider = "cpu",
    stream: int = 0,
) -> Any:
    onnxruntime = _import()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, LEVELS[optimization]
    )
    try:
        session = onnxruntime.InferenceSession(
            content,
            options,
            providers=list_providers(provider, stream=stream),
            enable_fallback=0,  # it would run on the CPU, with a word on standard output
        )
    except Exception as error:  # onnxruntime's errors share no base class
        if "install TensorRT libraries" in str(error):
            raise NotMeasured(_explain_provider(provider, reason="they are missing")) from error
        lacking = _NO_KERNEL.search(str(error))
        if lacking:
            raise NoKernel(
                f"ONNX Runtime {onnxruntime.__version__} has no kernel for {lacking[1]}, which "
                f"{path.name} needs for its number formats"
            ) from error
        raise ModelError(
            f"{path}: ONNX Runtime does not take it (optimization {optimization}): "
            f"{_first_line(error)}: export with precision float32 and leave the level to this class"
        ) from error
    if _PROVIDERS[provider] not in session.get_providers():
        raise NotMeasured(_explain_provider(provider, reason="it runs on the CPU instead"))
    return session


def _explain_provider(provider: Provider, *, reason: str) -> str:
    libraries = "CUDA and cuDNN" if provider == "cuda" else "TensorRT, CUDA and cuDNN"
    return (
        f"ONNX Runtime could not load {_PROVIDERS[provider]}, which needs the libraries of "
        f"{libraries} in the versions that it was built with: {reason}; see "
        f"https://onnxruntime.ai/docs/execution-providers/"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
