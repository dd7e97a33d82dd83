"""What a suite file must say that concerns several keys at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.suite import Gates
from pytest_quantgate.suite_file.nodes import Place

VERSION = 1
CLASSIFICATION = ("acc1", "acc5", "mean_per_class_recall")
RETRIEVAL = re.compile(r"(image|text)_retrieval_recall@[1-9]\d{0,5}")


def check_model(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if values["source"] == "reference":
        for key in ("id", "revision"):
            if key in values:
                raise place.error_at(node, key, "the reference model ships with the package")
        return
    name = values.get("id")
    if name is None:
        raise place.child("id").error(node, "is missing: a hub id or a local directory")
    is_local = name.startswith(("/", ".", "~", "$"))
    if is_local and "revision" in values:
        raise place.error_at(node, "revision", "a local directory has no revision")
    if not is_local and "revision" not in values:
        raise place.child("revision").error(
            node,
            "is missing: pin the commit of the hub id, so that the model cannot change under the "
            "gate (a local directory starts with / ./ ~/ or ${NAME})",
        )


def check_waiver(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    """Refuse a waiver that names nothing. How much of a model one names, the gate counts."""
    if not values["modules"]:
        raise place.error_at(node, "modules", "is empty: name the layers that may wait")
    for pattern in values["modules"]:
        if not re.search(r"[^\W_]", pattern):
            raise place.error_at(
                node,
                "modules",
                f"{pattern!r} names every module: name the layers that may wait, such as "
                f"'*visual_projection*'",
            )


def check_fidelity(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    limits = ("min_cosine", "min_worst_cosine", "min_sqnr", "min_worst_sqnr")
    if not any(limit in values for limit in limits):
        raise place.error(node, f"sets no limit: give at least one of {', '.join(limits)}")
    if "data" in values:
        check_data(values, place, node)


def check_task(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    task, metric = values["task"], values["metric"]
    dataset, _, kind = task.rpartition("/")
    if not dataset or kind not in ("classification", "retrieval"):
        raise place.error_at(
            node,
            "task",
            f"{task!r} is no task: write <data set>/classification or <data set>/retrieval",
        )
    if kind == "classification" and metric not in CLASSIFICATION:
        close = difflib.get_close_matches(metric, CLASSIFICATION, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise place.error_at(
            node,
            "metric",
            f"{metric!r} is no metric of classification: {', '.join(CLASSIFICATION)}{hint}",
        )
    if kind == "retrieval" and not RETRIEVAL.fullmatch(metric):
        raise place.error_at(
            node,
            "metric",
            f"{metric!r} is no metric of retrieval: image_retrieval_recall@K, "
            f"text_retrieval_recall@K",
        )
    if values.get("first") and "samples" not in values:
        raise place.error_at(node, "first", "is about samples: say how many, such as samples: 1000")
    for key in ("max_class_drop", "min_classes"):
        if kind == "retrieval" and key in values:
            raise place.error_at(node, key, "retrieval has no classes")


def check_gates(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if not values:
        known = [gate.name for gate in dataclasses.fields(Gates)]
        raise place.child("gates").error(
            node, f"has no gates: name at least one of {', '.join(known)}"
        )
    for kind in ("accuracy", "regression", "engine", "memory", "trace", "latency"):
        seen: set[str] = set()
        for gate in values.get(kind, ()):
            if gate.key in seen:
                is_task = kind in ("accuracy", "regression")
                name = f"{gate.task} {gate.metric}" if is_task else gate.key
                raise SuiteError(f"{gate.where}: {kind}: {name} stands twice")
            seen.add(gate.key)


def check_data(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    dataset, _, split = values["data"].rpartition("/")
    if not dataset or not split:
        raise place.error_at(
            node,
            "data",
            f"{values['data']!r} is no data: write <data set>/<split>, such as scenes/train",
        )


def check_engine(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    _check_limits(values, place, node, words="attention, min_fp8_gemms or a max_...")


def check_memory(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    _check_limits(values, place, node, words="a max_...")


def _check_towers(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    towers = values.get("towers", ("vision",))
    if not towers:
        raise place.error_at(node, "towers", "is empty: name vision, text or both")
    if len(set(towers)) < len(towers):
        raise place.error_at(node, "towers", "names a tower twice, which would count it twice")


def _check_limits(values: Mapping[str, Any], place: Place, node: yaml.Node, *, words: str) -> None:
    _check_towers(values, place, node)
    limits = values.keys() - {"target", "library", "towers", "batch"}
    if not limits:
        raise place.error(node, f"sets no limit, so it decides nothing: set {words}")


def check_trace(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    _check_towers(values, place, node)
    if "target" not in values:
        for name in ("library", "batch", "allow"):
            if name in values:
                raise place.error_at(
                    node, name, "is about an engine: set target as well, such as target: sm89"
                )


def check_latency(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if "max_ratio" not in values and "max_latency" not in values:
        raise place.error(node, "sets no limit, so it decides nothing: set max_ratio, max_latency")
    if not values.get("batch", (1,)):
        raise place.error_at(node, "batch", "is empty: name at least one batch size, such as [1]")
    if "max_ratio" in values and values.get("min_ratio", 0) >= values["max_ratio"]:
        raise place.error_at(node, "min_ratio", "is not below max_ratio, so nothing could pass")
    runtime = values.get("runtime", "onnxruntime")
    if "threads" in values and runtime not in ("onnxruntime", "torch"):
        raise place.error_at(node, "threads", f"{runtime} runs on the GPU: leave it out")


def check_parity(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if values.get("max_sqnr_change", 0.0) < 0:
        raise place.error_at(node, "max_sqnr_change", "is negative: no change is less than 0dB")


def check_suite(values: Mapping[str, Any], place: Place, node: yaml.Node) -> None:
    if values["quantgate"] != VERSION:
        raise place.error_at(
            node,
            "quantgate",
            f"version {values['quantgate']} is not supported: this release reads {VERSION}",
        )
