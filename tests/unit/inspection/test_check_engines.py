"""Layer reports of trtexec, in the forms of several releases, and plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.inspection.findings import Row
from pytest_quantgate.inspection.inspect import inspect_paths
from tests.unit.inspection.quantized_files import codes, inspect

LISTINGS = Path(__file__).parents[1] / "runtimes" / "data"


def layer(name: str, *, kind: str = "gemm", types: tuple[str, ...] = ("FP8",), **more: Any) -> Any:
    tensors = [{"Name": "x", "Dimensions": [1, 2], "Format/Datatype": t} for t in types]
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": tensors,
        "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
        "TacticName": "",
        **more,
    }


def gemm(block: int, word: str, *, key: str = "Format/Datatype") -> Any:
    made = layer(f"/vision_model/encoder/layers.{block}/mlp/fc1/MatMul", types=())
    made["Inputs"] = [{"Name": "x", key: word}]
    made["Weights"] = {"Type": word.split()[-2] if " " in word else word, "Count": 64}
    return made


def write(path: Path, layers: list[Any]) -> Path:
    path.write_text(json.dumps({"Layers": layers, "Bindings": ["pixel_values"]}))
    return path


@pytest.mark.parametrize(
    ("word", "key", "format"),
    [
        ("FP8", "Format/Datatype", "3 FP8"),
        ("FP8E4M3", "DataType", "3 FP8"),
        ("Thirty-two wide channel vectorized row major Int8 format", "Format/Datatype", "3 INT8"),
        ("Row major linear INT8 format", "Format/Datatype", "3 INT8"),
    ],
)
def test_a_good_report_of_any_release(tmp_path: Path, word: str, key: str, format: str) -> None:
    found = inspect(write(tmp_path / "l.json", [gemm(b, word, key=key) for b in range(3)]))

    assert codes(found) == set()
    assert found.rows == (
        Row(tower="engine", what="GEMM with weights", quantized=3, total=3, format=format,
            scales=""),
    )  # fmt: skip


def test_a_block_that_fell_back_is_named(tmp_path: Path) -> None:
    layers = [gemm(0, "FP8"), gemm(1, "Half"), gemm(2, "FP8")]

    found = inspect(write(tmp_path / "l.json", layers))

    assert codes(found) == {"check.engine-fallback"}
    assert found.findings[0].subjects == ("/vision_model/encoder/layers.1/mlp/fc1/MatMul",)


def test_an_engine_without_8_bits_is_not_quantized(tmp_path: Path) -> None:
    layers = [gemm(b, "Half") for b in range(3)]

    assert codes(inspect(write(tmp_path / "l.json", layers))) == {"check.not-quantized"}


@pytest.mark.parametrize(
    "layers",
    [
        [{}],
        [layer("a", kind="Shuffle")],
        [layer("conv1", kind="CaskConvolution", types=("Half",), Weights={"Type": "Half"})],
        [layer("/layers.0/attn/MatMul", types=("Half",))],
    ],
)
def test_a_report_in_which_nothing_multiplies_in_8_bits(tmp_path: Path, layers: list[Any]) -> None:
    found = inspect(write(tmp_path / "l.json", layers))

    assert codes(found) == {"check.not-quantized"}
    assert "no GEMM was recognised among 1 kernel" in found.findings[0].headline


@pytest.mark.parametrize("row", ["a", 1, None])
def test_a_report_with_a_row_that_is_no_layer_is_refused(tmp_path: Path, row: Any) -> None:
    (refusal,) = inspect_paths([write(tmp_path / "l.json", [gemm(0, "FP8"), row])]).refusals

    assert "a layer of it is no mapping" in refusal.reason


def test_a_report_of_names_alone_says_which_flag_to_set(tmp_path: Path) -> None:
    found = inspect(write(tmp_path / "l.json", ["a", "b"]))

    assert codes(found) == {"check.names-only"}
    assert "--profilingVerbosity=detailed" in found.findings[0].next_step


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("engine_fp8_sm89", set()),
        ("engine_fp8_sm120", set()),
        ("engine_fp16_sm89", {"check.not-quantized"}),
        ("engine_fp8_weights_sm89", {"check.not-quantized"}),
    ],
)
def test_a_listing_of_the_builder(name: str, expected: set[str]) -> None:
    assert codes(inspect(LISTINGS / f"{name}.txt")) == expected


@pytest.mark.parametrize(
    ("head", "headline"),
    [
        (b"vtrt\0\0tvtrt\0sm89\0" + bytes(100), "TensorRT for RTX, built for sm89"),
        (b"vtrt" + bytes(20) + b"\1\7\1\x74tvtrt", "TensorRT for RTX 1.7.1.116, 0.0 MB"),
        (b"ftrt" + bytes(20) + b"\n\3\0\x1a", "TensorRT 10.3.0.26, 0.0 MB"),
        (b"ftrt" + bytes(100), "TensorRT, 0.0 MB"),
    ],
)
def test_a_plan_says_what_its_first_bytes_tell(tmp_path: Path, head: bytes, headline: str) -> None:
    (tmp_path / "m.plan").write_bytes(head)

    found = inspect(tmp_path / "m.plan")

    assert found.headline.startswith(f"engine plan of {headline}")
    assert codes(found) == set()
    assert "--exportLayerInfo=layers.json" in found.next_steps[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"count": 10}, {"name": "a", "timeMs": 1}]', "is a profile, the times of layers"),
        ('{"Layers": []}', "names no layer"),
        ('{"a": 1}', "no layer report"),
        ('{"Layers": [', "not JSON"),
    ],
)
def test_other_json_is_refused_by_name(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "l.json").write_text(content)

    (refusal,) = inspect_paths([tmp_path / "l.json"]).refusals

    assert words in refusal.reason


@settings(max_examples=150, deadline=None)
@given(
    layers=st.lists(
        st.text(max_size=8)
        | st.dictionaries(
            st.sampled_from(
                ("Name", "LayerType", "Inputs", "Outputs", "Constants", "Weights", "TacticName",
                 "Metadata", "Type", "Format/Datatype", "Datatype")
            ),
            st.recursive(
                st.none() | st.integers() | st.text(max_size=8),
                lambda inner: st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(("Name", "Format/Datatype", "Type")), inner, max_size=2
                ),
                max_leaves=5,
            ),
            max_size=6,
        )
        | st.none(),
        max_size=4,
    )
)  # fmt: skip
def test_any_report_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, layers: list[Any]
) -> None:
    path = write(tmp_path_factory.mktemp("report") / "l.json", layers)

    report = inspect_paths([path])

    assert len(report.inspections) + len(report.refusals) == 1
