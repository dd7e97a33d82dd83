"""Text in the width that there is, broken between words."""

from __future__ import annotations

import shutil
import textwrap


def terminal_width() -> int | None:
    """Return the columns of the terminal, or those that COLUMNS says; None in a log or a pipe.

    A log has no width: whoever shows it breaks its lines, and who searches it wants them whole.
    """
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None


def wrap(line: str, *, width: int | None, hang: int = 2) -> list[str]:
    """Return a line as lines of at most `width` columns, broken between words.

    Those after the first are indented as the line is, and `hang` columns more. A word that is
    wider than the columns stands whole: a path in two parts could not be opened.
    """
    if width is None or len(line) <= width:
        return [line]
    text = line.lstrip(" ")
    indent = len(line) - len(text)
    return textwrap.wrap(
        text,
        width=width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [line]
