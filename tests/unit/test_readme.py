"""What README shows is true: its suites load, its code runs, its table is of the default suite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.suite.load import load_suite

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_suite_loads_and_has_about_ten_lines(tmp_path: Path) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(blocks("yaml")[0], encoding="utf-8")

    assert len(list(load_suite(path).gates)) == 5
    assert blocks("yaml")[0].count("\n") <= 11


@pytest.mark.parametrize("part", blocks("yaml")[1:])
def test_parts_of_suites_fit_into_one(tmp_path: Path, part: str) -> None:
    whole = blocks("yaml")[0].splitlines(keepends=True)
    if part.startswith("coverage"):
        indented = "".join(f"  {line}" for line in part.splitlines(keepends=True))
        text = "".join(indented if "coverage:" in line else line for line in whole)
    else:
        keys = {line.partition(":")[0] for line in part.splitlines()}
        text = "".join(line for line in whole if line.partition(":")[0] not in keys) + part
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(text, encoding="utf-8")

    assert load_suite(path).gates.one(CoverageGate) is not None


def test_the_table_names_the_gates_of_the_default_suite() -> None:
    suite = load_suite(REPOSITORY / "suites" / "clip_reference.quantgate.yaml")
    shown = re.findall(r"^ +PASS  (\S+) ", README, flags=re.MULTILINE)

    assert shown == [gate.name for gate in suite.gates]


def test_the_code_runs(
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
    tiny_fp16: Encoder,
) -> None:
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), names)
    quantized = make_quantized("fp8-attention", exclude=("*patch_embedding*",))
    batch = make_pairs()[0]  # calibrated on: nothing is clipped

    names["test_my_model"](quantized.module, batch.pixel_values, batch.tokens)
    names["test_my_outcomes"]()
    names["test_logit_scale_is_kept"](tiny_fp16, quantized)


def test_the_commands_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
