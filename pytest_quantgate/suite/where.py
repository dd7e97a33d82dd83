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


#: How the names of variables begin that any run lets a suite use.
VARIABLES = "QUANTGATE_"

#: The variable that names others which a run allows, with commas; `--quantgate-env` adds to it.
ALLOWED_VARIABLES = "QUANTGATE_ENV"

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def list_references(text: str, *, where: str) -> tuple[str, ...]:
    """Return the names of the variables in a text, `NAME` for `${NAME}`.

    Raises SuiteError for a `$` that starts no `${NAME}`.
    """
    if "$" in _REFERENCE.sub("", text):
        raise SuiteError(f"{where}: {text!r}: '$' must start ${{NAME}} (an environment variable)")
    return tuple(_REFERENCE.findall(text))


def check_references(text: str, *, where: str, environ: Mapping[str, str]) -> None:
    """Raise SuiteError for a variable in a text that this run does not let a suite use.

    A suite comes with a pull request: whatever it may name, its author may see.
    """
    allowed = environ.get(ALLOWED_VARIABLES, "").split(",")
    for name in list_references(text, where=where):
        if not name.startswith(VARIABLES) and name not in allowed:
            raise SuiteError(
                f"{where}: ${{{name}}}: a suite uses the variables {VARIABLES}... alone: call it "
                f"{VARIABLES}{name}, or allow it with pytest --quantgate-env={name} (other "
                f"commands: {ALLOWED_VARIABLES}={name})"
            )


def expand_path(text: str, *, where: str, environ: Mapping[str, str]) -> Path:
    """Return the path that a suite names, with `${NAME}` from `environ` and `~` expanded.

    Raises NotMeasured, naming the variable, where one is unset or empty, or where there is nothing
    at its path: without its weights or data a suite cannot be measured. Raises SuiteError for what
    can be no path, and for a variable that the run does not allow. No message shows a value.
    """
    check_references(text, where=where, environ=environ)
    names = list_references(text, where=where)
    for name in names:
        if not environ.get(name):
            raise NotMeasured(
                f"{where}: environment variable {name} is not set: export {name}=PATH"
            )
    try:
        path = Path(_REFERENCE.sub(lambda match: environ[match[1]], text)).expanduser()
        path.is_dir()  # a name that is too long, or holds a null byte, is no path of any file
        if names and not path.exists():
            raise NotMeasured(
                f"{where}: there is nothing at {text} on this machine: export {names[0]}=PATH"
            )
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~name of no user
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise SuiteError(f"{where}: {shown!r} is no path: {reason[:200]}") from error
    return path
