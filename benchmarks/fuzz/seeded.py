"""The seeded driver: good files spoiled at random, the same cases each time."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fuzz.spoiling import spoil, spoil_values
from benchmarks.fuzz.tally import Hang, Tally, limit_cpu_time
from benchmarks.fuzz.target import Target
from benchmarks.fuzz.targets import TARGETS, make_target

#: A case may take so long on a busy machine, in s; what waits for something takes no CPU time.
LIMIT_S = 120
#: Of address space, over what the libraries take: an alias bomb would want a hundred times that.
LIMIT_BYTES = 2 << 30


def fuzz_seeded(
    *, names: list[str], cases: int, seed: int, keep: Path | None, scratch: Path
) -> list[Tally]:
    """Feed each of the readers its share of `cases`, print a line for each, return what came."""

    def stop(_signal: int, _frame: Any) -> None:
        raise Hang(f"more than {LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    limit_cpu_time()
    targets = {name: make_target(name, scratch=scratch) for name in TARGETS}
    others = [data for target in targets.values() for data in target.seeds]
    limit = _mapped_bytes() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(f"{'reader':<20}{'cases':>8}{'taken':>8}{'refused':>9}{'BROKEN':>8}"
          f"{'slowest s':>11}{'peak rise MB':>14}")  # fmt: skip
    tallies = []
    for name in names:
        target = targets[name]
        tally = Tally(target=target, keep=keep)
        before = _peak_bytes()
        for data in _spoiled(target, cases=round(cases * target.share), seed=seed, others=others):
            signal.alarm(LIMIT_S)
            try:
                tally.feed(data)
            finally:
                signal.alarm(0)
        found = tally.outcomes
        print(f"{name:<20}{found.total():>8}{found['taken']:>8}{found['refused']:>9}"
              f"{found['BROKEN']:>8}{tally.slowest_s:>11.2f}"
              f"{(_peak_bytes() - before) / 1e6:>14.0f}", flush=True)  # fmt: skip
        tallies.append(tally)
    return tallies


def _spoiled(target: Target, *, cases: int, seed: int, others: list[bytes]) -> Iterator[bytes]:
    chance = random.Random(f"{target.name} {seed}")
    yield from target.seeds
    for _ in range(cases - len(target.seeds)):
        data = chance.choice(target.seeds)
        spoils_values = target.form != "bytes" and chance.random() < 0.5
        if spoils_values:
            data = spoil_values(data, form=target.form, chance=chance)
        if not spoils_values or chance.random() < 0.2:
            data = spoil(data, chance=chance, others=others)
        yield data


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
