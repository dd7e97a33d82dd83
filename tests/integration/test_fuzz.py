"""A small share of the fuzzing of benchmarks/: the same damaged and hostile input in every run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz.targets import TARGETS

REPOSITORY = Path(__file__).parents[2]


def test_no_damaged_input_breaks_a_reader(tmp_path: Path) -> None:
    """In a process of its own: it limits its memory."""
    for package in ("onnx", "modelopt", "safetensors", "pyarrow"):
        pytest.importorskip(package)

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--cases", "600", "--keep", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^([\w ]+?) +(\d+) +\d+ +\d+ +0 +[\d.]+ +\d+$", done.stdout, re.MULTILINE)
    assert {name for name, _ in rows} == set(TARGETS)
    assert sum(int(cases) for _, cases in rows) >= 600
    assert not list(tmp_path.iterdir())
