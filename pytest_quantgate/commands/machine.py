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
from typing import Any, Literal, get_args

from pytest_quantgate.errors import CacheError, QuantGateError
from pytest_quantgate.formats.table import E4M3
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.sections import EngineTarget, TaskGate
from pytest_quantgate.gates.timed import TimedGate, TimedRuntime
from pytest_quantgate.own_process import run_program
from pytest_quantgate.store.private import open_private
from pytest_quantgate.suite import gates as suite_gates
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.specs import Suite
from pytest_quantgate.suite.where import expand_path

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
    mend: str = ""


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
            mend=f"pip install 'pytest-quantgate[{extra}]'" if extra else f"pip install '{wanted}'",
        )
    name, version = there[0]
    detail = version if name == requirement.name else f"{version} ({name})"
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name=requirement.name, state="OK", detail=detail)
    return Check(
        name=requirement.name,
        state=_too_old_or_new(requirement, version),
        detail=f"{detail}, supported is {requirement.specifier}",
        mend=f"pip install '{wanted}'",
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


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Return whether this Python is one that is supported."""
    shown = ".".join(str(part) for part in version)
    if version[:2] < PYTHON:
        least = ".".join(str(part) for part in PYTHON)
        return Check(
            name="Python",
            state="TOO OLD",
            detail=f"{shown}, supported is {least} and newer",
            mend=f"make a virtual environment with Python {least}",
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
            mend="pip install --force-reinstall pytest-quantgate",
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
            mend="install the driver's utilities, or start the container with --gpus all",
        )
    gpus = tuple(_read_gpu(line) for line in answer.stdout.splitlines() if line.count(",") >= 3)
    if answer.returncode != 0 or not gpus:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        return (), Check(
            name="GPU",
            state="BROKEN",
            detail=f"nvidia-smi: {said[0] if said else f'status {answer.returncode}'}",
            mend="restart the container or the machine: driver and library do not fit",
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
            mend="--quantgate-cache-dir=DIR, or quantgate_cache_dir in the ini file",
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
            mend="delete the folder, or --quantgate-cache-dir=DIR",
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


# -- what can be measured -------------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """What is not here, and the command that mends it (may be empty)."""

    what: str
    mend: str = ""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a gate needs and is not here: each with the command that mends it."""

    gate: str
    missing: tuple[Missing, ...] = ()

    @property
    def is_there(self) -> bool:
        return not self.missing


def list_kinds(machine: Machine) -> tuple[Need, ...]:
    """Return for every kind of gate whether this machine can measure it, data and model aside."""
    clip, needs = _extra(machine, "clip"), []
    for kind in suite_gates.list_kinds():
        parts = [clip, *(_part(machine, name) for name in kind.needs)]
        timed = issubclass(kind.section, TimedGate)
        if not timed:
            needs.append(_need(kind.name, *parts))
        if kind.section is AccuracyGate:
            needs.append(_need(f"{kind.name}, stage: onnx", clip, _onnxruntime(machine)))
            needs.append(_need(f"{kind.name}, stage: engine", clip, _gpu(machine)))
        if kind.section is EngineGate:
            name = f"{kind.name}, library: tensorrt"
            needs.append(_need(name, _library("tensorrt"), _gpu(machine)))
        if timed:
            for runtime in get_args(TimedRuntime):
                name = f"{kind.name}, runtime: {runtime}"
                needs.append(_need(name, *parts, _runtime(machine, runtime)))
    return tuple(needs)


def _part(machine: Machine, name: str) -> Missing | None:
    """Return what is missing of a part that a kind of gate says it needs."""
    if name == "load":
        return _extra(machine, name)
    return _onnxruntime(machine) if name == "onnxruntime" else _library(name)


def list_needs(suite: Suite, *, machine: Machine, environ: Mapping[str, str]) -> tuple[Need, ...]:
    """Return for every gate of a suite whether all that it needs is here, data and model too."""
    model = _model(suite, environ=environ)
    calibration = _data(suite, suite.calibration.data, environ=environ)
    gates = suite.gates.all(TaskGate)
    tasks = [_data(suite, gate.task, environ=environ) for gate in gates]
    clip = _extra(machine, "clip")
    recipe, given = _recipe(suite, environ=environ), _given(suite, environ=environ)
    needs = []
    for gate in suite.gates:
        parts: list[Missing | None] = [clip, model, calibration, recipe]
        data = getattr(gate, "task", None) or getattr(gate, "data", None)
        parts += [_data(suite, data, environ=environ)] if data else []
        if gate.kind in suite_gates.IMPLICIT:
            parts += tasks  # it looks at the FP16 model alone
        else:
            parts += [given, *_gate_parts(gate, machine=machine)]
        needs.append(_need(gate.name, *parts))
    return tuple(needs)


def _gate_parts(gate: GateSection, *, machine: Machine) -> list[Missing | None]:
    if isinstance(gate, EngineTarget):
        if gate.target is None:
            return []
        parts = [_library(gate.library)]
        if gate.library == "tensorrt":  # builds for the GPU in the machine alone
            parts.append(_gpu(machine, target=gate.target))
        return parts
    if isinstance(gate, AccuracyGate) and gate.stage != "torch":
        return [_onnxruntime(machine) if gate.stage == "onnx" else _gpu(machine)]
    parts = [_part(machine, name) for name in suite_gates.kind_of(gate).needs]
    return [*parts, _runtime(machine, gate.runtime)] if isinstance(gate, TimedGate) else parts


def _need(gate: str, *parts: Missing | None) -> Need:
    found = (part for part in parts if part is not None)
    return Need(gate=gate, missing=tuple(dict.fromkeys(found)))


def _extra(machine: Machine, extra: str) -> Missing | None:
    missing = machine.missing(extra)
    if not missing:
        return None
    names = ", ".join(f"{check.name} ({check.state.lower()})" for check in missing)
    return Missing(names, missing[0].mend)


def _has(names: Iterable[str]) -> bool:
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False


def _onnxruntime(machine: Machine) -> Missing | None:
    if machine.missing("onnx"):
        return _extra(machine, "onnx")
    if _has(ALTERNATIVES["onnxruntime"]):
        return None
    return Missing("onnxruntime (missing)", "pip install 'pytest-quantgate[onnx]'")


def _library(library: str) -> Missing | None:
    if _has(ALTERNATIVES[library]):
        return None
    extra = "rtx" if library == "tensorrt-rtx" else "tensorrt"
    return Missing(f"{library} (missing)", f"pip install 'pytest-quantgate[{extra}]'")


def _gpu(machine: Machine, *, target: str | None = None) -> Missing | None:
    if not machine.gpus:
        return Missing("no NVIDIA GPU", "run it where there is one")
    if target is not None and all(gpu.target != target for gpu in machine.gpus):
        here = ", ".join(gpu.target for gpu in machine.gpus)
        return Missing(f"the GPU here is {here}, the gate is for {target}", f"set target: {here}")
    return None


def _runtime(machine: Machine, runtime: str) -> Missing | None:
    if runtime == "torch":
        return None
    if runtime == "onnxruntime":
        return _onnxruntime(machine)
    if runtime.startswith("onnxruntime"):
        return _onnxruntime(machine) or _gpu(machine)
    return _library(runtime) or _gpu(machine)


def _model(suite: Suite, *, environ: Mapping[str, str]) -> Missing | None:
    from pytest_quantgate.encoders.source import find_code, is_local

    model = suite.model
    try:
        if model.factory is not None:
            find_code(model, environ=environ)
        if model.id is None:
            return None
        if is_local(model.id):
            folder = expand_path(model.id, where=model.where.of("id"), environ=environ)
            if folder.is_dir():
                return None
            where = model.where.of("id")
            return Missing(f"{where}: {folder} is no directory", "put the checkpoint there")
    except QuantGateError as error:
        return _split_mend(error)
    if hub_snapshot(model.id, revision=model.revision or "", environ=environ).is_dir():
        return None
    return Missing(
        f"{model.where.of('id')}: {model.id} was not downloaded",
        f"hf download {model.id} --revision {model.revision}",
    )


def _given(suite: Suite, *, environ: Mapping[str, str]) -> Missing | None:
    """Return what is missing of files that are handed over; `validate` says what is wrong."""
    for text, where in suite.given_paths:
        try:
            path = expand_path(text, where=where, environ=environ)
        except QuantGateError as error:
            return _split_mend(error)
        if not path.exists():
            return Missing(f"{where}: {path} is not there", "put it there")
    return None


def _recipe(suite: Suite, *, environ: Mapping[str, str]) -> Missing | None:
    """Return what is missing of a recipe in a file; what it says is for `quantgate validate`."""
    recipe, where = suite.variant.recipe, suite.variant.where.of("recipe")
    if not isinstance(recipe, str) or "${" not in recipe:
        return None
    try:
        path = expand_path(recipe, where=where, environ=environ)
    except QuantGateError as error:
        return _split_mend(error)
    return None if path.exists() else Missing(f"{where}: the recipe is no file", "put it there")


def hub_snapshot(name: str, *, revision: str, environ: Mapping[str, str]) -> Path:
    """Return where the hub's client keeps a revision (`HF_HUB_CACHE`, `HF_HOME`, ~/.cache)."""
    home = environ.get("HF_HOME") or str(
        Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    cache = Path(environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / revision


def _data(suite: Suite, name: str, *, environ: Mapping[str, str]) -> Missing | None:
    from pytest_quantgate.tasks.readers import find_reader

    spec = suite.datasets.get(name.rpartition("/")[0])
    if spec is None:
        return None  # it ships, or `quantgate validate` has said that it is unknown
    if spec.root is None:
        return Missing(f"{spec.where}: needs a root", "add root: DIR")
    try:
        root = expand_path(spec.root, where=spec.where.of("root"), environ=environ)
    except QuantGateError as error:
        return _split_mend(error)
    if not root.is_dir():
        return Missing(f"{spec.where.of('root')}: {root} is no directory", "put the data set there")
    try:
        reader = find_reader(spec.dataset)
    except QuantGateError as error:
        return Missing(str(error), "")
    if reader.package and not _has((reader.package,)):
        return Missing(
            f"{reader.package} (missing)", f"pip install 'pytest-quantgate[{reader.extra}]'"
        )
    return None


def _split_mend(error: QuantGateError) -> Missing:
    """Return a message's two halves: `...: export NAME=PATH` holds its own mend."""
    what, _, mend = str(error).rpartition(": ")
    return Missing(what, mend) if mend.startswith("export ") else Missing(str(error))


# -- deep checks ----------------------------------------------------------------------------------


def look_deeper(machine: Machine, *, environ: Mapping[str, str]) -> Iterator[Check]:
    """Yield what only importing and asking shows: torch and CUDA, providers, libraries, the hub."""
    yield _try("torch", _ask_torch)
    yield _try("onnxruntime", _ask_onnxruntime)
    yield _try("tensorrt_rtx", lambda: _ask_tensorrt("tensorrt_rtx"))
    if _has(ALTERNATIVES["tensorrt"]):
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
