"""What a latency gate times: how a process of its own opens one variant of a tower.

A spec is plain data (JSON), so that nothing but paths and numbers goes from process to process.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pytest_quantgate.evidence.latency import Footprint
from pytest_quantgate.measure.serve import Inputs, Server

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.evidence.audit import TowerName
    from pytest_quantgate.evidence.load import Load, Served
    from pytest_quantgate.runtimes.onnxruntime_session import Optimization

GPU = "cuda:0"

#: Runs something so many times and returns the time of one run in ms: the mean.
TimeRuns = Callable[[int], float]

#: Returns a time in s that never goes back; only differences count.
Clock = Callable[[], float]


def _serve_nothing(_load: Load) -> Served:
    raise NotImplementedError("this runner is only timed")


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What is open and ready to be timed.

    `samples` is how many embeddings one run gave; None where nobody looked. `serve` answers a round
    of requests.
    """

    time_runs: TimeRuns
    samples: int | None = None
    serve: Callable[[Load], Served] = _serve_nothing
    footprint: Footprint = field(default_factory=Footprint)


@dataclass(frozen=True, kw_only=True)
class OnnxRunner:
    """An exported tower in ONNX Runtime: on the CPU, or by a `provider` on the GPU.

    `inputs` is an .npz of the graph's inputs by name.
    """

    path: str
    inputs: str
    provider: Literal["cpu", "cuda", "tensorrt"]
    optimization: Optimization
    threads: int


@dataclass(frozen=True, kw_only=True)
class EngineRunner:
    """A plan for the GPU in this machine; `library` is `tensorrt_rtx` or `tensorrt`.

    It was built for a `batch`.
    """

    library: Literal["tensorrt_rtx", "tensorrt"]
    plan: str
    target: str
    inputs: str
    batch: int


@dataclass(frozen=True, kw_only=True)
class TorchRunner:
    """A tower in PyTorch: a `model` as `pin_model` gives it, or what a `checkpoint` makes of it."""

    model: Mapping[str, Any]
    checkpoint: str
    tower: TowerName
    inputs: str
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1


Spec = OnnxRunner | EngineRunner | TorchRunner

_KINDS: Mapping[str, type[Spec]] = {
    kind.__name__: kind for kind in (OnnxRunner, EngineRunner, TorchRunner)
}


def write_spec(spec: Spec) -> dict[str, Any]:
    """Return a spec as JSON."""
    return {"kind": type(spec).__name__, **dataclasses.asdict(spec)}


def read_spec(data: Mapping[str, Any]) -> Spec:
    """Return the spec that `write_spec` wrote; raises KeyError and TypeError for anything else."""
    values = dict(data)
    return _KINDS[values.pop("kind")](**values)


@contextmanager
def open_runner(spec: Spec) -> Iterator[Runner]:
    """Open a runner, run it once, and close it. Its footprint is what can be seen from inside.

    Raises NotMeasured or MissingPackage where its runtime or device is not here, ModelError or
    EngineError for a file that it does not take.
    """
    inputs = _read_inputs(Path(spec.inputs))
    if isinstance(spec, EngineRunner):
        with _open_engine(spec, inputs) as opened:
            yield opened
    elif isinstance(spec, TorchRunner):
        yield _open_torch(spec, inputs)
    elif spec.provider == "cpu":
        yield _open_on_cpu(spec, inputs)
    else:
        yield _open_on_gpu(spec, inputs)


def _read_inputs(path: Path) -> Inputs:
    import numpy

    with numpy.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _open_on_cpu(spec: OnnxRunner, inputs: Inputs) -> Runner:
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

    model = OnnxRuntimeModel(Path(spec.path), threads=spec.threads, optimization=spec.optimization)

    def embed(feeds: Inputs) -> Any:
        return next(iter(model.run(feeds).values()))

    def run() -> Any:
        return embed(inputs)

    return Runner(
        time_runs=time_callable(run),
        samples=len(run()),
        serve=Server(embed, inputs=inputs).serve,
    )


def _open_on_gpu(spec: OnnxRunner, inputs: Inputs) -> Runner:
    """Half graphs, tensors that are bound once, device events on a stream of its own."""
    import torch

    from pytest_quantgate.runtimes.engine_run import read_free_bytes
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

    cuda: Any = torch.cuda
    free = read_free_bytes(cuda)
    stream = cuda.Stream()  # not the default one: ONNX Runtime takes its 0 for none
    model = OnnxRuntimeModel(
        Path(spec.path),
        optimization=spec.optimization,
        provider=spec.provider,
        stream=stream.cuda_stream,
    )
    run, output = model.bind(_to_torch(inputs), device=GPU)
    run()
    return Runner(
        time_runs=time_on_device(run, cuda=cuda, stream=stream),
        samples=len(output),
        serve=Server(lambda feeds: next(iter(model.run(feeds).values())), inputs=inputs).serve,
        footprint=Footprint(device_bytes=free - read_free_bytes(cuda)),
    )


@contextmanager
def _open_engine(spec: EngineRunner, inputs: Inputs) -> Iterator[Runner]:
    import torch

    from pytest_quantgate.runtimes.engine_run import open_engine, read_free_bytes, run_in_batches
    from pytest_quantgate.runtimes.tensorrt_library import load_library

    free = read_free_bytes(torch.cuda)
    with open_engine(
        library=load_library(name=spec.library), plan_path=Path(spec.plan), target=spec.target
    ) as engine:
        first = {name: value[: spec.batch] for name, value in _to_torch(inputs).items()}
        (output,) = engine.run(first).values()

        def embed(feeds: Inputs) -> Any:
            return run_in_batches(engine, _to_torch(feeds), batch=spec.batch).numpy()

        yield Runner(
            time_runs=time_engine(engine),
            samples=len(output),
            serve=Server(embed, inputs=inputs).serve,
            footprint=Footprint(
                activation_bytes=engine.sizes.device_memory_bytes,
                device_bytes=free - read_free_bytes(torch.cuda),
            ),
        )


def _open_torch(spec: TorchRunner, inputs: Inputs) -> Runner:
    import torch

    from pytest_quantgate.encoders.loading import load_fp16
    from pytest_quantgate.encoders.source import read_model
    from pytest_quantgate.quantization.checkpoint import load_checkpoint

    torch.set_num_threads(spec.threads)
    model = load_fp16(read_model(spec.model), device=spec.device)
    if spec.checkpoint:
        model = load_checkpoint(Path(spec.checkpoint), fp16=model)
    run = run_torch_tower(model, tower=spec.tower, inputs=_to_torch(inputs))

    def embed(feeds: Inputs) -> Any:
        placed = run_torch_tower(model, tower=spec.tower, inputs=_to_torch(feeds))
        return placed().float().cpu().numpy()

    on_gpu = model.device.startswith("cuda")
    return Runner(
        # Where Python is slower than the kernels that it starts, the device waits for it, and
        # that is in its time.
        time_runs=time_on_device(run, cuda=torch.cuda) if on_gpu else time_callable(run),
        samples=len(run()),
        serve=Server(embed, inputs=inputs).serve,
    )


def run_torch_tower(model: Encoder, *, tower: TowerName, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Return a call that gives the embeddings of a batch; its inputs lie on the model's device."""
    import torch

    dtype = getattr(torch, model.compute_dtype)
    placed = {
        name: value.to(device=model.device, dtype=dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    return lambda: model.encode(tower, placed)


def _to_torch(inputs: Inputs) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(value) for name, value in inputs.items()}


# -- timers -------------------------------------------------------------------------------------


def time_callable(run: Callable[[], object], *, clock: Clock = time.perf_counter) -> TimeRuns:
    """Return a runner for anything that is done when the call returns, timed by `clock`."""

    def time_runs(runs: int) -> float:
        repeats = itertools.repeat(None, runs)
        started = clock()
        for _ in repeats:
            run()
        return (clock() - started) * 1e3 / runs

    return time_runs


def time_on_device(run: Callable[[], object], *, cuda: Any, stream: Any = None) -> TimeRuns:
    """Return a runner for work that `run` puts on a stream of a GPU; None: the current one.

    The time is that between two events on the device. `cuda` is `torch.cuda`.
    """

    def time_runs(runs: int) -> float:
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        start.record(stream)
        for _ in range(runs):
            run()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / runs

    return time_runs


class TimesItself(Protocol):
    """What times its own runs, as `engine_run.EngineRun` does."""

    def time_batch_ms(self, *, runs: int) -> float: ...


def time_engine(engine: TimesItself) -> TimeRuns:
    """Return a runner for an engine whose inputs are bound; it has a stream of its own."""
    return lambda runs: engine.time_batch_ms(runs=runs)
