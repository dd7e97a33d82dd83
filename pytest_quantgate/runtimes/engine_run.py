"""Run a built engine on a GPU: outputs, device times, device memory.

Inputs and outputs are torch tensors that are allocated once; the engine has a stream of its own;
times are taken between two events on the device. Where there is no usable GPU, `open_engine` says
so with the reason (NotMeasured) and nothing here pretends to have run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_quantgate.errors import MissingPackage, NotMeasured
from pytest_quantgate.formats.table import TABLE
from pytest_quantgate.runtimes.engine_layers import EngineError
from pytest_quantgate.runtimes.tensorrt_library import (
    Library,
    create_context,
    find_device_target,
    find_invalidity,
    make_logger,
    read_device_memory_bytes,
    read_weights_bytes,
)

#: Warm: the medians of the last two windows of this many batches differ by at most this share.
WINDOW = 5
STABLE_SHARE = 0.02

_TORCH_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    **{word: row.torch_dtype for row in TABLE if row.torch_dtype for word in row.engine_dtypes},
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True, kw_only=True)
class EngineSizes:
    """Memory in bytes: of the plan, the weights (None where the library does not tell), and of
    what one context needs on the device besides."""

    plan_bytes: int
    weights_bytes: int | None
    device_memory_bytes: int


class EngineRun:
    """One deserialized engine with its context, stream and tensors; close it when done.

    `cuda` is `torch.cuda`; tests hand in another.
    """

    def __init__(
        self, *, library: Library, plan: Any, device: str, cuda: Any, errors: list[str]
    ) -> None:
        trt = library.module
        self._errors = errors
        self._cuda = cuda
        self._device = device
        self._logger = make_logger(library, take=self._take)
        self._runtime = trt.Runtime(self._logger)
        invalid = find_invalidity(library, self._runtime, plan)
        if invalid is not None:
            raise NotMeasured(f"the engine cannot run on this GPU: {invalid}")
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"the plan cannot be read on this GPU: {self._explain()}; rebuild it")
        self._context = create_context(library, self._engine)
        if self._context is None:
            raise EngineError(f"no execution context: {self._explain()}")
        self._stream = cuda.Stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.input_names = tuple(n for n in names if modes[n] == trt.TensorIOMode.INPUT)
        self.output_names = tuple(n for n in names if modes[n] == trt.TensorIOMode.OUTPUT)
        self.sizes = EngineSizes(
            plan_bytes=memoryview(plan).nbytes,
            weights_bytes=read_weights_bytes(library, self._engine),
            device_memory_bytes=read_device_memory_bytes(self._engine),
        )
        self._tensors: dict[str, Any] = {}

    def __enter__(self) -> EngineRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything on the device, in the order that the library wants."""
        self._stream.synchronize()
        self._tensors.clear()
        self._context = self._engine = self._runtime = None

    def fit_batch(self, wanted: int) -> int:
        """Return the batch size that the engine takes: its own, or as many of `wanted` as it can.

        An engine that was built elsewhere is of other batches than those that are built here.
        """
        sizes = []
        for name in self.input_names:
            size, *_ = self._engine.get_tensor_shape(name)
            if size == -1:
                (least, *_), _, (most, *_) = self._engine.get_tensor_profile_shape(name, 0)
                size = min(max(wanted, least), most)
            sizes.append(size)
        return min(sizes, default=wanted)

    def bind(self, inputs: Mapping[str, Any]) -> None:
        """Allocate all tensors for inputs of these shapes and copy the inputs to the device.

        Raises EngineError where an input is missing, unknown, or of a shape that the engine was
        not built for.
        """
        import torch

        if set(inputs) != set(self.input_names):
            raise EngineError(
                f"the engine takes the inputs {sorted(self.input_names)}, not {sorted(inputs)}"
            )
        for name in self.input_names:
            if not self._context.set_input_shape(name, tuple(inputs[name].shape)):
                raise EngineError(
                    f"the engine does not take {name!r} of shape {tuple(inputs[name].shape)}: "
                    f"{self._explain()}"
                )
        missing = self._context.infer_shapes()
        if missing:
            raise EngineError(f"the engine needs shapes for {list(missing)}: {self._explain()}")
        for name in (*self.input_names, *self.output_names):
            shape = tuple(self._context.get_tensor_shape(name))
            word = str(self._engine.get_tensor_dtype(name)).rpartition(".")[2]
            if word not in _TORCH_DTYPES:
                raise EngineError(f"the tensor {name!r} is of type {word}, which torch has not")
            tensor = torch.empty(
                shape, dtype=getattr(torch, _TORCH_DTYPES[word]), device=self._device
            )
            self._tensors[name] = tensor
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"the tensor {name!r} was not accepted: {self._explain()}")
        self.copy_inputs(inputs)

    def copy_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Copy inputs of the bound shapes to the device, cast to the engine's input types."""
        with self._cuda.stream(self._stream):
            for name, value in inputs.items():
                self._tensors[name].copy_(value)
        self._stream.synchronize()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once and return the outputs by name, as torch tensors on the CPU."""
        if not self._tensors or any(
            tuple(inputs[name].shape) != tuple(self._tensors[name].shape)
            for name in self.input_names
            if name in inputs
        ):
            self.bind(inputs)
        else:
            self.copy_inputs(inputs)
        self._enqueue()
        self._stream.synchronize()
        return {name: self._tensors[name].cpu().clone() for name in self.output_names}

    def time_batch_ms(self, *, runs: int) -> float:
        """Return the device time of one run in ms, as the mean of `runs` between two events."""
        start = self._cuda.Event(enable_timing=True)
        end = self._cuda.Event(enable_timing=True)
        start.record(self._stream)
        for _ in range(runs):
            self._enqueue()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / runs

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise EngineError(f"the engine did not run: {self._explain()}")

    def _take(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(text)

    def _explain(self) -> str:
        return self._errors[-1] if self._errors else "the library gave no reason"


class RunsBatches(Protocol):
    """What runs one batch of a fixed size, as EngineRun does."""

    @property
    def output_names(self) -> tuple[str, ...]: ...

    def fit_batch(self, wanted: int) -> int: ...

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]: ...


def run_in_batches(engine: RunsBatches, inputs: Mapping[str, Any], *, batch: int) -> Any:
    """Return the engine's one output as float32 [N, D] for inputs of any N, as torch tensors.

    The engine takes `batch` samples and no other number: the last ones are repeated where fewer are
    left, and what comes of the repeats is dropped. Raises EngineError where the engine has not one
    output, or one that is not a row a sample.
    """
    import torch

    if len(engine.output_names) != 1:
        raise EngineError(f"the engine has the outputs {list(engine.output_names)}, not one")
    (name,) = engine.output_names
    (count,) = {len(value) for value in inputs.values()}
    parts = []
    for start in range(0, count, batch):
        chunk = {key: value[start : start + batch] for key, value in inputs.items()}
        size = min(batch, count - start)
        if size < batch:
            chunk = {
                key: torch.cat([value, value[-1:].repeat_interleave(batch - size, dim=0)])
                for key, value in chunk.items()
            }
        found = engine.run(chunk)[name]
        if found.ndim != 2 or len(found) != batch:
            raise EngineError(
                f"the output {name!r} of the engine is {list(found.shape)}, not {batch} rows"
            )
        parts.append(found[:size].float())
    return torch.cat(parts)


def read_free_bytes(cuda: Any) -> int:
    """Return how many bytes are free on the device; `cuda` is `torch.cuda`."""
    cuda.synchronize()
    free, _total = cuda.mem_get_info(0)
    return int(free)


def is_stable(times_ms: list[float]) -> bool:
    """Whether the medians of the last two windows of times agree."""
    if len(times_ms) < 2 * WINDOW:
        return False
    before = statistics.median(times_ms[-2 * WINDOW : -WINDOW])
    now = statistics.median(times_ms[-WINDOW:])
    return abs(now - before) <= STABLE_SHARE * before


def explain_no_device(*, target: str) -> str | None:
    """Return why an engine for `target` cannot run in this process, or None if it can."""
    here = find_device_target()
    if here is None:
        return f"running an engine for {target} needs such a GPU, and torch sees none here"
    if here != target:
        return f"the engine was built for {target}, and the GPU here is {here}: build it for {here}"
    return None


def open_engine(
    *, library: Library, plan_path: Path, target: str, errors: list[str] | None = None
) -> EngineRun:
    """Load a plan onto the first GPU. Use as a context manager.

    The library keeps the first logger of a process: engines that are open at once are given one
    list of `errors`, so that each can say what went wrong.

    Raises NotMeasured with the reason where this machine cannot run it, EngineError where the
    plan is damaged.
    """
    reason = explain_no_device(target=target)
    if reason is not None:
        raise NotMeasured(reason)
    try:
        import torch
    except ImportError as error:  # pragma: no cover - find_device_target has just used it
        raise MissingPackage("torch", extra="clip", purpose="running engines") from error
    try:
        plan = plan_path.read_bytes()
    except OSError as error:
        raise EngineError(f"{plan_path}: {error.strerror or error}: build it again") from error
    return EngineRun(
        library=library,
        plan=plan,
        device="cuda:0",
        cuda=torch.cuda,
        errors=[] if errors is None else errors,
    )


def inspect_engine(*, library: Library, plan: Any) -> str:
    """Return the layer listing of a plan through the engine inspector, or nothing without a GPU.

    For a library whose builder does not print the listing.
    """
    if find_device_target() is None:
        return ""
    trt = library.module
    logger = make_logger(library, take=lambda _severity, _text: None)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.ONELINE))
