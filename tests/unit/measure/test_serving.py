"""What a runtime's interpreter is asked and answers, and where a tensor lies in its parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.serving import Loaded
from pytest_quantgate.measure.serving import ask_runtime

torch = pytest.importorskip("torch")

from pytest_quantgate.measure.load_in_vllm import place_all  # noqa: E402


def ask(python: Path, folder: Path) -> Loaded:
    return ask_runtime(
        "vllm",
        python=python,
        folder=folder,
        dtype="float16",
        name="served",
        origin="a test",
        is_tied=True,
        environ={"PATH": "/usr/bin:/bin"},
    )


def write_runtime(path: Path, *lines: str, status: int = 0) -> Path:
    """Write a program that answers these lines, whatever it is asked."""
    said = "".join(f"print({line!r})\n" for line in lines)
    path.write_text(f"#!{sys.executable}\nimport sys\n{said}sys.exit({status})\n")
    path.chmod(0o755)
    return path


def test_what_a_runtime_answers_is_read(tmp_path: Path) -> None:
    answer = {"tensors": 3, "codes": 1, "parameters": 2, "lost": ["a"], "changed": []}
    python = write_runtime(tmp_path / "p", json.dumps({"version": "0.32.0"}), json.dumps(answer))

    found = ask(python, tmp_path)

    assert found == Loaded(
        runtime="vLLM", version="0.32.0", folder="served", origin="a test", tensors=3, codes=1,
        parameters=2, lost=("a",),
    )  # fmt: skip


def test_a_loader_that_ends_its_process_has_refused_the_folder(tmp_path: Path) -> None:
    python = write_runtime(tmp_path / "p", json.dumps({"version": "0.32.0"}), status=3)

    found = ask(python, tmp_path)

    assert found.refused_at == "load"
    assert "its process ended" in found.error


def test_an_interpreter_that_is_not_there_measures_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="name the interpreter of an environment with vLLM"):
        ask(tmp_path / "python", tmp_path)


def test_an_interpreter_without_the_runtime_measures_nothing(tmp_path: Path) -> None:
    """This one: vLLM is not installed where the tests run."""
    with pytest.raises(NotMeasured, match=r"has no vLLM that can be imported: .*vllm"):
        ask(Path(sys.executable), tmp_path)


@pytest.mark.parametrize("lines", [("hello",), ('{"version": "1"}', "[1]"), ("{}", "{}")])
def test_an_answer_of_another_kind_measures_nothing(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(NotMeasured, match="answered something else"):
        ask(write_runtime(tmp_path / "p", *lines), tmp_path)


def fused(*parts: Any) -> Any:
    return torch.cat(parts)


CODES = [torch.randn(4, 8).to(torch.float8_e4m3fn) for _ in range(3)]
SCALES = [torch.rand(4, 1) for _ in range(3)]
TABLE = torch.randn(5, 8)

TENSORS = {
    **{f"a.{n}_proj.weight": codes for n, codes in zip("qkv", CODES, strict=True)},
    **{f"a.{n}_proj.weight_scale": scale for n, scale in zip("qkv", SCALES, strict=True)},
    "table.weight": TABLE,
    "text.position_ids": torch.arange(5),
}
PARAMETERS = {
    "a.qkv_proj.weight": fused(*CODES),
    "a.qkv_proj.weight_scale": fused(*SCALES),
    "table.weight": fused(TABLE, torch.zeros(3, 8)).half(),  # filled up, and rounded
}
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("tensors", "parameters", "changed", "lost"),
    [
        ({}, {}, [], []),
        ({"a.k_proj.k_scale": ONE * 7}, {}, [], ["a.k_proj.k_scale"]),
        ({"a.q_proj.weight": CODES[0].float().mul(2).to(CODES[0].dtype)}, {},
         ["a.q_proj.weight"], []),
        ({}, {"a.qkv_proj.weight": fused(*CODES).half()},  # codes taken for weights
         ["a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight"], []),
        ({"other.weight": CODES[1]}, {}, [], []),  # of another name, and there
        ({"table.weight": TABLE * 1.1}, {}, ["table.weight"], []),
    ],
    ids=["good", "scale lost", "codes changed", "codes as floats", "renamed", "table changed"],
)  # fmt: skip
def test_a_tensor_is_looked_for_in_its_parameter(
    tensors: dict[str, Any], parameters: dict[str, Any], changed: list[str], lost: list[str]
) -> None:
    found = place_all(TENSORS | tensors, PARAMETERS | parameters)

    assert found == {"changed": changed, "lost": lost, "unused": ["text.position_ids"]}
