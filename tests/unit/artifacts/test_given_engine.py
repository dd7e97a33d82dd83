"""A layer report that was handed over says something only where it is proved to be of the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.artifacts.given_engine import ReportFiles, check_sums, read_engine_report
from pytest_quantgate.errors import ArtifactError, Untied
from pytest_quantgate.runtimes.engine_layers import EngineReport, OnnxGraph

FC1, FC2, CONV = "/encoder/layers.0/fc1/MatMul", "/encoder/layers.0/fc2/MatMul", "/patch/Conv"
GRAPH = OnnxGraph(linear=(FC1, FC2), conv=(CONV,), qdq=(), attentions=())
ONNX = b"the approved graph"
PLAN = b"vtrt" + b"\0" * 40 + b"sm89" + b"\0" * 16


def row(node: str, kind: str = "gemm", types: tuple[str, str] = ("FP8", "FP8")) -> dict[str, Any]:
    """Return a kernel as trtexec 10 writes it."""
    tensor = {"Location": "Device", "Dimensions": [1, 8]}
    return {
        "Name": f"__myl_{node.replace('/', '_')}",
        "LayerType": kind,
        "Inputs": [{**tensor, "Name": "in", "Format/Datatype": types[0]}],
        "Constants": [{**tensor, "Name": "w", "Format/Datatype": types[1]}],
        "Outputs": [{**tensor, "Name": "out", "Format/Datatype": "Half"}],
        "TacticName": "sm89_xmma",
        "Metadata": f"[ONNX Layer: {node}]",
    }


GOOD = [row(FC1), row(FC2, types=("Half", "Half")), row(CONV, "conv", ("Half", "Half"))]


class Handed:
    """The files of a report in a folder, and what is wrong with them for a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("model.onnx", ONNX)
        self.write("model.plan", PLAN)
        self.write_layers(GOOD)
        self.keys = {"layers": "layers.json", "engine": "model.plan", "sums": "build.sha256"}
        self.sum()

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def write_layers(self, rows: list[Any]) -> None:
        self.write("layers.json", json.dumps({"Layers": rows, "Bindings": []}).encode())

    def sum(self) -> None:
        """Write what sha256sum prints, one name with a path and a `*`."""
        names = [path for path in sorted(self.folder.iterdir()) if path.suffix != ".sha256"]
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()} {mark}out/{path.name}"
            for path, mark in zip(names, " *   ", strict=False)
        ]
        self.write("build.sha256", "\n".join([*lines, ""]).encode())

    def judge(
        self, *, target: str = "sm89", library: str = "tensorrt-rtx", **names: str
    ) -> EngineReport:
        files = ReportFiles.read({key: self.folder / name for key, name in self.keys.items()})
        digest = hashlib.sha256(ONNX).hexdigest()
        check_sums(files, onnx_name="model.onnx", onnx_digest=digest)
        return read_engine_report(
            files, graph=GRAPH, names=names, onnx_digest=digest, target=target, library=library
        )


@pytest.fixture
def handed(tmp_path: Path) -> Handed:
    return Handed(tmp_path)


def test_a_report_that_is_tied_says_what_the_engine_computes_in(handed: Handed) -> None:
    report = handed.judge()

    assert (report.gemm_nodes, report.fp8_gemm_nodes) == (2, 1)
    assert [(node.node, node.precision) for node in report.nodes] == [
        (FC1, "fp8"),
        (FC2, "half"),
        (CONV, "half"),
    ]
    assert report.plan_sha256 == hashlib.sha256(PLAN).hexdigest()
    assert report.plan_bytes == len(PLAN)
    assert report.given == "layers.json"
    assert not report.has_memory  # the report tells nothing of it
    assert report.library_version == "unknown"


def test_a_log_tells_version_and_memory(handed: Handed) -> None:
    log = (
        "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b1] # trtexec --verbose\n"
        "[I] [TRT] Total Weights Memory: 4096 bytes\n"
        "[I] [TRT] Total Activation Memory: 2048 bytes\n"
    )
    handed.write("build.log", log.encode())
    handed.keys["log"] = "build.log"
    with pytest.raises(Untied, match=r"build\.sha256 does not name build\.log, the log is"):
        handed.judge()
    handed.sum()

    report = handed.judge()

    assert (report.weights_bytes, report.activation_bytes) == (4096, 2048)
    assert report.has_memory
    assert report.library_version == "10.3.0"


def test_nodes_are_known_by_what_they_were_called_in_the_file(handed: Handed) -> None:
    handed.write_layers([row(f"/wrapped{node}") for node in (FC1, FC2, CONV)])
    handed.sum()

    report = handed.judge(**{node: f"/wrapped{node}" for node in (FC1, FC2, CONV)})

    assert report.fp8_gemm_nodes == 2


def test_a_report_without_metadata_is_read_by_the_names_of_its_kernels(handed: Handed) -> None:
    rows = [{**row(node), "Name": node, "Metadata": ""} for node in (FC1, CONV)]
    rows.append({**row(FC2), "Name": f"{FC2} + /encoder/layers.0/Add", "Metadata": ""})
    handed.write_layers(rows)
    handed.sum()

    assert handed.judge().fp8_gemm_nodes == 2


# -- what is not proved ----------------------------------------------------------------------------


def without_sums(handed: Handed) -> None:
    del handed.keys["sums"]


def of_an_older_onnx(handed: Handed) -> None:
    handed.write("model.onnx", b"the graph of last week")
    handed.sum()


def of_another_engine(handed: Handed) -> None:
    handed.write("model.plan", PLAN + b"rebuilt")


def of_another_report(handed: Handed) -> None:
    handed.write_layers([row(FC1), row(FC2), row(CONV)])


def sums_of_nothing(handed: Handed) -> None:
    handed.write("build.sha256", f"{'0' * 64}  other.onnx\n".encode())


def of_another_graph(handed: Handed) -> None:
    handed.write_layers([row("/other/MatMul"), row("/other/MatMul_1")])
    handed.sum()


def without_a_target(handed: Handed) -> None:
    handed.write("model.plan", b"vtrt" + b"\0" * 80)
    handed.sum()


UNTIED: dict[Callable[[Handed], None], str] = {
    without_sums: r"sha256sum model\.onnx model\.plan layers\.json > build\.sha256",
    of_an_older_onnx: r"for model\.onnx, the ONNX file is",
    of_another_engine: r"for model\.plan, the engine is",
    of_another_report: r"for layers\.json, the layer report is",
    sums_of_nothing: r"does not name layers\.json",
    of_another_graph: r"names 0 of the 3 layers of the approved ONNX file",
    without_a_target: r"for which GPU model\.plan was built is not known",
}


@pytest.mark.parametrize("spoil", UNTIED, ids=lambda change: change.__name__)
def test_a_report_of_other_files_proves_nothing(
    handed: Handed, spoil: Callable[[Handed], None]
) -> None:
    spoil(handed)

    with pytest.raises(Untied, match=UNTIED[spoil]):
        handed.judge()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"target": "sm120"}, r"was built for sm89, the gate is about sm120"),
        ({"library": "tensorrt"}, r"a plan of TensorRT for RTX, .* set library: tensorrt-rtx"),
    ],
)
def test_an_engine_for_something_else_is_no_answer(
    handed: Handed, asked: dict[str, str], words: str
) -> None:
    with pytest.raises(Untied, match=words):
        handed.judge(**asked)


def names_only(handed: Handed) -> None:
    handed.write_layers([FC1, FC2, CONV])
    handed.sum()


def truncated(handed: Handed) -> None:
    handed.write("layers.json", (handed.folder / "layers.json").read_bytes()[:-20])
    handed.sum()


def not_sums(handed: Handed) -> None:
    handed.write("build.sha256", b"SHA256 (model.onnx) = abc\n")


def no_plan(handed: Handed) -> None:
    handed.write("model.plan", b"\x7fELF")
    handed.sum()


REFUSED: dict[Callable[[Handed], None], str] = {
    names_only: r"names of 3 layers and no types: build the engine with --profilingVerbosity=de",
    truncated: r"not JSON",
    not_sums: r"is not what sha256sum prints",
    no_plan: r"is no engine plan of TensorRT",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda change: change.__name__)
def test_what_is_no_report_is_refused(handed: Handed, spoil: Callable[[Handed], None]) -> None:
    spoil(handed)

    with pytest.raises(ArtifactError, match=REFUSED[spoil]):
        handed.judge()


@pytest.mark.parametrize(
    ("log", "version"),
    [("[TensorRT v8601]", "8.6.1"), ("[I] TensorRT version: 11.4.0", "11.4.0"), ("", "unknown")],
)
def test_the_version_is_that_of_the_log(handed: Handed, log: str, version: str) -> None:
    handed.write("build.log", log.encode())
    handed.keys["log"] = "build.log"
    handed.sum()

    assert handed.judge().library_version == version
