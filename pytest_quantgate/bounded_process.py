"""Reads what comes from others in a process of its own, which may have so much memory and time.

Some of it cannot be bounded before it is read: a pickle of a kilobyte holds tuples that are nested
until Python's own stack ends, a few bytes of an ONNX file unfold to megabytes. Here the process
ends that reads them, and the answer is one line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.own_process import start_module


def ask_module(module: str, request: Any, *, noun: str, of: str) -> Any:
    """Return what `answer_request` of a module answers, run in this folder: JSON, a text if it is
    an error. `noun` is what is done (`the comparison`), `of` to what (`what is compared`)."""
    with start_module(
        module,
        json.dumps(request),
        cwd=Path.cwd(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            out, errors = process.communicate(timeout=bounds.WORKER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return (
                f"{noun} was stopped after {bounds.WORKER_SECONDS} s: {of} is too large or damaged"
            )
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"{noun} was ended by {name}: {of} is damaged, or made to end it"
    try:
        return json.loads(out)
    except ValueError:
        reason = (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]
        return f"{noun} ended with an error: {reason[:300]}"


def answer_request(answer: Callable[[Any], Any], *, noun: str, of: str) -> None:
    """Print the answer to the request on the command line: as JSON, or a text that says why not."""
    _limit()
    try:
        found = to_json(answer(json.loads(sys.argv[1])))
    except QuantGateError as error:
        found = str(error)
    except MemoryError:
        found = (
            f"{noun} took more than {bounds.WORKER_BYTES >> 30} GiB of memory: {of} is too large "
            f"or made to fill it"
        )
    sys.stdout.write(json.dumps(found))


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    # Not the address space: files that are mapped to be read count there.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = bounds.WORKER_BYTES
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
