"""What trtexec writes of an engine's times, in the forms of several releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.artifacts.engine_times import read_engine_times
from pytest_quantgate.errors import ArtifactError

#: As TensorRT 10 writes it.
LOG = """\
[04/07/2025-23:59:33] [I] === Inference Options ===
[04/07/2025-23:59:33] [I] Batch: Explicit
[04/07/2025-23:59:33] [I] Input inference shape : pixel_values=4x3x32x32
[04/07/2025-23:59:33] [I] Iterations: 10
[04/07/2025-23:59:33] [I] Duration: 3s (+ 200ms warm up)
[04/07/2025-23:59:33] [I] Inference Streams: 1
[04/07/2025-23:59:33] [I] Data transfers: Enabled
[04/07/2025-23:59:33] [I] CUDA Graph: Disabled
[04/07/2025-23:59:33] [I] === Device Information ===
[04/07/2025-23:59:33] [I] Available Devices:
[04/07/2025-23:59:33] [I]   Device 0: "NVIDIA L4" UUID: GPU-84a8068b
[04/07/2025-23:59:33] [I] Selected Device: NVIDIA L4
[04/07/2025-23:59:33] [I] Application Compute Clock Rate: 2.04 GHz
[04/07/2025-23:59:33] [I] Application Memory Clock Rate: 6.251 GHz
"""

#: As TensorRT 8 writes it, for an engine of one batch.
OLD_LOG = """\
[I] Batch: 3
[I] Iterations: 10 (200 ms warm up)
[I] Input inference shapes: model
[I] Streams: 1
[I] Selected Device: Tesla T4
[I] Compute Clock Rate: 1.59 GHz
[I] Memory Clock Rate: 5.001 GHz
"""


def write_times(folder: Path, times: Any, *, log: str = LOG, name: str = "times.json") -> Path:
    (folder / "build.log").write_text(log)
    path = folder / name
    path.write_text(json.dumps(times))
    return path


def query(compute_ms: float, *, start_ms: float = 1000.0) -> dict[str, float]:
    return {
        "startComputeMs": start_ms,
        "computeMs": compute_ms,
        "latencyMs": compute_ms + 0.1,
        "h2dMs": 0.05,
    }


def test_the_warm_up_is_left_out_and_the_log_says_on_what(tmp_path: Path) -> None:
    queries = [query(9.0, start_ms=0.0), query(8.0, start_ms=199.9), query(1.0), query(2.0)]
    path = write_times(tmp_path, queries)
    profile = tmp_path / "profile.json"
    rows = [{"name": "fc1", "percentage": 60.0}, {"name": "fc2", "percentage": 40.0}]
    profile.write_text(json.dumps([{"count": 12}, *rows[::-1]]))

    found = read_engine_times(path, log=tmp_path / "build.log", profile=profile)

    assert found.compute_ms == (1.0, 2.0)
    assert found.latency_ms == (1.1, 2.1)
    assert (found.device, found.batch) == ("NVIDIA L4", 4)
    assert found.clocks == "compute 2.04 GHz, memory 6.251 GHz"
    assert dict(found.settings) == {
        "Inference Streams": "1",
        "Data transfers": "Enabled",
        "CUDA Graph": "Disabled",
    }
    assert found.layers == (("fc1", 0.6), ("fc2", 0.4))


def test_a_log_of_tensorrt_8_is_read(tmp_path: Path) -> None:
    path = write_times(tmp_path, [query(9.0, start_ms=10.0), query(1.0)], log=OLD_LOG)

    found = read_engine_times(path, log=tmp_path / "build.log", profile=None)

    assert found.compute_ms == (1.0,)
    assert (found.device, found.batch) == ("Tesla T4", 3)
    assert found.clocks == "compute 1.59 GHz, memory 5.001 GHz"


def test_shapes_of_several_batches_say_none(tmp_path: Path) -> None:
    log = LOG.replace("4x3x32x32", "4x3x32x32,ids=8x77")
    path = write_times(tmp_path, [query(1.0)], log=log)

    assert read_engine_times(path, log=tmp_path / "build.log", profile=None).batch == 0


@pytest.mark.parametrize(
    "times",
    [
        {},
        [1.0],
        [{"computeMs": 1.0}],
        [{**query(1.0), "computeMs": 0}],
        [{**query(1.0), "computeMs": True}],
        [{**query(1.0), "latencyMs": "1.0"}],
        [{**query(1.0), "latencyMs": 1e999}],
    ],
)
def test_what_is_no_list_of_times_is_refused(tmp_path: Path, times: Any) -> None:
    path = write_times(tmp_path, times)

    with pytest.raises(ArtifactError, match=r"exportTimes|cannot be read"):
        read_engine_times(path, log=tmp_path / "build.log", profile=None)


@pytest.mark.parametrize("rows", [{}, [{"name": "fc1"}], [{"name": 1, "percentage": 1.0}]])
def test_what_is_no_profile_is_refused(tmp_path: Path, rows: Any) -> None:
    profile = write_times(tmp_path, rows, name="profile.json")
    path = write_times(tmp_path, [query(1.0)])

    with pytest.raises(ArtifactError, match="exportProfile"):
        read_engine_times(path, log=tmp_path / "build.log", profile=profile)


def test_a_log_without_a_device_is_refused(tmp_path: Path) -> None:
    path = write_times(tmp_path, [query(1.0)], log="[I] Streams: 1\n")

    with pytest.raises(ArtifactError, match="names no device"):
        read_engine_times(path, log=tmp_path / "build.log", profile=None)
