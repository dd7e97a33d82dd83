"""What `trtexec` writes of the times of an engine: every query, each layer, and on which device.

TensorRT 8 to 11 and TensorRT for RTX write the same (samples/common/sampleReporting.cpp): a list
of queries with `computeMs` and `latencyMs`, warm-up included, and a list of layers with
`percentage`. Neither names the device or the batch: the log does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.evidence.latency import GivenTimes
from pytest_quantgate.untrusted import parse_json, read_regular

#: What starts a line of a log: a time and a level.
_LINE = re.compile(r"^(?:\[[^\]]*\] )?\[I\] +(.+?)\s*:\s*(.*?)\s*$", re.MULTILINE)

#: Options of trtexec that change what a query takes.
_SETTINGS = ("Streams", "Inference Streams", "CUDA Graph", "Data transfers", "Spin-wait")

_SHAPE = re.compile(r"[^=,]+[=:](\d+)x")
_WARM_UP = re.compile(r"\(\+? ?(\d+(?:\.\d+)?)\s?ms warm ?up\)")

#: So many layers of a profile are kept.
_SLOWEST = 5


def read_engine_times(times: Path, *, log: Path, profile: Path | None) -> GivenTimes:
    """Return what the times of an engine were; raises ArtifactError for what is none."""
    said = _read_log(log)
    device = said.get("Selected Device", "")
    if not device:
        raise ArtifactError(f"{log} names no device: it is not the whole log of trtexec")
    warm_up = _WARM_UP.search(f"{said.get('Duration', '')} {said.get('Iterations', '')}")
    queries = _read_queries(times, warm_up_ms=float(warm_up[1]) if warm_up else 0.0)
    shapes = next((said[key] for key in said if key.startswith("Input inference shape")), "")
    sizes = {int(size) for size in _SHAPE.findall(shapes)}
    implicit = said.get("Batch", "")
    return GivenTimes(
        name=times.name,
        compute_ms=tuple(query[0] for query in queries),
        latency_ms=tuple(query[1] for query in queries),
        device=device,
        clocks=", ".join(
            f"{what} {found}"
            for what in ("compute", "memory")
            if (found := _find_clock(said, what=what))
        ),
        settings=tuple((key, said[key]) for key in _SETTINGS if key in said),
        batch=sizes.pop() if len(sizes) == 1 else int(implicit) if implicit.isdecimal() else 0,
        layers=_read_profile(profile) if profile is not None else (),
    )


def _find_clock(said: Mapping[str, str], *, what: str) -> str:
    ends = f"{what.capitalize()} Clock Rate"
    return next((value for key, value in said.items() if key.endswith(ends)), "")


def _read_log(path: Path) -> dict[str, str]:
    """Return what the lines of a log say, the first of each name."""
    try:
        text = read_regular(path, max_bytes=bounds.JSON_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    found: dict[str, str] = {}
    for key, value in _LINE.findall(text.replace("\r", "")):
        found.setdefault(key, value)
    return found


def _read_list(path: Path, *, option: str) -> list[Any]:
    try:
        found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ArtifactError(f"{path} is not what trtexec {option} writes: expected a list")
    return found


def _read_queries(path: Path, *, warm_up_ms: float) -> list[tuple[float, float]]:
    """Return time on the GPU and latency of each query that began after the warm-up."""
    found = []
    for number, query in enumerate(_read_list(path, option="--exportTimes")):
        values = [query.get(key) for key in ("computeMs", "latencyMs", "startComputeMs")]
        if not all(_is_number(value) for value in values) or values[0] <= 0:
            raise ArtifactError(
                f"{path}: query {number} has no valid computeMs, latencyMs and startComputeMs: it "
                f"is not what trtexec --exportTimes writes"
            )
        compute, latency, start = map(float, values)
        if start >= warm_up_ms:
            found.append((compute, latency))
    return found


def _read_profile(path: Path) -> tuple[tuple[str, float], ...]:
    """Return the slowest layers of a profile and the share of each."""
    shares = []
    for layer in _read_list(path, option="--exportProfile"):
        if "name" not in layer and "count" in layer:
            continue
        name, share = layer.get("name"), layer.get("percentage")
        if not isinstance(name, str) or not _is_number(share):
            raise ArtifactError(f"{path} is not what trtexec --exportProfile writes")
        shares.append((name[:200], float(share) / 100))
    return tuple(sorted(shares, key=lambda layer: -layer[1])[:_SLOWEST])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
