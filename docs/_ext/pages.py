"""What a page does: the files that it shows and the commands that it runs, in their order.

A page writes a file with a `code-block` whose caption is the file's path, and runs a command with
a `run` block, whose argument names the recorded output below `outputs/`::

    ```{run} tutorial-red
    :status: 1
    pytest suites/
    ```

The same steps are shown by Sphinx, recorded by `make_outputs.py` and executed by the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^```\{(?P<kind>code-block|run)\} ?(?P<argument>[^\n]*)\n(?P<body>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)
OPTION = re.compile(r":(?P<name>[a-z-]+): ?(?P<value>[^\n]*)\n")


@dataclass(frozen=True, kw_only=True)
class WriteFile:
    """The page shows the whole of a file; `line` is where, for messages."""

    path: str
    text: str
    line: int


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """The page runs a command line; its exit status must be `status`."""

    name: str
    command: str
    status: int
    line: int


def read_steps(page: Path) -> Iterator[WriteFile | RunCommand]:
    """Yield what a Markdown page writes and runs; raises ValueError for a step that is wrong."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 1
        body, options = match["body"], {}
        while option := OPTION.match(body):
            options[option["name"]] = option["value"]
            body = body[option.end() :]
        if match["kind"] == "code-block":
            if "caption" in options:
                yield WriteFile(path=options["caption"], text=body.lstrip("\n"), line=line)
            continue
        command = body.strip()
        if not command or "\n" in command:
            raise ValueError(f"{page.name}:{line}: a run block holds one command line")
        if not re.fullmatch(r"[a-z0-9-]+", match["argument"]):
            raise ValueError(f"{page.name}:{line}: {match['argument']!r} is no name of an output")
        status = int(options.get("status", "0"))
        yield RunCommand(name=match["argument"], command=command, status=status, line=line)


def read_output(outputs: Path, *, name: str) -> tuple[str, str]:
    """Return (command, output) as recorded; raises FileNotFoundError."""
    text = (outputs / f"{name}.txt").read_text(encoding="utf-8")
    first, _, rest = text.partition("\n")
    return first.removeprefix("$ "), rest


def record_output(outputs: Path, *, name: str, command: str, output: str) -> None:
    (outputs / f"{name}.txt").write_text(f"$ {command}\n{output}", encoding="utf-8")
