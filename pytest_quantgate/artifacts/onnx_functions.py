"""Functions that a model holds itself, put in the place of their calls, as every runtime does.

PyTorch's exporter of the years 2023 and 2024, and frameworks that compose graphs, write a module as
a function of the file: whoever reads the main graph alone sees calls, and none of the layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.runtimes.onnx_model import refuse_unsound


def inline_functions(model: Any, *, path: Path) -> Any:
    """Return a model, as onnx reads it, without functions; itself where it has none.

    Raises ArtifactError for functions that call each other in a circle, that would make a graph too
    large, or that onnx cannot put in the place of their calls; ModelError for names in them that
    are no text.
    """
    if not model.functions:
        return model
    from onnx import inliner

    number = _count_nodes(model, path=path)
    if number > bounds.ONNX_PARTS:
        raise ArtifactError(
            f"{path}: its functions make a graph of {number:,} nodes, at most "
            f"{bounds.ONNX_PARTS:,} are read"
        )
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]  # the inliner would copy them twice
    try:
        inlined: Any = inliner.inline_local_functions(model)
    except (ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path}: its functions cannot be put in the place of their calls ({reason}): export "
            f"it without functions"
        ) from error
    finally:
        model.graph.initializer.extend(weights)
    inlined.graph.initializer.extend(weights)
    used = {domain for domain, _, _ in _count_calls(inlined.graph.node)}
    imports = [entry for entry in model.opset_import if entry.domain in used or not entry.domain]
    del inlined.opset_import[:]  # those of the functions are read as operators of others
    inlined.opset_import.extend(imports)
    refuse_unsound(inlined, path=path)
    return inlined


def list_graphs(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield the graphs of branches and loops of nodes, and those within them."""
    waiting = list(nodes)
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield graph
                waiting += graph.node


def _count_nodes(model: Any, *, path: Path) -> int:
    """Return how many nodes the main graph has after its calls are replaced; ArtifactError."""
    bodies = {_name(function): _count_calls(function.node) for function in model.functions}
    order = TopologicalSorter({name: set(calls) & set(bodies) for name, calls in bodies.items()})
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for name in order.static_order():
            sizes[name] = sum(n * sizes.get(call, 1) for call, n in bodies[name].items())
    except CycleError as error:
        raise ArtifactError(
            f"{path}: its functions call each other in a circle: export it without functions"
        ) from error
    return sum(n * sizes.get(call, 1) for call, n in _count_calls(model.graph.node).items())


def _count_calls(nodes: Any) -> Counter[tuple[str, str, str]]:
    """Return how often each operator stands among nodes, and in their branches."""
    within = (node for graph in list_graphs(nodes) for node in graph.node)
    return Counter((node.domain, node.op_type, node.overload) for node in (*nodes, *within))


def _name(function: Any) -> tuple[str, str, str]:
    return function.domain, function.name, function.overload
