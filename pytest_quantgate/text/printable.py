"""Text of others as it may be shown: it cannot forge a line, move the cursor or command a runner.

Class names, file names, sample ids and messages of libraries come from outside. In a terminal an
escape sequence in them could paint a FAIL over; in a CI log a line that starts with `::error::`,
or holds `##[error]` or `##vso[...]`, is a command to the runner.
"""

from __future__ import annotations

import re

_COMMAND_AT_START = re.compile(r"^(\s*):(?=:)")
_COMMAND_ANYWHERE = re.compile(r"#(?=#[A-Za-z]*\[)")


def printable(text: str) -> str:
    """Return `text` as one line: what is no visible character is spelled out (`\\n`, `\\x1b`).

    A backslash breaks what a CI runner would take for a command.
    """
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
    shown = _COMMAND_AT_START.sub(r"\1:\\", shown)
    return _COMMAND_ANYWHERE.sub(r"#\\", shown)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each as it may be shown."""
    return "\n".join(printable(line) for line in text.split("\n"))
