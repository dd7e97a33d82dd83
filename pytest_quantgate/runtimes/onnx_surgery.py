"""Turns a traced graph with marks into standard ONNX: Q/DQ pairs, 8-bit weights, one type.

Names carry the mapping back to the model: the nodes of a pair are called
`/vision_model/encoder/layers.0/mlp/fc1/input_quantizer/Q` and `.../DQ`, which is the module path
of the quantizer with `/` for `.` and one more part, as PyTorch names all other nodes. They are
short because an engine keeps the names of all nodes that went into a kernel, in its plan.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import Slot
from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import E4M3, TABLE
from pytest_quantgate.quantization.arithmetic import read_arithmetic
from pytest_quantgate.runtimes.onnx_narrow import drop_idle_nodes, narrow_graph

if TYPE_CHECKING:
    import numpy as np
    import torch

#: ModelOpt's integer quantizers take an amax that is not above this as "this never saw a value".
_LEAST_INTEGER_RANGE = 2.0**-24

#: The node that a quantizer leaves in a trace; its attribute `name` is the quantizer's.
MARK_DOMAIN, MARK = "quantgate", "Pair"

#: What protobuf can write, less room for the nodes.
LARGEST_FILE_BYTES = 2**31 - 2**24

#: INT4 and blocks came to DequantizeLinear with opset 21, and file format 10.
BLOCKS_OPSET, BLOCKS_IR = 21, 10

#: E2M1 came with opset 23, and file format 11.
FP4_OPSET, FP4_IR = 23, 11

#: Convolutions in bfloat16 came with opset 22; the operators of earlier ones mean the same there.
BFLOAT16_OPSET = 22

#: The least scale in Microscaling formats that no float32 unit takes for 0.
_LEAST_POWER = 2.0**-126


@dataclass(frozen=True, kw_only=True)
class StoredQuantizer:
    """A quantizer as the graph holds it: `amax` float32, a scalar or [C] along `axis`.

    With a `block_size` it is a weight's, [N * blocks], one for so many values of the last axis.
    `per_token`: the scale is computed from the values at hand, one for each row of the last axis.
    A format whose blocks have scales of its own has no `amax`: `find_scales` gives those of a
    weight, [N, blocks], and what they are multiplied by, None for powers of two. For activations,
    of `shape` in the trace, they are computed from the values at hand; `tensor_scale` is what those
    of NVFP4 are multiplied by.
    `fake_quantize` is the quantizer itself: rounded values, in float32.
    """

    name: str
    format: NumberFormat
    slot: Slot
    amax: np.ndarray[Any, Any]
    axis: int | None
    fake_quantize: Callable[[torch.Tensor], torch.Tensor]
    block_size: int | None = None
    per_token: bool = False
    shape: tuple[int, ...] = ()
    tensor_scale: float | None = None
    find_scales: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]] | None = None

    def scale(self) -> np.ndarray[Any, Any]:
        """Return the float32 scale of QuantizeLinear, of the shape of `amax`."""
        import numpy as np

        largest = np.float32(self.format.largest)
        if self.format.is_integer:
            least, unused = _LEAST_INTEGER_RANGE, np.float32(1.0)
        else:
            least, unused = read_arithmetic().least_range, np.float32(1.0) / largest
        scale = np.where(self.amax <= np.float32(least), unused, self.amax / largest)
        return np.asarray(scale, dtype=np.float32)

    def round_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight in the format's type of PyTorch, rounded by the quantizer itself.

        Its values lie on the grid of the scale up to a float's rounding, so the division is exact
        in effect; a formula of our own would put a value near a tie on the other side.
        """
        import torch

        if self.find_scales is not None:
            scale, factor = self.find_scales(weight.float())
            scale = scale if factor is None else scale * factor
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        else:
            scale = torch.from_numpy(self.scale())
        if self.block_size is not None:
            scale = scale.reshape(weight.shape[0], -1)
            scale = scale.repeat_interleave(self.block_size, dim=1)[:, : weight.shape[1]]
        elif self.axis is not None:
            shape = [1] * weight.ndim
            shape[self.axis] = -1
            scale = scale.reshape(shape)
        grid = self.fake_quantize(weight.float()) / scale
        grid = grid.round() if self.format.is_integer else grid
        return grid.clamp(self.format.lowest, self.format.largest).to(self.torch_dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        # PyTorch has no type of 4 bits: two of them are put into a byte when they are stored.
        alike = (row.torch_dtype for row in TABLE if row.num_bits == self.format.num_bits)
        wide = "int8" if self.format.is_integer else "float32"
        name = self.format.torch_dtype or next(filter(None, alike), wide)
        found: torch.dtype = getattr(torch, name)
        return found


@dataclass(kw_only=True)
class _Build:
    """The graph while it is put together: `initializers` by name, in the order of their use."""

    tensors: Mapping[str, torch.Tensor]
    stored: Mapping[str, StoredQuantizer]
    uses: Counter[str]
    readers: Mapping[str, list[Any]]
    nodes: list[Any] = field(default_factory=list)
    initializers: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    token_scales: dict[str, str] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)

    @property
    def versions(self) -> tuple[int, int]:
        """The least opset and file format that have what was written, 0 where any have."""
        if any(q.format.bits < 8 and not q.format.is_integer for q in self.stored.values()):
            return FP4_OPSET, FP4_IR
        blocked = any(q.format.bits < 8 or q.block_size for q in self.stored.values())
        return (BLOCKS_OPSET, BLOCKS_IR) if blocked else (0, 0)


def find_marks(trace: Any) -> Iterator[str]:
    """Yield the quantizers that left a mark in a trace: those that ran in it."""
    for node in trace.graph.node:
        if node.op_type == MARK:
            yield _text_attribute(node, "name")


def finish_graph(
    trace: Any,
    *,
    tensors: Mapping[str, torch.Tensor],
    stored: Mapping[str, StoredQuantizer],
    inputs: tuple[str, ...],
    precision: Literal["float32", "float16", "bfloat16"],
    metadata: Mapping[str, str],
    path: Path,
) -> int:
    """Write the finished model to `path` and return its opset.

    `trace` is PyTorch's graph, whose weights are inputs under the names of `tensors`, and whose
    quantizers left marks with the names of `stored`. Raises ModelError for a graph that one file
    cannot hold.
    """
    import onnx

    nodes = [
        # PyTorch lets equal tensors share one initializer; their own names come back here.
        node
        for node in trace.graph.node
        if not (node.op_type == "Identity" and node.output[0] in tensors)
    ]
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    build = _Build(
        tensors=tensors,
        stored=stored,
        uses=Counter(name for node in nodes for name in node.input),
        readers=readers,
    )
    for node in nodes:
        _add_node(build, node)
    graph_inputs = [value for value in trace.graph.input if value.name in inputs]
    outputs = list(trace.graph.output)
    opsets = [entry for entry in trace.opset_import if entry.domain in ("", "ai.onnx")]
    if precision != "float32":
        build.nodes = narrow_graph(
            build.nodes,
            build.initializers,
            precision=precision,
            inputs=graph_inputs,
            output=outputs[0].name,
            wide=build.wide,
        )
    opset = max(int(entry.version) for entry in opsets)
    opset = max(opset, build.versions[0], BFLOAT16_OPSET if precision == "bfloat16" else 0)
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(build.nodes, trace.graph.name, graph_inputs, outputs),
        opset_imports=opsets,
        ir_version=max(trace.ir_version, build.versions[1]),
        producer_name="pytest-quantgate",
    )
    weights_bytes = sum(len(tensor.raw_data) for tensor in build.initializers.values())
    if weights_bytes > LARGEST_FILE_BYTES:
        raise ModelError(
            f"{path}: {weights_bytes / 1e9:.1f} GB of weights, one ONNX file holds "
            f"{LARGEST_FILE_BYTES / 1e9:.1f} GB: export with precision float16"
        )
    for name in list(build.initializers):  # moved one by one: they are most of the memory
        model.graph.initializer.append(build.initializers.pop(name))
    drop_idle_nodes(model)
    onnx.helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString())
    return opset


def _add_node(build: _Build, node: Any) -> None:
    """Add a traced node, or what stands for it."""
    if id(node) in build.dropped:
        return
    for index, name in enumerate(node.input):
        node.input[index] = build.renamed.get(name, name)
    source = node.input[0] if node.input else ""
    if node.op_type == MARK:
        quantizer = build.stored[_text_attribute(node, "name")]
        if source in build.tensors:
            _add_stored_weight(build, node, quantizer=quantizer)
        elif quantizer.per_token:
            _add_token_pair(build, node, quantizer=quantizer)
        elif quantizer.tensor_scale is not None:
            _add_nvfp4_pair(build, node, quantizer=quantizer)
        elif quantizer.format.scale_bits is not None:
            _add_mx_pair(build, node, quantizer=quantizer)
        else:
            _add_pair(build, node, quantizer=quantizer)
        return
    if node.op_type == "Transpose" and source in build.tensors and build.uses[source] == 1:
        tensor = build.tensors[source].permute(_axes(node, build.tensors[source].ndim))
        _add_initializer(build, source, tensor)
        build.renamed[node.output[0]] = source
        return
    for name in node.input:
        if name in build.tensors and name not in build.initializers:
            _add_initializer(build, name, build.tensors[name])
    node.doc_string = ""
    build.nodes.append(node)
    scale = build.token_scales.get(node.input[0]) if node.input else None
    if scale is not None:
        _scale_product(build, node, scale=scale)


def _add_stored_weight(build: _Build, node: Any, *, quantizer: StoredQuantizer) -> None:
    """Store a weight in 8 bits followed by DequantizeLinear, transposed as its matmul reads it."""
    import onnx

    source, output = node.input[0], node.output[0]
    weight = quantizer.round_weight(build.tensors[source].detach().cpu())
    axis = 1 if quantizer.block_size else quantizer.axis
    readers = build.readers.get(output, [])
    if len(readers) == 1 and readers[0].op_type == "Transpose" and weight.ndim == 2:
        axes = _axes(readers[0], 2)
        weight = weight.permute(axes)
        axis = axes.index(axis) if axis is not None else None
        output = readers[0].output[0]
        build.dropped.add(id(readers[0]))
    name = source if build.uses[source] == 1 else f"{quantizer.name}.weight"
    if quantizer.block_size:
        _add_blocked_weight(
            build,
            weight,
            quantizer=quantizer,
            axis=axis or 0,
            source=source,
            name=name,
            output=output,
        )
        return
    _add_initializer(build, name, weight)
    scale, zero_point = _add_scale(build, quantizer)
    build.nodes.append(
        onnx.helper.make_node(
            "DequantizeLinear",
            [name, scale, zero_point],
            [output],
            name=name_node(quantizer.name, "DequantizeLinear"),
            **_axis_attribute(axis),
        )
    )


def _add_blocked_weight(
    build: _Build,
    weight: torch.Tensor,
    *,
    quantizer: StoredQuantizer,
    axis: int,
    source: str,
    name: str,
    output: str,
) -> None:
    """Store a weight of 4 or 8 bits in blocks of `axis`, with a scale for each block.

    A row that is no longer than a block has one scale: that is a scale for each output channel,
    but in a format that is its blocks. The scales of NVFP4 are stored in E4M3 and dequantized.
    """
    import numpy as np
    import onnx

    scale = f"{quantizer.name}.scale"
    if scale in build.initializers:
        raise _called_again(quantizer)
    size, factor = quantizer.block_size, None
    assert size is not None
    if quantizer.find_scales is not None:
        found, factor = quantizer.find_scales(build.tensors[source].detach().cpu().float())
        scales: np.ndarray[Any, Any] = found.numpy()
    else:
        scales = quantizer.scale()
    scales = scales.reshape(weight.shape[1 - axis], -1)
    alone = scales.shape[1] == 1 and quantizer.find_scales is None
    attributes: dict[str, Any] = {"axis": 1 - axis} if alone else {"axis": axis, "block_size": size}
    scales = scales.reshape(-1) if alone else (scales if axis == 1 else scales.T)
    if quantizer.format.bits < 8:
        packed = weight.contiguous().numpy().astype(_array_type(quantizer.format))
        build.initializers[name] = onnx.numpy_helper.from_array(packed, name=name)
    else:
        _add_initializer(build, name, weight)
    part = _Part(build=build, quantizer=quantizer)
    if factor is None:
        scale = part.constant("scale", np.ascontiguousarray(scales))
    else:
        codes = part.constant("scale", np.ascontiguousarray(scales).astype(_array_type(E4M3)))
        scale = part.add("DequantizeLinear", [codes, part.constant("tensor_scale", factor.numpy())])
    build.nodes.append(
        onnx.helper.make_node(
            "DequantizeLinear",
            [name, scale],
            [output],
            name=name_node(quantizer.name, "DequantizeLinear"),
            **attributes,
        )
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What belongs to one quantizer besides its pair: nodes and constants under its name."""

    build: _Build
    quantizer: StoredQuantizer
    is_wide: bool = False

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return what it gives; float32 in a narrow graph too if `is_wide`."""
        import onnx

        place = name_in_graph(self.quantizer.name)
        number = sum(made.name.startswith(f"{place}/{operator}") for made in self.build.nodes)
        result = f"{place}/{operator}_{number}"
        self.build.nodes.append(
            onnx.helper.make_node(operator, inputs, [result], name=result, **attributes)
        )
        if self.is_wide:
            self.build.wide.add(result)
        return result

    def constant(self, name: str, value: Any) -> str:
        import numpy as np
        import onnx

        name = f"{self.quantizer.name}.{name}"
        self.build.initializers[name] = onnx.numpy_helper.from_array(np.asarray(value), name=name)
        return name

    def split(self, source: str, *, keepdims: bool) -> tuple[str, str]:
        """Return a value as [..., blocks, size], and the largest magnitude of each block."""
        import numpy as np

        size = self.quantizer.block_size
        assert size is not None
        *lead, width = self.quantizer.shape
        shape = np.array([0] * len(lead) + [width // size, size], dtype=np.int64)
        blocks = self.add("Reshape", [source, self.constant("blocks", shape)])
        axes = self.constant("axes", np.array([-1], dtype=np.int64))
        highest = self.add("ReduceMax", [self.add("Abs", [blocks]), axes], keepdims=int(keepdims))
        return blocks, highest


def _add_token_pair(build: _Build, node: Any, *, quantizer: StoredQuantizer) -> None:
    """Divide each row of the last axis by its largest magnitude, and round it in a pair of range 1.

    That comes back behind the product with the weight (`_scale_product`): a kernel that multiplies
    FP8 by FP8 takes one scale for its whole input, and no half overflows in between. A row without
    a value is divided by 1, as in ModelOpt's `fp8_eager`.
    """
    import numpy as np
    import onnx

    part, source = _Part(build=build, quantizer=quantizer), node.input[0]
    add, constant = part.add, part.constant
    axes = constant("axes", np.array([-1], dtype=np.int64))
    highest = add("ReduceMax", [add("Abs", [source]), axes])
    least = np.float32(read_arithmetic().least_range)
    empty = add("LessOrEqual", [highest, constant("unused", least)])
    scale = add("Where", [empty, constant("one", np.float32(1.0)), highest])
    inner = onnx.helper.make_node("Identity", [add("Div", [source, scale])], node.output)
    _add_pair(build, inner, quantizer=quantizer)
    readers = build.readers.get(node.output[0], [])
    if readers and all(r.op_type == "MatMul" and r.input[0] == node.output[0] for r in readers):
        build.token_scales[node.output[0]] = scale
        return
    last = build.nodes[-1]
    last.output[0] = f"{node.output[0]}_unscaled"
    result = add("Mul", [last.output[0], scale])
    build.renamed[node.output[0]] = result


def _add_nvfp4_pair(build: _Build, node: Any, *, quantizer: StoredQuantizer) -> None:
    """Round the scales of blocks to E4M3 under that of the tensor, then the values to E2M1.

    TensorRT for RTX 1.7 makes an FP4 GEMM of it, as of its own `TRT_FP4DynamicQuantize`, which no
    other runtime knows. A block whose scale is next to nothing becomes 0, as in ModelOpt's kernel.
    """
    import numpy as np
    import onnx

    scale_name = f"{quantizer.name}.scale"
    if scale_name in build.initializers:
        raise _called_again(quantizer)
    part = _Part(build=build, quantizer=quantizer, is_wide=True)
    factor = np.float32(quantizer.tensor_scale)
    _, highest = part.split(node.input[0], keepdims=False)
    zero = part.constant("zero_point", np.zeros((), dtype=_array_type(E4M3)))
    largest = part.constant("largest", np.float32(quantizer.format.largest) * factor)
    codes = part.add("QuantizeLinear", [highest, largest, zero])
    scale = part.add("DequantizeLinear", [codes, part.constant("scale", factor)])
    least_scale = max(read_arithmetic().least_block_scale, _LEAST_POWER)
    least = part.constant("least", np.float32(least_scale))
    idle = part.add("Less", [scale, least])
    divisor = part.add("Where", [idle, part.constant("one", np.float32(1.0)), scale])
    # A builder wants the length of the blocks' axis as a number, and attention computes its own.
    *lead, width = quantizer.shape
    shape = part.constant("shape", np.array([0] * len(lead) + [width], dtype=np.int64))
    sized = part.add("Reshape", [node.input[0], shape])
    values = f"{name_node(quantizer.name, 'QuantizeLinear')}_output_0"
    layout: dict[str, Any] = {"axis": -1, "block_size": quantizer.block_size}
    for operator, inputs, output, more in (
        (
            "QuantizeLinear",
            [sized, divisor],
            values,
            {"output_dtype": getattr(onnx.TensorProto, quantizer.format.onnx_type)},
        ),
        ("DequantizeLinear", [values, scale], node.output[0], {}),
    ):
        name = name_node(quantizer.name, operator)
        build.nodes.append(
            onnx.helper.make_node(operator, inputs, [output], name=name, **layout, **more)
        )


def _add_mx_pair(build: _Build, node: Any, *, quantizer: StoredQuantizer) -> None:
    """Divide each block by the power of two that is its scale, round it, and multiply again.

    TensorRT for RTX 1.7 takes no block scale that is computed, but for FP4; it computes all of
    these in half precision. The scale is 2**round(log2(x)), or twice that where it is less than x:
    how exactly a runtime computes the logarithm decides nothing.
    """
    import numpy as np
    import onnx

    part = _Part(build=build, quantizer=quantizer, is_wide=True)
    add, constant = part.add, part.constant
    blocks, highest = part.split(node.input[0], keepdims=True)
    ratio = add("Div", [highest, constant("largest", np.float32(quantizer.format.largest))])
    ratio = add("Max", [ratio, constant("least", np.float32(_LEAST_POWER))])
    per_e = constant("per_e", np.float32(1 / math.log(2)))
    power = add("Round", [add("Mul", [add("Log", [ratio]), per_e])])
    near = add("Pow", [constant("two", np.float32(2.0)), power])
    scale = add("Where", [add("Greater", [ratio, near]), add("Add", [near, near]), near])
    rounded = f"{name_in_graph(quantizer.name)}/rounded"
    inner = onnx.helper.make_node("Identity", [add("Div", [blocks, scale])], [rounded])
    _add_pair(build, inner, quantizer=quantizer)
    *lead, width = quantizer.shape
    shape = np.array([0] * len(lead) + [width], dtype=np.int64)
    add("Reshape", [add("Mul", [rounded, scale]), constant("shape", shape)])
    build.nodes[-1].output[0] = node.output[0]


def _scale_product(build: _Build, node: Any, *, scale: str) -> None:
    """Multiply what a MatMul gives by the scale of each row of its left side."""
    import onnx

    result = node.output[0]
    node.output[0] = f"{result}_unscaled"
    build.nodes.append(
        onnx.helper.make_node("Mul", [node.output[0], scale], [result], name=f"{node.name}_scale")
    )


def _called_again(quantizer: StoredQuantizer) -> ModelError:
    return ModelError(
        f"{quantizer.name} is called more than once in a forward: its pairs would need one name "
        f"each, which this export does not write"
    )


def _add_pair(build: _Build, node: Any, *, quantizer: StoredQuantizer) -> None:
    import onnx

    scale, zero_point = _add_scale(build, quantizer)
    eight_bits = f"{name_node(quantizer.name, 'QuantizeLinear')}_output_0"
    for operator, source, output in (
        ("QuantizeLinear", node.input[0], eight_bits),
        ("DequantizeLinear", eight_bits, node.output[0]),
    ):
        build.nodes.append(
            onnx.helper.make_node(
                operator,
                [source, scale, zero_point],
                [output],
                name=name_node(quantizer.name, operator),
                **_axis_attribute(quantizer.axis),
            )
        )


def _add_scale(build: _Build, quantizer: StoredQuantizer) -> tuple[str, str]:
    import numpy as np

    if f"{quantizer.name}.scale" in build.initializers:
        raise _called_again(quantizer)
    part, values = _Part(build=build, quantizer=quantizer), quantizer.scale()
    zero_point = np.zeros(values.shape, dtype=_array_type(quantizer.format))
    return part.constant("scale", values), part.constant("zero_point", zero_point)


def _array_type(kind: NumberFormat) -> Any:
    """Return the type of NumPy for a value of a format."""
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.onnx_type))


def _add_initializer(build: _Build, name: str, tensor: torch.Tensor) -> None:
    import onnx
    import torch

    narrow = {getattr(torch, row.torch_dtype): row for row in TABLE if row.torch_dtype}
    kinds = {
        **{kind: getattr(onnx.TensorProto, row.onnx_type) for kind, row in narrow.items()},
        torch.float32: onnx.TensorProto.FLOAT,
        torch.float16: onnx.TensorProto.FLOAT16,
        torch.int64: onnx.TensorProto.INT64,
        torch.bool: onnx.TensorProto.BOOL,
    }
    if tensor.dtype not in kinds:
        raise ModelError(f"{name}: a tensor of type {tensor.dtype} has no place in the ONNX graph")
    values = tensor.detach().cpu().contiguous()
    raw = values.view(torch.uint8) if tensor.dtype in narrow else values
    build.initializers[name] = onnx.TensorProto(
        name=name,
        data_type=kinds[tensor.dtype],
        dims=list(values.shape),
        raw_data=raw.numpy().tobytes(),
    )


def _axis_attribute(axis: int | None) -> dict[str, Any]:
    return {} if axis is None else {"axis": axis}


def _axes(node: Any, rank: int) -> list[int]:
    """Return the permutation of a Transpose."""
    for attribute in node.attribute:
        if attribute.name == "perm":
            return list(attribute.ints)
    return list(reversed(range(rank)))


def _text_attribute(node: Any, name: str) -> str:
    return next(str(a.s.decode()) for a in node.attribute if a.name == name)


def name_node(quantizer: str, operator: str) -> str:
    """Return the name of a QuantizeLinear or DequantizeLinear that belongs to a quantizer."""
    short = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}[operator]
    return f"{name_in_graph(quantizer)}/{short}"


def name_in_graph(module: str) -> str:
    """Return a module's path as names of nodes begin with it (`/encoder/layers.0/mlp`)."""
    # PyTorch keeps the index of a list with its name: `layers.0`.
    return f"/{re.sub(r'[.](?![0-9])', '/', module)}"
