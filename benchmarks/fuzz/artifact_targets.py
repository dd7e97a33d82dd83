"""The readers of what other tools made, fed as `quantgate check --base` does."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz.target import Target
from pytest_quantgate.errors import ArtifactError

ROOT = Path(__file__).parents[2]


def artifact_target(folder: Path) -> Target:
    """The bytes of weights, graphs and plans: each case is read as all three."""
    import numpy
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    files = _write_checkpoint(folder)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    weight = numpy_helper.from_array(numpy.arange(4, dtype="f4").reshape(2, 2), "w")
    codes = numpy_helper.from_array(numpy.arange(4, dtype="i1").reshape(2, 2), "c")
    node = helper.make_node
    pairs = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        node("QuantizeLinear", ["w", "s", "z"], ["wq"], "wq"),
        node("DequantizeLinear", ["wq", "s", "z"], ["v"], "v"),
        node("MatMul", ["d", "v"], ["y"], "/vision_model/encoder/layers.0/mlp/fc1/MatMul"),
    ]
    whole = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        node("QLinearMatMul", ["q", "s", "z", "c", "s", "z", "s", "z"], ["p"], "/fc1/MatMul_quant"),
        node("DequantizeLinear", ["p", "s", "z"], ["y"], "d"),
    ]
    graphs = []
    for nodes in (pairs, whole):
        ends = [helper.make_tensor_value_info(name, 1, ["n", 2]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [scale, zero, weight, codes])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        onnx.checker.check_model(model)
        graphs.append(model.SerializeToString())
    places = [files / "model.safetensors", folder / "graph.onnx", folder / "engine.plan"]
    inspect = _inspector(folder)

    def read(data: bytes) -> None:
        refused = []
        for path in places:
            path.write_bytes(data)
            try:
                inspect(files if path.parent == files else path)
            except ArtifactError as error:
                refused.append(error)
        if len(refused) == len(places):
            raise refused[0]

    seeds = (places[0].read_bytes(), *graphs, b"ftrt\0\0sm_89\0" + bytes(16))
    return Target(name="artifacts", seeds=seeds, read=read, share=0.05, guided_share=0.02)


def label_target(folder: Path) -> Target:
    """The JSON beside weights, and the layer report of an engine."""
    files = _write_checkpoint(folder)
    from tests.unit.inspection.quantized_files import INT8_CONFIG

    export = {
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": []},
    }
    layer = {
        "Name": "/vision_model/encoder/layers.0/mlp/fc1/MatMul",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Dimensions": [1, 2], "Format/Datatype": "FP8"}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
        "Weights": {"Type": "FP8", "Count": 64},
        "TacticName": "sm89_xmma_gemm_e4m3",
    }
    index = {"weight_map": {"visual_projection.weight": "model.safetensors"}}
    good = {
        "config.json": INT8_CONFIG,
        "hf_quant_config.json": export,
        "model.safetensors.index.json": index,
        "layers.json": {"Layers": [layer], "Bindings": ["x"]},
    }
    marks = (b"Layers", b"weight_map", b"exclude_modules")
    names = ("layers.json", "model.safetensors.index.json", "hf_quant_config.json")
    inspect = _inspector(folder)

    def read(data: bytes) -> None:
        name = next(
            (n for mark, n in zip(marks, names, strict=True) if mark in data), "config.json"
        )
        path = files / name
        path.write_bytes(data)
        try:
            inspect(files if name != "layers.json" else path)
        finally:
            path.unlink()

    seeds = tuple(json.dumps(value).encode() for value in good.values())
    return Target(
        name="artifact JSON", seeds=seeds, read=read, share=0.05, guided_share=0.02, form="json"
    )


def given_target(folder: Path) -> Target:
    """The state of a checkpoint that is handed over, which a suite opens before it is restored."""
    import torch

    from pytest_quantgate.run.given_variant import open_given
    from pytest_quantgate.suite.specs import QuantizedSpec
    from pytest_quantgate.suite.where import Where

    files = _write_checkpoint(folder)
    path = files / "modelopt_state.pth"
    (files / "config.json").write_text("{}")  # an export would be refused for its own
    spec = QuantizedSpec(where=Where(file="x", line=1, keys={}), checkpoint=str(files))
    entry = {"_num_bits": (4, 3), "_axis": None, "_fake_quant": True}
    metadata = {"quantizer_state": {"visual_projection.input_quantizer": entry}}
    state = [("quantize", {"config": {"quant_cfg": {"*": {}}}, "metadata": metadata})]
    stream = io.BytesIO()
    torch.save({"modelopt_state_dict": state, "modelopt_version": "0.47.0"}, stream)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        open_given(spec, environ={})

    return Target(
        name="given states", seeds=(stream.getvalue(),), read=read, share=0.05, guided_share=0.02
    )


def _write_checkpoint(folder: Path) -> Path:
    """Write a small checkpoint with codes and scales, and its base beside it."""
    sys.path.insert(0, str(ROOT))
    from tests.unit.inspection.quantized_files import (
        INT8_CONFIG,
        make_base,
        make_int8,
        write_safetensors,
    )

    wanted = ("visual_projection", "vision_model.encoder.layers.0.mlp")
    base = {name: value for name, value in make_base().items() if name.startswith(wanted)}
    for name, tensors in (("base", base), ("made", make_int8(base))):
        write_safetensors(folder / name / "model.safetensors", tensors)
    (folder / "made" / "config.json").write_text(json.dumps(INT8_CONFIG))
    (folder / "base" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    return folder / "made"


def _inspector(folder: Path) -> Callable[[Path], Any]:
    """Return what reads a path as `quantgate check --base` does, and renders what it found."""
    from pytest_quantgate.inspection.inspect import inspect_paths
    from pytest_quantgate.report.inspection import render_json, render_text

    def inspect(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # it would stand in a terminal
            report = inspect_paths([path], base=folder / "base")
            render_text(report)
            json.loads(render_json(report))
        if report.refusals:
            raise ArtifactError(report.refusals[0].reason)

    return inspect
