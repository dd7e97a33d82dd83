"""What the plugin costs a pytest run that has nothing to do with it.

    .venv/bin/python benchmarks/startup.py [RUNS]

Runs `pytest --help`, a folder of one plain test, and the collection of a suite, in turn with and
without the plugin, in fresh processes; prints medians of the paired differences (ms) and ratios.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUITE = Path(__file__).parents[1] / "suites" / "clip_reference.quantgate.yaml"


def time_command(arguments: list[str], *, folder: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        check=False,
        # As for anybody: modules are compiled once, not at each start.
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
    return (time.perf_counter() - started) * 1000


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain, judged = Path(folder, "plain"), Path(folder, "suite")
        for each in (plain, judged):
            each.mkdir()
            (each / "test_one.py").write_text("def test_one(): pass\n", encoding="utf-8")
        (judged / "clip.quantgate.yaml").write_text(SUITE.read_text("utf-8"), encoding="utf-8")
        print(f"{'command':<36}{'bare ms':>10}{'plugin ms':>12}{'difference ms':>16}{'ratio':>8}")
        for arguments in (["--help"], ["-q", "plain"], ["--collect-only", "-q", "suite"]):
            bare, with_plugin = [], []
            for _ in range(runs + 1):  # the first pair warms the file cache
                bare.append(time_command(["-p", "no:quantgate", *arguments], folder=folder))
                with_plugin.append(time_command(arguments, folder=folder))
            pairs = list(zip(bare, with_plugin, strict=True))[1:]
            difference = statistics.median(after - before for before, after in pairs)
            ratio = statistics.median(after / before for before, after in pairs)
            print(
                f"pytest {' '.join(arguments):<29}"
                f"{statistics.median(b for b, _ in pairs):>10.0f}"
                f"{statistics.median(a for _, a in pairs):>12.0f}{difference:>16.0f}{ratio:>7.2f}x"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
