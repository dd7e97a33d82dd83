"""`python -m pytest_quantgate.measure.time_contestant`: a contestant's own process.

Reads lines of JSON: first what to open, then `{"runs": n}` for each batch to time, or `{"load":
...}` for each round of requests to answer; answers each with one line. What libraries print goes to
standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from typing import Any

from pytest_quantgate.errors import NotMeasured, QuantGateError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.load import Load
from pytest_quantgate.measure.contestant import open_contestant, read_spec


def main() -> None:
    """Answer until nothing more is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    try:
        first = sys.stdin.readline()
        if not first:
            return  # ended before anything was asked
        with open_contestant(read_spec(json.loads(first))) as contestant:
            footprint = dataclasses.asdict(contestant.footprint)
            answer({"samples": contestant.samples, "footprint": footprint})
            for line in sys.stdin:
                question = json.loads(line)
                if "load" in question:
                    load = from_json(Load, question["load"])
                    answer({"served": to_json(contestant.serve(load))})
                else:
                    answer({"ms": contestant.time_runs(question["runs"])})
    except QuantGateError as error:
        answer({"error": str(error), "not_measured": isinstance(error, NotMeasured)})


if __name__ == "__main__":
    main()
