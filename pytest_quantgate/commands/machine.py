"""What this machine can measure: packages against their supported ranges, GPU, data, room.

Reads metadata and files; imports no heavy library (`deep` checks do, and say so).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pytest_quantgate.errors import CacheError
from pytest_quantgate.formats.table import E4M3
from pytest_quantgate.own_process import run_program
from pytest_quantgate.store.private import open_private

State = Literal["OK", "MISSING", "TOO OLD", "TOO NEW", "BROKEN", "NOTE"]

PYTHON = (3, 11)

#: Distributions that bring the same library under several names.
ALTERNATIVES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
    "tensorrt-rtx": ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
}

#: The extra whose packages each purpose needs.
PURPOSES = {
    "clip": "building and measuring FP16 and quantized models",
    "onnx": "running exported models",
    "rtx": "building engines without a GPU",
    "tensorrt": "building and running engines on a GPU",
    "bench": "recording latency with pytest-benchmark",
    "load": "testing under load",
    "data": "reading Parquet and saved data sets",
}

#: Room that a run of a large model can take: variants, embeddings, exported files.
FREE_BYTES = 5 << 30

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line: what was looked at, how it is, and the command that mends it (may be empty)."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; `capability` as NVIDIA writes it, 8.9."""

    name: str
    capability: float
    memory: str
    driver: str

    @property
    def target(self) -> str:
        return f"sm{self.capability * 10:.0f}" if self.capability else "compute capability unknown"

    @property
    def has_fp8(self) -> bool:
        return bool(self.capability) and E4M3.is_supported_on(self.target)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found. `packages` maps an extra (`` for the core) to the checks of its packages."""

    packages: Mapping[str, tuple[Check, ...]]
    gpus: tuple[Gpu, ...]
    others: tuple[Check, ...]

    def missing(self, extra: str) -> tuple[Check, ...]:
        """Return the packages of an extra that are absent or out of range."""
        return tuple(check for check in self.packages.get(extra, ()) if check.state != "OK")

    @property
    def checks(self) -> tuple[Check, ...]:
        return (*(check for group in self.packages.values() for check in group), *self.others)


def look(*, environ: Mapping[str, str], cache_dir: Path, run: Run = run_program) -> Machine:
    """Return what is there; `run` calls nvidia-smi."""
    gpus, gpu_check = find_gpus(run=run)
    return Machine(
        packages=check_packages(),
        gpus=gpus,
        others=(
            check_python(),
            gpu_check,
            check_hub(environ),
            check_cache(cache_dir),
            check_cores(),
            *check_plugins(),
        ),
    )


# -- packages -------------------------------------------------------------------------------------


def check_packages(
    requirements: Sequence[str] | None = None,
    *,
    version_of: Callable[[str], str] = metadata.version,
) -> dict[str, tuple[Check, ...]]:
    """Return a check a package, by the extra that asks for it.

    The ranges are those of this project's own metadata. `dev` and `all` are left out.
    """
    from packaging.requirements import Requirement

    if requirements is None:
        requirements = metadata.requires("pytest-quantgate") or []
    found: dict[str, list[Check]] = {"": [], **{extra: [] for extra in PURPOSES}}
    for text in requirements:
        requirement = Requirement(text)
        extra = _extra_of(str(requirement.marker or ""))
        if extra in found:
            found[extra].append(_check_package(requirement, extra=extra, version_of=version_of))
    return {extra: tuple(checks) for extra, checks in found.items()}


def _extra_of(marker: str) -> str:
    named = re.search(r"extra == [\"']([\w-]+)[\"']", marker)
    return named[1] if named else ""


def _check_package(requirement: Any, *, extra: str, version_of: Callable[[str], str]) -> Check:
    wanted = f"{requirement.name}{requirement.specifier}"
    family = requirement.name.removesuffix("-cu12").removesuffix("-cu13")
    there: list[tuple[str, str]] = []
    for name in (requirement.name, *ALTERNATIVES.get(family, ())):
        try:
            there.append((name, version_of(name)))
        except metadata.PackageNotFoundError:
            continue
    if not there:
        return Check(
            name=requirement.name,
            state="MISSING",
            detail=f"needed for {PURPOSES.get(extra, 'everything')}",
            fix=f"pip install 'pytest-quantgate[{extra}]'" if extra else f"pip install '{wanted}'",
        )
    name, version = there[0]
    detail = version if name == requirement.name else f"{version} ({name})"
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name=requirement.name, state="OK", detail=detail)
    return Check(
        name=requirement.name,
        state=_too_old_or_new(requirement, version),
        detail=f"{detail}, supported is {requirement.specifier}",
        fix=f"pip install '{wanted}'",
    )


def _too_old_or_new(requirement: Any, version: str) -> State:
    from packaging.version import InvalidVersion, Version

    try:
        bounds = [
            Version(part.version.removesuffix(".*"))
            for part in requirement.specifier
            if part.operator in (">=", ">", "==", "~=")
        ]
        return "TOO OLD" if any(Version(version) < bound for bound in bounds) else "TOO NEW"
    except InvalidVersion:
        return "BROKEN"


def is_installed(names: Iterable[str]) -> bool:
    """Return whether one of these distributions is there."""
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Return whether this Python is one that is supported."""
    shown = ".".join(str(part) for part in version)
    if version[:2] < PYTHON:
        least = ".".join(str(part) for part in PYTHON)
        return Check(
            name="Python",
            state="TOO OLD",
            detail=f"{shown}, supported is {least} and newer",
            fix=f"make a virtual environment with Python {least}",
        )
    return Check(name="Python", state="OK", detail=f"{shown} on {platform.platform(terse=True)}")


def check_plugins() -> Iterator[Check]:
    """Yield what pytest loads beside this plugin, and whether this one is registered at all."""
    names = {entry.name for entry in metadata.entry_points(group="pytest11")}
    if "quantgate" in names:
        yield Check(name="pytest plugin", state="OK", detail="registered as quantgate")
    else:
        yield Check(
            name="pytest plugin",
            state="BROKEN",
            detail="pytest does not find it: the installation is not complete",
            fix="pip install --force-reinstall pytest-quantgate",
        )
    others = sorted(names - {"quantgate"})
    yield Check(name="other plugins", state="NOTE", detail=", ".join(others) or "none")


# -- the machine ----------------------------------------------------------------------------------


def find_gpus(
    *, run: Run = run_program, node: Path = Path("/dev/nvidiactl")
) -> tuple[tuple[Gpu, ...], Check]:
    """Return the GPUs that the driver names, and one check of them; torch is not asked."""
    if not node.exists():
        detail = "none (no NVIDIA driver): CPU measurements, engines for named targets"
        return (), Check(name="GPU", state="NOTE", detail=detail)
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    try:
        answer = run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = "is not installed" if isinstance(error, OSError) else "does not answer"
        return (), Check(
            name="GPU",
            state="BROKEN",
            detail=f"there is a driver ({node}), but nvidia-smi {reason}",
            fix="install the driver's utilities, or start the container with --gpus all",
        )
    gpus = tuple(_read_gpu(line) for line in answer.stdout.splitlines() if line.count(",") >= 3)
    if answer.returncode != 0 or not gpus:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        return (), Check(
            name="GPU",
            state="BROKEN",
            detail=f"nvidia-smi: {said[0] if said else f'status {answer.returncode}'}",
            fix="restart the container or the machine: driver and library do not fit",
        )
    words = "; ".join(
        f"{gpu.name}, {gpu.target}, {'FP8 units' if gpu.has_fp8 else 'no FP8 units'}, "
        f"{gpu.memory}, driver {gpu.driver}"
        for gpu in gpus
    )
    return gpus, Check(name="GPU", state="OK", detail=words)


def _read_gpu(line: str) -> Gpu:
    name, capability, memory, driver = (part.strip() for part in line.split(",")[:4])
    try:
        number = float(capability)
    except ValueError:
        number = 0.0
    return Gpu(name=name, capability=number, memory=memory, driver=driver)


def check_hub(environ: Mapping[str, str]) -> Check:
    """Return whether the hub may be asked: offline flags only, nothing is sent."""
    flags = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_on(environ, name)]
    if flags:
        detail = f"offline ({', '.join(flags)} is set): only what was downloaded before is found"
        return Check(name="hub", state="NOTE", detail=detail)
    return Check(name="hub", state="NOTE", detail="not forbidden; not tried (--deep tries it)")


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def check_cache(folder: Path) -> Check:
    """Return where variants are kept, how large that is, and whether there is room for more."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(
            name="cache",
            state="BROKEN",
            detail=f"{folder} cannot be written",
            fix="--quantgate-cache-dir=DIR, or quantgate_cache_dir in the ini file",
        )
    try:
        with open_private(folder):
            pass
    except FileNotFoundError:
        pass
    except CacheError as error:
        return Check(name="cache", state="BROKEN", detail=str(error))
    free = shutil.disk_usage(there).free
    used = sum(path.stat().st_size for path in _files(folder))
    detail = f"{folder}: {_size(used)} used, {_size(free)} free"
    if free < FREE_BYTES:
        return Check(
            name="cache",
            state="NOTE",
            detail=f"{detail}: a large model can take {_size(FREE_BYTES)}",
            fix="delete the folder, or --quantgate-cache-dir=DIR",
        )
    return Check(name="cache", state="OK", detail=detail)


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 10**8 else f"{number / 1e6:.1f} MB"


def check_cores() -> Check:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(name="cores", state="OK", detail=f"{count} usable, {platform.machine()}")


# -- deep checks ----------------------------------------------------------------------------------


def look_deeper(machine: Machine, *, environ: Mapping[str, str]) -> Iterator[Check]:
    """Yield what only importing and asking shows: torch and CUDA, providers, libraries, the hub."""
    yield _try("torch", _ask_torch)
    yield _try("onnxruntime", _ask_onnxruntime)
    yield _try("tensorrt_rtx", lambda: _ask_tensorrt("tensorrt_rtx"))
    if is_installed(ALTERNATIVES["tensorrt"]):
        yield _try("tensorrt", lambda: _ask_tensorrt("tensorrt"))
    if check_hub(environ).detail.startswith("not forbidden"):
        yield _try("hub", _ask_hub, failed="NOTE")


def _try(name: str, ask: Callable[[], str], *, failed: State = "BROKEN") -> Check:
    try:
        return Check(name=f"{name} (deep)", state="OK", detail=ask())
    except ImportError as error:
        return Check(name=f"{name} (deep)", state="MISSING", detail=_line(error))
    except Exception as error:  # noqa: BLE001  # whatever a broken library does is the answer
        return Check(name=f"{name} (deep)", state=failed, detail=_line(error))


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:200]


def _ask_torch() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"{torch.__version__}, no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    product = torch.ones(16, 16, device="cuda") @ torch.ones(16, 16, device="cuda")
    if float(product[0, 0]) != 16.0:
        raise RuntimeError("a matrix product on the GPU is wrong")
    return f"{torch.__version__}, {torch.cuda.get_device_name()}, sm{major}{minor}, computes"


def _ask_onnxruntime() -> str:
    import onnxruntime

    return f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"


def _ask_tensorrt(name: Literal["tensorrt_rtx", "tensorrt"]) -> str:
    from pytest_quantgate.errors import MissingPackage
    from pytest_quantgate.runtimes.tensorrt_library import list_targets, load_library

    try:
        library = load_library(name=name)
    except MissingPackage as error:
        raise ImportError(str(error)) from error
    targets = ", ".join(list_targets(library)) or "the GPU in the machine alone"
    return f"{library.version}, builds for {targets}"


def _ask_hub() -> str:
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10) as answer:
        return f"{constants.ENDPOINT} answers ({answer.status})"
