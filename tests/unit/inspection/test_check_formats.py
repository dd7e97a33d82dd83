"""Formats of fewer than 8 bits: read, named, and held against labels, scales and the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

from pytest_quantgate.artifacts.engine_files import read_layer_report
from pytest_quantgate.inspection.engine import inspect_layers
from pytest_quantgate.inspection.headline import name_format
from tests.unit.inspection.quantized_files import (
    Tensors,
    codes,
    inspect,
    is_linear,
    make_base,
    write_safetensors,
)

RECORDED = Path(__file__).parents[1] / "runtimes/data"


def test_an_nvfp4_engine_is_named() -> None:
    path = RECORDED / "engine_nvfp4_sm120.txt"

    found = inspect_layers(read_layer_report(path), label="layers.txt")

    assert found.headline == "engine layer report of TensorRT: 1 of 1 GEMMs FP4"
    assert [row.format for row in found.rows if row.what == "GEMM with weights"] == ["1 FP4"]


def test_formats_are_named_as_people_do() -> None:
    names = ("E4M3", "E2M1", "INT8", "UINT4", "NVFP4", "MXFP8", "other")
    assert [name_format(name) for name in names] == [
        *("FP8 (E4M3)", "FP4 (E2M1)", "INT8", "UINT4", "NVFP4", "MXFP8", "other")
    ]


# -- NVFP4 as compressed-tensors packs it ------------------------------------------------------

FC1 = "vision_model.encoder.layers.1.mlp.fc1"
FC1_OF_2 = FC1.replace(".1.", ".2.")
FP4 = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype="f4")


def make_nvfp4() -> Tensors:
    """Return the small CLIP with every Linear weight in FP4, blocks of 16 under scales of E4M3."""
    tensors: Tensors = {}
    for name, (kind, array) in make_base().items():
        if not is_linear(name, array):
            tensors[name] = (kind, array)
            continue
        blocks = array.reshape(array.shape[0], -1, 16)
        scales = (np.abs(blocks).max(axis=2) / 6 * 8).astype(float8_e4m3fn)
        scaled = blocks / scales.astype("f4")[..., None] * 8
        sizes = np.abs(np.abs(scaled)[..., None] - FP4).argmin(axis=-1)
        numbers = (sizes | ((scaled < 0) << 3)).astype("u1").reshape(array.shape)
        layer = name.removesuffix(".weight")
        attention = ".self_attn." in layer and "out_proj" not in layer
        place = sum(map(ord, layer.rpartition(".")[0] if attention else layer))
        tensors[f"{layer}.weight_packed"] = ("U8", numbers[:, ::2] | numbers[:, 1::2] << 4)
        tensors[f"{layer}.weight_scale"] = ("F8_E4M3", scales.view("u1"))
        tensors[f"{layer}.weight_global_scale"] = ("F32", np.asarray([8.0]))
        tensors[f"{layer}.input_global_scale"] = ("F32", np.asarray([place / 100]))
    return tensors


def write_nvfp4(folder: Path, edit: Callable[[Tensors], Any], *, group_size: int = 16) -> Path:
    tensors = make_nvfp4()
    edit(tensors)
    write_safetensors(folder / "model.safetensors", tensors)
    entry = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": group_size}
    settings = {
        "quant_method": "compressed-tensors",
        "ignore": [],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": entry, "input_activations": entry}
        },
    }
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return folder


def put(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        kind, array = tensors[name]
        tensors[name] = (kind, change(array))

    return edit


def swap(one: str, other: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return edit


def lose(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name) and None


def test_a_good_nvfp4_checkpoint_is_quiet_and_close_to_its_base(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "base/model.safetensors", make_base())

    found = inspect(write_nvfp4(tmp_path / "q", lambda _: None), base=tmp_path / "base")

    assert codes(found) == set()
    assert "38 of 38 Linear layers NVFP4" in found.headline
    assert found.against is not None
    assert len(found.against.layers) == 38
    assert 14 < found.against.layers[0].sqnr_db < 25
    fact = next(o for o in found.operands if o.layer == FC1 and o.slot == "input")
    assert fact.largest == pytest.approx(448 * 6 / (sum(map(ord, FC1)) / 100))


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (put(f"{FC1}.weight_packed", lambda a: a >> 4 | (a & 15) << 4), "check.sqnr-low"),
        (put(f"{FC1}.weight_scale", lambda a: np.roll(a, 5, axis=0) + 8), "check.scales-moved"),
        (put(f"{FC1}.weight_global_scale", lambda a: a / 10), "check.scale-outlier"),
        (swap(f"{FC1}.weight_packed", f"{FC1_OF_2}.weight_packed"), "check.sqnr-low"),
        (put(f"{FC1}.weight_scale", lambda a: np.full_like(a, 0x7F)), "check.range-not-finite"),
        (put(f"{FC1}.weight_scale", lambda a: a[::2]), "check.scale-shape"),
        (put(f"{FC1}.weight_packed", np.zeros_like), "check.weight-zero"),
        (lose(f"{FC1}.weight_global_scale"), "check.range-missing"),
        (lose(f"{FC1}.input_global_scale"), "check.range-missing"),
    ],
    ids=[
        *("nibbles", "scales shuffled", "global scale", "codes of another layer", "scales NaN"),
        *("half of the scales", "all zero", "no global scale", "no range of the input"),
    ],
)
def test_each_spoiled_nvfp4_checkpoint_is_caught(
    tmp_path: Path, edit: Callable[[Tensors], None], code: str
) -> None:
    write_safetensors(tmp_path / "base/model.safetensors", make_base())

    assert code in codes(inspect(write_nvfp4(tmp_path / "q", edit), base=tmp_path / "base"))


def test_a_block_size_that_the_tensors_contradict(tmp_path: Path) -> None:
    found = inspect(write_nvfp4(tmp_path, lambda _: None, group_size=32))

    assert [f.headline.partition(": ")[2] for f in found.findings] == [
        "group_0 says strategy tensor_group and group_size 32; 38 weights have block 16 scales"
    ]
