"""The documentation is true: its commands run as the pages show them, its YAML is valid."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_quantgate.commands import cli
from pytest_quantgate.suite.keys import keys_of
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import Suite

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
COMPLETE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates: {coverage: {}}
"""

sys.path.insert(0, str(DOCS / "_ext"))
from codes import list_codes, list_without_code, matches  # noqa: E402
from pages import RunCommand, WriteFile, read_output, read_steps  # noqa: E402

pytestmark = pytest.mark.slow

Step = WriteFile | RunCommand
ACTING = {page.relative_to(DOCS).as_posix(): list(read_steps(page)) for page in PAGES}
ACTING = {name: steps for name, steps in ACTING.items() if steps}


def rows(output: str) -> list[str]:
    """Return the verdicts and conclusions of a terminal's text, without its digits."""
    found = re.findall(r"^  ([A-Z_]{4,}  \S+)|^(\w+: (?:may ship|do not ship|not decided).*)",
                       output, flags=re.MULTILINE)  # fmt: skip
    return [re.sub(r"\d", "#", one or other) for one, other in found]


@pytest.mark.parametrize("name", list(ACTING))
def test_recorded_outputs_are_of_the_commands_shown(name: str) -> None:
    for step in ACTING[name]:
        if isinstance(step, RunCommand):
            command, output = read_output(DOCS / "outputs", name=step.name)

            assert command == step.command, f"{name}:{step.line}: python docs/make_outputs.py"
            assert output.strip()
            assert "/tmp" not in output
            assert "\x1b" not in output
            assert "Traceback" not in output


def test_no_recorded_output_is_left_over() -> None:
    shown = [s.name for steps in ACTING.values() for s in steps if isinstance(s, RunCommand)]

    assert len(shown) == len(set(shown))
    assert sorted(path.stem for path in (DOCS / "outputs").glob("*.txt")) == sorted(shown)


def run_steps(
    steps: list[Step],
    *,
    folder: Path,
    run_pytest: Callable[..., pytest.RunResult],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Do what a page does; pytest runs in this process, with the cache of the test session."""
    for step in steps:
        if isinstance(step, WriteFile):
            path = folder / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
            continue
        program, *arguments = shlex.split(step.command)
        if program == "cat":
            status, output = 0, (folder / arguments[0]).read_text(encoding="utf-8")
            assert output == read_output(DOCS / "outputs", name=step.name)[1]
        elif program == "pytest":
            target, *options = arguments
            result = run_pytest(*options, path=target)
            status, output = int(result.ret), result.stdout.str()
        else:
            assert program == "quantgate"
            capsys.readouterr()
            status, output = cli.main(arguments, environ={}), capsys.readouterr().out
        _, recorded = read_output(DOCS / "outputs", name=step.name)

        assert status == step.status, f"{step.command}\n{output}"
        assert rows(output) == rows(recorded)


#: Pages whose commands are run here; the others are run when their outputs are recorded.
EXECUTED = ["tutorial.md", "guides/start.md", "guides/own-model.md", "guides/plan.md"]


@pytest.mark.parametrize("name", EXECUTED)
def test_the_commands_of_a_page_do_what_it_shows(
    name: str,
    pytester: pytest.Pytester,
    run_gates: Callable[..., pytest.RunResult],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_steps(ACTING[name], folder=pytester.path, run_pytest=run_gates, capsys=capsys)


def test_the_tutorial_goes_from_red_to_green() -> None:
    shown = {s.name: s for s in ACTING["tutorial.md"] if isinstance(s, RunCommand)}
    outputs = {name: read_output(DOCS / "outputs", name=name)[1] for name in shown}

    red, green = (rows(outputs[name])[:3] for name in ("tutorial-red", "tutorial-green"))
    assert [row.split()[0] for row in red] == ["PASS", "FAIL", "PASS"]
    assert [row.split()[1].partition("[")[0] for row in red] == ["sanity", "coverage", "accuracy"]
    assert {row.split()[0] for row in green} == {"PASS"}


def yaml_blocks() -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```yaml\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            if not match[1].startswith("jobs:"):
                line = text[: match.start()].count("\n") + 1
                found.append(pytest.param(match[1], id=f"{page.relative_to(DOCS)}:{line}"))
    return found


@pytest.mark.parametrize("part", yaml_blocks())
def test_every_part_of_a_suite_fits_into_one(tmp_path: Path, part: str) -> None:
    keys = yaml.safe_load(part)
    # A suite has one of quantize and quantized, or neither beside ONNX files.
    has_variant = "quantized" in keys or {"quantgate", "artifacts"} <= keys.keys()
    left = {*keys, *(["quantize"] if has_variant else [])}
    rest = {k: v for k, v in yaml.safe_load(COMPLETE).items() if k not in left}
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(f"{part}\n{yaml.safe_dump(rest) if rest else ''}", encoding="utf-8")

    suite = load_suite(path)

    assert set(keys) <= set(keys_of(Suite))
    assert suite.gates is not None


def test_the_line_that_installs_stands_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "docs" / "_ext")
    from quantgate_docs import INSTALL

    assert INSTALL.format(extras="clip") in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert "install 'pytest-quantgate" not in page.read_text(encoding="utf-8"), page
        assert 'install "pytest-quantgate' not in page.read_text(encoding="utf-8"), page


def test_every_gate_and_every_recipe_is_explained() -> None:
    from pytest_quantgate.suite.gates import BUILTIN

    text = (DOCS / "concepts" / "gates.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))

    assert explained == set(BUILTIN)


def test_every_verdict_that_is_not_green_has_a_code() -> None:
    assert list(list_without_code()) == []


@pytest.mark.parametrize(
    "code",
    [
        "accuracy.drop-open",
        "calibration.copies",
        "coverage.tower-off",
        "export.other-precision",
        "fidelity.worst-cosine",
        "memory.weights-ratio",
        "regression.first-fp16-drop",
        "sanity.end-token-absent",
        "sanity.model-unusable",
        "sanity.fp16-at-chance",
        "trace.lost-at-engine",
        "check.base-missing",
        "latency.other-device",
        "test.data-unusable",
    ],
)
def test_every_way_in_which_a_code_is_written_is_listed(code: str) -> None:
    """As a constant, with the gate's name, with a limit's, by a condition, of a file's fault."""
    found = [listed for listed in list_codes() if matches(listed.code, code)]

    assert len(found) == 1, found


def test_the_codes_that_are_written_about_are_listed() -> None:
    from pytest_quantgate.suite.gates import BUILTIN

    kinds = "|".join(BUILTIN)
    texts = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *PAGES]
    written = {
        code
        for text in texts
        for code in re.findall(rf"(?<=[`\[])(?:{kinds})\.[a-z0-9]+-[a-z0-9-]+(?=[`\]])",
                               text.read_text("utf-8"))
    }  # fmt: skip

    assert len(written) > 5
    listed = [entry.code for entry in list_codes()]
    assert {code for code in written if not any(matches(one, code) for one in listed)} == set()


def test_the_site_builds_without_a_warning_and_names_every_key(site: Path) -> None:
    from pytest_quantgate.suite.gates import list_sections

    suite = (site / "reference" / "suite.html").read_text(encoding="utf-8")
    options = (site / "reference" / "options.html").read_text(encoding="utf-8")
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    tutorial = (site / "tutorial.html").read_text(encoding="utf-8")

    for gate in list_sections():
        assert f">gates.{gate}<" in re.sub(r"</?span[^>]*>", "", suite), gate
    assert "--quantgate-strict" in options
    for command in cli.COMMANDS:
        assert f"quantgate {command}" in commands
    assert "the whole vision tower is unquantized" in tutorial


def test_the_site_asks_nothing_from_outside(site: Path) -> None:
    loading = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="https?:|<link[^>]+stylesheet[^>]+href="https?:'
    )

    assert [p.name for p in site.rglob("*.html") if loading.search(p.read_text("utf-8"))] == []
