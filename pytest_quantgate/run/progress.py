"""Progress of long work in the terminal, without breaking pytest's own output.

On a terminal one line is redrawn and erased at the end; in a log each stage is one line, and
`-q` silences those. On an xdist worker nothing is shown: its output goes nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pytest_quantgate.text.printable import printable

#: Redraw at most this often: a terminal is no place to spend the time of a measurement.
REDRAW_SECONDS = 0.1

#: Work that takes longer gets a bar and an estimate of the time that is left.
ESTIMATE_AFTER_SECONDS = 5.0
BAR_WIDTH = 20

# pytest prints its dots on the line where the cursor stands. These keep that place: make sure
# that a line is below (IND scrolls and keeps the column), save the cursor, draw there, restore.
_RESERVE = "\033D\033[A\0337"
_LINE_BELOW = "\0338\033D\r\033[K"
_RESTORE = "\0338"

Advance = Callable[[int], None]


@dataclass(kw_only=True)
class Progress:
    """Shows stages; `write(text)` puts text on the real terminal, `mode` says in which way.

    `mode` is `live` (a terminal), `log` (a file or a CI log) or `silent`.
    """

    mode: str
    write: Callable[[str], None]
    width: int = 80
    clock: Callable[[], float] = field(default=time.monotonic)
    _open_stages: int = 0

    @contextmanager
    def stage(self, label: str, *, total: int | None = None) -> Iterator[Advance]:
        """Show `label` while the block runs; the block calls `advance(count)` as work is done."""
        label = printable(label)
        if self.mode == "silent":
            yield lambda _count: None
            return
        if self.mode == "log":
            self.write(f"\nquantgate: {label}{f' ({total})' if total else ''} ")
            yield lambda _count: None
            return
        started = self.clock()
        done, drawn = 0, started

        def draw() -> None:
            seconds = self.clock() - started
            share = f" {done}/{total}" if total else ""
            text = f"quantgate: {label}{share}, {seconds:.0f} s"
            if total and done and seconds >= ESTIMATE_AFTER_SECONDS:
                filled = min(BAR_WIDTH, BAR_WIDTH * done // total)
                left = max(0.0, seconds * (total / done - 1))
                bar = "#" * filled + "-" * (BAR_WIDTH - filled)
                text = f"quantgate: [{bar}] about {left:.0f} s left, {label}{share}"
            self.write(f"{_LINE_BELOW}{text[: self.width - 1]}")

        def advance(count: int) -> None:
            nonlocal done, drawn
            done += count
            if self.clock() - drawn >= REDRAW_SECONDS:
                drawn = self.clock()
                draw()

        # A stage within a stage uses its line: a terminal saves one place of the cursor only.
        if not self._open_stages:
            self.write(_RESERVE)
        self._open_stages += 1
        draw()
        try:
            yield advance
        finally:
            self._open_stages -= 1
            self.write(_LINE_BELOW + ("" if self._open_stages else _RESTORE))

    def finish(self) -> None:
        """End the last line of a log, whose stages end without a newline."""
        if self.mode == "log":
            self.write("\n")


def silent() -> Progress:
    return Progress(mode="silent", write=lambda _text: None)
