"""Pairs that compute the scales of their blocks: what the graph gives, by the standards alone.

The reference is NumPy with the element types of ml_dtypes, which rounds ties to even as OCP's
formats do; the graph runs in ONNX's own evaluator. Fake quantization must give the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import NVFP4, find_format
from pytest_quantgate.quantization.arithmetic import read_arithmetic
from pytest_quantgate.quantization.emulation import fake_quantize_mx, fake_quantize_nvfp4
from pytest_quantgate.runtimes.onnx_surgery import (
    MARK,
    MARK_DOMAIN,
    StoredQuantizer,
    finish_graph,
)

WIDTH = 64
AMAX = 6.0
TENSOR_SCALE = np.float32(AMAX) / np.float32(6 * 448)

ELEMENTS = {
    "NVFP4": ml_dtypes.float4_e2m1fn,
    "MXFP8": ml_dtypes.float8_e4m3fn,
    "MXFP4": ml_dtypes.float4_e2m1fn,
    "MXINT8": np.int8,
}


def round_element(values: Any, *, kind: NumberFormat) -> Any:
    """Return values, clipped to the range, rounded to the nearest one of a format, ties to even."""
    clipped = np.clip(values, -np.float32(kind.largest), np.float32(kind.largest))
    if kind.is_integer:
        return np.rint(clipped)
    return clipped.astype(ELEMENTS[kind.name]).astype("f4")


def quantize(values: Any, *, kind: NumberFormat) -> Any:
    """Return rows of WIDTH values as a format holds them, by its definition."""
    blocks = values.reshape(-1, kind.block_size)
    highest = np.abs(blocks).max(axis=1, keepdims=True)
    if kind.name == "NVFP4":
        share = np.minimum(highest / (np.float32(6) * TENSOR_SCALE), np.float32(448))
        scale = share.astype(ml_dtypes.float8_e4m3fn).astype("f4") * TENSOR_SCALE
        scale = np.where(scale < max(read_arithmetic().least_block_scale, 2.0**-126), 0, scale)
    else:
        _, power = np.frexp((highest / np.float32(kind.largest)).astype("f8"))
        scale = np.exp2(power.astype("f8"))
        scale = np.where(highest * 2 <= scale * kind.largest, scale / 2, scale).astype("f4")
        scale = np.where(highest == 0, 0, np.maximum(scale, np.float32(2.0**-126)))
    divided = blocks / np.where(scale == 0, np.float32(1), scale)
    return (round_element(divided, kind=kind) * scale).reshape(values.shape)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pairs")
    return {
        name: ReferenceEvaluator(str(write(name, folder / f"{name}.onnx"))) for name in ELEMENTS
    }


def write(name: str, path: Path) -> Path:
    """Write the graph of one quantizer of activations, as the export makes it of a trace."""
    kind = find_format(name)
    assert kind is not None
    node = helper.make_node(MARK, ["x"], ["y"], domain=MARK_DOMAIN, name="q")
    node.attribute.append(helper.make_attribute("name", "fc.input_quantizer"))
    values = [helper.make_tensor_value_info(v, TensorProto.FLOAT, ["n", WIDTH]) for v in "xy"]
    trace = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(MARK_DOMAIN, 1)],
    )
    stored = StoredQuantizer(
        name="fc.input_quantizer",
        format=kind,
        slot="input",
        amax=np.asarray(kind.largest, dtype="f4"),
        axis=None,
        fake_quantize=lambda value: value,
        block_size=kind.block_size,
        shape=(1, WIDTH),
        tensor_scale=float(TENSOR_SCALE) if name == "NVFP4" else None,
    )
    finish_graph(
        trace,
        tensors={},
        stored={stored.name: stored},
        inputs=("x",),
        precision="float32",
        metadata={},
        path=path,
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


#: Ties and what lies beside them, zeros, what is next to nothing, and what is beyond the range.
ODD = st.sampled_from([0.0, -0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 448.0, 1e-30])
SMALL = st.floats(-8, 8, width=32)
ROWS = st.lists(st.one_of(ODD, SMALL), min_size=1, max_size=WIDTH)
POWERS = st.integers(-40, 40)


@pytest.mark.parametrize("name", ELEMENTS)
@settings(max_examples=60, deadline=None)
@given(values=ROWS, power=POWERS)
def test_a_pair_gives_what_its_format_is_defined_as(
    name: str, graphs: dict[str, Any], values: list[float], power: int
) -> None:
    kind = find_format(name)
    assert kind is not None
    row = np.zeros((1, WIDTH), dtype="f4")
    row[0, : len(values)] = values
    row *= np.float32(2.0) ** (power if kind is not NVFP4 else power / 8)

    (found,) = graphs[name].run(None, {"x": row})

    wanted = quantize(row, kind=kind)
    np.testing.assert_array_equal(found, wanted)
    x = torch.from_numpy(row)
    emulated = (
        fake_quantize_nvfp4(x, torch.tensor(AMAX), arithmetic=read_arithmetic())
        if kind is NVFP4
        else fake_quantize_mx(x, element=kind)
    )
    np.testing.assert_array_equal(emulated.numpy(), wanted)


@pytest.mark.parametrize("name", ELEMENTS)
def test_what_is_not_finite_is_never_made_a_number(name: str, graphs: dict[str, Any]) -> None:
    row = np.ones((1, WIDTH), dtype="f4")
    row[0, 3] = np.nan

    with np.errstate(invalid="ignore"):  # what an integer makes of NaN is nobody's word
        found = np.asarray(graphs[name].run(None, {"x": row})[0])

    assert np.isnan(found[0, 3])
    assert np.isfinite(found[0, 32:]).all()  # of another block
