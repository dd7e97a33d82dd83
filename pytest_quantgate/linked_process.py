"""A module of ours in a process of its own, which answers questions as lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ModelError, NotMeasured, QuantGateError
from pytest_quantgate.own_process import start_module

#: How long a process has to end by itself before it is killed.
GRACE_S = 10.0


class ProcessEnded(Exception):
    """A process that ended while it was asked; the text is how, and its last word."""


class Link:
    """A process and what is asked of it; `home` is the folder that it works in, and new."""

    def __init__(self, module: str, *, home: Path) -> None:
        self._said = (home / "said").open("w+", encoding="utf-8", errors="replace")
        self._process = start_module(
            module, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Return the answer to a question.

        Raises NotMeasured and ModelError as the process did, ProcessEnded where it is no more.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ProcessEnded(self._explain_end())
        found = json.loads(answer)
        if "error" in found:
            raise (NotMeasured if found["not_measured"] else ModelError)(found["error"])
        return found

    def kill(self) -> None:
        """End the process now; who waits for its answer gets ProcessEnded."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end, and wait until it has."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # it ended before it had read all
                stream.close()
        try:
            self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _explain_end(self) -> str:
        status = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"ended {how}: {lines[-1][:300] if lines else 'no word'}"


def serve(answer: Callable[[Any], Mapping[str, Any]]) -> None:
    """Answer what this process is asked until nothing more is; an error of ours is the last answer.

    What libraries print goes to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def put(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        for line in sys.stdin:
            put(answer(json.loads(line)))
    except QuantGateError as error:
        put({"error": str(error), "not_measured": isinstance(error, NotMeasured)})
