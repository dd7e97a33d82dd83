"""`python -m pytest_quantgate.measure.time_runner`: a runner's own process.

It is asked first what to open, then `{"runs": n}` for each batch to time, or `{"load": ...}` for
each round of requests to answer.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Any

from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.load import Load
from pytest_quantgate.linked_process import serve
from pytest_quantgate.measure.runner import Runner, open_runner, read_spec


def main() -> None:
    """Answer until nothing more is asked."""
    opened: list[Runner] = []
    with ExitStack() as stack:

        def answer(question: Any) -> dict[str, Any]:
            if not opened:
                opened.append(stack.enter_context(open_runner(read_spec(question))))
                footprint = dataclasses.asdict(opened[0].footprint)
                return {"samples": opened[0].samples, "footprint": footprint}
            if "load" in question:
                return {"served": to_json(opened[0].serve(from_json(Load, question["load"])))}
            return {"ms": opened[0].time_runs(question["runs"])}

        serve(answer)


if __name__ == "__main__":
    main()
