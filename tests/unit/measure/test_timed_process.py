"""A runner in a process of its own: it is timed, and what goes wrong in it is said here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from pytest_quantgate.errors import ModelError, NotMeasured
from pytest_quantgate.evidence.load import Load
from pytest_quantgate.measure.runner import (
    OnnxRunner,
    TorchRunner,
    open_runner,
    read_spec,
    write_spec,
)
from pytest_quantgate.measure.timed_process import in_a_process

onnx = pytest.importorskip("onnx")


@pytest.fixture
def spec(tmp_path: Path) -> OnnxRunner:
    """A matrix product in ONNX Runtime, and its inputs."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(numpy.ones((4, 3), numpy.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    numpy.savez(tmp_path / "inputs.npz", x=numpy.ones((5, 4), numpy.float32))
    return OnnxRunner(
        path=str(tmp_path / "model.onnx"),
        inputs=str(tmp_path / "inputs.npz"),
        provider="cpu",
        optimization="all",
        threads=1,
    )


def test_a_spec_goes_from_process_to_process_as_json(spec: OnnxRunner) -> None:
    torch = TorchRunner(
        model={"source": "transformers", "id": "/m"}, checkpoint="", tower="text", inputs="/i"
    )
    assert [read_spec(write_spec(found)) for found in (spec, torch)] == [spec, torch]


def test_a_process_tells_what_it_opened_and_what_a_run_took(
    spec: OnnxRunner, tmp_path: Path
) -> None:
    folder = tmp_path / "homes"
    folder.mkdir()
    # The folder of a process is none that it imports from.
    with in_a_process(spec, folder=folder)() as open_it:
        (home,) = folder.iterdir()
        (home / "numpy.py").write_text("raise SystemExit('a stranger')")
        runner = open_it()
        times = [runner.time_runs(runs) for runs in (1, 100)]

    assert runner.samples == 5
    assert all(0 < time_ms < 10_000 for time_ms in times)


def test_what_is_never_asked_for_ends_by_itself(spec: OnnxRunner, tmp_path: Path) -> None:
    with in_a_process(spec, folder=tmp_path)() as open_it:
        pass
    with pytest.raises((ModelError, ValueError), match=r"ended with status 0|closed file"):
        open_it()


def test_a_file_that_it_does_not_take_is_said_here(spec: OnnxRunner, tmp_path: Path) -> None:
    Path(spec.path).write_bytes(b"no graph")
    with (
        in_a_process(spec, folder=tmp_path)() as open_it,
        pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime does not take it"),
    ):
        open_it()


def test_a_process_that_dies_is_an_error_with_its_last_words(
    spec: OnnxRunner, tmp_path: Path
) -> None:
    Path(spec.inputs).write_bytes(b"no npz")
    with (
        in_a_process(spec, folder=tmp_path)() as open_it,
        pytest.raises(ModelError, match=r"process that is timed ended with status 1: .*pickle"),
    ):
        open_it()


def test_what_is_not_here_is_not_measured(
    spec: OnnxRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from pytest_quantgate.runtimes import onnxruntime_session

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise NotMeasured("no such provider")

    monkeypatch.setattr(onnxruntime_session, "_open", refuse)
    with (
        pytest.raises(NotMeasured, match="no such provider"),
        open_runner(replace(spec, threads=2)),
    ):
        pass


def test_a_process_serves_requests_as_itself(spec: OnnxRunner, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="pip install 'pytest-quantgate[load]'")
    x = numpy.arange(128, dtype=numpy.float32).reshape(32, 4)
    numpy.savez(tmp_path / "inputs.npz", x=x)
    with in_a_process(spec, folder=tmp_path)() as open_it:
        served = open_it().serve(Load(rate=400, queries=40, batch=4, window_ms=2.0))

    assert (served.queries, served.dropped) == (40, 0)
    assert max(answer.distance for answer in served.answers) < 1e-6
