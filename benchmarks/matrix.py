"""What the supported versions of Python and of the libraries say to the default gate and the tests.

    python benchmarks/matrix.py [--cells oldest,newest] [--checks gate] [--folder DIR]

Each cell is a fresh environment from PyPI, with some packages pinned and the others as pip finds
them within the bounds of pyproject.toml. In it run the default gate and the unit tests that are not
slow. Writes `benchmarks/matrix.md`; exits with 1 where a cell is red. An environment that is there
already is taken as it is, so that a run that was broken off goes on. The page keeps what earlier
runs in the same folder found, by the commit that they ran on: cells can be run one at a time, and
an environment can go before the next one is made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")

#: What a row of the page tells of an environment.
SHOWN = (
    *("pytest", "torch", "transformers", "nvidia-modelopt", "onnx", "onnxruntime"),
    *("tensorrt-rtx-cu12", "numpy", "huggingface-hub", "diffusers"),
)

#: Both suites of the default gate, and the unit tests of `make quick`.
CHECKS: Mapping[str, tuple[str, ...]] = {
    "gate": (
        "suites/clip_reference.quantgate.yaml",
        "suites/clip_reference_int8.quantgate.yaml",
    ),
    "unit tests": ("tests/unit", "-m", "not slow", "-n", "2"),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One environment: a Python, and the pins that make it the one that it is."""

    name: str
    python: str
    pins: tuple[str, ...]
    checks: tuple[str, ...] = tuple(CHECKS)


_OLDEST = ("torch==2.8.*", "onnxruntime==1.20.*", "onnx==1.21.*", "pytest==8.3.*")

CELLS = (
    # The oldest transformers, which has a whole CLIP as it is read here and no other encoder.
    Cell(name="clip", python="3.11", pins=(*_OLDEST, "transformers==4.57.*"), checks=("gate",)),
    Cell(name="oldest", python="3.11", pins=(*_OLDEST, "transformers==5.9.*")),
    Cell(name="between", python="3.12", pins=("torch==2.11.*", "transformers==5.11.*")),
    # ModelOpt's release candidate, which pip takes only by name.
    Cell(name="candidate", python="3.11", pins=("nvidia-modelopt==0.48.0rc1",)),
    Cell(name="current", python="3.11", pins=()),
    Cell(name="newest", python="3.13", pins=()),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a cell gave: the versions in it, and of each check its last line; empty where it holds.

    `reason` says why there is no environment.
    """

    cell: Cell
    versions: Mapping[str, str] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    commit: str = ""

    @property
    def is_green(self) -> bool:
        return not self.reason and not any(self.failures.values())


def main() -> int:
    """Run the cells that are asked for and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cells", default=",".join(cell.name for cell in CELLS))
    parser.add_argument("--checks", default=",".join(CHECKS))
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix")
    arguments = parser.parse_args()
    wanted, checks = arguments.cells.split(","), arguments.checks.split(",")
    for asked, known in ((wanted, [cell.name for cell in CELLS]), (checks, list(CHECKS))):
        if unknown := set(asked).difference(known):
            parser.error(f"no {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    cells = [cell for cell in CELLS if cell.name in wanted]
    ran = [run_cell(cell, folder=arguments.folder, checks=checks) for cell in cells]
    page = write_page([read_found(cell, folder=arguments.folder) for cell in CELLS])
    PAGE.write_text(page, encoding="utf-8")
    print(page)
    return 0 if all(cell.is_green for cell in ran) else 1


def read_found(cell: Cell, *, folder: Path) -> Found:
    """Return what the last run of a cell in a folder found; nothing where there was none."""
    record = folder / f"{cell.name}.json"
    stored = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    return Found(cell=cell, **stored)


def run_cell(cell: Cell, *, folder: Path, checks: Sequence[str]) -> Found:
    """Make a cell's environment where there is none, run checks in it, and keep what was found."""
    folder.mkdir(exist_ok=True)
    found = _run_cell(cell, place=folder / cell.name, checks=checks)
    stored = {name: value for name, value in asdict(found).items() if name != "cell"}
    (folder / f"{cell.name}.json").write_text(json.dumps(stored, indent=1), encoding="utf-8")
    return found


def _run_cell(cell: Cell, *, place: Path, checks: Sequence[str]) -> Found:
    python = place / "bin" / "python"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not (place / "installed").exists():
        reason = _install(cell, place=place)
        if reason:
            return Found(cell=cell, reason=reason, commit=commit)
    failures, seconds = {}, {}
    for name in cell.checks:
        if name not in checks:
            continue
        print(f"{cell.name}: {name}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as cache:
            run = subprocess.run(
                [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHECKS[name]],
                cwd=ROOT,
                env={**os.environ, "XDG_CACHE_HOME": cache},
                capture_output=True,
                text=True,
                check=False,
            )
        seconds[name] = time.perf_counter() - started
        (place / f"{name}.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
        lines = run.stdout.strip().splitlines() or run.stderr.strip().splitlines() or ["no output"]
        failures[name] = lines[-1].strip("= ") if run.returncode else ""
    return Found(
        cell=cell,
        versions=_read_versions(python),
        failures=failures,
        seconds=seconds,
        commit=commit,
    )


def _install(cell: Cell, *, place: Path) -> str:
    """Make an environment; return why it cannot be made, or nothing."""
    interpreter = shutil.which(f"python{cell.python}")
    if interpreter is None:
        return f"there is no python{cell.python} here"
    print(f"{cell.name}: installing", file=sys.stderr, flush=True)
    subprocess.run([interpreter, "-m", "venv", "--clear", place], check=True)
    pins = place / "pins.txt"
    pins.write_text("\n".join(cell.pins), encoding="utf-8")
    run = subprocess.run(
        [
            *(place / "bin" / "python", "-m", "pip", "install", "--quiet"),
            *("--disable-pip-version-check", "-c", pins, "-e", f"{ROOT}[clip,onnx,rtx,dev]"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        return f"pip finds no such environment: {run.stderr.strip().splitlines()[-1]}"
    (place / "installed").touch()
    return ""


def _read_versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    known = {
        entry["name"].lower().replace("_", "-"): entry["version"]
        for entry in json.loads(listed.stdout)
    }
    return {name: known.get(name, "") for name in SHOWN}


def write_page(found: list[Found]) -> str:
    """Return the page: a column for each cell."""
    rows = [
        ["", *(one.cell.name for one in found)],
        ["---"] * (len(found) + 1),
        ["Python", *(one.cell.python for one in found)],
        ["commit", *(one.commit for one in found)],
        *([name, *(one.versions.get(name, "") for one in found)] for name in SHOWN),
        *([check, *(_say(one, check) for one in found)] for check in CHECKS),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "# Versions\n\n"
        f"Made by `make matrix`, last on {time.strftime('%Y-%m-%d')}: each column is a fresh "
        "environment from PyPI, and says what it gave on the commit that it names.\n\n"
        f"{table}\n"
    )


def _say(one: Found, check: str) -> str:
    if one.reason:
        return one.reason
    if check not in one.cell.checks:
        return ""
    if check not in one.seconds:
        return "not run"
    return one.failures[check] or f"green in {one.seconds[check]:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
