"""Text in the width that there is, broken between words."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import Any

from pytest_quantgate.text.printable import printable


def terminal_width() -> int | None:
    """Return the columns of the terminal, or those that COLUMNS says; None in a log or a pipe.

    A log has no width: whoever shows it breaks its lines, and who searches it wants them whole.
    """
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None


def say(line: str, *, error: bool = False) -> None:
    """Print a line of a command, in whole words on a terminal, to stderr where it is an `error`."""
    for part in wrap(printable(line), width=terminal_width()):
        print(part, file=sys.stderr if error else sys.stdout)


def wrap(line: str, *, width: int | None, hang: int | None = None) -> list[str]:
    """Return a line as lines of at most `width` columns, broken between words.

    Those after the first are indented as the line is, and `hang` columns more: 2, or what it takes
    to stand below the last column of a line, unless that is far to the right. A word that is wider
    than the columns stands whole: a path in two parts could not be opened.
    """
    if width is None or len(line) <= width:
        return [line]
    text = line.lstrip(" ")
    indent = len(line) - len(text)
    if hang is None:
        starts = [gap.end() for gap in re.finditer(r"(?<=\S) {2,}", text)]
        hang = max((start for start in starts if indent + start <= width * 3 // 5), default=2)
    start, rest = " " * indent, " " * (indent + hang)
    return fold(text, width, initial_indent=start, subsequent_indent=rest) or [line]


def fold(text: str, width: int, **options: Any) -> list[str]:
    """Return what `textwrap.wrap` does with its `options`, with words, names and figures whole.

    A number stays with its unit: `0.100 %` at the end of a line is no `0.100`.
    """
    whole = re.sub(r"(?<=\d) (?=(?:%|pp|dB|[kKMG]i?B|ms|s)(?!\w))", "\N{NO-BREAK SPACE}", text)
    options = {"break_long_words": False, "break_on_hyphens": False, **options}
    lines = textwrap.wrap(whole, width, **options)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
