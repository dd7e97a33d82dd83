"""A contestant of a latency gate in a process of its own.

Two models in one process share its memory, its allocator and its clocks, and FP16 a second time
would be the same session: what slows that session slows both of its times, and looks like quiet.
The process is told what to open and how often to run, as lines of JSON; it answers with times.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ModelError, NotMeasured
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.latency import Footprint
from pytest_quantgate.evidence.load import Load, Served
from pytest_quantgate.measure.contestant import Contestant, Spec, write_spec
from pytest_quantgate.measure.rounds import Start
from pytest_quantgate.own_process import start_module

MODULE = "pytest_quantgate.measure.time_contestant"

#: How long a process has to end by itself before it is killed.
GRACE_S = 10.0


def in_a_process(spec: Spec, *, folder: Path) -> Start:
    """Return what starts a process for `spec` below `folder`, which opens it when it is called.

    The process is started at once, so that those of one round get ready side by side; it loads
    the contestant only when that is asked for. Raises NotMeasured and ModelError as
    `open_contestant` there, and ModelError where the process ends without a word.
    """

    @contextmanager
    def start() -> Iterator[Callable[[], Contestant]]:
        home = Path(tempfile.mkdtemp(prefix="contestant-", dir=folder))
        with (home / "said").open("w+", encoding="utf-8", errors="replace") as said:
            process = start_module(
                MODULE, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            )
            link = _Link(process, said=said)
            try:
                yield lambda: link.open(spec)
            finally:
                link.close()

    return start


class _Link:
    """One process and what is asked of it."""

    def __init__(self, process: subprocess.Popen[str], *, said: Any) -> None:
        self._process = process
        self._said = said

    def open(self, spec: Spec) -> Contestant:
        facts = self._ask(write_spec(spec))
        return Contestant(
            time_runs=lambda runs: float(self._ask({"runs": runs})["ms"]),
            samples=facts["samples"],
            serve=self._serve,
            footprint=Footprint(**facts["footprint"]),
        )

    def _serve(self, load: Load) -> Served:
        return from_json(Served, self._ask({"load": to_json(load)})["served"])

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # it ended before it had read all
                stream.close()
        try:
            self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, question: Mapping[str, Any]) -> Any:
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
            raise ModelError(self._explain_end())
        found = json.loads(answer)
        if "error" in found:
            raise (NotMeasured if found["not_measured"] else ModelError)(found["error"])
        return found

    def _explain_end(self) -> str:
        status = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"the process that is timed ended {how}: {lines[-1][:300] if lines else 'no word'}"
