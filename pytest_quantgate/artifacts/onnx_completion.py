"""What the graph of a sentence encoder may leave to who runs it, put into the graph.

Exporters of text encoders often end at the last hidden states: the pooling is done by a library
around it. And they ask for `token_type_ids`, which a model of one text a sample has all 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.onnx_file import OnnxGraph, index_graph
from pytest_quantgate.errors import ArtifactError

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_places import TowerModel

#: Inputs that are 0 for a tower that has no such input.
_ZEROS = ("token_type_ids",)

#: Before this opset the axes of an operator stand in an attribute.
_AXES_OPSET = 13

#: As torch.nn.functional.normalize, and as the pooling of sentence-transformers.
_SMALLEST_LENGTH, _SMALLEST_COUNT = 1e-12, 1e-9


def complete_graph(graph: OnnxGraph, *, output: str, model: TowerModel) -> OnnxGraph:
    """Return a graph that takes the tower's inputs and gives an embedding [N, D] in `output`.

    The graph itself where nothing is missing. Raises ArtifactError for hidden states of a tower
    of which nothing says how they are pooled.
    """
    values = {value.name: value.type.tensor_type for value in graph.model.graph.output}
    axes = len(values[output].shape.dim)
    idle = [name for name in _ZEROS if name in graph.inputs and name not in model.inputs]
    is_hidden = axes > 2
    if not is_hidden and not idle:
        return graph
    if is_hidden and not (model.pooling and axes == 3 and "attention_mask" in graph.inputs):
        raise ArtifactError(
            f"{graph.path} gives {output[:80]!r} with {axes} axes, which are hidden states and no "
            f"embedding: export it with what the {model.tower} tower does behind them"
        )
    build = _Build(graph)
    for name in idle:
        build.fill_with_zeros(name)
    if is_hidden:
        build.pool(output, kind=values[output].elem_type, model=model)
    return index_graph(graph.model, path=graph.path)


class _Build:
    """Adds nodes to a graph, in place."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph.model.graph
        self.opset = graph.opset
        self._used = {*graph.makers, *graph.readers, *graph.tensors, *graph.inputs}

    def fill_with_zeros(self, name: str) -> None:
        """Make an input zeros of the shape of `input_ids`, and of its own type."""
        value = next(v for v in self.graph.input if v.name == name)
        zeros = self._add("Sub", ["input_ids", "input_ids"])
        self._add("Cast", [zeros], output=name, to=value.type.tensor_type.elem_type)
        self.graph.input.remove(value)

    def pool(self, hidden: str, *, kind: int, model: TowerModel) -> None:
        """Put the pooling behind hidden states [N, T, D], and make its result the output."""
        import onnx

        if model.pooling == "cls":
            found = self._add("Gather", [hidden, self._store("first", 0, onnx.TensorProto.INT64)])
            self.graph.node[-1].attribute.append(onnx.helper.make_attribute("axis", 1))
        else:
            mask = self._add("Cast", ["attention_mask"], to=kind)
            mask = self._add("Unsqueeze", [mask], axes=[-1])
            total = self._add("ReduceSum", [self._add("Mul", [hidden, mask])], axes=[1], keepdims=0)
            number = self._add("ReduceSum", [mask], axes=[1], keepdims=0)
            least = self._store("count", _SMALLEST_COUNT, kind)
            found = self._add("Div", [total, self._add("Max", [number, least])])
        if model.normalize:
            squares = self._add("Mul", [found, found])
            length = self._add("Sqrt", [self._add("ReduceSum", [squares], axes=[1], keepdims=1)])
            least = self._store("length", _SMALLEST_LENGTH, kind)
            found = self._add("Div", [found, self._add("Max", [length, least])])
        del self.graph.output[:]
        self.graph.output.append(
            onnx.helper.make_tensor_value_info(found, kind, ["batch", "embedding"])
        )

    def _add(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        axes: Sequence[int] = (),
        **attributes: Any,
    ) -> str:
        import onnx

        made = output or self._name(operator.lower())
        if axes and self.opset >= _AXES_OPSET:
            inputs = [*inputs, self._store("axes", list(axes), onnx.TensorProto.INT64)]
        elif axes:
            attributes["axes"] = list(axes)
        self.graph.node.append(
            onnx.helper.make_node(operator, inputs, [made], name=made, **attributes)
        )
        return made

    def _store(self, what: str, values: Any, kind: int) -> str:
        import numpy
        import onnx

        name = self._name(what)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        tensor = onnx.numpy_helper.from_array(numpy.asarray(values).astype(dtype), name)
        self.graph.initializer.append(tensor)
        return name

    def _name(self, what: str) -> str:
        name = f"/quantgate/{what}_{len(self._used)}"
        self._used.add(name)
        return name
