"""What a server was asked for, and what its requests took: a load test, round by round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pytest_quantgate.evidence.latency import LatencyRun, RunnerTimes

#: So many different requests there are; what arrives is drawn from them.
REQUESTS = 32

#: What is timed: percentiles of the time from a request's arrival, and the time of one request
#: when all are there at once.
Timing = Literal["p50", "p90", "p99", "offline"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests as they arrive, and the server that answers them.

    `rate` requests a second arrive in a Poisson process that `seed` fixes, `queries` of them. The
    requests have `sizes` inputs in turn, and `seed` draws which one arrives. Up to
    `batch` inputs are joined that arrive within `window_ms`; `concurrency` batches run at a time.
    What would have to wait behind `queue` requests is dropped (None: nothing is). A request is late
    that takes longer than `bound_ms`. With `offline` they are answered once more, all there at
    once.
    """

    rate: int
    queries: int
    seed: int = 0
    sizes: tuple[int, ...] = (1,)
    batch: int = 1
    window_ms: float = 0.0
    concurrency: int = 1
    queue: int | None = None
    bound_ms: float | None = None
    offline: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many inputs each of the REQUESTS has."""
        return tuple(itertools.islice(itertools.cycle(self.sizes), REQUESTS))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to an input under load that is furthest from its answer alone.

    `distance` is ||under load - alone|| / ||alone||, infinite for an answer that is none. `nearest`
    is the input whose answer alone it is, where that is clearly another one's; `batch` are the
    inputs that were in its batch.
    """

    input: int
    nearest: int
    distance: float
    batch: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Served:
    """One round: `queries` requests were answered in so many `batches`.

    `late` are those over the bound, or `dropped`. `scheduled_per_s` arrived in a second,
    `completed_per_s` were answered. `offline_ms` is the time of a request when all are there at
    once, None where that was not asked for. `answers` has one for each input that was asked for.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    queries: int
    late: int
    dropped: int
    batches: int
    scheduled_per_s: float
    completed_per_s: float
    offline_ms: float | None
    answers: tuple[Answer, ...]

    def time_ms(self, timing: Timing) -> float:
        """Return one of the round's times; NaN where it was not taken."""
        found: float | None = getattr(self, f"{timing}_ms")
        return float("nan") if found is None else found


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """The rounds of FP16, the quantized variant, and FP16 again, at the same arrivals each.

    `timed` says where and how; its times are the 99th percentiles. `highest_rates` are those of the
    variants by name in requests a second, where they were searched; 0: none keeps the bound.
    """

    load: Load
    timed: LatencyRun
    fp16: tuple[Served, ...]
    quantized: tuple[Served, ...]
    fp16_again: tuple[Served, ...]
    highest_rates: Mapping[str, int] = field(default_factory=dict)

    def times(self, timing: Timing) -> LatencyRun:
        """Return the run with other times than the 99th percentiles."""

        def exchange(times: RunnerTimes, rounds: tuple[Served, ...]) -> RunnerTimes:
            return replace(times, times_ms=tuple(served.time_ms(timing) for served in rounds))

        return replace(
            self.timed,
            fp16=exchange(self.timed.fp16, self.fp16),
            quantized=exchange(self.timed.quantized, self.quantized),
            fp16_again=exchange(self.timed.fp16_again, self.fp16_again),
        )
