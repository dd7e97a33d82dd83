"""What gates need, against what a machine has: packages, devices, the model, data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pytest_quantgate.commands.machine import ALTERNATIVES, Machine, is_installed
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.sections import EngineTarget, TaskGate
from pytest_quantgate.gates.timed import TimedGate, TimedRuntime
from pytest_quantgate.suite import gates as suite_gates
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.specs import Suite
from pytest_quantgate.suite.where import expand_path


@dataclass(frozen=True)
class Missing:
    """What is not here, and the command that mends it (may be empty)."""

    what: str
    fix: str = ""


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
    return Missing(names, missing[0].fix)


def _onnxruntime(machine: Machine) -> Missing | None:
    if machine.missing("onnx"):
        return _extra(machine, "onnx")
    if is_installed(ALTERNATIVES["onnxruntime"]):
        return None
    return Missing("onnxruntime (missing)", "pip install 'pytest-quantgate[onnx]'")


def _library(library: str) -> Missing | None:
    if is_installed(ALTERNATIVES[library]):
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
        return _split_add_fix(error)
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
            return _split_add_fix(error)
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
        return _split_add_fix(error)
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
        return _split_add_fix(error)
    if not root.is_dir():
        return Missing(f"{spec.where.of('root')}: {root} is no directory", "put the data set there")
    try:
        reader = find_reader(spec.dataset)
    except QuantGateError as error:
        return Missing(str(error), "")
    if reader.package and not is_installed((reader.package,)):
        return Missing(
            f"{reader.package} (missing)", f"pip install 'pytest-quantgate[{reader.extra}]'"
        )
    return None


def _split_add_fix(error: QuantGateError) -> Missing:
    """Return a message's two halves: `...: export NAME=PATH` holds its own fix."""
    what, _, fix = str(error).rpartition(": ")
    return Missing(what, fix) if fix.startswith("export ") else Missing(str(error))
