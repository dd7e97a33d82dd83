"""Sharing samples among workers: whole batches, each once, in order, whoever is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import ModelError
from pytest_quantgate.run import workers as module
from pytest_quantgate.run.workers import (
    ATTEMPTS,
    RANGE_BATCHES,
    ProcessWorker,
    WorkerLost,
    Workers,
    cut_ranges,
    start_workers,
)

if TYPE_CHECKING:
    from pytest_quantgate.run.workers import Embedded


@given(count=st.integers(1, 5000), batch_size=st.integers(1, 64))
def test_ranges_hold_each_sample_once_in_whole_batches(count: int, batch_size: int) -> None:
    ranges = cut_ranges(count, batch_size=batch_size)

    assert [index for part in ranges for index in part] == list(range(count))
    assert all(part.start % (batch_size * RANGE_BATCHES) == 0 for part in ranges)


class FakeWorker:
    """Embeds a sample as its number; `mishap` may end it before."""

    def __init__(self, mishap: Callable[[range], None] = lambda _part: None) -> None:
        self.mishap = mishap
        self.closed: list[bool] = []

    def embed(self, _question: Mapping[str, Any], part: range) -> Embedded:
        assert not self.closed
        self.mishap(part)
        return [numpy.array([[index] for index in part], numpy.float32)]

    def close(self, *, kill: bool = False) -> None:
        self.closed.append(kill)


def embed(workers: Workers, ranges: list[range]) -> tuple[list[float], list[int]]:
    told: list[int] = []
    found = workers.embed({}, ranges, progress=told.append)
    return [float(value) for (part,) in found for value in part[:, 0]], told


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 60),
    places=st.integers(1, 5),
    fatal=st.lists(st.integers(0, 59), max_size=12),
)
def test_every_sample_comes_back_once_and_in_order_whatever_workers_are_lost(
    count: int, places: int, fatal: list[int]
) -> None:
    """A worker is lost at each of the `fatal` samples, so often as it stands in the list."""
    left = Counter(fatal)
    lock = threading.Lock()

    def mishap(part: range) -> None:
        with lock:
            hit = next((index for index in part if left[index]), None)
            if hit is not None:
                left[hit] -= 1
                raise WorkerLost("ended by signal 9: no word")

    ranges = cut_ranges(count, batch_size=1)
    losses = [sum(Counter(fatal)[index] for index in part) for part in ranges]
    started: list[FakeWorker] = []

    def start(_place: int) -> FakeWorker:
        started.append(FakeWorker(mishap))
        return started[-1]

    workers = Workers(start, count=places)
    if max(losses) >= ATTEMPTS:
        with pytest.raises(ModelError, match=r"took 3 workers with them, and the last one ended"):
            embed(workers, ranges)
    else:
        found, told = embed(workers, ranges)
        assert found == list(range(count))
        assert sum(told) == count
        assert len(started) <= places + sum(losses)
        workers.close()
    assert all(worker.closed for worker in started)


@pytest.mark.parametrize("error", [ModelError("not this suite"), KeyboardInterrupt()])
def test_an_error_or_ctrl_c_leaves_nobody_at_work(error: BaseException) -> None:
    ended = threading.Event()

    class Slow(FakeWorker):
        """At work until somebody kills it, like a process in a long forward."""

        def embed(self, question: Mapping[str, Any], part: range) -> Embedded:
            if part.start == 0 and isinstance(error, Exception):
                raise error
            if part.start == 0:
                return super().embed(question, part)
            if not ended.wait(20):
                raise AssertionError("nobody ended it")
            raise WorkerLost("ended by signal 9: no word")

        def close(self, *, kill: bool = False) -> None:
            super().close(kill=kill)
            ended.set()

    def progress(_count: int) -> None:
        raise error  # as the signal handler of Python does, wherever the thread stands

    started: list[Slow] = []

    def start(_place: int) -> Slow:
        started.append(Slow())
        return started[-1]

    with pytest.raises(type(error)):
        Workers(start, count=2).embed({}, cut_ranges(8, batch_size=1), progress=progress)
    assert all(worker.closed for worker in started)
    assert not [thread for thread in threading.enumerate() if "work" in thread.name]


def test_workers_are_kept_for_the_next_question() -> None:
    started: list[int] = []

    def start(place: int) -> FakeWorker:
        started.append(place)
        return FakeWorker()

    workers = Workers(start, count=2)
    for _ in range(3):
        embed(workers, cut_ranges(40, batch_size=1))

    assert len(started) <= 2


def test_a_process_that_ends_is_lost_with_its_last_word() -> None:
    killed, confused = ProcessWorker(), ProcessWorker()
    killed.kill()

    with pytest.raises(WorkerLost, match=r"^ended by signal 9: no word$"):
        killed.embed({}, range(4))
    with pytest.raises(WorkerLost, match=r"^ended with status 1: KeyError: 'suite'$"):
        confused.embed({}, range(4))
    for worker in (killed, confused):
        worker.close()


def test_one_worker_is_this_process() -> None:
    assert start_workers("1") is None


def test_workers_are_started_when_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProcessWorker", FakeWorker)
    workers = start_workers("3")

    assert workers is not None
    assert workers.count == 3
    found, _ = embed(workers, cut_ranges(9, batch_size=1))
    assert found == list(range(9))


def test_gpu_without_one_is_refused() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ModelError, match="PyTorch sees no GPU here"):
        start_workers("gpu")
