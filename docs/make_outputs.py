"""Record what the commands of these pages really print: python docs/make_outputs.py [PAGE ...]

Each page starts in an empty folder, writes the files that it shows and runs its commands in a
terminal of 88 columns. What stands on the screen at the end is kept in `outputs/`. Needs the
extras `clip` and `docs`. The name of the scratch folder is shown as `~/gates`.
"""

from __future__ import annotations

import argparse
import copy
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

from pages import RunCommand, WriteFile, read_steps, record_output  # noqa: E402

#: A long line is kept whole: the page wraps it where the reader's window ends.
COLUMNS, WIDEST, LINES = 88, 1000, 400
#: Variables that would change what is printed.
UNSET = ("CI", "BUILD_NUMBER", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "PYTEST_ADDOPTS")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path, default=sorted(DOCS.rglob("*.md")))
    for page in parser.parse_args().pages:
        record(page.resolve())
    return 0


def record(page: Path) -> None:
    """Write the outputs of one page; raises SystemExit where a command ends otherwise."""
    with tempfile.TemporaryDirectory(prefix="quantgate-docs-") as scratch:
        folder = Path(scratch).resolve() / "gates"
        folder.mkdir()
        for step in read_steps(page):
            if isinstance(step, WriteFile):
                path = folder / step.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.text, encoding="utf-8")
                continue
            print(f"{page.relative_to(DOCS)}:{step.line}: {step.command}", flush=True)
            status, screen = run_in_terminal(step, folder=folder)
            if status != step.status:
                raise SystemExit(f"{screen}\nended with {status}, the page says {step.status}")
            shown = screen.replace(str(folder), "~/gates")
            record_output(DOCS / "outputs", name=step.name, command=step.command, output=shown)


def run_in_terminal(step: RunCommand, *, folder: Path) -> tuple[int, str]:
    """Return the exit status and what a person sees in the terminal at the end."""
    import pyte

    class Screen(pyte.Screen):  # type: ignore[misc]
        def restore_cursor(self) -> None:
            """Keep what was saved, as terminals do: it may be restored again."""
            kept = copy.deepcopy(self.savepoints[-1:])
            super().restore_cursor()
            self.savepoints.extend(kept)

    environ = {name: value for name, value in os.environ.items() if name not in UNSET}
    # The plugins of a fresh installation: this one alone.
    environ |= {
        "COLUMNS": str(COLUMNS),
        "LINES": str(LINES),
        "TERM": "xterm",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_quantgate.plugin",
    }
    screen = Screen(WIDEST, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", step.command],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed: EIO on Linux
            break
        if not data:
            break
        stream.feed(data)
    os.close(ours)
    if screen.cursor.y >= LINES - 1:
        raise SystemExit(f"{step.command}: more than {LINES} lines")
    text = "\n".join(line.rstrip() for line in screen.display).strip("\n")
    return process.wait(), f"{text}\n"


if __name__ == "__main__":
    sys.exit(main())
