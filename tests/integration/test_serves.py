"""What a suite hands on, in front of a runtime's loader; vLLM's own where QUANTGATE_TEST_VLLM says.

That variable names the interpreter of an environment with vLLM (docs/guides/hand-on.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.handover import hand_over
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
trust: true
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}, exclude: ["*patch_embedding*"]}}
gates:
  serves: {{runtime: vllm, python: "{python}"{folder}}}
"""

VLLM = os.environ.get("QUANTGATE_TEST_VLLM", "")

pytestmark = pytest.mark.slow


@pytest.fixture
def open_case(
    tmp_path: Path, tiny_clip: Path, make_case: Callable[..., Case]
) -> Callable[..., Case]:
    def make(*, python: str, folder: str = "", recipe: str = "fp8") -> Case:
        path = tmp_path / "served.quantgate.yaml"
        more = f', folder: "{folder}"' if folder else ""
        text = SUITE.format(model=tiny_clip, python=python, folder=more, recipe=recipe)
        path.write_text(text, encoding="utf-8")
        return make_case(load_suite(path))

    return make


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    """A program that says which files it was given, in the place of a runtime."""
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "print(json.dumps({'version': '1'}))\n"
        "names = sorted(os.listdir(sys.argv[3]))\n"
        "print(json.dumps({'tensors': len(names), 'unprepared': ' '.join(names)}))\n"
    )
    path.chmod(0o755)
    return str(path)


def judge(case: Case) -> Verdict:
    return case.judge(kind="serves").verdict


def test_the_loader_is_given_what_the_suite_exports(
    open_case: Callable[..., Case], runtime: str
) -> None:
    verdict = judge(open_case(python=runtime))

    assert verdict.status is Status.PASS, verdict
    assert "vLLM 1 loads the compressed-tensors export" in verdict.headline
    said = " | ".join(verdict.evidence)
    assert "is the variant that this suite judges, as quantgate export writes it" in said
    assert "config.json model.safetensors" in said


def test_a_folder_is_tied_to_the_suite_by_its_record(
    open_case: Callable[..., Case], runtime: str, tmp_path: Path
) -> None:
    served = tmp_path / "out"
    hand_over(open_case(python=runtime), format="compressed-tensors", folder=served)
    case = open_case(python=runtime, folder=str(served))

    before = judge(case)
    (served / "more.safetensors").write_bytes(b"")
    added = judge(open_case(python=runtime, folder=str(served)))
    (served / "more.safetensors").unlink()
    (served / "config.json").write_text("{}")
    changed = judge(open_case(python=runtime, folder=str(served)))
    (served / "quantgate-export.json").unlink()
    untied = judge(open_case(python=runtime, folder=str(served)))
    files = {
        path.relative_to(served).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in served.rglob("*")
        if path.is_file()
    }
    outside = tmp_path / "private"
    outside.write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    beside = {"suite": "x", "files": {**files, "../private": empty}}
    (served / "quantgate-export.json").write_text(json.dumps(beside))
    leading_out = judge(open_case(python=runtime, folder=str(served)))
    record = {"suite": "x", "files": files}
    (served / "quantgate-export.json").write_text(json.dumps(record))
    other = judge(open_case(python=runtime, folder=str(served)))

    assert "out is what quantgate export wrote of this suite, unchanged" in before.evidence
    assert changed.code == "serves.given-file-unusable"
    assert "config.json is not what quantgate export wrote" in changed.headline
    assert added.code == "serves.given-file-unusable"
    assert "more.safetensors is none of what quantgate export wrote" in added.headline
    assert leading_out.code == "serves.given-file-unusable"
    assert (untied.code, other.code) == ("serves.folder-untied",) * 2
    assert "it holds no record of one" in untied.headline
    assert "of another suite, x" in other.headline


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"python": "/nowhere/python"}, "/nowhere/python is not there: name the interpreter"),
        ({"python": sys.executable}, "has no vLLM that can be imported"),
        ({"python": sys.executable, "folder": "/nowhere/out"}, "/nowhere/out is no folder"),
        ({"python": sys.executable, "recipe": "fp8-attention"},
         "the variant cannot be handed on as compressed-tensors: "),
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_measured(
    open_case: Callable[..., Case], options: dict[str, str], words: str
) -> None:
    verdict = judge(open_case(**options))

    assert verdict.status is Status.NOT_MEASURED, verdict
    assert words in verdict.headline


@pytest.mark.skipif(not VLLM, reason="no vLLM: set QUANTGATE_TEST_VLLM to its interpreter")
def test_vllm_loads_what_is_exported(open_case: Callable[..., Case]) -> None:
    verdict = judge(open_case(python=VLLM))

    assert verdict.status is Status.PASS, verdict
    assert int(verdict.figures["codes"]) > 20
