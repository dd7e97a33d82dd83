"""Reads an ONNX file back: every Q/DQ pair, whose it is, and what runs unquantized. No torch.

The mapping to the model is in the node names (`onnx_surgery.name_node`), and is checked against
the graph itself: a pair that bears a quantizer's name and sits somewhere else is not taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.onnx import OnnxAudit, OnnxOperation, QdqPair
from pytest_quantgate.formats.table import (
    E4M3,
    POWERS_OF_TWO,
    find_format,
    find_onnx_format,
)
from pytest_quantgate.quantization.quantizers import owner_of, slot_of, whole_name
from pytest_quantgate.runtimes.onnx_model import ModelFile, find_disorder, find_problems, read_model
from pytest_quantgate.runtimes.onnx_nodes import (
    MOVES,
    Graph,
    attribute_of,
    count_bytes,
    is_dequantize,
    is_quantize,
    label_of,
    module_of_node,
    name_data_type,
)

if TYPE_CHECKING:
    import numpy as np

OPERATIONS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

#: What ONNX calls a type, and what this product calls it.
_TYPE_NAMES: Mapping[str, str] = {"FLOAT": "float32", "DOUBLE": "float64"}


def read_graph(path: Path, *, amax: Mapping[str, np.ndarray] | None = None) -> OnnxAudit:
    """Return what the file at `path` holds, see `audit_model`; raises as `read_model` too."""
    return audit_model(read_model(path), amax=amax)


def audit_model(file: ModelFile, *, amax: Mapping[str, np.ndarray] | None = None) -> OnnxAudit:
    """Return what a file holds; with the calibrated `amax` (flat, by quantizer), every channel's
    scale is compared with its own.

    Files of other exporters can be read too: a pair whose node name ends in no quantizer's name
    is one that belongs to none. Raises ModelError for what is no sound graph.
    """
    path, model = file.path, file.model
    if not model.graph.node:
        raise ModelError(f"{path}: holds no ONNX graph: export the tower again")
    disorder = find_disorder(model)
    if disorder:
        raise ModelError(f"{path}: is no sound ONNX graph: {disorder}: export the tower again")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    graph = _Graph.index(
        model.graph,
        path=path,
        amax=amax or {},
        outputs=frozenset(value.name for value in model.graph.output),
    )
    pairs = tuple(graph.pairs())
    return OnnxAudit(
        tower=metadata.get("quantgate.tower", "other"),
        precision=metadata.get("quantgate.precision", "unknown"),
        opset=next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0),
        domains=tuple(sorted(_domains(model))),
        file_bytes=file.file_bytes,
        digest=file.digest,
        dynamic_batch=any(
            value.type.tensor_type.shape.dim and value.type.tensor_type.shape.dim[0].dim_param
            for value in model.graph.input
        ),
        weights_bytes=_count_bytes(model),
        declared=_names(metadata.get("quantgate.quantizers", "[]"), path=path),
        extra=_names(metadata.get("quantgate.extra", "[]"), path=path),
        pairs=pairs,
        operations=tuple(graph.operations({pair.node: pair for pair in pairs})),
        problems=find_problems(model),
    )


@dataclass(frozen=True, kw_only=True)
class _BlockScales:
    """The scales that a format gives its blocks, `size` values each.

    `type` is ONNX's name of a scale's type: `FLOAT8E8M0` for powers of two, however they are
    stored. `whole` names the initializer that all are multiplied by, empty where there is none.
    `values` are the stored scales of a weight, times that; None where they are computed in each
    run. `agrees` says whether both halves of the pair use the same.
    """

    size: int
    type: str
    whole: str = ""
    values: np.ndarray | None = None
    agrees: bool = True


@dataclass(frozen=True, kw_only=True)
class _Graph(Graph):
    path: Path
    amax: Mapping[str, np.ndarray]
    outputs: frozenset[str]

    def pairs(self) -> Iterator[QdqPair]:
        """Yield every pair in the graph's order, then QuantizeLinear nodes that nothing undoes."""
        undone: set[int] = set()
        inner = set(self._list_inner())
        for node in self.nodes:
            if node.output[0] in inner:
                undone.add(id(self.makers.get(node.input[0])))
            elif is_dequantize(node):
                quantize = self.makers.get(node.input[0])
                if quantize is not None and not is_quantize(quantize):
                    quantize = None
                if quantize is not None:
                    undone.add(id(quantize))
                yield self._describe(node, quantize=quantize)
        for node in self.nodes:
            if is_quantize(node) and id(node) not in undone:
                yield self._describe(None, quantize=node)

    def _list_inner(self) -> Iterator[str]:
        """Yield the scales that are dequantized themselves before a pair reads them."""
        for node in self.nodes:
            if is_dequantize(node) and attribute_of(node, "block_size"):
                maker = self.makers.get(node.input[1])
                if maker is not None and is_dequantize(maker):
                    yield node.input[1]

    def operations(self, pairs: Mapping[str, QdqPair]) -> Iterator[OnnxOperation]:
        """Yield every Conv, Gemm and MatMul with what is known of its operands."""
        for node in self.nodes:
            if node.op_type not in OPERATIONS:
                continue
            quantized, names, count, kind = [], [], 0, None
            for value in node.input[:2]:
                source, maker = self.origin(value)
                maker = self._skip_power(maker)
                pair = None
                if maker is not None and is_dequantize(maker):
                    pair = pairs.get(label_of(maker))
                    source, entered = self.origin(maker.input[0])
                    if entered is not None and is_quantize(entered):
                        source, _ = self.origin(entered.input[0])
                quantized.append(pair is not None and pair.complete)
                names.append(pair.quantizer if pair is not None else None)
                tensor = self.tensors.get(source)
                if tensor is not None:
                    count, kind = math.prod(tensor.dims), _type_name(tensor)
            yield OnnxOperation(
                node=label_of(node),
                module=module_of_node(node.name),
                operator=node.op_type,
                operands_quantized=tuple(quantized),
                quantizers=tuple(names),
                weights_count=count,
                weight_type=kind,
            )

    def _describe(self, dequantize: Any, *, quantize: Any) -> QdqPair:
        import numpy as np

        node = dequantize if dequantize is not None else quantize
        blocks = self._find_block_scales(dequantize, quantize=quantize)
        whole = blocks.whole if blocks is not None else ""
        scale = self._values(whole) * E4M3.largest if whole else self._values(node.input[1])
        kind = self._name_format(dequantize, quantize=quantize, blocks=blocks)
        known_format = find_format(kind)
        largest = known_format.largest if known_format is not None else float("nan")
        source: Literal["weight, 8 bit", "weight, float", "activation"] = "activation"
        entered = None
        if quantize is not None:
            origin, entered = self.origin(quantize.input[0])
            if origin in self.tensors:
                source, entered = "weight, float", None
        elif node.input[0] in self.tensors:
            source = "weight, 8 bit"
        scope = module_of_node(node.name)
        known = whole_name(scope).rpartition(".")[2].endswith("_quantizer")
        owner = owner_of(scope) if known else ""
        producer = module_of_node(entered.name) if entered is not None else None
        is_output = dequantize is not None and self._reaches_output(dequantize.output[0])
        consumers = () if dequantize is None else tuple(self._consumers(dequantize.output[0]))
        stored = blocks.values if blocks is not None and blocks.values is not None else scale
        return QdqPair(
            node=label_of(node),
            quantizer=scope if known else None,
            slot=slot_of(scope) if known else "other",
            format=kind,
            scale_type=self._type_of(whole or node.input[1]),
            scale_min=float(scale.min()),
            scale_max=float(scale.max()),
            scale_count=int(scale.size),
            scale_digest=hashlib.sha256(scale.astype(np.float32).tobytes()).hexdigest(),
            amax_min=float(scale.astype(np.float64).min() * largest),
            amax_max=float(scale.astype(np.float64).max() * largest),
            symmetric=not self._zero_points(dequantize).any()
            and not self._zero_points(quantize).any(),
            source=source,
            complete=self._is_complete(dequantize, quantize=quantize, source=source, blocks=blocks),
            producer=producer,
            consumers=consumers,
            feeds_owner=known
            and (owner in consumers or (owner == producer and (bool(consumers) or is_output))),
            amax_deviation=self._deviation(scope, self._in_order(node, stored) * largest),
        )

    def _in_order(self, node: Any, scale: np.ndarray) -> np.ndarray:
        """Return scales flat, in the order of a weight [outputs, inputs], which may be stored
        as its transpose."""
        import numpy as np

        transposed = scale.ndim == 2 and attribute_of(node, "axis") == 0
        return (scale.T if transposed else scale).astype(np.float64).ravel()

    def _deviation(self, quantizer: str, found: np.ndarray) -> float | None:
        """Return the largest relative difference from the calibrated amax, channel by channel."""
        calibrated = self.amax.get(quantizer)
        if calibrated is None or calibrated.shape != found.shape or not calibrated.any():
            return None
        used = calibrated != 0  # what never saw a value has any scale
        return float(abs(found[used] / calibrated[used] - 1).max())

    def _find_block_scales(self, dequantize: Any, *, quantize: Any) -> _BlockScales | None:
        """Return the scales that a format gives its own blocks; None for a format without."""
        import numpy as np

        if dequantize is None:
            return None
        scale, size = dequantize.input[1], attribute_of(dequantize, "block_size")
        inner = self._inputs_of(scale, "DequantizeLinear")
        if size and inner:
            codes, whole, *_ = inner
            if codes in self.tensors:
                factor, kind = self._values(whole), self._data_type(codes)
                if factor.size != 1:
                    return _BlockScales(size=size, type=kind, whole=whole, agrees=False)
                values = self._values(codes).astype(np.float32) * factor
                return _BlockScales(size=size, type=kind, whole=whole, values=values)
            outer = self.makers.get(codes)
            if outer is None or not is_quantize(outer):
                return _BlockScales(size=size, type="", whole=whole, agrees=False)
            kind = self._name_codes(None, quantize=outer)
            row = find_onnx_format(
                self._name_codes(dequantize, quantize=quantize), block_size=size, scale_type=kind
            )
            return _BlockScales(
                size=size,
                type=kind,
                whole=whole,
                agrees=quantize is not None
                and scale in (quantize.input[1], *self._inputs_of(quantize.input[1], "Where"))
                and row is not None
                and self._is_multiple(outer.input[1], of=whole, factor=row.largest),
            )
        if size and self._data_type(scale) == "FLOAT":  # no runtime takes E8M0 yet
            values = self._values(scale)
            if (np.frexp(values)[0] == 0.5).all():
                return _BlockScales(size=size, type=POWERS_OF_TWO, values=values)
        divided = self._inputs_of(quantize.input[0], "Div") if quantize is not None else ()
        if not divided or not self._is_power(divided[1]):
            return None
        _, *shapes = self._inputs_of(divided[0], "Reshape") or ("",)
        shape = self._values(shapes[0]).ravel() if shapes else np.zeros(1)
        return _BlockScales(
            size=int(shape[-1]) if np.isfinite(shape).all() else 0,
            type=POWERS_OF_TWO,
            agrees=all(
                self._skip_power(reader) is not reader and divided[1] in reader.input
                for reader in self.readers.get(dequantize.output[0], ())
            ),
        )

    def _inputs_of(self, name: str, operator: str) -> Sequence[str]:
        """Return what the node that makes a value reads, nothing where that is another operator."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != operator or len(maker.input) < 2:
            return ()
        return list(maker.input)

    def _is_multiple(self, name: str, *, of: str, factor: float) -> bool:
        """Return whether a stored number is another one times a factor."""
        found, wanted = self._values(name), self._values(of)
        one = found.size == wanted.size == 1
        return one and math.isclose(found.item(), wanted.item() * factor, rel_tol=1e-6)

    def _is_power(self, name: str) -> bool:
        """Return whether a value is computed as a power of two, as this export does."""
        return any(self._inputs_of(value, "Pow") for value in self._inputs_of(name, "Where"))

    def _skip_power(self, node: Any) -> Any:
        """Return the node whose result is multiplied by the powers of two that divided it."""
        if node is not None and node.op_type == "Mul" and len(node.input) == 2:
            value, scale = node.input
            return self.makers.get(value) if self._is_power(scale) else node
        return node

    def _is_complete(
        self, dequantize: Any, *, quantize: Any, source: str, blocks: _BlockScales | None
    ) -> bool:
        """Return whether both halves are there, with one scale, one type and one axis."""
        if dequantize is None:
            return False
        if quantize is None:
            return source == "weight, 8 bit"
        agrees = (
            blocks.agrees
            if blocks is not None and blocks.whole
            else (blocks is None or blocks.agrees)
            and self._fingerprint(dequantize.input[1]) == self._fingerprint(quantize.input[1])
        )
        return (
            agrees
            and self._name_codes(dequantize, quantize=None)
            in ("", self._name_codes(None, quantize=quantize))
            and all(
                attribute_of(dequantize, name) == attribute_of(quantize, name)
                for name in ("axis", "block_size")
            )
        )

    def _name_format(self, dequantize: Any, *, quantize: Any, blocks: _BlockScales | None) -> str:
        """Return the format of a pair: of its codes, and of the scales that its blocks share."""
        codes = self._name_codes(dequantize, quantize=quantize)
        node = dequantize if dequantize is not None else quantize
        found = find_onnx_format(
            codes,
            block_size=blocks.size if blocks is not None else attribute_of(node, "block_size"),
            scale_type=blocks.type if blocks is not None else self._data_type(node.input[1]),
        )
        if found is not None:
            return found.name
        return _TYPE_NAMES.get(codes, codes.lower() or "unknown")

    def _name_codes(self, dequantize: Any, *, quantize: Any) -> str:
        """Return ONNX's type of the codes: of the zero point, as declared, or as stored."""
        for node in (dequantize, quantize):
            if node is not None and len(node.input) > 2 and node.input[2]:
                return self._data_type(node.input[2])
        if quantize is not None:
            declared = attribute_of(quantize, "output_dtype")
            return name_data_type(declared) if declared else "UINT8"  # ONNX's rule without one
        return self._data_type(dequantize.input[0])

    def _data_type(self, name: str) -> str:
        tensor = self.tensors.get(name)
        return name_data_type(tensor.data_type) if tensor is not None else ""

    def _zero_points(self, node: Any) -> Any:
        import numpy as np

        if node is None or len(node.input) < 3 or not node.input[2]:
            return np.zeros(1)
        return self._values(node.input[2])

    def _consumers(self, name: str) -> Iterator[str]:
        """Yield the module of every node that reads a value, looking through moves."""
        seen: set[str] = set()
        for value in self.follow(name):
            for node in self.readers.get(value, ()):
                module = module_of_node(node.name)
                if not self.moves(node) and module not in seen:
                    seen.add(module)
                    yield module

    def _reaches_output(self, name: str) -> bool:
        """Return whether a value is the graph's output, looking through moves."""
        return any(value in self.outputs for value in self.follow(name))

    def moves(self, node: Any) -> bool:
        """Return whether a node gives what it gets, or that times the power that divided it."""
        return node.op_type in MOVES or self._skip_power(node) is not node

    def _values(self, name: str) -> Any:
        """Return an initializer as an array, one NaN for a value that is computed."""
        import numpy as np
        import onnx

        tensor = self.tensors.get(name)
        if tensor is None:
            return np.full(1, np.nan, dtype=np.float32)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # would be read from anywhere
            raise ModelError(f"{self.path}: keeps {name[:80]!r} in another file, which is not read")
        try:
            values = onnx.numpy_helper.to_array(tensor)
            if not values.size or values.dtype.kind in "OSUc":  # texts, complex numbers
                raise ValueError(f"{values.size} values of type {values.dtype}")
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{self.path}: tensor {name[:80]!r} is damaged ({reason}): export the tower again"
            ) from error
        return values.astype(np.float32) if values.dtype.kind == "V" else values  # of ml_dtypes

    def _type_of(self, name: str) -> str:
        tensor = self.tensors.get(name)
        return _type_name(tensor) if tensor is not None else "computed"

    def _fingerprint(self, name: str) -> tuple[str, bytes]:
        """Return what tells two scales apart: their values, or the name of a computed one."""
        if name not in self.tensors:
            return name, b""
        return self._type_of(name), self._values(name).tobytes()


def _type_name(tensor: Any) -> str:
    name = name_data_type(tensor.data_type)
    found = find_onnx_format(name)
    return found.name if found is not None else _TYPE_NAMES.get(name, name.lower())


def _count_bytes(model: Any) -> tuple[tuple[str, int], ...]:
    """Return the bytes of all initializers by type, largest first."""
    totals: dict[str, int] = {}
    for tensor in model.graph.initializer:
        name = _type_name(tensor)
        totals[name] = totals.get(name, 0) + count_bytes(tensor)
    return tuple(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def _domains(model: Any) -> set[str]:
    found = {entry.domain for entry in model.opset_import}
    found |= {node.domain for node in model.graph.node}
    return {"" if domain == "ai.onnx" else domain for domain in found}


def _names(text: str, *, path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its list of quantizers is damaged: {error}") from error
    if not isinstance(names, list):
        raise ModelError(f"{path}: its list of quantizers is damaged: it is no list")
    return tuple(str(name) for name in names)
