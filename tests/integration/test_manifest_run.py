"""The manifest of whole runs: who gets one, and that none of an earlier run stays in its place."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.release.manifest_file import read_manifest
from tests.stub_gates import SUITE, run, write_project

DOCS = Path(__file__).parents[2] / "docs"

RED = {"coverage": ["FAIL"]}


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def set_verdicts(folder: Path, verdicts: object) -> None:
    for tried in folder.rglob("*.tried"):
        tried.unlink()
    (folder / "verdicts.json").write_text(json.dumps(verdicts))


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_run_that_passes_has_one_in_both_places(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    write_project(pytester.path)

    result = run(
        pytester, "suites", "--quantgate-report=out", "--quantgate-manifest=m.json", *workers
    )

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["report written: out/manifest.json", "report written: m.json"])
    statement = load(pytester.path / "m.json")
    assert statement == load(pytester.path / "out/manifest.json")
    assert statement["subject"] == [
        {
            "name": "clip/suite/suites/clip.quantgate.yaml",
            "digest": {"sha256": hashlib.sha256(SUITE.encode()).hexdigest()},
        }
    ]
    assert read_manifest(pytester.path / "m.json").sentence == "May ship: 4 gates passed"


@pytest.mark.parametrize(
    ("verdicts", "options"),
    [
        (RED, ()),
        ({"coverage": ["NOT_MEASURED"]}, ()),
        ({"coverage": ["INCONCLUSIVE"]}, ("-n2",)),
        ({}, ("-k", "coverage")),
    ],
)
def test_a_run_that_does_not_pass_puts_the_earlier_one_aside(
    pytester: pytest.Pytester, verdicts: dict[str, list[str]], options: tuple[str, ...]
) -> None:
    write_project(pytester.path)
    places = ("--quantgate-report=out", "--quantgate-manifest=m.json")
    run(pytester, "suites", *places)
    earlier = load(pytester.path / "m.json")
    set_verdicts(pytester.path, verdicts)

    result = run(pytester, "suites", *places, *options)

    assert not (pytester.path / "m.json").exists()
    assert not (pytester.path / "out/manifest.json").exists()
    assert load(pytester.path / "m.json.previous") == earlier
    result.stdout.fnmatch_lines(
        [
            "no manifest written to out/manifest.json: nothing was found fit to ship; that of an "
            "earlier run is now out/manifest.json.previous",
            "no manifest written to m.json: nothing was found fit to ship; that of an earlier run "
            "is now m.json.previous",
        ]
    )


def test_a_run_that_passes_takes_the_place_of_the_earlier_one(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    run(pytester, "suites", "--quantgate-manifest=m.json")
    (pytester.path / "suites/clip.quantgate.yaml").write_text(f"{SUITE}# changed\n")

    run(pytester, "suites", "--quantgate-manifest=m.json")

    digest = hashlib.sha256(f"{SUITE}# changed\n".encode()).hexdigest()
    assert [subject.sha256 for subject in read_manifest(pytester.path / "m.json").subjects] == [
        digest
    ]
    assert not (pytester.path / "m.json.previous").exists()


def test_a_run_that_is_killed_leaves_no_manifest_of_another(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    run(pytester, "suites", "--quantgate-manifest=m.json")
    with (pytester.path / "conftest.py").open("a") as out:
        out.write("\n\ndef pytest_runtest_logstart():\n    os._exit(9)\n")

    result = pytester.runpytest_subprocess("suites", "--quantgate-manifest=m.json")

    assert result.ret == 9
    assert not (pytester.path / "m.json").exists()
    assert (pytester.path / "m.json.previous").exists()


def test_what_only_collects_touches_nothing(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    run(pytester, "suites", "--quantgate-manifest=m.json")

    run(pytester, "suites", "--quantgate-manifest=m.json", "--collect-only")

    assert (pytester.path / "m.json").exists()
    assert not (pytester.path / "m.json.previous").exists()


@pytest.mark.parametrize("name", ["m.json", "m.json.previous"])
def test_a_file_of_somebody_else_is_left_as_it_is(pytester: pytest.Pytester, name: str) -> None:
    write_project(pytester.path)
    run(pytester, "suites", "--quantgate-manifest=m.json")
    (pytester.path / name).write_text('{"name": "my web app"}')

    result = run(pytester, "suites", "--quantgate-manifest=m.json")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --quantgate-manifest: *{name} was not written by pytest-quantgate and is left *"]
    )
    assert (pytester.path / name).read_text() == '{"name": "my web app"}'


def test_ini_file_and_selftest(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    pytester.makeini("[pytest]\nquantgate_manifest = m.json\n")
    run(pytester, "suites")
    assert (pytester.path / "m.json").exists()

    result = run(pytester, "suites", "--quantgate-selftest", "--quantgate-manifest=n.json")
    result.stderr.fnmatch_lines(["ERROR: --quantgate-manifest shows what is true of a model, *"])
    result = run(pytester, "suites", "--quantgate-selftest", "--quantgate-model-card=README.md")
    result.stderr.fnmatch_lines(["ERROR: --quantgate-model-card shows what is true of a model, *"])


def test_a_model_card_has_the_verdict_of_the_last_run(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    card = pytester.path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# Mine\n")

    result = run(pytester, "suites", "--quantgate-model-card=README.md", "-n2")
    result.stdout.fnmatch_lines(["verdict written into README.md"])
    assert "May ship: 4 gates passed" in card.read_text()

    set_verdicts(pytester.path, RED)
    pytester.makeini("[pytest]\nquantgate_model_card = README.md\n")
    run(pytester, "suites", "--quantgate-json=red.json")
    assert "May ship" not in card.read_text()
    assert "Do not ship: coverage" in card.read_text()
    assert card.read_text().startswith("---\nlicense: mit\n---\n# Mine\n")

    set_verdicts(pytester.path, {})
    run(pytester, "suites", "--quantgate-json=green.json", "--quantgate-model-card=")
    assert "Do not ship: coverage" in card.read_text()
    assert main(["conclude", "green.json", "--model-card=README.md"]) == 0
    assert "May ship: 4 gates passed" in card.read_text()

    card.write_text("---\n- a list\n---\n")
    result = run(pytester, "suites")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["warning: *README.md: its metadata cannot be read: *"])
    assert card.read_text() == "---\n- a list\n---\n"


def test_a_run_of_other_tests_leaves_the_model_card(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nquantgate_model_card = README.md\n")
    pytester.makepyfile("def test_other(): pass")

    assert run(pytester).ret == 0
    assert not (pytester.path / "README.md").exists()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
def test_ssh_keygen_signs_a_manifest_and_finds_a_change(pytester: pytest.Pytester) -> None:
    """The commands that docs/guides/ship.md shows."""
    write_project(pytester.path)
    run(pytester, "suites", "--quantgate-manifest=manifest.json")
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "release_key"]
    subprocess.run(keygen, cwd=pytester.path, check=True)
    public = (pytester.path / "release_key.pub").read_text()
    (pytester.path / "allowed_signers").write_text(f"release@example.org {public}")
    page = DOCS / "guides" / "ship.md"
    sign, check = (
        line.strip()
        for line in page.read_text().splitlines()
        if line.strip().startswith("ssh-keygen -Y")
    )

    subprocess.run(sign, shell=True, cwd=pytester.path, check=True, capture_output=True)
    subprocess.run(check, shell=True, cwd=pytester.path, check=True, capture_output=True)
    with (pytester.path / "manifest.json").open("a") as out:
        out.write("\n")
    changed = subprocess.run(check, shell=True, cwd=pytester.path, capture_output=True)

    assert changed.returncode != 0


def test_a_release_file_is_no_suite_and_is_checked(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    path = pytester.path / "suites/release.quantgate.yaml"
    path.write_text("release: 1\nsuites: [{suite: suites/clip.quantgate.yaml}]\n")

    run(pytester, "suites").assert_outcomes(passed=4)

    path.write_text("release: 1\nsuits: []\n")
    result = run(pytester, "suites")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*release.quantgate.yaml:2: suits: unknown key*"])


def test_the_page_on_two_machines_runs_as_it_stands(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    write_project(pytester.path)
    example = DOCS.parent / "examples" / "ci" / "release.quantgate.yaml"
    text = example.read_text()
    # Nothing is measured here, so that no result is of a device.
    (pytester.path / example.name).write_text(text.partition("machines:")[0])
    page = (DOCS / "guides" / "two-machines.md").read_text()
    commands = [line.split() for line in page.splitlines() if line.startswith("    ")]
    assert [program for program, *_ in commands].count("quantgate") == 3

    for program, *arguments in commands:
        if program == "pytest":
            assert run(pytester, *arguments).ret == 0
        else:
            assert main(arguments) == 0
    assert "clip: may ship: 4 gates passed" in capsys.readouterr().out
    assert {path.name for path in (pytester.path / "verdict").iterdir()} == {
        *("index.html", "report.json", "report.md", "junit.xml", "manifest.json"),
    }


@pytest.mark.parametrize("split", [("-k", "coverage"), ("-n2",)])
def test_shards_of_a_run_conclude_to_the_run(
    pytester: pytest.Pytester, split: tuple[str, ...]
) -> None:
    """What pytest left out of a shard another one has; both tell of the whole suite."""
    write_project(pytester.path)
    rest = ("-k", "not coverage")
    run(pytester, "suites", "--quantgate-json=one.json", *split)
    run(pytester, "suites", "--quantgate-json=two.json", *rest)

    assert main(["conclude", "two.json"]) == 1
    assert main(["conclude", "one.json", "two.json", "--report=out"]) == 0
    assert main(["verify", "suites", "--manifest=out/manifest.json"]) == 0
