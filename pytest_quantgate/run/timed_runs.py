"""What a timed gate times: both variants of a tower, each in processes of its own."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.latency import Footprint
from pytest_quantgate.measure.runner import (
    GPU,
    EngineRunner,
    OnnxRunner,
    Spec,
    TorchRunner,
)
from pytest_quantgate.measure.timed_process import in_a_process
from pytest_quantgate.run.exported import VARIANTS, EngineOrder, Precision, Variant
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.store.keys import TIMED_INPUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pytest_quantgate.encoders.encoder import Batch
    from pytest_quantgate.evidence.latency import LatencyRun
    from pytest_quantgate.evidence.load import LoadRun
    from pytest_quantgate.gates.load import LoadGate
    from pytest_quantgate.gates.timed import TimedGate, TimedRuntime
    from pytest_quantgate.measure.rounds import Start
    from pytest_quantgate.run.stages import Stages
    from pytest_quantgate.runtimes.onnxruntime_session import Provider


#: A round lasts at least this long, so that the clock and the scheduler do not count.
MIN_ROUND_MS = 20.0
WARM_UP_S = 5.0


def time_variants(
    stages: Stages, gate: TimedGate, *, is_decided: Callable[[LatencyRun], bool] | None = None
) -> LatencyRun:
    """Return the times of FP16 and the quantized variant; never from a cache.

    `is_decided` may end it early: see `measure_latency`.
    """
    from pytest_quantgate.measure.latency import (
        measure_latency,
        read_arithmetic_gain,
        read_machine,
    )
    from pytest_quantgate.measure.rounds import share_rounds

    label = f"timing the {gate.tower} tower in {gate.runtime}, batch {gate.batch}"
    processes, rounds = share_rounds(gate.rounds)
    with line_up(stages, gate=gate) as (lineup, runners):
        machine = read_machine(threads=gate.threads, device=lineup.device)
        with stages.case.progress.stage(label, total=processes * rounds) as advance:
            return measure_latency(
                runners=runners,
                processes=processes,
                rounds=rounds,
                min_round_ms=MIN_ROUND_MS,
                warm_up_s=WARM_UP_S,
                runtime=gate.runtime,
                runtime_version=lineup.runtime_version,
                machine=machine,
                tower=gate.tower,
                batch_size=gate.batch,
                footprints=lineup.footprints,
                arithmetic_gain=read_arithmetic_gain(runtime=gate.runtime),
                advance=advance,
                is_decided=is_decided,
            )


def load_variants(stages: Stages, gate: LoadGate) -> LoadRun:
    """Return what the requests to FP16 and the quantized variant took; never from a cache."""
    from pytest_quantgate.measure.latency import read_arithmetic_gain, read_machine
    from pytest_quantgate.measure.load import measure_load
    from pytest_quantgate.measure.rounds import share_rounds
    from pytest_quantgate.measure.serve import import_loadgen

    import_loadgen()  # before anything is built for it
    label = f"{gate.load.rate} requests a second to the {gate.tower} tower in {gate.runtime}"
    processes, rounds = share_rounds(gate.rounds)
    with line_up(stages, gate=gate) as (lineup, runners):
        machine = read_machine(threads=gate.threads, device=lineup.device)
        with stages.case.progress.stage(label, total=processes * rounds) as advance:
            return measure_load(
                runners=runners,
                processes=processes,
                rounds=rounds,
                load=gate.load,
                search=gate.search,
                runtime=gate.runtime,
                runtime_version=lineup.runtime_version,
                machine=machine,
                tower=gate.tower,
                arithmetic_gain=read_arithmetic_gain(runtime=gate.runtime),
                advance=advance,
            )


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """How to open `fp16` and `quantized` in a process, and how large their files are.

    `device` is `cpu` or `cuda:0`.
    """

    specs: Mapping[Variant, Spec]
    footprints: Mapping[str, Footprint]
    device: str
    runtime_version: str


@contextmanager
def line_up(stages: Stages, *, gate: TimedGate) -> Iterator[tuple[Lineup, Mapping[str, Start]]]:
    """Build both variants for the gate's runtime, and give what starts a process of each.

    They are given the gate's number of held-out pairs. Raises NotMeasured or MissingPackage, before
    anything is exported or built, where the runtime, its provider or its device is not here.
    """
    with temporary_folder() as folder:
        lineup = _PLANS[gate.runtime](stages, gate, folder)
        yield (
            lineup,
            {name: in_a_process(spec, folder=folder) for name, spec in lineup.specs.items()},
        )


def _plan_torch(stages: Stages, gate: TimedGate, folder: Path) -> Lineup:
    import torch

    from pytest_quantgate.encoders.source import pin_model
    from pytest_quantgate.quantization.checkpoint import save_checkpoint

    case = stages.case
    checkpoint = folder / "checkpoint"
    save_checkpoint(case.quantized, checkpoint)
    checkpoints = {"fp16": "", "quantized": str(checkpoint)}
    inputs = keep_inputs(stages, gate)
    return Lineup(
        specs={
            variant: TorchRunner(
                model=pin_model(case.suite.model, source=case.source),
                checkpoint=checkpoints[variant],
                tower=gate.tower,
                inputs=inputs,
                device=case.device,
                threads=gate.threads,
            )
            for variant in VARIANTS
        },
        footprints={},  # fake quantization makes nothing smaller: no size is worth telling
        device=GPU if case.device == "cuda" else "cpu",
        runtime_version=torch.__version__,
    )


def _plan_onnxruntime(stages: Stages, gate: TimedGate, _folder: Path) -> Lineup:
    from pytest_quantgate.runtimes.onnxruntime_session import require_provider

    version = require_provider("cpu")
    return Lineup(
        specs=_plan_files(stages, gate, provider="cpu", precision="float32"),
        footprints=_measure_files(stages, gate, precision="float32"),
        device="cpu",
        runtime_version=version,
    )


def _plan_provider(provider: Provider) -> Callable[[Stages, TimedGate, Path], Lineup]:
    """Return the plan of a provider on the GPU, with half graphs."""

    def plan(stages: Stages, gate: TimedGate, _folder: Path) -> Lineup:
        from pytest_quantgate.runtimes.onnxruntime_session import require_provider

        stages.require_gpu(gate.runtime)
        version = require_provider(provider)
        return Lineup(
            specs=_plan_files(stages, gate, provider=provider, precision=stages.shipped),
            footprints=_measure_files(stages, gate, precision=stages.shipped),
            device=GPU,
            runtime_version=version,
        )

    return plan


def _plan_files(
    stages: Stages, gate: TimedGate, *, provider: Provider, precision: Precision
) -> dict[Variant, Spec]:
    from pytest_quantgate.runtimes.onnxruntime_session import choose_optimization

    inputs = keep_inputs(stages, gate)
    specs: dict[Variant, Spec] = {}
    for variant in VARIANTS:
        path = stages.onnx_path(variant=variant, tower=gate.tower, precision=precision)
        specs[variant] = OnnxRunner(
            path=str(path),
            inputs=inputs,
            provider=provider,
            optimization=choose_optimization(path.read_bytes(), path=path),
            threads=gate.threads,
        )
    return specs


def _plan_engines(stages: Stages, gate: TimedGate, _folder: Path) -> Lineup:
    for variant in VARIANTS:
        stages.given_engine(variant, gate.tower)  # named, also where it cannot run
    library, target = stages.find_engine_target(gate.runtime)
    order = EngineOrder(
        target=target, library=gate.runtime, batch=gate.batch, source=gate.where.of("runtime")
    )
    inputs = keep_inputs(stages, gate)
    built = {
        variant: stages.runnable_engine(variant=variant, tower=gate.tower, order=order)
        for variant in VARIANTS
    }
    return Lineup(
        specs={
            variant: EngineRunner(
                library=library.name,
                plan=str(engine.path),
                target=target,
                inputs=inputs,
                batch=gate.batch,
            )
            for variant, engine in built.items()
        },
        footprints={
            variant: Footprint(file_bytes=engine.plan_bytes, weights_bytes=engine.weights_bytes)
            for variant, engine in built.items()
        },
        device=GPU,
        runtime_version=library.version,
    )


_PLANS: Mapping[TimedRuntime, Callable[[Stages, TimedGate, Path], Lineup]] = {
    "torch": _plan_torch,
    "onnxruntime": _plan_onnxruntime,
    "onnxruntime-cuda": _plan_provider("cuda"),
    "onnxruntime-tensorrt": _plan_provider("tensorrt"),
    "tensorrt-rtx": _plan_engines,
    "tensorrt": _plan_engines,
}


def keep_inputs(stages: Stages, gate: TimedGate) -> str:
    """Return the path of an .npz with the gate's inputs of the tower by the names of its graph."""

    def build(folder: Path) -> None:
        import numpy

        batch = make_batch(stages, size=gate.inputs)
        arrays = {name: value.numpy() for name, value in batch.inputs[gate.tower].items()}
        numpy.savez(folder / "inputs.npz", allow_pickle=False, **arrays)

    case = stages.case
    key = case.key(
        TIMED_INPUTS,
        fp16=case.fp16_key,
        calibration=case.calibration_plain,
        tower=gate.tower,
        samples=gate.inputs,
    )
    kept = case.cache.get_or_build(kind=TIMED_INPUTS.kind, key=key, build=build)
    return str(kept / "inputs.npz")


def make_batch(stages: Stages, *, size: int) -> Batch:
    """Return one batch of held-out pairs, repeated where there are fewer than `size`."""
    from pytest_quantgate.measure.embeddings import make_batches

    pairs = stages.case.held_out(size)
    if len(pairs) < size:
        pairs = pairs.select([i % len(pairs) for i in range(size)])
    (batch,) = make_batches(stages.case.fp16, pairs, batch_size=size)
    return batch


def _measure_files(
    stages: Stages, gate: TimedGate, *, precision: Precision
) -> dict[str, Footprint]:
    found: dict[str, Footprint] = {}
    for variant in VARIANTS:
        audit = stages.onnx_audit(variant=variant, tower=gate.tower, precision=precision)
        found[variant] = Footprint(
            file_bytes=audit.file_bytes, weights_bytes=sum(size for _, size in audit.weights_bytes)
        )
    return found
