"""Where a run took place: the machine, the packages, the revision, the clock."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pytest_quantgate.own_process import run_git, run_program
from pytest_quantgate.report.model import (
    Environment,
)
from pytest_quantgate.store.keys import ENGINES
from pytest_quantgate.store.surroundings import Surroundings

#: Packages that measure nothing themselves, and that a reader may ask for.
TOOLS = ("pytest-quantgate", "pytest", "pytest-benchmark")


def describe_environment(
    *, root: Path, environ: Mapping[str, str], measured: Iterable[Mapping[str, str]]
) -> Environment:
    """Return the machine, the packages and the revision that a run judged.

    `measured` are the versions of what measured; where nothing did, those of what would have.
    """
    packages = {}
    for package in TOOLS:
        with suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    found = {name: version for versions in measured for name, version in versions.items()}
    packages |= found or Surroundings(environ=environ).versions(ENGINES)
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_read_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        packages=packages,
        commit=read_commit(root, environ=environ),
        gpus=_list_gpus(),
    )


def _list_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs here; none without NVIDIA's driver and its utilities."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    try:
        answer = run_program(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def read_commit(root: Path, *, environ: Mapping[str, str]) -> str:
    """Return the revision that a CI job says it is of, or that is checked out; empty for none."""
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA"):
        if environ.get(name):
            return environ[name]
    try:
        found = run_git(["rev-parse", "--verify", "--quiet", "HEAD"], cwd=root, timeout_s=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.decode("ascii", "replace").strip()


def read_clock(environ: Mapping[str, str]) -> str:
    """Return now, or SOURCE_DATE_EPOCH, for builds that must be reproducible."""
    epoch = environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdigit() else datetime.now(UTC)
    return now.isoformat(timespec="seconds").replace("+00:00", "Z")
