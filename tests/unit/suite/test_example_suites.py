"""The suites of examples/ are read as they are, and can be planned and validated."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_quantgate.commands.suite_checks import check_suite
from pytest_quantgate.suite.load import load_suite

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "suites").glob("*.quantgate.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid_for_a_vision_encoder(path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}', encoding="utf-8")
    environ = {"QUANTGATE_DINOV2": str(tmp_path), "QUANTGATE_PHOTOS": str(tmp_path)}

    assert check_suite(load_suite(path), environ=environ).errors == ()


def test_there_is_an_example() -> None:
    assert EXAMPLES
