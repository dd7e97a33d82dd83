"""The report of an engine that was built elsewhere: tied to its plan and ONNX file, or refused.

A layer report names no file. What ties it is the output of `sha256sum` that the pipeline wrote
right after the build, and the nodes that its kernels say they compute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.engine_files import Plan, read_layer_report, read_plan
from pytest_quantgate.errors import ArtifactError, Untied
from pytest_quantgate.runtimes.engine_layers import (
    EngineError,
    EngineLayer,
    EngineMemory,
    EngineReport,
    OnnxGraph,
    parse_memory,
    report_layers,
)
from pytest_quantgate.untrusted import hash_file, read_regular

#: A line of `sha256sum`: the digest, a space, ` ` or `*`, the name.
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")

_VERSION = re.compile(r"TensorRT version: (\d+(?:\.\d+){1,3})|\[TensorRT v(\d+)\]")
_CAPABILITY = re.compile(r"Compute Capability: (\d{1,2})\.(\d)")

#: What the libraries of a suite are called in the first bytes of their plans.
LIBRARIES = {"tensorrt-rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}

DETAILED = "--profilingVerbosity=detailed"


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """The files of one engine's report, each with its SHA-256 (hex) by the key of the suite."""

    paths: Mapping[str, Path]
    digests: Mapping[str, str]

    @classmethod
    def read(cls, paths: Mapping[str, Path]) -> ReportFiles:
        """Digest the files; raises ArtifactError for one that cannot be read."""
        digests = {}
        for key, path in paths.items():
            try:
                digests[key] = hash_file(path)
            except OSError as error:
                raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
        return cls(paths=paths, digests=digests)


def check_sums(files: ReportFiles, *, onnx_name: str, onnx_digest: str) -> None:
    """Raise Untied where the checksums do not name the report, its plan and its ONNX file.

    `onnx_digest` is that of the file that was approved.
    """
    sums = files.paths.get("sums")
    if sums is None:
        raise Untied(
            f"nothing says that {files.paths['layers'].name} is of {files.paths['engine'].name}: "
            f"write the checksums down right after the build (sha256sum {onnx_name} "
            f"{files.paths['engine'].name} {files.paths['layers'].name} > build.sha256) and name "
            f"them with sums: build.sha256"
        )
    try:
        text = read_regular(sums, max_bytes=bounds.TEXT_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{sums} cannot be read: {error}") from error
    lines = [_SUM.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    if not lines or None in lines:
        raise ArtifactError(f"{sums} is not what sha256sum prints (DIGEST  NAME, a line a file)")
    named = {Path(match[2]).name: match[1] for match in lines if match is not None}
    wanted = {
        "layer report": (files.paths["layers"].name, files.digests["layers"]),
        "engine": (files.paths["engine"].name, files.digests["engine"]),
        "ONNX file": (onnx_name, onnx_digest),
    }
    for key in ("log", "times", "profile"):
        if key in files.paths:
            wanted[key] = (files.paths[key].name, files.digests[key])
    for what, (name, digest) in wanted.items():
        if digest in named.values():
            continue
        said = f"has {named[name][:12]} for {name}" if name in named else f"does not name {name}"
        raise Untied(
            f"{sums.name} {said}, the {what} is {digest[:12]}: the report is not proved to be of "
            f"these files; build again, export the report and write the checksums in one go"
        )


def read_engine_report(
    files: ReportFiles,
    *,
    graph: OnnxGraph,
    names: Mapping[str, str],
    onnx_digest: str,
    target: str,
    library: str,
) -> EngineReport:
    """Return what a report says of its engine.

    `graph` is the approved ONNX file as later stages read it, `names` what its nodes were called in
    the file that was handed over, `onnx_digest` its SHA-256. `target` and `library` are what the
    gate is about. Raises ArtifactError for a report that cannot be judged (names alone), Untied for
    one of another graph, target or library.
    """
    layers_path, plan_path = files.paths["layers"], files.paths["engine"]
    found = read_layer_report(layers_path)
    if not found.layers:
        raise ArtifactError(
            f"{layers_path} lists the names of {len(found.names)} layers and no types: build the "
            f"engine with {DETAILED} and export the report again"
        )
    plan, log = read_plan(plan_path), _read_log(files.paths.get("log"))
    _check_target(plan, log, files=files, target=target, library=library)
    known = {*graph.linear, *graph.conv, *graph.qdq}
    known |= {n for a in graph.attentions for n in (a.scores, a.softmax, a.values)}
    layers = tuple(_name_nodes(found.layers, known=known, names=names))
    _check_nodes(layers, graph=graph, path=layers_path)
    memory = _read_memory(log)
    return report_layers(
        layers=layers,
        graph=graph,
        memory=memory or EngineMemory(weights_bytes=0, activation_bytes=0, scratch_bytes=0),
        has_memory=memory is not None,
        target=target,
        library=library,
        library_version=_find_version(log),
        onnx_sha256=onnx_digest,
        plan_sha256=files.digests["engine"],
        plan_bytes=plan.bytes,
        build_s=0.0,
        given=layers_path.name,
    )


def _read_log(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return read_regular(path, max_bytes=bounds.JSON_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


def _find_version(log: str) -> str:
    match = _VERSION.search(log)
    if match is None:
        return "unknown"
    if match[1]:
        return match[1]
    digits = match[2]  # v100300 is 10.3.0, v8601 8.6.1
    cut = (-4, -2) if len(digits) > 4 else (1, 2)
    parts = (digits[: cut[0]], digits[cut[0] : cut[1]], digits[cut[1] :])
    return ".".join(str(int(part or 0)) for part in parts)


def _read_memory(log: str) -> EngineMemory | None:
    try:
        return parse_memory(log.splitlines())
    except EngineError:
        return None


def check_library(plan: Plan, *, name: str, library: str) -> None:
    """Raise Untied for a plan of another library than a gate is about."""
    if plan.library != LIBRARIES[library]:
        raise Untied(
            f"{name} is a plan of {plan.library}, the gate is about {LIBRARIES[library]}: set "
            f"library: {next(key for key, value in LIBRARIES.items() if value == plan.library)}"
        )


def _check_target(plan: Plan, log: str, *, files: ReportFiles, target: str, library: str) -> None:
    """Raise Untied for a plan of another library or GPU, and where its GPU is not known."""
    name = files.paths["engine"].name
    check_library(plan, name=name, library=library)
    match = _CAPABILITY.search(log)
    here = plan.target or (f"sm{match[1]}{match[2]}" if match else "")
    if not here:
        raise Untied(
            f"for which GPU {name} was built is not known: name the log of trtexec (log: build.log)"
        )
    if here != target:
        raise Untied(f"{name} was built for {here}, the gate is about {target}")


def _name_nodes(
    layers: tuple[EngineLayer, ...], *, known: set[str], names: Mapping[str, str]
) -> list[EngineLayer]:
    """Return the kernels with the nodes that they compute, by their names in the approved graph.

    Reports of TensorRT 8 have no metadata: a kernel is then called after its nodes.
    """
    today = {old: new for new, old in names.items()}
    has_metadata = any(layer.onnx_nodes for layer in layers)
    found = []
    for layer in layers:
        nodes = layer.onnx_nodes if has_metadata else tuple(re.split(r" \+ |, ", layer.name))
        renamed = tuple(today.get(node.strip(), node.strip()) for node in nodes)
        if not has_metadata:
            renamed = tuple(node for node in renamed if node in known)
        found.append(replace(layer, onnx_nodes=renamed))
    return found


def _check_nodes(layers: tuple[EngineLayer, ...], *, graph: OnnxGraph, path: Path) -> None:
    """Raise Untied for a report of another graph: most of its products are in no kernel."""
    there = {node for layer in layers for node in layer.onnx_nodes}
    wanted = [*graph.linear, *graph.conv]
    missing = [node for node in wanted if node not in there]
    if wanted and len(missing) > len(wanted) / 2:
        raise Untied(
            f"{path.name} names {len(wanted) - len(missing)} of the {len(wanted)} layers of the "
            f"approved ONNX file (not {missing[0]}): it is of another graph, or of a release that "
            f"names none"
        )
