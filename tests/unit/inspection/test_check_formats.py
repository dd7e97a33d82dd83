"""A layer report in a format of fewer than 8 bits is read, and named."""

from __future__ import annotations

from pathlib import Path

from pytest_quantgate.artifacts.engine_files import read_layer_report
from pytest_quantgate.inspection.engine import inspect_layers
from pytest_quantgate.inspection.headline import name_format

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
