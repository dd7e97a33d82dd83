"""Build a TensorRT engine from an ONNX file and tell what became of the model.

With TensorRT for RTX this needs no GPU and no driver: the target is named (`sm89`). Build one
engine at a time in a process: the libraries register one logger for all of a process, and warn
that a second one is ignored while a builder or runtime that uses the first one lives.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantgate.formats.table import TABLE, list_targets
from pytest_quantgate.runtimes.engine_graph import read_onnx
from pytest_quantgate.runtimes.engine_layers import (
    EngineError,
    EngineReport,
    summarize_engine,
)
from pytest_quantgate.runtimes.engine_run import inspect_engine
from pytest_quantgate.runtimes.tensorrt_library import (
    Library,
    create_network,
    make_logger,
    normalize_target,
    set_target,
)

MAX_WARNINGS = 20

#: Messages about the absent driver: they come on every machine without one, and say nothing.
_NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient|no CUDA-capable device")
_OTHER_LOGGER = "differs from one already registered"
_HARDWARE_TYPE = re.compile(
    r"Cannot compile for target\(s\) [^,]+, because the model contains "
    r"HW-specific datatypes: (?P<types>[\w, ]+)"
)


@dataclass(frozen=True, kw_only=True)
class InputShapes:
    """The smallest, usual and largest shape of one input with a dynamic size."""

    name: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(kw_only=True)
class _Outcome:
    """What one run of the builder left behind; filled while it works."""

    plan: Any = None
    listing: str = ""
    log: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problem: str = ""
    other_logger: bool = False
    interrupt: BaseException | None = None
    build_s: float = 0.0
    callbacks: list[Any] = field(default_factory=list)

    def take(self, severity: str, text: str) -> None:
        """Keep what is needed of one message: a deep model prints megabytes of them."""
        if text.startswith("Layers:"):
            self.listing = text
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self.add_error(text)
        elif _OTHER_LOGGER in text:
            self.other_logger = True  # a cancelled build leaves one behind; so far no harm came
        elif severity == "WARNING" and text not in self.warnings:
            self.warnings.append(text)
        elif " Memory: " in text:
            self.log.append(text)

    def stop(self, error: BaseException) -> None:
        """Have the build cancelled at its next step, and `error` raised once it is off."""
        self.interrupt = self.interrupt or error

    def add_error(self, text: str) -> None:
        if text not in self.errors and not _NO_DRIVER.search(text):
            self.errors.append(text)


def build_engine(
    *,
    onnx_path: Path,
    plan_path: Path,
    library: Library,
    target: str,
    shapes: tuple[InputShapes, ...] = (),
) -> EngineReport:
    """Build the engine of `onnx_path` for `target`, write its plan to `plan_path` and report.

    `shapes` are needed for inputs with a dynamic size. Ctrl-C cancels the build and is raised here.

    Raises EngineError (a damaged or unsupported file, an unknown target, FP8 on a target without
    FP8 units), MissingPackage, or NotMeasured where `library` builds only for the GPU in the
    machine and that is absent or another one.
    """
    name = normalize_target(library, target)
    data, digest, graph = read_onnx(onnx_path)
    outcome = _build(
        library=library,
        target=name,
        onnx_path=onnx_path,
        data=data,
        shapes=shapes,
    )
    outcome.callbacks.clear()  # the builder is gone, so nothing calls them any more
    if outcome.interrupt is not None:
        raise outcome.interrupt
    if outcome.problem:
        raise EngineError(f"{onnx_path}: {outcome.problem}")
    if outcome.plan is None:
        raise EngineError(_explain_failure(outcome, library=library, target=name, path=onnx_path))
    outcome.listing = outcome.listing or inspect_engine(library=library, plan=outcome.plan)
    if not outcome.listing:
        why = (
            "another builder or runtime that lives in this process took the library's messages: "
            "build engines one after another, or in a process each"
            if outcome.other_logger
            else "it printed none; please report it"
        )
        raise EngineError(
            f"{onnx_path}: {library.name} {library.version} built the engine, but there is no "
            f"layer listing, so nothing can be said about its precision: {why}"
        )
    plan = memoryview(outcome.plan)
    plan_path.write_bytes(plan)
    return summarize_engine(
        target=name,
        library=library.name,
        library_version=library.version,
        onnx_sha256=digest,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=plan.nbytes,
        build_s=outcome.build_s,
        listing=outcome.listing,
        log=outcome.log,
        graph=graph,
        warnings=tuple(outcome.warnings[:MAX_WARNINGS]),
    )


def _build(
    *,
    library: Library,
    target: str,
    onnx_path: Path,
    data: bytes,
    shapes: tuple[InputShapes, ...],
) -> _Outcome:
    """Run the builder and let go of it; whatever goes wrong is in the outcome, not raised.

    A raised exception would hold this frame, and with it the builder and its logger, for as long
    as anyone holds the traceback: the next build would then print to the wrong logger.
    The callbacks are kept in the outcome: the builder, which has bare pointers to them, calls them
    until its very end, and the locals of a function are not let go in reverse order.
    """
    trt = library.module
    outcome = _Outcome()
    logger = make_logger(library, take=outcome.take, stop=outcome.stop)
    recorder = _make_error_recorder(trt, outcome)
    monitor = _make_monitor(trt, outcome)
    outcome.callbacks += [logger, recorder, monitor]
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # no usable device, where the library needs one
        outcome.problem = f"{library.name} {library.version} cannot start a builder here: " + (
            outcome.errors[0] if outcome.errors else str(error)
        )
        return outcome
    network = create_network(library, builder)  # the parser keeps no reference to it: we must
    # Only now: a network that is created under a recorder crashes the process when it is let go.
    builder.error_recorder = recorder
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data, str(onnx_path)):
        outcome.problem = _explain_parser(parser, library)
        return outcome
    outcome.problem = _find_shape_problem(network, shapes)
    if outcome.problem:
        return outcome
    config = builder.create_builder_config()
    outcome.problem = set_target(library, config, target)
    if outcome.problem:
        return outcome
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor
    if shapes:
        profile = builder.create_optimization_profile()
        for shape in shapes:
            profile.set_shape(shape.name, shape.smallest, shape.usual, shape.largest)
        if config.add_optimization_profile(profile) < 0:
            outcome.problem = (
                f"the shapes given for {', '.join(s.name for s in shapes)} do not hold together: "
                f"smallest <= usual <= largest, with the fixed sizes of the ONNX inputs"
            )
            return outcome
    started = time.perf_counter()
    outcome.plan = builder.build_serialized_network(network, config)
    outcome.build_s = time.perf_counter() - started
    return outcome


def _make_error_recorder(trt: Any, outcome: _Outcome) -> Any:
    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.recorded: list[tuple[Any, str]] = []

        def num_errors(self) -> int:
            return len(self.recorded)

        def get_error_code(self, index: int) -> Any:
            return self.recorded[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.recorded[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.recorded.clear()

        def report_error(self, code: Any, description: str) -> bool:
            self.recorded.append((code, description))
            outcome.add_error(description)
            return False

    return Recorder()


def _make_monitor(trt: Any, outcome: _Outcome) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...

        def step_complete(self, phase: str, step: int) -> bool:
            return outcome.interrupt is None  # False cancels the build

        def phase_finish(self, phase: str) -> None: ...

    return Monitor()


def _explain_parser(parser: Any, library: Library) -> str:
    """Return in one line each what the parser refused, named by ONNX node."""
    told = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = str(error.node_name()), str(error.node_operator())
        lines = [line.strip() for line in str(error.desc()).splitlines()]
        useful = [line for line in lines if line and not _NO_DRIVER.search(line)]
        reason = " ".join(useful) or "no reason given"
        if "Plugin not found" in reason:
            reason = f"{library.name} {library.version} knows no operator {operator!r}"
        told.append(f"node {node!r} ({operator}): {reason}" if node or operator else reason)
    return f"{library.name} cannot read the graph: " + ("; ".join(told) or "no reason given")


def _find_shape_problem(network: Any, shapes: tuple[InputShapes, ...]) -> str:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    given = {shape.name for shape in shapes}
    unknown = sorted(given - {i.name for i in inputs})
    if unknown:
        names = ", ".join(repr(i.name) for i in inputs)
        return f"shapes are given for {unknown}, but the inputs are {names}"
    open_ended = [i.name for i in inputs if -1 in tuple(i.shape) and i.name not in given]
    if open_ended:
        return (
            f"the inputs {open_ended} have a dynamic size: give their smallest, usual and largest "
            f"shape, or export the model with a static batch size"
        )
    for given_shape in shapes:
        ranks = {len(given_shape.smallest), len(given_shape.usual), len(given_shape.largest)}
        expected = next(len(tuple(i.shape)) for i in inputs if i.name == given_shape.name)
        if ranks != {expected}:
            return f"the input {given_shape.name!r} has {expected} dimensions, its shapes do not"
    return ""


def _explain_failure(outcome: _Outcome, *, library: Library, target: str, path: Path) -> str:
    text = " | ".join(outcome.errors)
    match = _HARDWARE_TYPE.search(text)
    if match:
        types = match["types"].strip()
        having = "; ".join(
            f"{(row.precision or row.name).upper()}: {list_targets(row)}"
            for row in TABLE
            if row.hardware_type in types.split(", ")
        )
        return (
            f"{path}: cannot build for {target}, which has no units for {types}: "
            f'"{match[0].strip()}"; set `target:` to one that has'
            f"{f' ({having})' if having else ''}, or ship the FP16 variant on {target}"
        )
    return (
        f"{path}: {library.name} {library.version} could not build for {target}: "
        f"{outcome.errors[0] if outcome.errors else 'the library gave no reason'}"
    )
