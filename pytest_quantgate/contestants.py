"""What a latency gate times: both variants of a tower, open in one runtime at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.measure.latency import (
    Footprint,
    TimeRuns,
    run_onnx_tower,
    run_torch_tower,
    time_engine,
    time_on_device,
    time_onnx_tower,
    time_torch_tower,
)
from pytest_quantgate.stages import (
    VARIANTS,
    EngineOrder,
    Precision,
    Stages,
    Variant,
    select_inputs,
)
from pytest_quantgate.suite import LatencyGate, LatencyRuntime

if TYPE_CHECKING:
    from pytest_quantgate.models.clip import PairBatch
    from pytest_quantgate.runtimes.onnxruntime_session import Provider

GPU = "cuda:0"


@dataclass(frozen=True, kw_only=True)
class Contestants:
    """`fp16` and `quantized` by name, ready to be timed; `device` is `cpu` or `cuda:0`.

    `samples` are the embeddings that one run of each gave, before any was timed.
    """

    timers: Mapping[str, TimeRuns]
    samples: Mapping[str, int]
    footprints: Mapping[str, Footprint]
    device: str
    runtime_version: str


@contextmanager
def open_contestants(stages: Stages, *, gate: LatencyGate) -> Iterator[Contestants]:
    """Open both variants in the gate's runtime, on a batch of held-out pairs, and close them.

    Raises NotMeasured or MissingPackage, before anything is exported or built, where the runtime,
    its provider or its device is not here.
    """
    with ExitStack() as stack:
        yield _OPENERS[gate.runtime](stages, gate, stack)


def _open_torch(stages: Stages, gate: LatencyGate, stack: ExitStack) -> Contestants:
    import torch

    stack.enter_context(_torch_threads(gate.threads))
    case = stages.case
    models = {"fp16": case.fp16, "quantized": case.quantized}
    batch = make_batch(stages, size=gate.batch)
    return Contestants(
        timers={
            variant: time_torch_tower(models[variant], tower=gate.tower, batch=batch)
            for variant in VARIANTS
        },
        samples={
            variant: len(run_torch_tower(models[variant], tower=gate.tower, batch=batch)())
            for variant in VARIANTS
        },
        footprints={},  # fake quantization makes nothing smaller: no size is worth telling
        device=GPU if case.device == "cuda" else "cpu",
        runtime_version=torch.__version__,
    )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open_onnxruntime(stages: Stages, gate: LatencyGate, _stack: ExitStack) -> Contestants:
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel, require_provider

    version = require_provider("cpu")
    batch = make_batch(stages, size=gate.batch)
    paths = _export(stages, gate, precision="float32")
    models = {
        variant: OnnxRuntimeModel(path, threads=gate.threads) for variant, path in paths.items()
    }
    return Contestants(
        timers={
            variant: time_onnx_tower(model, tower=gate.tower, batch=batch)
            for variant, model in models.items()
        },
        samples={
            variant: len(run_onnx_tower(model, tower=gate.tower, batch=batch)())
            for variant, model in models.items()
        },
        footprints={
            variant: _measure_file(stages, gate, variant=variant, precision="float32")
            for variant in VARIANTS
        },
        device="cpu",
        runtime_version=version,
    )


def _open_provider(
    provider: Provider,
) -> Callable[[Stages, LatencyGate, ExitStack], Contestants]:
    """Return the opener of a provider on the GPU: half graphs, device events, bound tensors."""

    def open_on_gpu(stages: Stages, gate: LatencyGate, _stack: ExitStack) -> Contestants:
        from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel, require_provider

        stages.require_gpu(gate.runtime)
        version = require_provider(provider)
        import torch

        from pytest_quantgate.runtimes.engine_run import read_free_bytes

        cuda: Any = torch.cuda
        inputs = select_inputs(make_batch(stages, size=gate.batch), tower=gate.tower)
        paths = _export(stages, gate, precision=stages.shipped)
        timers: dict[str, TimeRuns] = {}
        samples: dict[str, int] = {}
        footprints: dict[str, Footprint] = {}
        for variant, path in paths.items():
            free = read_free_bytes(cuda)
            # Not the default stream: ONNX Runtime takes its 0 for none.
            stream = cuda.Stream()
            model = OnnxRuntimeModel(path, provider=provider, stream=stream.cuda_stream)
            run, output = model.bind(inputs, device=GPU)
            run()
            samples[variant] = len(output)
            footprints[variant] = _measure_file(
                stages,
                gate,
                variant=variant,
                precision=stages.shipped,
                device_bytes=free - read_free_bytes(cuda),
            )
            timers[variant] = time_on_device(run, cuda=cuda, stream=stream)
        return Contestants(
            timers=timers,
            samples=samples,
            footprints=footprints,
            device=GPU,
            runtime_version=version,
        )

    return open_on_gpu


def _open_engines(stages: Stages, gate: LatencyGate, stack: ExitStack) -> Contestants:
    from pytest_quantgate.runtimes.engine_run import open_engine, read_free_bytes

    library, target = stages.find_engine_target(gate.runtime)
    import torch

    order = EngineOrder(
        target=target, library=gate.runtime, batch=gate.batch, source=gate.where.of("runtime")
    )
    built = {
        variant: stages.build_engine(variant=variant, tower=gate.tower, order=order)
        for variant in VARIANTS
    }
    inputs = select_inputs(make_batch(stages, size=gate.batch), tower=gate.tower)
    errors: list[str] = []
    timers: dict[str, TimeRuns] = {}
    samples: dict[str, int] = {}
    footprints: dict[str, Footprint] = {}
    for variant, (report, plan_path) in built.items():
        free = read_free_bytes(torch.cuda)
        engine = stack.enter_context(
            open_engine(library=library, plan_path=plan_path, target=target, errors=errors)
        )
        (output,) = engine.run(inputs).values()
        samples[variant] = len(output)
        timers[variant] = time_engine(engine)
        footprints[variant] = Footprint(
            file_bytes=report.plan_bytes,
            weights_bytes=report.weights_bytes,
            activation_bytes=engine.sizes.device_memory_bytes,
            device_bytes=free - read_free_bytes(torch.cuda),
        )
    return Contestants(
        timers=timers,
        samples=samples,
        footprints=footprints,
        device=GPU,
        runtime_version=library.version,
    )


_OPENERS: Mapping[LatencyRuntime, Callable[[Stages, LatencyGate, ExitStack], Contestants]] = {
    "torch": _open_torch,
    "onnxruntime": _open_onnxruntime,
    "onnxruntime-cuda": _open_provider("cuda"),
    "onnxruntime-tensorrt": _open_provider("tensorrt"),
    "tensorrt-rtx": _open_engines,
    "tensorrt": _open_engines,
}


def make_batch(stages: Stages, *, size: int) -> PairBatch:
    """Return one batch of held-out pairs, repeated where there are fewer than `size`."""
    from pytest_quantgate.measure.embeddings import make_batches

    pairs = stages.case.held_out(size)
    if len(pairs) < size:
        pairs = pairs.select([i % len(pairs) for i in range(size)])
    (batch,) = make_batches(stages.case.fp16, pairs, batch_size=size)
    return batch


def _export(stages: Stages, gate: LatencyGate, *, precision: Precision) -> dict[Variant, Path]:
    return {
        variant: stages.onnx_path(variant=variant, tower=gate.tower, precision=precision)
        for variant in VARIANTS
    }


def _measure_file(
    stages: Stages,
    gate: LatencyGate,
    *,
    variant: Variant,
    precision: Precision,
    device_bytes: int | None = None,
) -> Footprint:
    audit = stages.onnx_audit(variant=variant, tower=gate.tower, precision=precision)
    return Footprint(
        file_bytes=audit.file_bytes,
        weights_bytes=sum(size for _, size in audit.weights_bytes),
        device_bytes=device_bytes,
    )
