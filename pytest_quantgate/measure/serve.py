"""A server for one runner in this process, and MLPerf's LoadGen as its clients.

LoadGen (https://github.com/mlcommons/inference, `mlcommons-loadgen`) draws the arrivals, waits for
the answers and keeps the times: a request's is that from the moment for which it was scheduled. The
server joins what waits into batches, as model servers do (dynamic batching with a window).
"""

from __future__ import annotations

import importlib
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.evidence.load import Answer, Load, Served
from pytest_quantgate.store.disk import temporary_folder

if TYPE_CHECKING:
    import numpy as np

Inputs = Mapping[str, "np.ndarray[Any, Any]"]
#: Returns the embeddings [N, D] of N inputs; several threads may call it at a time.
Embed = Callable[[Inputs], "np.ndarray[Any, Any]"]

#: The server runs whole batches for at least this long before the first request arrives.
WARM_UP_S = 1.0

#: An answer is another input's where it is at most this share of its distance away from that.
CLEARLY = 0.5

#: Later than any request: LoadGen wants a bound.
NO_BOUND_NS = 10**15


def import_loadgen() -> Any:
    """Return LoadGen's module; raises MissingPackage."""
    try:
        return importlib.import_module("mlperf_loadgen")  # it has no type information
    except ImportError as error:
        raise MissingPackage(
            "mlcommons-loadgen", extra="load", purpose="a test under load"
        ) from error


class Server:
    """What answers requests for the `inputs` of a runner, cut into requests in their order."""

    def __init__(self, embed: Embed, *, inputs: Inputs) -> None:
        self._embed = embed
        self._inputs = inputs
        self._alone: np.ndarray[Any, Any] | None = None

    def serve(self, load: Load) -> Served:
        """Answer one round of requests and return what they took.

        Raises MissingPackage without LoadGen, ValueError where the inputs are not those of the
        requests, and whatever a forward raises.
        """
        loadgen = import_loadgen()
        requests = self._cut(load.lengths)
        if self._alone is None:
            self._alone = self._embed_alone()
            self._warm_up(load.batch)
        play = _Round(loadgen, embed=self._embed, inputs=self._inputs, requests=requests, load=load)
        log = play.run(loadgen.TestScenario.Server)
        batches, dropped, answers = len(play.answers), play.dropped, play.answers
        offline_ms = None
        if load.offline:
            play = _Round(
                loadgen, embed=self._embed, inputs=self._inputs, requests=requests, load=load
            )
            found = play.run(loadgen.TestScenario.Offline)
            offline_ms = 1e3 / found["result_samples_per_second"]
            answers = [*answers, *play.answers]
        over = log["result_overlatency_query_count"] if load.bound_ms is not None else 0
        return Served(
            p50_ms=log["result_50.00_percentile_latency_ns"] / 1e6,
            p90_ms=log["result_90.00_percentile_latency_ns"] / 1e6,
            p99_ms=log["result_99.00_percentile_latency_ns"] / 1e6,
            queries=log["result_query_count"],
            late=max(over, dropped),
            dropped=dropped,
            batches=batches,
            scheduled_per_s=log["result_scheduled_samples_per_sec"],
            completed_per_s=log["result_completed_samples_per_sec"],
            offline_ms=offline_ms,
            answers=compare_answers(answers, alone=self._alone),
        )

    def _cut(self, lengths: Sequence[int]) -> list[range]:
        """Return the inputs of each request."""
        ends = list(itertools.accumulate(lengths))
        there = {len(value) for value in self._inputs.values()}
        if there != {ends[-1]}:
            raise ValueError(f"{there} inputs for requests of {ends[-1]}")
        return [range(end - length, end) for length, end in zip(lengths, ends, strict=True)]

    def _embed_alone(self) -> np.ndarray[Any, Any]:
        import numpy as np

        (count,) = {len(value) for value in self._inputs.values()}
        return np.concatenate([self._embed(_take(self._inputs, [at])) for at in range(count)])

    def _warm_up(self, batch: int) -> None:
        (count,) = {len(value) for value in self._inputs.values()}
        started = time.perf_counter()
        while time.perf_counter() - started < WARM_UP_S:
            self._embed(_take(self._inputs, range(min(batch, count))))


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A request that waits: LoadGen's number for it, and its inputs."""

    id: int
    inputs: range


#: The inputs of a batch, and the embeddings that came of it.
Batch = tuple[tuple[int, ...], "np.ndarray[Any, Any]"]


class _Round:
    """One test of LoadGen."""

    def __init__(
        self, loadgen: Any, *, embed: Embed, inputs: Inputs, requests: list[range], load: Load
    ) -> None:
        self.answers: list[Batch] = []
        self.dropped = 0
        self._loadgen = loadgen
        self._embed = embed
        self._inputs = inputs
        self._requests = requests
        self._load = load
        self._limit: int | None = None
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(load.concurrency)
        self._refused: list[int] = []
        self._running: list[Future[None]] = []

    def run(self, scenario: Any) -> dict[str, Any]:
        """Return what LoadGen's log says by its keys."""
        loadgen, offline = self._loadgen, scenario == self._loadgen.TestScenario.Offline
        self._limit = None if offline else self._load.queue
        with temporary_folder() as folder, ThreadPoolExecutor(self._load.concurrency) as pool:
            gathering = threading.Thread(target=self._gather, args=(pool,))
            gathering.start()
            served = loadgen.ConstructSUT(self._issue, self._flush)
            library = loadgen.ConstructQSL(
                len(self._requests), len(self._requests), lambda _: None, lambda _: None
            )
            try:
                loadgen.StartTestWithLogSettings(
                    served,
                    library,
                    _make_settings(loadgen, self._load, scenario=scenario),
                    _make_log_settings(loadgen, folder),
                    "",
                )
            finally:
                self._waiting.put(None)
                gathering.join()
                loadgen.DestroyQSL(library)
                loadgen.DestroySUT(served)
            for batch in self._running:
                batch.result()  # raises what the forward did
            return read_log((folder / "mlperf_log_detail.txt").read_text(encoding="utf-8"))

    def _issue(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            if self._limit is not None and self._waiting.qsize() >= self._limit:
                self._refused.append(sample.id)
            else:
                self._waiting.put(_Request(id=sample.id, inputs=self._requests[sample.index]))

    def _flush(self) -> None:
        """Answer what was dropped, once it is late: LoadGen waits for every request."""
        if self._refused:
            self.dropped = len(self._refused)
            time.sleep((self._load.bound_ms or 0.0) / 1e3)
            self._complete(self._refused)

    def _gather(self, pool: ThreadPoolExecutor) -> None:
        """Join what waits into batches, in the order of arrival, until there is nothing more."""
        first: _Request | None = None
        while True:
            self._free.acquire()
            first = first or self._waiting.get()
            if first is None:
                return
            batch, size, first = [first], len(first.inputs), None
            end = time.perf_counter() + self._load.window_ms / 1e3
            while size < self._load.batch:
                left = end - time.perf_counter()
                try:
                    more = self._waiting.get(timeout=left) if left > 0 else self._waiting.get(False)
                except queue.Empty:
                    break
                if more is None:
                    self._waiting.put(None)
                    break
                size += len(more.inputs)
                if size > self._load.batch:
                    first = more
                else:
                    batch.append(more)
            self._running.append(pool.submit(self._answer, batch))

    def _answer(self, batch: list[_Request]) -> None:
        inputs = tuple(at for request in batch for at in request.inputs)
        try:
            self.answers.append((inputs, self._embed(_take(self._inputs, inputs))))
        finally:  # LoadGen would wait for ever
            self._complete([request.id for request in batch])
            self._free.release()

    def _complete(self, ids: list[int]) -> None:
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([response(each, 0, 0) for each in ids])


def compare_answers(answers: Sequence[Batch], *, alone: np.ndarray[Any, Any]) -> tuple[Answer, ...]:
    """Return for each input that was answered the answer that is furthest from that alone.

    `alone` [inputs, D] are the answers in a batch of one each. Raises ModelError for a batch with
    another number of rows than inputs.
    """
    import numpy as np

    expected = alone.astype(np.float64)
    lengths = np.linalg.norm(expected, axis=1)
    worst: dict[int, Answer] = {}
    for inputs, found in answers:
        if found.shape != (len(inputs), expected.shape[1]):
            raise ModelError(
                f"a batch of {len(inputs)} gave embeddings of shape {list(found.shape)}, not "
                f"[{len(inputs)}, {expected.shape[1]}]"
            )
        for at, row in zip(inputs, found.astype(np.float64), strict=True):
            distances = np.linalg.norm(expected - row, axis=1) / lengths
            own = float(distances[at]) if np.isfinite(distances[at]) else float("inf")
            if at in worst and worst[at].distance >= own:
                continue
            other = int(np.argmin(distances)) if own < float("inf") else at
            nearest = other if float(distances[other]) < CLEARLY * own else at
            worst[at] = Answer(input=at, nearest=nearest, distance=own, batch=inputs)
    return tuple(worst[at] for at in sorted(worst))


def read_log(text: str) -> dict[str, Any]:
    """Return the values in a detailed log of LoadGen by their keys; the last of a key counts."""
    found = {}
    for line in text.splitlines():
        if line.startswith(":::MLLOG "):
            entry = json.loads(line.removeprefix(":::MLLOG "))
            found[entry["key"]] = entry["value"]
    return found


def _take(inputs: Inputs, places: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value[list(places)] for name, value in inputs.items()}


def _make_settings(loadgen: Any, load: Load, *, scenario: Any) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = scenario
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = load.queries
    settings.min_duration_ms = settings.max_duration_ms = 0  # the count alone ends it
    settings.server_target_qps = load.rate
    settings.server_target_latency_ns = (
        NO_BOUND_NS if load.bound_ms is None else round(load.bound_ms * 1e6)
    )
    settings.offline_expected_qps = load.queries  # what it takes for a minute's work is asked for
    settings.qsl_rng_seed = load.seed
    settings.sample_index_rng_seed = load.seed
    settings.schedule_rng_seed = load.seed
    return settings


def _make_log_settings(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    settings = loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings
