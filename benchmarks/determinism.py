"""Same commit, same machine: do cold runs give the same digits, on one thread and on several?

    .venv/bin/python benchmarks/determinism.py [--runs 20] [--threads 1 2] [--suite FILE ...]
                                               [--select EXPRESSION]

Runs the suites in fresh processes, each with an empty cache and an empty folder of baselines, the
thread counts in turn, and compares byte for byte: status and figures of every verdict, every value
of the JSON report, every baseline that is written, and every measurement that is cached (audits,
per-sample outcomes, embeddings, parity). Times are not digits: latency gates are left out, and so
is what `MOVING` names. Writes determinism.md beside it and ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
PACKAGES = ("torch", "transformers", "nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "numpy")

#: What a measurement is kept as in the cache. Not compared: ModelOpt's own state file, a pickle
#: whose bytes change from run to run (its content, every amax, is in audit.json), manifests, which
#: hold the digest of that, and ONNX files and engines, which their audits describe.
MEASUREMENTS = ("value.json", "audit.json", "calibration.json", "*.npy", "*.safetensors")

#: What no two runs share in a JSON report, and why.
#: When a run was, in the history that a report shows.
TIME_OF_RUN = re.compile(r"suites\.\d+\.history\.\d+\.points\.\d+\.time")

MOVING = {
    "created": "the time of the run",
    "seal": "the digest of the report, its time with it",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One cold run: every value that is compared, by its name."""

    number: int
    threads: int
    values: Mapping[str, str]


def run_cold(
    number: int, *, threads: int, suites: Sequence[Path], select: str, folder: Path
) -> Run:
    """Return all that one run of pytest with nothing to start from gives.

    Raises SystemExit with its output where a gate is not green: a red run proves nothing.
    """
    command = [sys.executable, "-m", "pytest", *map(str, suites), "-p", "no:cacheprovider"]
    command += ["-p", "no:randomly", "-q", "-k", select, f"--junitxml={folder / 'junit.xml'}"]
    command += [f"--quantgate-cache-dir={folder / 'cache'}", "--quantgate-baselines=create"]
    command += [f"--quantgate-baselines-dir={folder / 'baselines'}"]
    command += [f"--quantgate-obtained-dir={folder / 'obtained'}"]
    command += [f"--quantgate-json={folder / 'report.json'}"]
    count = str(threads)
    environ = {name: value for name, value in os.environ.items() if name not in ("CI",)}
    environ |= {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    environ |= {"OMP_WAIT_POLICY": "PASSIVE"}  # so that other work on the machine costs less
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"run {number} is not green:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return Run(number=number, threads=threads, values=collect(folder))


def collect(folder: Path) -> dict[str, str]:
    """Return the figures of verdicts and the values of the report as JSON, and the SHA-256 of
    baselines and measurements, each by its name."""
    values = {}
    for case in ElementTree.parse(folder / "junit.xml").getroot().iter("testcase"):
        figures = {found.get("name"): found.get("value") for found in case.iter("property")}
        suite = (case.get("classname") or "").rpartition(".")[2]
        for name, figure in sorted(figures.items(), key=str):
            values[f"verdict {suite} {case.get('name')} {name}"] = json.dumps(figure)
    report = (folder / "report.json").read_text(encoding="utf-8")
    for place in (str(folder), folder.name):
        report = report.replace(place, "FOLDER")
    for name, value in flatten(json.loads(report)):
        if name not in MOVING and not TIME_OF_RUN.fullmatch(name):
            values[f"report {name}"] = json.dumps(value)
    for kind, patterns in (("baselines", ("*.json",)), ("cache", MEASUREMENTS)):
        for pattern in patterns:
            for path in sorted((folder / kind).rglob(pattern)):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                values[f"{kind} {path.relative_to(folder / kind).as_posix()}"] = digest
    return values


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of JSON with its place: `suites.0.tasks.1.samples`."""
    if isinstance(value, dict):
        places: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        places = enumerate(value)
    else:
        yield name, value
        return
    for key, found in places:
        yield from flatten(found, f"{name}.{key}" if name else str(key))


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return every name whose value is not the same in all runs, with its distinct values."""
    names = sorted({name for run in runs for name in run.values})
    found = []
    for name in names:
        distinct = dict.fromkeys(run.values.get(name, "missing") for run in runs)
        if len(distinct) > 1:
            found.append((name, list(distinct)))
    return found


def render(runs: Sequence[Run], *, suites: Sequence[Path], select: str) -> str:
    """Return the page: what was compared, and what differs."""
    groups = {"all runs": list(runs)}
    for threads in sorted({run.threads for run in runs}):
        groups[f"{threads} thread{'s' if threads > 1 else ''}"] = [
            run for run in runs if run.threads == threads
        ]
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in PACKAGES if _is_installed(name)
    )
    kinds = ("verdict", "report", "baselines", "cache")
    lines = [
        "# Same commit, same machine, same digits",
        "",
        "Written by `python benchmarks/determinism.py` on "
        f"{datetime.now(UTC).date().isoformat()}: {len(runs)} cold runs of "
        f'{", ".join(f"`{path.name}`" for path in suites)} (`-k "{select}"`), each in a fresh '
        f"process with an empty cache. {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
        "",
        "| runs | how many | figures of verdicts | values in the JSON report | baselines "
        "| measurements | different |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        counts = [sum(key.startswith(f"{kind} ") for key in group[0].values) for kind in kinds]
        cells = (name, len(group), *counts, len(differences(group)))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    left_out = "; ".join(f"`{name}`, {why}" for name, why in MOVING.items())
    lines += ["", f"Not compared in the JSON report: {left_out}.", ""]
    found = differences(runs)
    if not found:
        lines.append("Every value is the same in every run, byte for byte.")
    else:
        lines += ["What differs:", "", "| value | seen |", "|---|---|"]
        lines += [f"| {name} | {', '.join(v[:24] for v in values)} |" for name, values in found]
    return "\n".join([*lines, ""])


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="cold runs in all; default: 20")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="taken in turn")
    names = ("clip_reference", "clip_reference_int8")  # what `make gate` runs
    default = [ROOT / "suites" / f"{name}.quantgate.yaml" for name in names]
    parser.add_argument("--suite", type=Path, nargs="+", default=default)
    parser.add_argument("--select", default="not latency", help="pytest's -k")
    asked = parser.parse_args()
    runs = []
    for number in range(asked.runs):
        threads = asked.threads[number % len(asked.threads)]
        with tempfile.TemporaryDirectory(prefix="quantgate-") as folder:
            runs.append(
                run_cold(
                    number + 1,
                    threads=threads,
                    suites=asked.suite,
                    select=asked.select,
                    folder=Path(folder),
                )
            )
        print(f"run {number + 1} of {asked.runs} ({threads} threads): ", end="")
        print(f"{len(differences(runs))} of {len(runs[0].values)} values differ so far", flush=True)
    page = render(runs, suites=asked.suite, select=asked.select)
    PAGE.write_text(page, encoding="utf-8")
    print(f"\n{page}")
    return 1 if differences(runs) else 0


if __name__ == "__main__":
    sys.exit(main())
