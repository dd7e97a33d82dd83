"""What the supported versions of Python and of the libraries say to the default gate and the tests.

    python benchmarks/matrix.py [--cells oldest,newest] [--folder DIR]

Each cell is a fresh environment from PyPI, with some packages pinned and the others as pip finds
them within the bounds of pyproject.toml. In it run the default gate and the unit tests that are not
slow. Writes `benchmarks/matrix.md`; exits with 1 where a cell is red. An environment that is there
already is taken as it is, so that a run that was broken off goes on.
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
from collections.abc import Mapping
from dataclasses import dataclass
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
    Cell(name="newest", python="3.13", pins=()),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a cell gave: the versions in it, and of each check its last line; empty where it holds.

    `reason` says why there is no environment.
    """

    cell: Cell
    versions: Mapping[str, str]
    failures: Mapping[str, str]
    seconds: Mapping[str, float]
    reason: str = ""

    @property
    def is_green(self) -> bool:
        return not self.reason and not any(self.failures.values())


def main() -> int:
    """Run the cells that are asked for and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cells", default=",".join(cell.name for cell in CELLS))
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix")
    arguments = parser.parse_args()
    wanted = arguments.cells.split(",")
    unknown = set(wanted) - {cell.name for cell in CELLS}
    if unknown:
        parser.error(f"no cell {', '.join(sorted(unknown))}: {', '.join(c.name for c in CELLS)}")
    found = [run_cell(cell, folder=arguments.folder) for cell in CELLS if cell.name in wanted]
    page = write_page(found)
    if len(found) == len(CELLS):
        PAGE.write_text(page, encoding="utf-8")
    print(page)
    return 0 if all(cell.is_green for cell in found) else 1


def run_cell(cell: Cell, *, folder: Path) -> Found:
    """Make a cell's environment where there is none, and run the checks in it."""
    place = folder / cell.name
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        reason = _install(cell, place=place)
        if reason:
            return Found(cell=cell, versions={}, failures={}, seconds={}, reason=reason)
    failures, seconds = {}, {}
    for name in cell.checks:
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
    return Found(cell=cell, versions=_read_versions(python), failures=failures, seconds=seconds)


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
        *([name, *(one.versions.get(name, "") for one in found)] for name in SHOWN),
        *([check, *(_say(one, check) for one in found)] for check in CHECKS),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        "# Versions\n\n"
        "Made by `make matrix` on "
        f"{time.strftime('%Y-%m-%d')}: each column is a fresh environment from PyPI.\n\n{table}\n"
    )


def _say(one: Found, check: str) -> str:
    if one.reason:
        return one.reason
    if check not in one.cell.checks:
        return ""
    return one.failures[check] or f"green in {one.seconds[check]:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
