"""The server and LoadGen: batches, answers, what is dropped, and what goes wrong under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.evidence.load import Load, Served
from pytest_quantgate.measure import serve
from pytest_quantgate.measure.serve import Inputs, Server, compare_answers, read_log

pytest.importorskip("mlperf_loadgen", reason="pip install 'pytest-quantgate[load]'")

#: Fast enough that a round takes a fifth of a second.
LOAD = Load(rate=400, queries=60)
Array = np.ndarray[Any, Any]


def make_inputs(count: int = 32) -> dict[str, Array]:
    return {"x": np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)}


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "WARM_UP_S", 0.0)


def run(embed: Callable[[Any], Array], load: Load = LOAD, *, inputs: int = 32) -> Served:
    return Server(embed, inputs=make_inputs(inputs)).serve(load)


def test_every_request_is_answered_as_alone() -> None:
    served = run(lambda feeds: feeds["x"] * 2)

    assert (served.queries, served.late, served.dropped) == (60, 0, 0)
    assert 0 < served.p50_ms <= served.p90_ms <= served.p99_ms < 1000
    assert served.offline_ms is None
    assert served.batches == 60
    assert {answer.distance for answer in served.answers} == {0.0}
    assert all(answer.nearest == answer.input for answer in served.answers)


def test_the_same_seed_asks_for_the_same_and_another_for_others() -> None:
    def asked(seed: int) -> list[int]:
        seen: list[int] = []

        def embed(feeds: Inputs) -> Array:
            seen.append(int(feeds["x"][0, 0] * 1e6))
            return feeds["x"]

        run(embed, Load(rate=2000, queries=20, seed=seed))
        return seen[32:]  # behind those of the inputs alone

    assert asked(1) == asked(1) != asked(2)


def test_what_waits_is_joined_up_to_the_batch_in_whole_requests() -> None:
    sizes: list[int] = []

    def embed(feeds: Inputs) -> Array:
        sizes.append(len(feeds["x"]))
        time.sleep(0.02)
        return feeds["x"]

    load = Load(rate=2000, queries=40, sizes=(1, 3), batch=8, window_ms=5.0)
    served = run(embed, load, inputs=64)

    under_load = sizes[64:]
    assert max(under_load) <= 8
    assert served.batches == len(under_load) < 20
    assert sum(under_load) == pytest.approx(80, abs=30)  # 40 requests of 1 or 3


def test_batches_run_at_a_time_up_to_the_concurrency() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def embed(feeds: Inputs) -> Array:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return feeds["x"]

    run(embed, Load(rate=2000, queries=40, concurrency=3))
    assert most == 3


def test_requests_beyond_the_queue_are_dropped_and_late() -> None:
    def embed(feeds: Inputs) -> Array:
        time.sleep(0.01)
        return feeds["x"]

    served = run(embed, Load(rate=1000, queries=60, queue=2, bound_ms=80.0))
    assert served.dropped > 20
    assert served.late >= served.dropped
    assert served.batches == 60 - served.dropped


def test_requests_over_the_bound_are_late() -> None:
    def embed(feeds: Inputs) -> Array:
        time.sleep(0.004)
        return feeds["x"]

    assert run(embed, Load(rate=100, queries=10, bound_ms=1.0)).late == 10
    assert run(embed, Load(rate=100, queries=10, bound_ms=2000.0)).late == 0


def test_offline_all_requests_are_there_at_once() -> None:
    def embed(feeds: Inputs) -> Array:
        time.sleep(0.002)
        return feeds["x"]

    served = run(embed, Load(rate=400, queries=40, batch=8, offline=True))
    assert served.offline_ms is not None
    assert 0.1 < served.offline_ms < 2  # five batches of eight


def test_answers_that_are_swapped_are_found_with_their_batch() -> None:
    served = run(
        lambda feeds: np.roll(feeds["x"], 1, axis=0),
        Load(rate=4000, queries=60, batch=4, window_ms=3.0),
    )
    swapped = [answer for answer in served.answers if answer.nearest != answer.input]
    assert swapped
    assert all({answer.input, answer.nearest} <= set(answer.batch) for answer in swapped)


def test_an_error_under_load_ends_the_round_and_is_raised() -> None:
    calls = 0

    def embed(feeds: Inputs) -> Array:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise ModelError("the runtime gave up")
        return feeds["x"]

    with pytest.raises(ModelError, match="gave up"):
        run(embed)


def test_inputs_of_other_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\{5\} inputs for requests of 32"):
        run(lambda feeds: feeds["x"], inputs=5)


def test_answers_are_compared_with_those_alone_and_the_worst_is_kept() -> None:
    alone = np.eye(3, dtype=np.float32)
    near = alone + np.float32(0.01)
    found = compare_answers([((0, 1), alone[:2]), ((1, 0), near[[1, 0]])], alone=alone)

    assert [(a.input, a.nearest, a.batch) for a in found] == [(0, 0, (1, 0)), (1, 1, (1, 0))]
    assert found[0].distance == pytest.approx(0.01 * 3**0.5, rel=1e-3)


def test_an_answer_that_is_no_number_is_infinitely_far() -> None:
    (found,) = compare_answers([((0,), np.array([[np.nan, 1.0]]))], alone=np.eye(2))
    assert (found.distance, found.nearest) == (float("inf"), 0)


def test_twins_among_the_inputs_are_not_taken_for_each_other() -> None:
    alone = np.array([[1.0, 0.0], [1.0, 0.0]])
    (found,) = compare_answers([((1,), np.array([[1.1, 0.0]]))], alone=alone)
    assert found.nearest == 1


def test_a_batch_of_another_shape_is_no_answer() -> None:
    with pytest.raises(ModelError, match=r"a batch of 2 gave embeddings of shape \[1, 2\]"):
        compare_answers([((0, 1), np.ones((1, 2)))], alone=np.eye(2))


def test_the_log_is_read_by_its_keys() -> None:
    text = 'noise\n:::MLLOG {"key": "a", "value": 1}\n:::MLLOG {"key": "a", "value": 2}\n'
    assert read_log(text) == {"a": 2}


def test_without_loadgen_the_install_line_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[load\]'"):
        run(lambda feeds: feeds["x"])
    assert not list(tmp_path.iterdir())
