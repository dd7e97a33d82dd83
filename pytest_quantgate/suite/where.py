"""Where in a suite file something stands, and what its texts stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantgate.errors import NotMeasured, SuiteError


@dataclass(frozen=True, kw_only=True)
class Where:
    """The place of a mapping in its suite file; `str()` is `file:line`, `of(key)` a key's own.

    Line 0 means that there is no file: `file` then names what set the limit.
    """

    file: str
    line: int
    keys: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def of(self, key: str) -> str:
        line = self.keys.get(key, self.line)
        return f"{self.file}:{line}" if line else self.file


def expand_path(text: str, *, where: str, environ: Mapping[str, str]) -> Path:
    """Return the path that a suite names, with `${NAME}` and `~` expanded.

    Raises as `expand_environment`, and SuiteError for what can be no path.
    """
    expanded = expand_environment(text, where=where, environ=environ)
    try:
        path = Path(expanded).expanduser()
        path.is_dir()  # a name that is too long, or holds a null byte, is no path of any file
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~name of no user
        reason = " ".join(str(error).split())
        shown = expanded if len(expanded) <= 80 else f"{expanded[:77]}..."
        raise SuiteError(f"{where}: {shown!r} is no path: {reason[:200]}") from error
    return path


def expand_environment(text: str, *, where: str, environ: Mapping[str, str]) -> str:
    """Return `text` with every `${NAME}` replaced from `environ`.

    Raises NotMeasured, naming the variable, where one is unset or empty: without its weights or
    data a suite cannot be measured. Raises SuiteError for a `$` that starts no `${NAME}`.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        value = environ.get(name, "")
        if not value:
            raise NotMeasured(
                f"{where}: environment variable {name} is not set: export {name}=PATH"
            )
        return value

    stray = re.search(r"\$(?!\{[A-Za-z_][A-Za-z0-9_]*\})", text)
    if stray:
        raise SuiteError(f"{where}: {text!r}: '$' must start ${{NAME}} (an environment variable)")
    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", replace, text)
