"""The table: what is found in it by whose spelling, and that a new format is one row of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import (
    E4M3,
    INT4,
    INT8,
    MXFP8,
    NVFP4,
    TABLE,
    explain_target,
    find_format,
    find_onnx_format,
    find_precision,
    ignores_scales,
    keeps_amax,
    list_targets,
    name_format,
    narrow_precisions,
    read_blocks,
    read_format,
    read_num_bits,
)

#: ModelOpt's `configs/numerics`: num_bits, block_sizes, and what it is called.
MODELOPT = [
    ((4, 3), None, "E4M3"),
    ((4, 3), {-1: 128, -2: 128}, "E4M3"),
    ((4, 3), {-1: None, "type": "dynamic"}, "E4M3"),
    (8, None, "INT8"),
    (4, {-1: 128, "type": "static"}, "INT4"),
    ((5, 2), {-1: 32, "type": "dynamic"}, "E5M2"),
    ((2, 1), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}, "MXFP4"),
    ((3, 2), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}, "MXFP6"),
    ((2, 3), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}, "MXFP6 E2M3"),
    ((4, 3), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}, "MXFP8"),
    ((5, 2), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}, "MXFP8 E5M2"),
    (8, {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}, "MXINT8"),
    ((2, 1), {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}, "NVFP4"),
    ((2, 1), {-1: 16, "type": "static", "scale_bits": (4, 3), "four_over_six": True}, "NVFP4"),
    ((2, 1), {-1: 32, "type": "dynamic", "scale_bits": (4, 3)}, "NVFP4 (block 32)"),
]


@pytest.mark.parametrize(("num_bits", "block_sizes", "name"), MODELOPT)
def test_what_modelopt_writes(num_bits: Any, block_sizes: Any, name: str) -> None:
    assert name_format(num_bits, block_sizes=block_sizes) == name
    found = read_format(num_bits, block_sizes=block_sizes)
    assert found is not None
    assert found == find_format(name)
    assert found.num_bits == num_bits


def test_scales_that_modelopt_passes_over_in_silence_make_no_other_format() -> None:
    static = {-1: 32, "type": "static", "scale_bits": (8, 0)}

    assert name_format((4, 3), block_sizes=static) == "E4M3"
    assert name_format(4, block_sizes={-1: 64, "scale_bits": 8}) == "INT4"
    assert name_format((2, 1), block_sizes={-1: 32, "type": "dynamic"}) == "E2M1"
    assert name_format((2, 1), block_sizes={-1: 16, -2: 16, "scale_bits": (4, 3)}) == "E2M1"


@pytest.mark.parametrize(("num_bits", "block_sizes", "name"), MODELOPT)
def test_no_format_of_modelopts_own_declares_scales_for_nothing(
    num_bits: Any, block_sizes: Any, name: str
) -> None:
    assert not ignores_scales(num_bits, block_sizes=block_sizes), name


@pytest.mark.parametrize(
    ("num_bits", "block_sizes"),
    [
        (4, {-1: 32, "scale_bits": 8, "scale_block_sizes": {-1: 128}}),
        (4, {-1: 32, "scale_bits": (4, 3)}),
        ((4, 3), {-1: 32, "type": "static", "scale_bits": (8, 0)}),
        ("mine", {-1: 32, "scale_bits": 8}),
    ],
)
def test_scales_that_are_declared_for_nothing(num_bits: Any, block_sizes: Any) -> None:
    assert ignores_scales(num_bits, block_sizes=block_sizes)
    plain = {-1: block_sizes[-1], "scale_bits": None}
    assert not ignores_scales(num_bits, block_sizes=plain)


def test_plain_data_as_yaml_and_json_have_it() -> None:
    assert read_num_bits("e4m3") == read_num_bits([4, 3]) == (4, 3)
    assert read_num_bits("a backend's own") == "a backend's own"
    written = {-1: 16, "type": "dynamic", "scale_bits": "e4m3"}
    assert name_format("e2m1", block_sizes=written) == "NVFP4"
    assert name_format([2, 1], block_sizes={**written, "scale_bits": [4, 3]}) == "NVFP4"
    assert read_blocks(written) == {-1: 16}
    assert read_blocks({-1: None, -2: True, 0: 0, "x": 3}) == {}
    assert read_blocks("no mapping") == {}


@pytest.mark.parametrize(
    "num_bits", [True, "x", None, 0, -4, 1.5, (4, 3, 1), (99, 9), ("a", 1), (True, 2)]
)
def test_what_is_no_format(num_bits: Any) -> None:
    name = name_format(num_bits)

    assert name == f"unknown({num_bits!r})"
    assert find_format(name) is None


@given(bits=st.one_of(st.integers(1, 64), st.tuples(st.integers(1, 8), st.integers(0, 23))))
def test_a_format_that_is_in_no_row_is_known_by_its_bits(bits: Any) -> None:
    found = read_format(bits)

    assert found is not None
    assert found.num_bits == bits
    assert found == find_format(found.name) == find_format(name_format(bits))
    assert found.bits == (bits if isinstance(bits, int) else 1 + sum(bits))


@given(st.text())
def test_any_text_is_a_name_or_none(text: str) -> None:
    found = find_format(text)
    assert found is None or found.name == text


@pytest.mark.parametrize(
    "name",
    [
        *(
            "e4m3",
            "E4m3",
            "INT08",
            "INT0",
            "UINT65",
            "E9M1",
            "int8",
            "INT\u0663",
            "NVFP4 (block 0)",
        ),
        "NVFP4 (block 32)" + " (block 32)" * 10_000,
    ],
)
def test_what_only_looks_like_a_name(name: str) -> None:
    """A format that is spelled in another way would else be known by its bits, without its row."""
    assert find_format(name) is None


def test_every_row_is_found_by_its_name_alone() -> None:
    names = [kind.name for kind in TABLE]

    assert len(set(names)) == len(names)
    assert [find_format(name) for name in names] == list(TABLE)


# -- one row ------------------------------

INT6 = NumberFormat(name="INT6", exponent_bits=0, mantissa_bits=5, torch_dtype="int8")
HALF_BLOCKS = NumberFormat(
    name="HB3", exponent_bits=1, mantissa_bits=1, block_size=8, scale_bits=(5, 2), amax="tensor"
)


def test_a_new_row_is_named_sized_and_rounded() -> None:
    table = (*TABLE, INT6, HALF_BLOCKS)
    blocks = {-1: 8, "scale_bits": (5, 2)}

    assert read_format(6, table=table) is INT6
    assert find_format("INT6", table=table) is INT6
    assert INT6.count_bits((3, 5), full_bits=16) == 3 * 5 * 6
    assert [INT6.round_value(v) for v in (2.5, 3.5, 40, -40)] == [2, 4, 31, -32]
    assert INT6.half_step == 0.5 / 31

    found = read_format((1, 1), block_sizes=blocks, table=table)
    assert found is HALF_BLOCKS
    other = read_format((1, 1), block_sizes={**blocks, -1: 4}, table=table)
    assert other == find_format("HB3 (block 4)", table=table)
    assert other is not None
    assert other.count_bits((2, 8), full_bits=16) == 2 * 8 * 3 + 2 * 2 * 8
    assert [found.value_of(code) for code in range(4)] == [0, 1, 2, 3]


def test_the_row_of_the_guide_works() -> None:
    page = (Path(__file__).parents[3] / "docs/guides/own-format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    exec(compile(block, "own-format.md", "exec"), {})
    assert [kind.name for kind in TABLE if f"`{kind.name}`" not in page] == []


def test_a_new_row_is_rounded_and_stored_by_the_export() -> None:
    torch = pytest.importorskip("torch")
    from pytest_quantgate.runtimes.onnx_surgery import StoredQuantizer

    stored = StoredQuantizer(
        name="fc1.weight_quantizer",
        format=INT6,
        slot="weight",
        amax=torch.tensor(62.0).numpy(),
        axis=None,
        fake_quantize=lambda value: value,
    )

    assert stored.scale() == 2
    rounded = stored.round_weight(torch.tensor([62.0, 63.9, -70.0, 5.0, 3.0]))
    assert rounded.dtype == torch.int8
    assert rounded.tolist() == [31, 31, -32, 2, 2]


def test_a_quantizer_of_no_known_format_keeps_a_range_unless_it_is_dynamic() -> None:
    assert keeps_amax("unknown('mine')", dynamic=False)
    assert not keeps_amax("unknown('mine')", dynamic=True)
    assert keeps_amax("NVFP4 (block 32)", dynamic=True)


# -- how others spell it ------------------------------


def test_types_of_onnx() -> None:
    assert find_onnx_format("FLOAT8E4M3FN") is E4M3
    assert find_onnx_format("FLOAT8E4M3FN", block_size=32, scale_type="FLOAT") is E4M3
    assert find_onnx_format("FLOAT8E4M3FN", block_size=32, scale_type="FLOAT8E8M0") is MXFP8
    assert find_onnx_format("INT4", block_size=128) is INT4
    assert find_onnx_format("FLOAT4E2M1", block_size=16) is NVFP4  # its scales are computed
    assert find_onnx_format("FLOAT4E2M1", block_size=16, scale_type="FLOAT8E4M3FN") is NVFP4
    mxfp4 = find_format("MXFP4")
    assert find_onnx_format("FLOAT4E2M1", block_size=32) is mxfp4
    assert find_onnx_format("FLOAT4E2M1", block_size=32, scale_type="FLOAT8E8M0") is mxfp4
    other = find_onnx_format("FLOAT4E2M1", block_size=32, scale_type="FLOAT8E4M3FN")
    assert other == find_format("NVFP4 (block 32)")
    assert find_onnx_format("FLOAT4E2M1") is None
    assert find_onnx_format("FLOAT") is find_onnx_format("") is None


def test_every_type_of_onnx_is_one_that_there_is() -> None:
    onnx = pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")

    onnx_names = {name for name, _ in onnx.TensorProto.DataType.items()}

    for kind in TABLE:
        assert not kind.onnx_type or kind.onnx_type in onnx_names
        if kind.torch_dtype:
            assert getattr(torch, kind.torch_dtype).itemsize * 8 == kind.bits


def test_words_of_an_engine() -> None:
    assert list(narrow_precisions().items()) == [("fp4", 4), ("fp8", 8), ("int8", 8)]
    words = ("FP8", "Int8", "INT8", "FP4E2M1", "Int4", "Half", "FP8UE8M0")
    found = [find_precision(word) for word in words]
    assert found == ["fp8", "int8", "int8", "fp4", "", "", ""]


def test_targets_are_listed_in_words() -> None:
    assert list_targets(E4M3) == "sm89, sm120, sm121"
    assert explain_target(NVFP4, target="sm89") == (
        "NVFP4 is not supported on sm89, but on sm120, sm121"
    )
    assert list_targets(dataclasses.replace(INT8, first_target="")) == "none"
