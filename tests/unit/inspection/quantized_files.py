"""Small checkpoints that are written byte by byte, and what is said of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pytest_quantgate.inspection.findings import Inspection, Report
from pytest_quantgate.inspection.inspect import inspect_paths

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, tuple[str, Array]]
Edit = Callable[[Tensors], None]

_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "F8_E4M3": "u1", "I64": "<i8"}


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, Array]], *, metadata: Any = None
) -> None:
    """Write tensors, each as its type and an array of that type's width, as the format has them."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    offset, data = 0, []
    for name, (kind, array) in tensors.items():
        raw = np.ascontiguousarray(array.astype(_TYPES[kind])).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
        data.append(raw)
    head = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(data))


def read_safetensors(path: Path) -> tuple[Tensors, Any]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + place for place in entry["data_offsets"])
        kind = entry["dtype"]
        array = np.frombuffer(content[begin:end], dtype=_TYPES[kind]).reshape(entry["shape"])
        tensors[name] = (kind, array.copy())
    return tensors, metadata


def inspect(path: Path, *, base: Path | None = None) -> Inspection:
    """Return what is said of one path, which is read."""
    report = inspect_paths([path], base=base)
    assert report.refusals == ()
    assert len(report.inspections) == 1
    return report.inspections[0]


def codes(found: Inspection | Report) -> set[str]:
    return {finding.code for finding in found.findings}


BLOCKS = 3
_LAYERS = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (16, 16),
    "self_attn.v_proj": (16, 16),
    "self_attn.out_proj": (16, 16),
    "mlp.fc1": (32, 16),
    "mlp.fc2": (16, 32),
}


def make_base() -> Tensors:
    """Return the FP32 tensors of a CLIP with two towers of three blocks, width 16."""
    random = np.random.default_rng(0)
    tensors: Tensors = {"logit_scale": ("F32", np.float32(2.6).reshape(()))}  # type: ignore[dict-item]
    for tower in ("vision_model", "text_model"):
        for block in range(BLOCKS):
            for layer, shape in _LAYERS.items():
                name = f"{tower}.encoder.layers.{block}.{layer}"
                weight = random.normal(size=shape).astype("f4") / math.sqrt(shape[1])
                tensors[f"{name}.weight"] = ("F32", weight)
                tensors[f"{name}.bias"] = ("F32", random.normal(size=shape[0]).astype("f4"))
            norm = f"{tower}.encoder.layers.{block}.layer_norm1.weight"
            tensors[norm] = ("F32", np.ones(16, dtype="f4"))
    patches = random.normal(size=(16, 3, 4, 4)).astype("f4")
    tensors["vision_model.embeddings.patch_embedding.weight"] = ("F32", patches)
    tokens = random.normal(size=(40, 16)).astype("f4")
    tensors["text_model.embeddings.token_embedding.weight"] = ("F32", tokens)
    for name in ("visual_projection", "text_projection"):
        weight = random.normal(size=(16, 16)).astype("f4")
        tensors[f"{name}.weight"] = ("F32", weight)
    return tensors


def is_linear(name: str, array: Array) -> bool:
    return name.endswith(".weight") and array.ndim == 2 and "embedding" not in name


def make_int8(base: Tensors) -> Tensors:
    """Return the tensors with every Linear weight in INT8 per channel, and a static input scale."""
    tensors: Tensors = {}
    for place, (name, (kind, array)) in enumerate(base.items()):
        if not is_linear(name, array):
            tensors[name] = (kind, array)
            continue
        scale = np.abs(array).max(axis=1, keepdims=True) / 127
        tensors[name] = ("I8", np.rint(array / scale))
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.weight_scale"] = ("F32", scale)
        attention = layer.rpartition(".")[0] if ".self_attn." in layer else ""
        shared = (sum(map(ord, attention)) % 7) if "out_proj" not in layer and attention else place
        tensors[f"{layer}.input_scale"] = ("F32", np.float32(0.02 + 0.001 * shared).reshape(()))  # type: ignore[assignment]
    return tensors


INT8_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPModel"],
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "version": "0.20.1",
        "format": "int-quantized",
        "ignore": [],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                "input_activations": {
                    "num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False
                },
            }
        },
    },
}  # fmt: skip
