"""Two exported models: Q/DQ pairs, operations, weights and the file itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.comparison.changes import Change, Comparison, compare_texts
from pytest_quantgate.comparison.quantizers import compare_quantizers
from pytest_quantgate.evidence.onnx import OnnxAudit, OnnxOperation, QdqPair
from pytest_quantgate.text.words import count, group, listed

SUFFIX = ".onnx"

#: What the exporter of this product says of a file and the audit reads: compared as its facts.
OWN_METADATA = frozenset(
    f"quantgate.{key}" for key in ("tower", "precision", "quantizers", "extra")
)


@dataclass(frozen=True, kw_only=True)
class OnnxNode:
    """One node: its operator, its attributes in words, and what makes each value that it reads."""

    operator: str
    attributes: Mapping[str, str]
    reads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """One ONNX file: what its graph says, and the SHA-256 of every initializer by name.

    Scales and zero points of Q/DQ pairs are not among them: they are compared as ranges. `zero` are
    those that hold nothing but zeros, `metadata` what else the file says of itself, `nodes` all
    nodes by their names.
    """

    audit: OnnxAudit
    weights: Mapping[str, str]
    nodes: Mapping[str, OnnxNode] = field(default_factory=dict)
    zero: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_onnx(path: Path) -> dict[str, OnnxFile]:
    """Return the ONNX files at a path by their place below it (one file: by no name).

    Raises ModelError or ArtifactError for what is no ONNX model, MissingPackage without onnx.
    """
    files = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
    return {
        file.relative_to(path).as_posix() if path.is_dir() else "": _read_file(file)
        for file in files
    }


def _read_file(path: Path) -> OnnxFile:
    import onnx

    from pytest_quantgate.artifacts.onnx_file import read_external
    from pytest_quantgate.artifacts.onnx_functions import inline_functions
    from pytest_quantgate.runtimes.onnx_graph import audit_model
    from pytest_quantgate.runtimes.onnx_model import read_model

    read = read_model(path)
    file = replace(read, model=inline_functions(read.model, path=path))
    graph = file.model.graph
    parts = {
        name
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    weights, zero = {}, set()
    for tensor in graph.initializer:
        whole = tensor
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            whole = read_external(tensor, path=path)
        content = _read_values(whole)
        if tensor.name not in parts:
            about = f"{tensor.data_type} {list(tensor.dims)} ".encode()
            weights[tensor.name] = hashlib.sha256(about + content).hexdigest()
        elif whole is not tensor:
            tensor.CopyFrom(whole)  # the audit compares scales
        if content and not any(content):
            zero.add(tensor.name)
    return OnnxFile(
        audit=audit_model(file),
        weights=weights,
        nodes=_read_nodes(graph.node),
        zero=frozenset(zero),
        metadata={
            entry.key: entry.value
            for entry in file.model.metadata_props
            if entry.key not in OWN_METADATA
        },
    )


def _read_values(tensor: Any) -> bytes:
    """Return the values of an initializer as bytes, however it keeps them."""
    import onnx

    try:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind != "O":
            return bytes(values.tobytes())
    except (ValueError, TypeError):
        pass  # damaged: whoever reads it says so
    return bytes(tensor.SerializeToString(deterministic=True))


def _read_nodes(nodes: Sequence[Any]) -> dict[str, OnnxNode]:
    labels: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    for node in nodes:
        name = str(node.name or node.output[0])
        seen[name] += 1
        labels[f"{name} ({seen[name]})" if seen[name] > 1 else name] = node
    makers = {value: label for label, node in labels.items() for value in node.output}
    return {
        label: OnnxNode(
            operator=node.op_type,
            attributes={a.name: _describe_attribute(a) for a in node.attribute},
            reads=tuple(makers.get(value, value) for value in node.input),
        )
        for label, node in labels.items()
    }


def _describe_attribute(attribute: Any) -> str:
    """Return the value of an attribute: as it is, or a digest of one that is long."""
    import onnx

    content = attribute.SerializeToString(deterministic=True)
    if attribute.type in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH):
        return f"SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"
    value = onnx.helper.get_attribute_value(attribute)
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"


def compare_onnx(
    before: Mapping[str, OnnxFile], after: Mapping[str, OnnxFile], *, labels: tuple[str, str]
) -> Comparison:
    """Return what differs between the files of one name, and which came or went."""
    changes = [
        Change(area="engine", kind=kind, subjects=(name,), text=f"file {kind}: {name}")
        for kind, here, there in (("removed", before, after), ("added", after, before))
        for name in here
        if name not in there
    ]
    same = []
    for name in (name for name in before if name in after):
        found = compare_file(before[name], after[name], name=name or "the file")
        changes += found
        if not found:
            old, new = before[name].audit, after[name].audit
            text = f"{count(len(new.pairs), 'Q/DQ pair')}, weights and operations equal"
            rest = "" if old.digest == new.digest else "; the files differ in bytes alone"
            same.append(f"{name or 'the file'}: {text}{rest}")
    return Comparison(
        kind="onnx", before=labels[0], after=labels[1], changes=tuple(changes), same=tuple(same)
    )


def compare_file(before: OnnxFile, after: OnnxFile, *, name: str) -> list[Change]:
    """Return what differs between two files."""
    old, new = before.audit, after.audit
    return [
        *compare_texts(_describe(old, name), _describe(new, name), area="engine"),
        *compare_quantizers(_stored(old.pairs), _stored(new.pairs)),
        *_compare_operations(old.operations, new.operations, name=name),
        *_compare_nodes(before, after, name=name),
        *_compare_weights(before, after, name=name),
        *compare_texts(
            {f"{name}: metadata {key}": value for key, value in before.metadata.items()},
            {f"{name}: metadata {key}": value for key, value in after.metadata.items()},
            area="other",
        ),
        *compare_texts(_sizes(old, name), _sizes(new, name), area="sizes"),
    ]


def _describe(audit: OnnxAudit, name: str) -> dict[str, str]:
    return {
        f"{name}: tower": audit.tower,
        f"{name}: precision": audit.precision,
        f"{name}: opset": str(audit.opset),
        f"{name}: domains": ", ".join(domain or "ai.onnx" for domain in audit.domains),
        f"{name}: batch": "dynamic" if audit.dynamic_batch else "fixed",
        f"{name}: problems": "; ".join(audit.problems)[:300] or "none",
    }


def _stored(pairs: Sequence[QdqPair]) -> dict[str, StoredQuantizer]:
    """Return every pair as a quantizer: one that is a lone half, or elsewhere, is off."""
    found: dict[str, StoredQuantizer] = {}
    places = Counter(pair.quantizer for pair in pairs)
    for pair in pairs:
        quantizer = pair.quantizer or f"nameless pair {pair.node}"
        amax = (pair.amax_max,) if pair.scale_count == 1 else (pair.amax_min, pair.amax_max)
        found[quantizer] = StoredQuantizer(
            name=quantizer,
            enabled=pair.complete and (pair.feeds_owner or pair.quantizer is None),
            off_because="" if pair.complete and pair.feeds_owner else _describe_place(pair),
            format=pair.format,
            granularity=f"{count(pair.scale_count, 'scale')}",
            dynamic=False,
            amax=amax,
            settings={
                "zero point": "0" if pair.symmetric else "not 0",
                "stored as": pair.source,
                "scale type": pair.scale_type,
                "Q/DQ pairs of one name": str(places[pair.quantizer] if pair.quantizer else 1),
            },
            # Two ranges stand for all: the digest is of every one of them.
            ranges_digest=pair.scale_digest if pair.scale_count > 1 else "",
        )
    return found


def _describe_place(pair: QdqPair) -> str:
    if not pair.complete:
        return "left as half a pair: nothing is quantized there"
    return "bypassed: the pair is there and does not feed its layer"


def _compare_operations(
    before: Sequence[OnnxOperation], after: Sequence[OnnxOperation], *, name: str
) -> list[Change]:
    olds, news = ({op.node: op for op in side} for side in (before, after))
    changes = []
    for kind, names in (
        ("removed", [node for node in olds if node not in news]),
        ("added", [node for node in news if node not in olds]),
    ):
        if names:
            changes.append(
                Change(
                    area="engine",
                    kind=kind,
                    subjects=tuple(names),
                    text=f"{name}: {count(len(names), 'operation')} {kind}: {listed(names)}",
                )
            )
    moved: dict[tuple[str, str], list[str]] = {}
    for node in (node for node in olds if node in news):
        pair = (_operands(olds[node]), _operands(news[node]))
        if pair[0] != pair[1]:
            moved.setdefault(pair, []).append(f"{news[node].operator} {news[node].module or node}")
    changes += [
        Change(
            area="engine",
            kind="operands changed",
            subjects=tuple(nodes),
            text=f"{name}: {count(len(nodes), 'operation')} with {old} -> {new}: "
            f"{listed(group(nodes))}",
            before=old,
            after=new,
            lines=group(nodes),
        )
        for (old, new), nodes in moved.items()
    ]
    return changes


def _compare_nodes(before: OnnxFile, after: OnnxFile, *, name: str) -> Iterator[Change]:
    """Yield what nodes of one name compute otherwise, and those that nothing else tells of."""
    olds, news = before.nodes, after.nodes
    told = {op.node for file in (before, after) for op in file.audit.operations}
    told |= {pair.node for file in (before, after) for pair in file.audit.pairs}
    for kind, here, there in (("removed", olds, news), ("added", news, olds)):
        lone = [label for label in here if label not in there and label not in told]
        if lone:
            yield _change_nodes(kind, lone, f"{name}: {count(len(lone), 'further node')} {kind}")
    set_otherwise: dict[str, list[str]] = {}
    rewired = []
    for label in (label for label in olds if label in news):
        old, new = olds[label], news[label]
        facts = [{"operator": node.operator, **node.attributes} for node in (old, new)]
        words = [
            f"{key} {facts[0].get(key, 'not set')} -> {facts[1].get(key, 'not set')}"
            for key in dict.fromkeys((*facts[0], *facts[1]))
            if facts[0].get(key) != facts[1].get(key)
        ]
        if words:
            set_otherwise.setdefault(f"{', '.join(words)} in", []).append(label)
        if old.reads != new.reads:
            rewired.append(label)
    for words_of, labels in set_otherwise.items():
        text = f"{name}: {words_of} {count(len(labels), 'node')}"
        yield _change_nodes("attributes changed", labels, text)
    if rewired:
        text = f"{name}: {count(len(rewired), 'node')} with other inputs, or in another order"
        yield _change_nodes("rewired", rewired, text)


def _change_nodes(kind: str, labels: Sequence[str], text: str) -> Change:
    return Change(
        area="engine",
        kind=kind,
        subjects=tuple(labels),
        text=f"{text}: {listed(group(labels))}",
        lines=group(labels),
    )


def _operands(operation: OnnxOperation) -> str:
    words = ["quantized" if there else "full" for there in operation.operands_quantized]
    weight = f", weight {operation.weight_type}" if operation.weight_type else ""
    return f"{' x '.join(words)}{weight}"


def _compare_weights(old: OnnxFile, new: OnnxFile, *, name: str) -> list[Change]:
    before, after = old.weights, new.weights
    changes = []
    for kind, names in (
        ("removed", [weight for weight in before if weight not in after]),
        ("added", [weight for weight in after if weight not in before]),
        ("weights changed", [w for w in before if w in after and before[w] != after[w]]),
    ):
        if names:
            word = {"removed": "gone", "added": "new"}.get(kind, "with other values")
            lost = [weight for weight in names if weight in new.zero and weight not in old.zero]
            zeros = f"; all zero now: {listed(group(lost))}" if lost and kind != "added" else ""
            changes.append(
                Change(
                    area="weights",
                    kind=kind,
                    subjects=tuple(names),
                    text=f"{name}: {count(len(names), 'initializer')} {word}: "
                    f"{listed(group(names))}{zeros}",
                    lines=group(names),
                )
            )
    return changes


def _sizes(audit: OnnxAudit, name: str) -> dict[str, str]:
    return {f"{name}: bytes of {kind}": str(size) for kind, size in audit.weights_bytes}
