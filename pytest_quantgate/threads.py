"""How the threads of PyTorch behave on cores that are shared with other processes.

PyTorch's OpenMP reads the variables when it is loaded, so they are set before that, and only where
the user did not say otherwise. None of them changes a number.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: How often a thread looks whether the others are done before it sleeps: some microseconds.
SPINS = "10000"


def share_cores(workers: int, *, environ: MutableMapping[str, str]) -> None:
    """Give this xdist worker its share of the cores, where the user did not say otherwise.

    PyTorch takes all of them for each process, and threads that wait for one another on cores that
    are taken make a forward many times slower.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // workers)))


def let_threads_sleep(environ: MutableMapping[str, str]) -> None:
    """Let a thread that waits for another one sleep soon.

    It spins for milliseconds else, on the core that the other one needs: beside other processes a
    forward takes two to three times as long.
    """
    if not environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environ["GOMP_SPINCOUNT"] = SPINS
