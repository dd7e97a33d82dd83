"""New processes that run a module of ours: of this code, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def start_module(module: str, *arguments: str, cwd: Path, **streams: Any) -> subprocess.Popen[str]:
    """Start `python -m module` in `cwd`; `streams` are those of `subprocess.Popen`, as text.

    It finds the code that runs here, also where that is on sys.path alone. `-P` keeps `cwd` off its
    path: a file that lies there, such as a `json.py`, is never imported.
    """
    package_root = str(Path(__file__).parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        **streams,
    )


class TooMuchOutput(Exception):
    """A program that wrote more than is read of it, and was ended."""


def read_output(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes,
    max_bytes: int,
    timeout_s: float,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program and return what it wrote, at most `max_bytes`.

    Raises OSError where it cannot be run, TooMuchOutput where it writes more,
    subprocess.TimeoutExpired where it takes longer. It is ended then.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        with subprocess.Popen(
            command, cwd=cwd, env=env, stdin=given, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdout is not None
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout_s, end)
            timer.start()
            try:
                out = process.stdout.read(max_bytes + 1)
                is_whole = len(out) <= max_bytes
                if not is_whole:
                    process.kill()
            finally:
                timer.cancel()
        if late.is_set():
            raise subprocess.TimeoutExpired(command, timeout_s)
        if not is_whole:
            raise TooMuchOutput
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out, errors.read())
