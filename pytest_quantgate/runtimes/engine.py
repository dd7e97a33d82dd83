"""Build a TensorRT engine from an ONNX file and tell what became of the model.

With TensorRT for RTX this needs no GPU and no driver: the target is named (`sm89`). Build one
engine at a time in a process: the libraries register one logger for all of a process, and warn
that a second one is ignored while a builder or runtime that uses the first one lives.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.formats.table import TABLE, list_targets
from pytest_quantgate.runtimes.engine_layers import (
    EngineError,
    EngineReport,
    OnnxAttention,
    OnnxGraph,
    read_block,
    summarize_engine,
)
from pytest_quantgate.runtimes.engine_run import inspect_engine
from pytest_quantgate.runtimes.onnx_nodes import (
    Graph,
    is_dequantize,
    is_quantize,
    name_data_type,
    zero_of,
)
from pytest_quantgate.runtimes.tensorrt_library import (
    Library,
    create_network,
    make_logger,
    normalize_target,
    set_memory_pool_limit,
    set_target,
)

#: Called with the phase, how many of its steps are done, and how many there are.
Progress = Callable[[str, int, int], None]

MAX_WARNINGS = 20

#: Messages about the absent driver: they come on every machine without one, and say nothing.
_NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient|no CUDA-capable device")
_OTHER_LOGGER = "differs from one already registered"
_HARDWARE_TYPE = re.compile(
    r"Cannot compile for target\(s\) [^,]+, because the model contains "
    r"HW-specific datatypes: (?P<types>[\w, ]+)"
)

# Operators that leave values as they are, and those that change them between a Q/DQ pair or the
# Softmax and a MatMul.
_LAYOUT = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
_ARITHMETIC = frozenset(
    {"Mul", "Div", "Add", "Sub", "Cast", "Where", "Min", "Max", "Clip", "Dropout", "IsNaN"}
)
_WEIGHT_PATH = _LAYOUT | {"Cast"}
_MAX_WALK = 64


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
    memory_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Build the engine of `onnx_path` for `target`, write its plan to `plan_path` and report.

    `shapes` are needed for inputs with a dynamic size. `memory_limit_bytes` limits the workspace
    of the kernels. `progress` is called from the build; an exception that it raises (or Ctrl-C)
    cancels the build and is raised again here.

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
        memory_limit_bytes=memory_limit_bytes,
        progress=progress,
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
    memory_limit_bytes: int | None,
    progress: Progress | None,
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
    monitor = _make_monitor(trt, outcome, progress)
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
    set_memory_pool_limit(library, config, memory_limit_bytes)
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


def _make_monitor(trt: Any, outcome: _Outcome, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self.tell(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell(phase, step + 1)
            return outcome.interrupt is None  # False cancels the build

        def phase_finish(self, phase: str) -> None:
            self.tell(phase, self.steps.pop(phase, 0))

        def tell(self, phase: str, done: int) -> None:
            if progress is None or outcome.interrupt is not None:
                return
            try:
                progress(phase, done, self.steps.get(phase, done))
            except BaseException as error:  # noqa: BLE001 - raised again once the build is off
                outcome.stop(error)

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


def read_onnx(path: Path) -> tuple[bytes, str, OnnxGraph]:
    """Return the bytes of an ONNX file, the SHA-256 of all that belongs to it, and its graph.

    Weights kept in other files (external data) are part of the digest. Raises EngineError where
    the file is damaged or refers to a file outside its own folder; MissingPackage without onnx.
    """
    try:
        import onnx

        decode_error: Any = importlib.import_module("google.protobuf.message").DecodeError
    except ImportError as error:
        raise MissingPackage("onnx", extra="clip", purpose="reading ONNX files") from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be read ({error.strerror or error}): export the model again"
        ) from error
    try:
        model = onnx.load_model_from_string(data)
    except (decode_error, ValueError) as error:
        raise EngineError(
            f"{path}: not an ONNX file, or damaged ({len(data)} bytes): export the model again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise EngineError(f"{path}: holds no graph ({len(data)} bytes): export the model again")
    digest = hashlib.sha256(data)
    for name in sorted(set(_list_external_files(model, path=path))):
        with (path.parent / name).open("rb") as stream:
            digest.update(f"\0{name}\0".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return data, digest.hexdigest(), describe_graph(model)


def _list_external_files(model: Any, *, path: Path) -> Iterator[str]:
    """Yield the files that tensors refer to; raises EngineError where one is out of bounds."""
    folder = path.parent.resolve()
    for tensor in _list_tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        where = f"{path}: the weights of {tensor.name!r} are kept in {location!r}"
        if (
            not location
            or "\\" in location
            or PurePosixPath(location).is_absolute()
            or PureWindowsPath(location).drive
            or ".." in PurePosixPath(location).parts
            or not (folder / location).resolve().is_relative_to(folder)
        ):
            raise EngineError(
                f"{where}, outside the folder of the ONNX file, and are not read: "
                f"keep the files of a model in one folder"
            )
        if not (folder / location).is_file():
            raise EngineError(f"{where}, which is missing: copy it next to the ONNX file")
        yield location


def _list_tensors(model: Any) -> Iterator[Any]:
    graphs = [model.graph]
    nodes = [list(function.node) for function in model.functions]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.append(list(graph.node))
        for node in nodes.pop():
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def describe_graph(model: Any) -> OnnxGraph:
    """Return what the report needs to know of an ONNX model (the outermost graph)."""
    walk = _Graph.index(model.graph)
    linear: list[str] = []
    conv: list[str] = []
    qdq: list[str] = []
    attentions: list[OnnxAttention] = []
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and any(walk.is_weight(i) for i in node.input[:2]):
            linear.append(name_of(node))
        elif node.op_type in ("Conv", "ConvTranspose"):
            conv.append(name_of(node))
        elif is_quantize(node) or is_dequantize(node):
            qdq.append(name_of(node))
        elif node.op_type == "Softmax":
            attention = walk.find_attention(node, index=len(attentions))
            if attention is not None:
                attentions.append(attention)
    return OnnxGraph(
        linear=tuple(linear), conv=tuple(conv), qdq=tuple(qdq), attentions=tuple(attentions)
    )


def name_of(node: Any) -> str:
    """Return a node's name as the engine's metadata give it."""
    return str(node.name) or f"node_of_{node.output[0] if node.output else ''}"


class _Graph(Graph):
    """Walks from tensor to tensor of one graph; no walk is longer than `_MAX_WALK` nodes."""

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is a constant, as it is or behind Q/DQ and changes of layout."""
        for _ in range(_MAX_WALK):
            if name in self.tensors:
                return True
            node = self.makers.get(name)
            if node is None or not node.input:
                return node is not None and node.op_type == "Constant"
            if node.op_type not in _WEIGHT_PATH and not (is_quantize(node) or is_dequantize(node)):
                return False
            name = node.input[0]
        return False

    def find_attention(self, softmax: Any, *, index: int) -> OnnxAttention | None:
        """Return the attention block around a Softmax, None where there is no MatMul on a side."""
        scores = self._find_scores(softmax)
        found = self._find_values(softmax)
        if scores is None or found is None:
            return None
        values, side = found
        return OnnxAttention(
            index=index,
            block=read_block(name_of(softmax)),
            scores=name_of(scores),
            softmax=name_of(softmax),
            values=name_of(values),
            q=self.describe_operand(scores.input[0]),
            k=self.describe_operand(scores.input[1]),
            v=self.describe_operand(values.input[1 - side]),
            probabilities=self.describe_operand(values.input[side]),
        )

    def _find_scores(self, softmax: Any) -> Any:
        waiting, seen = list(softmax.input[:1]), set[str]()
        while waiting and len(seen) < _MAX_WALK:
            name = waiting.pop(0)
            node = self.makers.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            if node.op_type == "MatMul" and len(node.input) == 2:
                return node
            if node.op_type in _LAYOUT | _ARITHMETIC or is_quantize(node) or is_dequantize(node):
                waiting.extend(node.input)
        return None

    def _find_values(self, softmax: Any) -> tuple[Any, int] | None:
        """Return the MatMul behind a Softmax, and which of its inputs comes from there."""
        waiting, seen = list(softmax.output[:1]), set[str]()
        while waiting and len(seen) < _MAX_WALK:
            name = waiting.pop(0)
            if name in seen:
                continue
            seen.add(name)
            for node in self.readers.get(name, ()):
                if node.op_type == "MatMul" and len(node.input) == 2:
                    return node, list(node.input).index(name)
                if (
                    node.op_type in _LAYOUT | _ARITHMETIC
                    or is_quantize(node)
                    or is_dequantize(node)
                ):
                    waiting.extend(node.output[:1])
        return None

    def describe_operand(self, name: str) -> str:
        """Return whether a tensor comes to its MatMul through a Q/DQ pair: `fp8`, `int8`, `none`.

        A change of layout or a scaling in between does no harm: the library moves it.
        """
        for _ in range(_MAX_WALK):
            node = self.makers.get(name)
            if node is None or not node.input:
                return "none"
            if is_dequantize(node):
                return self._read_format(node)
            if node.op_type not in _LAYOUT | _ARITHMETIC:
                return "none"
            name = node.input[0]
        return "none"

    def _read_format(self, dequantize: Any) -> str:
        """Return `fp8`, `int8`, ... from the type of the zero point or of the stored weight."""
        if str(dequantize.op_type).startswith("TRT_FP8"):
            return "fp8"
        tensors = map(self.tensors.get, (zero_of(dequantize), dequantize.input[0]))
        kind = next((name_data_type(t.data_type) for t in tensors if t is not None), "")
        precisions = (row.precision for row in TABLE if row.onnx_type == kind and row.precision)
        return next(precisions, "fp8" if kind.startswith("FLOAT8") else "int8")
