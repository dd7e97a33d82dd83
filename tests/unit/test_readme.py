"""What README shows is true: its suite loads, its table is of the default suite. It is short: who
comes for the first time reads one screen. And the code of the guide to own tests runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.suite.load import load_suite

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TESTS = (REPOSITORY / "docs" / "guides" / "tests.md").read_text(encoding="utf-8")


def first_block(text: str, language: str) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return found[0]


def test_it_is_short_and_shows_a_red_and_a_green_terminal() -> None:
    assert README.count("\n") <= 150
    assert README.index("FAIL coverage: ") < README.index("may ship: 18 gates passed")
    assert README.index("make gate") < README.index("quantgate check") < README.index("```yaml")


def test_what_it_points_to_is_there() -> None:
    named = re.findall(r"`((?:docs|benchmarks|examples)/[\w./-]+\.md)`", README)

    assert len(named) > 8
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_the_first_suite_loads_and_has_about_ten_lines(tmp_path: Path) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    shown = first_block(README, "yaml")
    path.write_text(shown, encoding="utf-8")

    assert len(list(load_suite(path).gates)) == 5
    assert shown.count("\n") <= 11


def test_the_table_names_the_gates_of_the_default_suite() -> None:
    suite = load_suite(REPOSITORY / "suites" / "clip_reference.quantgate.yaml")
    shown = re.findall(r"^ +PASS  (\S+) ", README, flags=re.MULTILINE)

    assert shown == [gate.name for gate in suite.gates]


def test_the_code_runs(
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
) -> None:
    names: dict[str, Any] = {}
    exec(compile(first_block(TESTS, "python"), "tests.md", "exec"), names)
    quantized = make_quantized("fp8-attention", exclude=("*patch_embedding*",))
    batch = make_pairs()[0]  # calibrated on: nothing is clipped

    names["test_my_model"](quantized.module, batch.pixel_values, batch.tokens)


def test_the_commands_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^    make (\w+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
