"""Feeds a case to a reader and notes what came out."""

from __future__ import annotations

import hashlib
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz.target import Target
from pytest_quantgate.errors import QuantGateError

#: One case, in s of CPU time: a suite of the largest size that is taken needs three.
LIMIT_S = 10


class Hang(BaseException):
    """A case that ran too long; no reader may catch it."""


def limit_cpu_time() -> None:
    """Let SIGPROF, which `Tally.feed` asks for, end a case."""

    def stop(_signal: int, _frame: Any) -> None:
        raise Hang(f"more than {LIMIT_S} s of CPU time")

    signal.signal(signal.SIGPROF, stop)


@dataclass(kw_only=True)
class Tally:
    """What the cases of one reader came to: `taken`, `refused` by an error of ours, or `BROKEN`."""

    target: Target
    keep: Path | None
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0  #: of CPU time
    findings: Counter[str] = field(default_factory=Counter)

    def feed(self, data: bytes) -> None:
        """Read one case; what breaks the reader is written to `keep`."""
        started = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            try:
                self.target.read(data)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            outcome = "taken"
        except QuantGateError:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "BROKEN"
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            self.note(f"{type(error).__name__} at {where}: {str(error)[:120]!r}", data=data)
        self.outcomes[outcome] += 1
        self.slowest_s = max(self.slowest_s, time.process_time() - started)

    def note(self, finding: str, *, data: bytes) -> None:
        self.findings[finding] += 1
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            name = hashlib.sha256(data).hexdigest()[:16]
            (self.keep / f"{self.target.name.replace(' ', '-')}-{name}").write_bytes(data)
