"""A runner of a latency gate in a process of its own.

Two models in one process share its memory, its allocator and its clocks, and FP16 a second time
would be the same session: what slows that session slows both of its times, and looks like quiet.
The process is told what to open and how often to run, as lines of JSON; it answers with times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.latency import Footprint
from pytest_quantgate.evidence.load import Served
from pytest_quantgate.linked_process import Link, ProcessEnded
from pytest_quantgate.measure.rounds import Start
from pytest_quantgate.measure.runner import Runner, Spec, write_spec

MODULE = "pytest_quantgate.measure.time_runner"


def in_a_process(spec: Spec, *, folder: Path) -> Start:
    """Return what starts a process for `spec` below `folder`, which opens it when it is called.

    The process is started at once, so that those of one round get ready side by side; it loads
    the runner only when that is asked for. Raises NotMeasured and ModelError as
    `open_runner` there, and ModelError where the process ends without a word.
    """

    @contextmanager
    def start() -> Iterator[Callable[[], Runner]]:
        link = Link(MODULE, home=Path(tempfile.mkdtemp(prefix="runner-", dir=folder)))

        def ask(question: Mapping[str, Any]) -> Any:
            try:
                return link.ask(question)
            except ProcessEnded as error:
                raise ModelError(f"the process that is timed {error}") from error

        def open_it() -> Runner:
            facts = ask(write_spec(spec))
            return Runner(
                time_runs=lambda runs: float(ask({"runs": runs})["ms"]),
                samples=facts["samples"],
                serve=lambda load: from_json(Served, ask({"load": to_json(load)})["served"]),
                footprint=Footprint(**facts["footprint"]),
            )

        try:
            yield open_it
        finally:
            link.close()

    return start
