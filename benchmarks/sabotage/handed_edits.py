"""What spoils a file that was handed over: a few verbs, which the table combines.

A checkpoint and an ONNX file are both tensors by name here, raw as they are stored: codes of FP8
are bytes. `apply` knows nothing of what reads the file afterwards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sabotage.handed_files import write_sums

Tensors = dict[str, Any]
Step = Mapping[str, Any]


def apply(steps: Sequence[Step], *, path: Path, find: Callable[[str], Path]) -> None:
    """Spoil a copy, one verb with its arguments after the other; `find` gives other hand-overs."""
    for step in steps:
        ((verb, arguments),) = step.items()
        if verb in TENSORS:
            _edit_tensors(path, verb=verb, arguments=arguments)
        elif verb in NODES:
            _edit_nodes(path, verb=verb, arguments=arguments)
        else:
            FILES[verb](path, find=find, **arguments)


# -- tensors ---------------------------------------------------------------------------------------


def _match(tensors: Tensors, pattern: str) -> list[str]:
    found = [name for name in tensors if fnmatchcase(name, pattern)]
    if not found:
        raise ValueError(f"no tensor is called {pattern!r}")
    return found


def _scale(tensors: Tensors, *, tensors_: str, by: float) -> None:
    for name in _match(tensors, tensors_):
        tensors[name] = (tensors[name] * np.float64(by)).astype(tensors[name].dtype)


def _fill(tensors: Tensors, *, tensors_: str, value: float) -> None:
    for name in _match(tensors, tensors_):
        tensors[name] = np.full_like(tensors[name], value)


def _poke(tensors: Tensors, *, tensor: str, value: float) -> None:
    flat = tensors[tensor].reshape(-1).copy()
    flat[flat.size // 2] = value
    tensors[tensor] = flat.reshape(tensors[tensor].shape)


def _drop(tensors: Tensors, *, tensors_: str) -> None:
    for name in _match(tensors, tensors_):
        del tensors[name]


def _swap(tensors: Tensors, *, one: str, two: str) -> None:
    tensors[one], tensors[two] = tensors[two], tensors[one]


def _copy(tensors: Tensors, *, source: str, to: str) -> None:
    tensors[to] = tensors[source].copy()


def _shuffle(tensors: Tensors, *, tensor: str) -> None:
    """Put the values of a tensor into another order, the same in each run."""
    flat = tensors[tensor].reshape(-1)
    order = np.random.default_rng(0).permutation(flat.size)
    tensors[tensor] = flat[order].reshape(tensors[tensor].shape)


def _turn(tensors: Tensors, *, tensor: str) -> None:
    """Transpose the values, and leave the shape."""
    tensors[tensor] = np.ascontiguousarray(tensors[tensor].T).reshape(tensors[tensor].shape)


def _halves(tensors: Tensors, *, tensor: str) -> None:
    """Swap the two codes of each byte."""
    codes = tensors[tensor]
    tensors[tensor] = ((codes << 4) | (codes >> 4)).astype(codes.dtype)


TENSORS: Mapping[str, Callable[..., None]] = {
    "scale": _scale,
    "fill": _fill,
    "poke": _poke,
    "drop": _drop,
    "swap": _swap,
    "copy": _copy,
    "shuffle": _shuffle,
    "turn": _turn,
    "halves": _halves,
}


def _edit_tensors(path: Path, *, verb: str, arguments: Mapping[str, Any]) -> None:
    given = {("tensors_" if key == "tensors" else key): v for key, v in arguments.items()}
    editor = _edit_onnx if path.suffix == ".onnx" else _edit_checkpoint
    editor(path, lambda tensors: TENSORS[verb](tensors, **given))


def _edit_checkpoint(path: Path, edit: Callable[[Tensors], None]) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    if path.suffix == ".pth":
        whole = torch.load(path, weights_only=True)
        stored = whole["model_state_dict"]
    else:
        file = path / "model.safetensors"
        stored = load_file(file)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
    types = {name: tensor.dtype for name, tensor in stored.items()}
    tensors = {name: _to_numpy(tensor) for name, tensor in stored.items()}
    edit(tensors)
    edited = {
        name: torch.from_numpy(np.array(value)).view(types.get(name, torch.float32))
        if name in types and types[name].itemsize == 1
        else torch.from_numpy(np.array(value))
        for name, value in tensors.items()
    }
    if path.suffix == ".pth":
        whole["model_state_dict"] = edited
        torch.save(whole, path)
    else:
        save_file({n: t.contiguous() for n, t in edited.items()}, file, metadata=metadata)


def _to_numpy(tensor: Any) -> Any:
    import torch

    narrow = tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point
    return (tensor.view(torch.uint8) if narrow else tensor).numpy()


def _edit_onnx(path: Path, edit: Callable[[Tensors], None]) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    kept = {t.name: t for t in model.graph.initializer}
    before = {name: numpy_helper.to_array(tensor) for name, tensor in kept.items()}
    tensors = dict(before)
    edit(tensors)
    for name, tensor in kept.items():
        if name not in tensors:
            model.graph.initializer.remove(tensor)
        elif tensors[name] is not before[name]:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(tensors[name]), name))
    onnx.save(model, path)


# -- nodes -----------------------------------------------------------------------------------------


def _set_attribute(model: Any, *, node: str, name: str, value: int) -> None:
    import onnx

    for found in _find_nodes(model, node):
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def _bypass(model: Any, *, node: str) -> None:
    """Have the readers of a node read its first input."""
    for found in _find_nodes(model, node):
        for other in model.graph.node:
            for place, name in enumerate(other.input):
                if name == found.output[0]:
                    other.input[place] = found.input[0]
        model.graph.node.remove(found)


def _reroute(model: Any, *, node: str, place: int, to: str) -> None:
    for found in _find_nodes(model, node):
        found.input[place] = to


def _rename(model: Any, *, node: str, to: str) -> None:
    for found in _find_nodes(model, node):
        found.name = to


def _reorder(model: Any, *, node: str) -> None:
    """Put a node at the end of the file."""
    for found in _find_nodes(model, node):
        kept = type(found)()
        kept.CopyFrom(found)
        model.graph.node.remove(found)
        model.graph.node.append(kept)


def _compute_in_float(model: Any, *, node: str) -> None:
    """Put DequantizeLinear, MatMul and QuantizeLinear in the place of a QLinearMatMul."""
    from onnx import helper

    for found in _find_nodes(model, node):
        places = list(model.graph.node).index(found)
        names = list(found.input)
        stem = found.name.removesuffix("_quant")
        model.graph.node.remove(found)
        for new in (
            helper.make_node(
                "QuantizeLinear", [f"{stem}:o", *names[6:8]], found.output, f"{stem}:q"
            ),
            helper.make_node("MatMul", [f"{stem}:a", f"{stem}:w"], [f"{stem}:o"], stem),
            helper.make_node("Mul", [f"{stem}:c", names[4]], [f"{stem}:w"], f"{stem}:m"),
            helper.make_node("Cast", [names[3]], [f"{stem}:c"], f"{stem}:cast", to=1),
            helper.make_node("DequantizeLinear", names[:3], [f"{stem}:a"], f"{stem}:d"),
        ):
            model.graph.node.insert(places, new)


def _widen_weight(model: Any, *, node: str, tensor: str) -> None:
    """Have a node read a weight that is stored in full precision, of the codes of a tensor."""
    from onnx import numpy_helper

    kept = {t.name: t for t in model.graph.initializer}
    stem = tensor.removesuffix("_quantized")
    values, scale = (numpy_helper.to_array(kept[n]) for n in (tensor, f"{stem}_scale"))
    plain = numpy_helper.from_array((values * scale).astype("f4"), f"{stem}:float")
    model.graph.initializer.append(plain)
    for found in _find_nodes(model, node):
        found.input[1] = plain.name


def _set_opset(model: Any, *, version: int) -> None:
    model.opset_import[0].version = version


def _find_nodes(model: Any, pattern: str) -> list[Any]:
    found = [node for node in model.graph.node if fnmatchcase(node.name, pattern)]
    if not found:
        raise ValueError(f"no node is called {pattern!r}")
    return found


NODES: Mapping[str, Callable[..., None]] = {
    "attribute": _set_attribute,
    "bypass": _bypass,
    "reroute": _reroute,
    "rename": _rename,
    "reorder": _reorder,
    "opset": _set_opset,
    "compute-in-float": _compute_in_float,
    "widen-weight": _widen_weight,
}


def _edit_nodes(path: Path, *, verb: str, arguments: Mapping[str, Any]) -> None:
    import onnx

    model = onnx.load(path)
    NODES[verb](model, **arguments)
    onnx.save(model, path)


# -- files -----------------------------------------------------------------------------------------


def _set_json(path: Path, *, find: Any, file: str, at: str, value: Any) -> None:
    data = json.loads((path / file).read_text())
    *parents, last = at.split(".")
    place = data
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    (path / file).write_text(json.dumps(data))


def _truncate(path: Path, *, find: Any, file: str = "", to: float) -> None:
    folder = path if path.is_dir() else path.parent
    target = folder / file if file else path
    content = target.read_bytes()
    target.write_bytes(content[: int(len(content) * to)])


def _remove(path: Path, *, find: Any, file: str) -> None:
    (path / file).unlink()


def _take(path: Path, *, find: Callable[[str], Path], file: str, of: str, name: str = "") -> None:
    """Put a file of another hand-over in the place of one."""
    source = find(of)
    shutil.copyfile(source / (name or file) if source.is_dir() else source, path / file)


def _quantize_again(path: Path, *, find: Any, how: str) -> None:
    from onnxruntime.quantization import quantize_dynamic

    assert how == "dynamic"
    draft = path.with_name("again.onnx")
    quantize_dynamic(path, draft)
    draft.replace(path)


class _Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def _pickle(path: Path, *, find: Any, file: str, plain: bool = False) -> None:
    """Write a pickle that leaves a file behind where it is loaded, by torch.save or `plain`."""
    import pickle

    import torch

    target, canary = path / file if path.is_dir() else path, _Canary(path.parent / "CANARY")
    if plain:
        target.write_bytes(pickle.dumps(canary))
    else:
        torch.save({"modelopt_state_dict": [canary], "modelopt_version": "0.47.0"}, target)


def _sum_again(path: Path, *, find: Any) -> None:
    write_sums(path)


def _names_only(path: Path, *, find: Any, file: str) -> None:
    data = json.loads((path / file).read_text())
    data["Layers"] = [layer["Name"] for layer in data["Layers"]]
    (path / file).write_text(json.dumps(data))


FILES: Mapping[str, Callable[..., None]] = {
    "json": _set_json,
    "truncate": _truncate,
    "remove": _remove,
    "take": _take,
    "quantize-again": _quantize_again,
    "pickle": _pickle,
    "sum-again": _sum_again,
    "names-only": _names_only,
}
