"""Every file that `quantgate check` is given: recognised, read, and said what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_quantgate.artifacts.checkpoint_operands import describe_checkpoint
from pytest_quantgate.artifacts.checkpoints import read_files
from pytest_quantgate.artifacts.dequantized import list_checkpoint_weights, list_onnx_weights
from pytest_quantgate.artifacts.engine_files import read_layer_report, read_plan
from pytest_quantgate.artifacts.onnx_file import count_bytes_by_type, read_onnx_graph
from pytest_quantgate.artifacts.operands import Artifact
from pytest_quantgate.artifacts.recognise import find_files, recognise
from pytest_quantgate.errors import ArtifactError, MissingPackage
from pytest_quantgate.inspection.base import (
    Base,
    compare_graph,
    compare_rest,
    compare_with_base,
)
from pytest_quantgate.inspection.checkpoint import inspect_checkpoint
from pytest_quantgate.inspection.engine import inspect_layers, inspect_plan
from pytest_quantgate.inspection.findings import Against, Inspection, Refusal, Report
from pytest_quantgate.inspection.onnx import inspect_onnx
from pytest_quantgate.quantization.quantizers import tower_of
from pytest_quantgate.text.words import count, group, listed


def inspect_paths(
    paths: Sequence[Path], *, base: Path | None = None, ignored: frozenset[str] = frozenset()
) -> Report:
    """Return what is said of all that lies at some paths; findings of `ignored` codes left out.

    A file that cannot be read is a refusal in the report. Raises ArtifactError for a base that
    cannot be read.
    """
    against = read_base(base) if base is not None else None
    inspections: list[Inspection] = []
    refusals: list[Refusal] = []
    notes: list[str] = []
    for path in paths:
        try:
            files, more = find_files(path)
        except (ArtifactError, OSError) as error:
            refusals.append(_refuse(path, error))
            continue
        notes += more
        for file in files:
            try:
                inspections.append(inspect_file(file, base=against))
            except (ArtifactError, MissingPackage, OSError) as error:
                refusals.append(_refuse(file, error))
    return Report(
        inspections=tuple(_without(found, ignored=ignored) for found in inspections),
        refusals=tuple(refusals),
        ignored=tuple(
            sorted({f.code for i in inspections for f in i.findings if f.code in ignored})
        ),
        notes=tuple(notes),
    )


def _refuse(path: Path, error: Exception) -> Refusal:
    reason = str(error)
    if isinstance(error, OSError):
        reason = f"{path} cannot be read: {error.strerror or error}"
    return Refusal(path=path.as_posix(), reason=reason)


def _without(inspection: Inspection, *, ignored: frozenset[str]) -> Inspection:
    kept = tuple(f for f in inspection.findings if f.code not in ignored)
    return replace(inspection, findings=kept)


def inspect_file(path: Path, *, base: Base | None) -> Inspection:
    """Return what is said of one file or checkpoint; raises ArtifactError, MissingPackage."""
    sort, label = recognise(path), path.as_posix()
    if sort == "plan":
        return inspect_plan(read_plan(path), label=label)
    if sort == "layer-report":
        return inspect_layers(read_layer_report(path), label=label)
    if sort == "onnx":
        graph = read_onnx_graph(path)
        inspection, artifact = inspect_onnx(graph, label=label)
        files, weights = None, list_onnx_weights(graph)
    else:
        files = read_files(path)
        inspection, artifact = inspect_checkpoint(files, label=label)
        weights = list_checkpoint_weights(files, artifact)
    if base is None:
        return inspection
    towers = {o.tower for o in artifact.operands}
    rest: tuple[int, list[str]] = (0, [])
    if files is None:
        rest = compare_graph(graph, base, towers=towers)
    elif base.tensors and not artifact.pre_scaled:
        rest = compare_rest(files, base.tensors)
    against, findings = compare_with_base(
        base,
        weights,
        files=files,
        bytes=sum(artifact.bytes_by_type.values()),
        towers=towers,
        rest=rest,
    )
    return replace(
        inspection,
        findings=(*inspection.findings, *findings),
        notes=(*inspection.notes, *_list_uncompared(artifact, against, base=base)),
        against=against,
        next_steps=tuple(step for step in inspection.next_steps if "--base" not in step),
    )


def _list_uncompared(artifact: Artifact, against: Against, *, base: Base) -> Iterator[str]:
    """Yield, in words, what of a file or its base found nothing to be compared with."""
    quantized = {o.layer for o in artifact.operands if o.slot == "weight" and o.is_quantized}
    left = quantized - {error.layer for error in against.layers} - {*against.unfound}
    if left:
        yield (
            f"{count(len(left), 'quantized weight')} not compared with the base: "
            f"{listed(group(sorted(left)))}"
        )
    plain = [name for name in against.unfound if name not in quantized]
    if plain:
        yield f"the base has no {listed(group(plain))}, which are not quantized here"
    towers = {tower_of(name) for name in base.layers} - {o.tower for o in artifact.operands}
    if towers - {"other"}:
        yield f"the base has another tower too: {listed(sorted(towers - {'other'}))}"
    if artifact.what == "ONNX file" and against.unclaimed:
        yield f"layers of the base that are not in the graph: {listed(group(against.unclaimed))}"


def read_base(path: Path) -> Base:
    """Return the model that others are compared with; raises ArtifactError for none."""
    sort = recognise(path)
    if sort == "onnx":
        graph = read_onnx_graph(path)
        return Base(
            label=path.as_posix(),
            layers={weight.layer: weight for weight in list_onnx_weights(graph)},
            tensors={},
            bytes=sum(count_bytes_by_type(graph).values()),
        )
    if sort != "checkpoint":
        raise ArtifactError(f"{path} holds no weights: a base is a checkpoint or an ONNX file")
    files = read_files(path)
    artifact = describe_checkpoint(files)
    if any(o.is_quantized for o in artifact.operands):
        raise ArtifactError(f"{path} is quantized itself: a base is the FP16 model")
    return Base(
        label=path.as_posix(),
        layers={weight.layer: weight for weight in list_checkpoint_weights(files, artifact)},
        tensors=files.tensors,
        bytes=sum(artifact.bytes_by_type.values()),
    )
