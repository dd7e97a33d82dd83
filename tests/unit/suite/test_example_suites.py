"""The suites of examples/ are read as they are, and can be planned and validated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.suite_checks import check_suite
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

FOLDER = Path(__file__).parents[3] / "examples" / "suites"
EXAMPLES = {path.name.partition(".")[0]: path for path in FOLDER.glob("*.quantgate.yaml")}

LLAVA = {"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}

#: The checkpoint of each: its variable, and the file in it that says what model it is.
MODELS: Mapping[str, tuple[str, str, Any]] = {
    "dinov2": ("QUANTGATE_DINOV2", "config.json", {"model_type": "dinov2"}),
    "llava_vision_tower": ("QUANTGATE_LLAVA", "config.json", LLAVA),
    "open_clip_vit_b32": (
        "QUANTGATE_OPEN_CLIP",
        "open_clip_config.json",
        {"model_cfg": {"vision_cfg": {}, "text_cfg": {}}},
    ),
    "sd_text_encoder": (
        "QUANTGATE_SD",
        "text_encoder/config.json",
        {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]},
    ),
    "siglip2_base": ("QUANTGATE_SIGLIP2", "config.json", {"model_type": "siglip"}),
}


def test_each_example_has_its_model_here() -> None:
    assert EXAMPLES.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_an_example_is_valid_for_its_model(name: str, tmp_path: Path) -> None:
    variable, file, content = MODELS[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    data = ("QUANTGATE_DATA", "QUANTGATE_PHOTOS", "QUANTGATE_PROMPTS")

    environ = dict.fromkeys((variable, *data), str(tmp_path))

    assert check_suite(load_suite(EXAMPLES[name]), environ=environ).errors == ()


@pytest.mark.parametrize("name", MODELS)
def test_without_its_weights_an_example_is_not_measured_in_one_line(
    name: str, make_case: Callable[..., Case]
) -> None:
    suite = load_suite(EXAMPLES[name])

    verdicts = [
        make_case(suite).judge(kind=gate.kind, key=gate.key).verdict for gate in suite.gates
    ]

    assert {verdict.status for verdict in verdicts} == {Status.NOT_MEASURED}
    for verdict in verdicts:
        assert MODELS[name][0] in verdict.headline
        assert "\n" not in verdict.headline
