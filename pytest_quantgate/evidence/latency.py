"""What the runners of a timed run took, and on which machine."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from pytest_quantgate.evidence.fingerprint import digest_of

#: How many times as many multiply-adds a second a device can do in 8 bits as in FP16's arithmetic.
#: GPU: tensor cores double the rate from FP16 to FP8 or INT8; GeForce halves that of FP16 where it
#: sums in FP32. CPU, against FP32: a lane of 32 bits holds four products (VNNI, SDOT).
NARROW_GAIN = 4


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a time in ms depends on besides the model; library versions are drift to be measured.

    `cores` may be used by this process, `threads` are those of the runtime. `device` is `cpu` or
    the name of the GPU.
    """

    system: str
    processor: str
    cores: int
    threads: int
    device: str

    @property
    def fingerprint(self) -> str:
        """A short digest of all of it."""
        return digest_of(self)[:16]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a runner takes, in bytes; None where its runtime does not tell.

    `file_bytes` is the size of its ONNX file or plan, `weights_bytes` that of the weights in it,
    `activation_bytes` what one context needs besides, `device_bytes` by how much the free memory of
    the device shrank while it was loaded and run once (other processes on the device count too).
    """

    file_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunnerTimes:
    """What one runner took: for each round the mean time of one of its runs, in ms.

    `runs` are those of a round, `first_run_ms` is its very first run, where kernels are chosen or
    compiled, and in no round: both of the last process. `warm` says whether the times had settled
    in every process, after `warm_up_batches` at most. `samples` is as in `Runner`.
    """

    name: str
    times_ms: tuple[float, ...]
    runs: int
    first_run_ms: float
    warm_up_batches: int
    warm: bool
    samples: int | None = None

    @property
    def median_ms(self) -> float:
        """The median over rounds; NaN where there are none."""
        return statistics.median(self.times_ms) if self.times_ms else math.nan


@dataclass(frozen=True, kw_only=True)
class GivenTimes:
    """What an engine took where it was built: every query after the warm-up, in ms.

    `compute_ms` is time on the GPU, `latency_ms` with the transfers. `device` and `clocks` are as
    the log names them, `settings` what else of the run the times depend on. `batch` is the size
    that the log says, 0 where it says none. `layers` are the slowest by name, each with its share
    of the time; empty without a profile.
    """

    name: str
    compute_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]
    device: str
    clocks: str
    settings: tuple[tuple[str, str], ...]
    batch: int
    layers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class LatencyRun:
    """One interleaved measurement of one tower at one batch size; round i is in all three.

    The rounds are those of so many `processes`, in order, equally many of each: in each of them
    every runner had a process of its own. `pause_rounds` is how long it took from one to the
    next, in rounds. `planned` is how many processes there would have been, had the look after some
    of them not decided; 0: nobody looked before the end. `runtime` is as a suite names it.
    `arithmetic_gain` is how many times as fast the quantized variant's arithmetic can be as FP16's
    there (`read_arithmetic_gain`).
    `process_peak_rss_bytes` is that of the whole process that measured: PyTorch, and whatever ran
    before.
    """

    runtime: str
    machine: Machine
    tower: str
    batch_size: int
    fp16: RunnerTimes
    quantized: RunnerTimes
    fp16_again: RunnerTimes
    runtime_version: str = ""
    fp16_footprint: Footprint = field(default_factory=Footprint)
    quantized_footprint: Footprint = field(default_factory=Footprint)
    arithmetic_gain: int = NARROW_GAIN
    process_peak_rss_bytes: int = 0
    processes: int = 1
    pause_rounds: float = 0.0
    planned: int = 0

    @property
    def runners(self) -> tuple[RunnerTimes, ...]:
        return self.fp16, self.quantized, self.fp16_again

    @property
    def rounds(self) -> int:
        """How many rounds every runner has."""
        return min(len(runner.times_ms) for runner in self.runners)
