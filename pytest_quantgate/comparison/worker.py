"""Compares in a process of its own, which may have so much memory and time and no more.

What is compared comes from others, and some of it cannot be bounded before it is read: a pickle of
a kilobyte holds tuples that are nested until Python's own stack ends, a few bytes of an ONNX file
unfold to megabytes. Here the process ends that reads them, and the answer is one line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_quantgate import bounds
from pytest_quantgate.comparison.changes import Comparison, DiffError
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.own_process import start_module


def compare_paths(before: str, after: str) -> Comparison:
    """As `things.compare_paths`."""
    return _ask([before, after])


def compare_trees(text: str, *, baselines: str, suites: str, room: Path) -> Comparison:
    """As `things.compare_trees`, of the folder that this process works in."""
    return _ask([text, baselines, suites, str(room)])


def _ask(request: Sequence[str]) -> Comparison:
    """Return the answer of a new process; raises DiffError where it has none."""
    with start_module(
        __name__,
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
            raise DiffError(
                f"the comparison was stopped after {bounds.WORKER_SECONDS} s: what is compared is "
                f"too large or damaged"
            ) from None
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise DiffError(
            f"the comparison was ended by {name}: what is compared is damaged, or made to end it"
        )
    try:
        answer = json.loads(out)
    except ValueError as error:
        reason = (errors.strip().splitlines() or [f"status {process.returncode}"])[-1]
        raise DiffError(f"the comparison ended with an error: {reason[:300]}") from error
    if isinstance(answer, str):
        raise DiffError(answer)
    return from_json(Comparison, answer)


def main() -> None:
    """Answer the request on the command line: a comparison as JSON, or a text that says why not."""
    from pytest_quantgate.comparison import things

    _limit()
    request = json.loads(sys.argv[1])
    try:
        if len(request) == 2:
            found = things.compare_paths(*map(Path, request))
        else:
            text, baselines, suites, room = request
            found = things.compare_trees(
                text, baselines=baselines, suites=suites, here=Path.cwd(), room=Path(room)
            )
        answer = to_json(found)
    except QuantGateError as error:
        answer = str(error)
    except MemoryError:
        answer = (
            f"the comparison took more than {bounds.WORKER_BYTES >> 30} GiB of memory: what is "
            f"compared is too large or made to fill it"
        )
    sys.stdout.write(json.dumps(answer))


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


if __name__ == "__main__":
    main()
