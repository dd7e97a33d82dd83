"""What README and the overview show is true: suites load, code runs, the table is of the default
suite. And README is short: who comes for the first time reads one screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.suite.load import load_suite

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OVERVIEW = (REPOSITORY / "docs" / "overview.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README + OVERVIEW, flags=re.DOTALL)


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
    path.write_text(blocks("yaml")[0], encoding="utf-8")

    assert len(list(load_suite(path).gates)) == 5
    assert blocks("yaml")[0].count("\n") <= 11


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
