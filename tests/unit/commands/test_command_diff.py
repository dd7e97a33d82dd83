"""`quantgate diff`: what it prints and writes, and its status 0, 1 or 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main

pytestmark = pytest.mark.slow

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates: {calibration: {max_clipped: 0.1%}}
"""

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _two_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", SUITE), ("b", SUITE.replace("0.1%", "1%"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.quantgate.yaml").write_text(text, encoding="utf-8")


EXPECTED = """\
--- a
+++ b

Limits
  ! clip calibration.max_clipped: 0.1% -> 1%, loosened (b/clip.quantgate.yaml:5)

1 change: limits 1
"""


def test_status_is_one_where_something_differs(capsys: Captured) -> None:
    assert main(["diff", "a", "b"]) == 1
    assert capsys.readouterr() == (EXPECTED, "")


def test_status_is_zero_where_nothing_does(capsys: Captured) -> None:
    assert main(["diff", "a/clip.quantgate.yaml", "a/clip.quantgate.yaml"]) == 0
    assert capsys.readouterr().out.endswith("\nno difference\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "missing"], "missing does not exist"),
        (["missing", "a"], "missing does not exist"),
        (["a", "c"], "c holds no checkpoint (*.safetensors), no baselines"),
        (["a", "x.json"], "x.json is neither a baseline nor a report of pytest-quantgate"),
        (["a", "y.json"], "y.json is damaged: not JSON: "),
        (["a", "z.txt"], "z.txt is no suite"),
        (["a", "m.safetensors"], "m.safetensors: name the folder of the checkpoint, ."),
        (["a", "broken.quantgate.yaml"], "broken.quantgate.yaml:1: "),
        (["a", "record"], "a is suites, record is baselines: compare two of a kind"),
        (["a"], "a is compared with what? quantgate diff a OTHER"),
        (["a", "b", "--match", "x=y"], "--match pairs the suites of two JSON reports; a is suites"),
        (["a..b", "--match", "x=y"], "--match pairs the suites of two JSON reports: name both"),
    ],
)
def test_trouble_is_status_two_in_one_line(
    capsys: Captured, arguments: list[str], words: str
) -> None:
    Path("c").mkdir()
    Path("record/clip").mkdir(parents=True)
    Path("record/clip/regression-x.json").write_text("{}")
    Path("x.json").write_text("{}")
    Path("y.json").write_text("{")
    Path("z.txt").write_text("")
    Path("m.safetensors").write_bytes(b"")
    Path("broken.quantgate.yaml").write_text("x")

    assert main(["diff", *arguments]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quantgate: ")
    assert words in err
    assert err.count("\n") == 1


def test_json_alone_is_printed(capsys: Captured) -> None:
    assert main(["diff", "a", "b", "--json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert [change["kind"] for change in found["changes"]] == ["loosened"]


def test_markdown_is_printed_or_written(capsys: Captured) -> None:
    assert main(["diff", "a", "b", "--markdown", "-"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("### Model change: 1 change: limits 1\n")

    assert main(["diff", "a", "b", "--markdown", "out/diff.md", "--html", "out/diff.html"]) == 1
    assert capsys.readouterr().out == EXPECTED
    assert Path("out/diff.md").read_text(encoding="utf-8") == printed
    assert Path("out/diff.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in Path("out").iterdir()) == ["diff.html", "diff.md"]


@pytest.mark.parametrize("target", ["a/clip.quantgate.yaml", "b/new.md"])
def test_what_is_compared_is_never_written(capsys: Captured, target: str) -> None:
    before = Path("a/clip.quantgate.yaml").read_bytes()

    assert main(["diff", "a", "b", "--markdown", target]) == 2

    assert f"{target} is part of what is compared" in capsys.readouterr().err
    assert Path("a/clip.quantgate.yaml").read_bytes() == before
    assert not Path("b/new.md").exists()


def test_file_that_cannot_be_written_is_trouble(capsys: Captured) -> None:
    Path("file").write_text("")

    assert main(["diff", "a", "b", "--html", "file/diff.html"]) == 2
    assert "file/diff.html cannot be written: file is no folder" in capsys.readouterr().err


def test_program_ends_with_the_status_and_without_torch() -> None:
    code = (
        "import sys; from pytest_quantgate.commands.cli import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'pytest'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "diff", "a", "b"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (1, EXPECTED, "")


def test_help_shows_an_example(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["diff", "--help"])

    assert "quantgate diff main...HEAD" in capsys.readouterr().out
