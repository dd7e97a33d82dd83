"""Shares the embedding of many samples among workers: the same bytes as from one process.

What is shared are ranges of whole batches, so that every batch holds the samples that it would
hold in one process. Each range comes back once; one whose worker was lost is given to another.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_quantgate.errors import ModelError
from pytest_quantgate.linked_process import Link, ProcessEnded

if TYPE_CHECKING:
    import numpy

    Embedded = list[numpy.ndarray[Any, numpy.dtype[numpy.float32]]]

MODULE = "pytest_quantgate.run.worker"

#: Batches of a range: few, so that little is lost with a worker and all end at the same time.
RANGE_BATCHES = 4

#: How many workers a range may take with it before the run ends: it may be the range's own fault.
ATTEMPTS = 3


#: More processes than this on one machine are a slip of the hand.
MAX_WORKERS = 256


class WorkerLost(Exception):
    """A worker that ended while it was asked; the text is how."""


class Worker(Protocol):
    """What embeds a range of samples somewhere else."""

    def embed(self, question: Mapping[str, Any], part: range, /) -> Embedded:
        """Return float32 [len(part), D] for each variant that the question names.

        Raises WorkerLost, and ModelError or NotMeasured as the measurement did there.
        """

    def close(self, *, kill: bool = False) -> None: ...


def cut_ranges(count: int, *, batch_size: int) -> list[range]:
    """Return ranges of whole batches that hold each of `count` samples once, in their order."""
    step = batch_size * RANGE_BATCHES
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


class Embeds(Protocol):
    """What shares the ranges of a question; see `Workers.embed`."""

    def embed(
        self,
        question: Mapping[str, Any],
        ranges: Sequence[range],
        *,
        progress: Callable[[int], None],
    ) -> list[Embedded]: ...


class OfRecipe:
    """Workers that are asked for a suite with another recipe than its file names."""

    def __init__(self, workers: Embeds, *, recipe: str) -> None:
        self._workers, self._recipe = workers, recipe

    def embed(
        self,
        question: Mapping[str, Any],
        ranges: Sequence[range],
        *,
        progress: Callable[[int], None],
    ) -> list[Embedded]:
        """Return and raise as `Workers.embed`."""
        suite = {**question["suite"], "recipe": self._recipe}
        return self._workers.embed({**question, "suite": suite}, ranges, progress=progress)


class Workers:
    """So many workers, each started when it is first needed and kept until `close`."""

    def __init__(self, start: Callable[[int], Worker], *, count: int) -> None:
        self._start = start
        self.count = count
        self._open: dict[int, Worker] = {}

    def embed(
        self,
        question: Mapping[str, Any],
        ranges: Sequence[range],
        *,
        progress: Callable[[int], None],
    ) -> list[Embedded]:
        """Return what workers answer to a question for each range, in the order of the ranges.

        Raises as `Worker.embed`, and ModelError where a range has ended too many workers. Whatever
        is raised, KeyboardInterrupt too, no worker is left that computes.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        answers: queue.SimpleQueue[tuple[int, Embedded | Exception]] = queue.SimpleQueue()
        lost: Counter[int] = Counter()
        stop = threading.Event()
        for number in range(len(ranges)):
            todo.put(number)

        def work(place: int) -> None:
            while not stop.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    if place not in self._open:
                        self._open[place] = self._start(place)
                    answers.put((number, self._open[place].embed(question, ranges[number])))
                except WorkerLost as error:
                    self._end(place)
                    lost[number] += 1
                    if lost[number] < ATTEMPTS:
                        todo.put(number)
                    else:
                        answers.put((number, _give_up(ranges[number], last=error)))
                except Exception as error:  # noqa: BLE001 (raised in the thread that asks)
                    answers.put((number, error))

        places = range(min(self.count, len(ranges)))
        threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places]
        found: dict[int, Embedded] = {}
        try:
            for thread in threads:
                thread.start()
            while len(found) < len(ranges):
                number, answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                found[number] = answer
                progress(len(ranges[number]))
        except BaseException:
            stop.set()
            while any(thread.is_alive() for thread in threads):
                self.close(kill=True)
                threads[0].join(0.1)
            self.close(kill=True)
            raise
        for thread in threads:
            thread.join()
        return [found[number] for number in range(len(ranges))]

    def close(self, *, kill: bool = False) -> None:
        """End all workers; `kill` those at work too."""
        for place in list(self._open):
            self._end(place, kill=kill)

    def _end(self, place: int, *, kill: bool = True) -> None:
        worker = self._open.pop(place, None)
        if worker is not None:
            worker.close(kill=kill)


def _give_up(part: range, *, last: WorkerLost) -> ModelError:
    return ModelError(
        f"samples {part.start} to {part.stop - 1} took {ATTEMPTS} workers with them, and the last "
        f"one {last}: each worker holds both variants in memory; take fewer "
        f"(--quantgate-workers), or none to see the error"
    )


def read_workers(text: str) -> str:
    """Return what `--quantgate-workers` may be; raises ValueError for what is none."""
    if text == "gpu" or (text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_WORKERS):
        return text
    raise ValueError(f"expected a number from 1 to {MAX_WORKERS}, or gpu")


def start_workers(asked: str) -> Workers | None:
    """Return the workers of `--quantgate-workers`: a number, or `gpu` for one on each GPU here.

    None where the process that asks is to do the work alone. Raises ModelError without a GPU.
    """
    if asked != "gpu":
        count = int(asked)
        return Workers(lambda _place: ProcessWorker(), count=count) if count > 1 else None
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise ModelError("--quantgate-workers=gpu: PyTorch sees no GPU here; give a number")
    return Workers(lambda place: ProcessWorker(gpu=place), count=count)


class ProcessWorker:
    """A worker in a process of this machine; what it embeds comes back through files."""

    def __init__(self, *, gpu: int | None = None) -> None:
        self._gpu = gpu
        self._folder = tempfile.TemporaryDirectory(prefix="quantgate-worker-")
        self._link = Link(MODULE, home=Path(self._folder.name))

    def embed(self, question: Mapping[str, Any], part: range) -> Embedded:
        import numpy

        asked = {**question, "start": part.start, "stop": part.stop, "gpu": self._gpu}
        try:
            names = self._link.ask(asked)["files"]
        except ProcessEnded as error:
            raise WorkerLost(str(error)) from error
        return [numpy.load(Path(self._folder.name) / name, allow_pickle=False) for name in names]

    def kill(self) -> None:
        """End the process now; a question that waits raises WorkerLost."""
        self._link.kill()

    def close(self, *, kill: bool = False) -> None:
        if kill:
            self.kill()
        self._link.close()
        self._folder.cleanup()
