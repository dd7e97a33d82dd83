"""Two workers beside one: how many photographs a second, with start-up apart, in one run.

    OMP_NUM_THREADS=1 python benchmarks/workers.py SUITE [--task 0] [--rounds 5]

Both are asked for the same ranges in turn, round by round; the table shows the rates of each round
and the ratio. Embeddings are compared bit by bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from pytest_quantgate.commands.case import open_case  # noqa: E402
from pytest_quantgate.gates.sections import TaskGate  # noqa: E402
from pytest_quantgate.run.measured import BOTH, Drawn  # noqa: E402
from pytest_quantgate.run.variants import BATCH_SIZE  # noqa: E402
from pytest_quantgate.run.workers import ProcessWorker, Workers, cut_ranges  # noqa: E402
from pytest_quantgate.tasks.kind import find_task  # noqa: E402
from pytest_quantgate.tasks.registry import evaluation_data  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        parsed.cache_dir, parsed.device = Path(cache), "cpu"
        case = open_case(parsed, environ=os.environ)
        task = case.suite.gates.all(TaskGate)[0].task
        data, _ = evaluation_data(task)
        drawn = Drawn(name=data, count=None, purpose=find_task(task).purpose, first=False)
        samples = case.samples(**drawn)
        ranges = cut_ranges(len(samples), batch_size=BATCH_SIZE)
        _ = case.quantized
        question = case.describe_question(BOTH, drawn=drawn, stage="torch", task=None)
        sides: dict[int, Workers] = {}
        for count in (1, parsed.workers):
            sides[count] = Workers(lambda _place: ProcessWorker(), count=count)
            start = time.monotonic()
            sides[count].embed(question, ranges[:count], progress=lambda _count: None)
            print(f"{count} workers ready after {time.monotonic() - start:.1f} s", flush=True)
        rates: dict[int, list[float]] = {count: [] for count in sides}
        found = {}
        for number in range(parsed.rounds):
            for count in sorted(sides, reverse=bool(number % 2)):
                start = time.monotonic()
                parts = sides[count].embed(question, ranges, progress=lambda _count: None)
                rates[count].append(len(samples) / (time.monotonic() - start))
                found[count] = [numpy.concatenate(each) for each in zip(*parts, strict=True)]
        for side in sides.values():
            side.close()
    one, many = rates[1], rates[parsed.workers]
    for first, second in zip(one, many, strict=True):
        print(f"{first:8.1f} {second:8.1f} samples/s  {second / first:.2f}x")
    same = all(map(numpy.array_equal, found[1], found[parsed.workers]))
    print(f"median {statistics.median(b / a for a, b in zip(one, many, strict=True)):.2f}x, "
          f"{len(samples)} samples, embeddings {'equal' if same else 'DIFFERENT'}")  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
