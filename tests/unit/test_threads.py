"""What the threads of PyTorch are told, and that the user's own word counts first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_quantgate.store.surroundings import INERT_VARIABLES
from pytest_quantgate.threads import SPINS, let_threads_sleep, share_cores


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "infinity"}, {"GOMP_SPINCOUNT": "infinity"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_a_thread_that_waits_sleeps_soon(environ: dict[str, str], told: dict[str, str]) -> None:
    let_threads_sleep(environ)
    assert environ == told


def test_how_a_thread_waits_is_no_part_of_a_key() -> None:
    assert {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} <= INERT_VARIABLES


@pytest.mark.parametrize(("workers", "threads"), [(1, "all"), (10_000, "1")])
def test_cores_are_shared_by_workers(workers: int, threads: str) -> None:
    environ: dict[str, str] = {}
    share_cores(workers, environ=environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert environ == {"OMP_NUM_THREADS": str(cores) if threads == "all" else threads}

    given = {"OMP_NUM_THREADS": "3"}
    share_cores(workers, environ=given)
    assert given == {"OMP_NUM_THREADS": "3"}


def test_torch_reads_it_when_it_is_loaded() -> None:
    """libgomp prints what it took: that PyTorch's own copy of it knows the variable."""
    torch = "import torch; torch.set_num_threads(2); torch.ones(1 << 20).sum()"
    environ = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    environ.pop("OMP_WAIT_POLICY", None)
    environ.pop("GOMP_SPINCOUNT", None)
    let_threads_sleep(environ)
    run = subprocess.run(
        [sys.executable, "-c", torch], env=environ, capture_output=True, text=True, check=True
    )
    if "GOMP_SPINCOUNT" not in run.stderr:
        pytest.skip("this PyTorch has another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in run.stderr
