"""Time FP16 and a quantized variant against each other, in one run on one machine.

A time says as much about the machine as about the model. So a run interleaves three runners:
FP16, the quantized variant, and FP16 a second time. FP16 against itself (A/A) is the machine's own
noise, taken in the same minutes as the result that it is held against.

What a process finds (where its memory lies, which clock its core keeps) stays as long as it lives,
and no number of rounds in it shows that. So each runner has a process of its own, FP16 a second
time as well, and all three are started anew several times (Kalibera and Jones, Rigorous
benchmarking in reasonable time, ISMM 2013): what differs from process to process is measured too.

What runs a number of times and returns what one run took, in ms, is a `TimeRuns`. The functions
`time_...` make one for a callable, a device, an engine.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.latency import (
    NARROW_GAIN,
    Footprint,
    LatencyRun,
    Machine,
    RunnerTimes,
)
from pytest_quantgate.measure.rounds import AGAIN, FP16, QUANTIZED, Start, first_look, interleave
from pytest_quantgate.measure.runner import Clock, Runner, TimeRuns
from pytest_quantgate.runtimes.engine_run import WINDOW, is_stable

#: No batch has more runs than this: what is still too short then is not measurable.
MOST_RUNS = 1 << 16

#: CPUs with units of their own for 8 bits, against their FP32 lanes: SMMLA does 32 products where
#: FMLA does 4; TDPBUSD 1024 a cycle where two AVX-512 units do 32, and SME is not far from that.
_GAINS_OF_UNITS = {"i8mm": 8, "amx_int8": 32, "sme": 32}


def measure_latency(
    *,
    runners: Mapping[str, Start],
    processes: int,
    rounds: int,
    min_round_ms: float,
    warm_up_s: float,
    runtime: str,
    machine: Machine,
    tower: str,
    batch_size: int,
    runtime_version: str = "",
    footprints: Mapping[str, Footprint] = {},
    arithmetic_gain: int = NARROW_GAIN,
    clock: Clock = time.perf_counter,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _count: None,
    is_decided: Callable[[LatencyRun], bool] | None = None,
) -> LatencyRun:
    """Return the times of `runners["fp16"]`, `["quantized"]`, and of FP16 a second time.

    All three are started `processes` times, and do `rounds` rounds each time. Each runner is
    first run until the median of its last batches is stable, for `warm_up_s` seconds of `clock` at
    most. Then each round takes one batch of each, of as many runs as last `min_round_ms`, in an
    order that is drawn from `seed`; in every six rounds each runner is in each place twice.
    `footprints` are what is known of the files, before what the processes see is added.
    `advance` is called with 1 after each round. `is_decided` is asked once, after `first_look` of
    the processes, whether what they took decides; then the others are not started. Nobody asks
    where the pause between processes is shorter than their rounds: they are too near to each other
    for so few to show what changes slowly.

    Raises ValueError for other runners, no rounds or a duration that is none; NotMeasured
    where a timer tells no time. What a runner raises is raised.
    """
    if batch_size < 1:
        raise ValueError(f"a batch of {batch_size} measures nothing")
    if not (0 <= min_round_ms < math.inf and 0 <= warm_up_s < math.inf):
        raise ValueError(f"{min_round_ms} ms a round and {warm_up_s} s of warm-up are no durations")
    kept: dict[str, list[_Open]] = {FP16: [], QUANTIZED: [], AGAIN: []}

    def prepare(name: str, runner: Runner) -> Callable[[int], float]:
        ready = _prepare(
            runner.time_runs,
            name=name,
            min_batch_ms=min_round_ms,
            warm_up_s=warm_up_s,
            clock=clock,
        )
        kept[name].append(_Open(runner=runner, ready=ready))
        return lambda _number: float(runner.time_runs(ready.runs))

    looked = False

    def make_run(
        times_ms: Mapping[str, Sequence[float]], done: int, pause_rounds: float
    ) -> LatencyRun:
        return LatencyRun(
            runtime=runtime,
            machine=machine,
            tower=tower,
            batch_size=batch_size,
            fp16=_join(FP16, kept[FP16], times_ms[FP16]),
            quantized=_join(QUANTIZED, kept[QUANTIZED], times_ms[QUANTIZED]),
            fp16_again=_join(AGAIN, kept[AGAIN], times_ms[AGAIN]),
            runtime_version=runtime_version,
            fp16_footprint=_add_footprint(footprints, name=FP16, seen=kept[FP16][0].runner),
            quantized_footprint=_add_footprint(
                footprints, name=QUANTIZED, seen=kept[QUANTIZED][0].runner
            ),
            arithmetic_gain=arithmetic_gain,
            process_peak_rss_bytes=read_peak_rss_bytes(),
            processes=done,
            pause_rounds=pause_rounds,
            planned=processes if looked else 0,
        )

    def is_enough(times_ms: Mapping[str, Sequence[float]], done: int, pause_rounds: float) -> bool:
        nonlocal looked
        if is_decided is None or done != first_look(processes) or pause_rounds < rounds:
            return False
        looked = True
        return is_decided(make_run(times_ms, done, pause_rounds))

    times_ms, pause_rounds = interleave(
        runners,
        processes=processes,
        rounds=rounds,
        prepare=prepare,
        clock=clock,
        seed=seed,
        advance=advance,
        is_enough=is_enough,
    )
    return make_run(times_ms, len(kept[FP16]), pause_rounds)


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A runner in one of its processes."""

    runner: Runner
    ready: _Ready


def _join(name: str, parts: list[_Open], times_ms: Sequence[float]) -> RunnerTimes:
    return RunnerTimes(
        name=name,
        times_ms=tuple(times_ms),
        runs=parts[-1].ready.runs,
        first_run_ms=parts[-1].ready.first_run_ms,
        warm_up_batches=max(part.ready.batches for part in parts),
        warm=all(part.ready.warm for part in parts),
        samples=parts[0].runner.samples,
    )


def _add_footprint(known: Mapping[str, Footprint], *, name: str, seen: Runner) -> Footprint:
    sizes = dataclasses.asdict(seen.footprint)
    found = {name: size for name, size in sizes.items() if size is not None}
    return dataclasses.replace(known.get(name, Footprint()), **found)


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A runner that is warm, or had its time."""

    runs: int
    first_run_ms: float
    batches: int
    warm: bool


def _prepare(
    time_runs: TimeRuns, *, name: str, min_batch_ms: float, warm_up_s: float, clock: Clock
) -> _Ready:
    """Warm a runner up and return how many of its runs last `min_batch_ms`."""
    started = clock()
    first_run_ms = _check_time(time_runs(1), runs=1, name=name)
    runs, mean_ms = 1, first_run_ms
    while runs < MOST_RUNS and mean_ms * runs < min_batch_ms:
        runs *= 2
        mean_ms = _check_time(time_runs(runs), runs=runs, name=name)
    times_ms: list[float] = []
    while not is_stable(times_ms):
        times_ms.append(_check_time(time_runs(runs), runs=runs, name=name))
        if clock() - started >= warm_up_s:
            break
    fastest_ms = min(times_ms[-WINDOW:])
    if fastest_ms == 0:
        raise NotMeasured(
            f"latency: the timer of {name} shows no time for {runs} runs: its clock stands still "
            f"or is too coarse"
        )
    # Cold runs are slow, so they were too few; one more than rounding asks for does no harm.
    return _Ready(
        runs=min(MOST_RUNS, max(1, math.ceil(min_batch_ms / fastest_ms))),
        first_run_ms=first_run_ms,
        batches=len(times_ms),
        warm=is_stable(times_ms),
    )


def _check_time(time_ms: float, *, runs: int, name: str) -> float:
    if not 0 <= time_ms < math.inf:
        raise NotMeasured(f"latency: the timer of {name} gave {time_ms} ms for a run ({runs} runs)")
    return float(time_ms)


# -- the machine ---------------------------------------------------------------------------------


def read_machine(
    *, threads: int, device: str = "cpu", cpu_info: Path = Path("/proc/cpuinfo")
) -> Machine:
    """Return the machine that this process runs on; `device` as torch names it: `cpu`, `cuda:0`."""
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # pragma: no cover - not on Linux
        cores = os.cpu_count() or 1
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_read_processor(cpu_info),
        cores=cores,
        threads=threads,
        device=device,
    )


def read_arithmetic_gain(*, runtime: str, cpu_info: Path = Path("/proc/cpuinfo")) -> int:
    """Return how many times as fast the quantized variant's arithmetic can be as FP16's.

    1 in PyTorch, where quantization is simulated on top of FP16's own arithmetic; otherwise by the
    units of the device, and the most that is known for a CPU that does not tell.
    """
    if runtime == "torch":
        return 1
    if runtime != "onnxruntime":
        return NARROW_GAIN
    try:
        found = re.search(
            r"^(?:flags|Features)\s*:(.*)$", cpu_info.read_text("utf-8"), re.MULTILINE
        )
    except OSError:
        found = None
    if not found:
        return max(_GAINS_OF_UNITS.values())
    units = _GAINS_OF_UNITS.keys() & set(found[1].split())
    return max((_GAINS_OF_UNITS[unit] for unit in units), default=NARROW_GAIN)


def _read_processor(cpu_info: Path) -> str:
    """Return the processor's name; Linux tells it in a file, and `platform` does not read that."""
    try:
        found = re.search(r"^model name\s*:\s*(.+?)\s*$", cpu_info.read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"


# -- pytest-benchmark ----------------------------------------------------------------------------


def list_extra_info(run: LatencyRun) -> dict[str, int | float | str | bool]:
    """Return what a benchmark's `extra_info` says of a run; units are in the names.

    What the runtime does not tell is left out. `process_peak_rss_bytes` is the whole process's,
    with both variants and PyTorch in it; sizes are those of `Footprint`.
    """
    machine, info = run.machine, dict[str, int | float | str | bool]()
    info |= {
        "runtime": run.runtime,
        "runtime_version": run.runtime_version,
        "tower": run.tower,
        "batch_size": run.batch_size,
        "rounds": run.rounds,
        "processes": run.processes,
        "machine_fingerprint": machine.fingerprint,
        "system": machine.system,
        "processor": machine.processor,
        "cores": machine.cores,
        "threads": machine.threads,
        "device": machine.device,
        "process_peak_rss_bytes": run.process_peak_rss_bytes,
        "fp16_again_median_ms": run.fp16_again.median_ms,
    }
    for name, times, footprint in (
        ("fp16", run.fp16, run.fp16_footprint),
        ("quantized", run.quantized, run.quantized_footprint),
    ):
        info |= {
            f"{name}_median_ms": times.median_ms,
            f"{name}_samples_per_s": run.batch_size * 1e3 / times.median_ms,
            f"{name}_first_run_ms": times.first_run_ms,
            f"{name}_runs_per_round": times.runs,
            f"{name}_warm": times.warm,
        }
        for size in dataclasses.fields(footprint):
            bytes_count = getattr(footprint, size.name)
            if bytes_count is not None:
                info[f"{name}_{size.name}"] = bytes_count
    return info


def read_peak_rss_bytes() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
