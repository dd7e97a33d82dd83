"""`quantgate conclude`: its status is the verdict's, and whatever is given ends in lines."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate import bounds
from pytest_quantgate.commands.cli import main
from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.json_report import read_report
from pytest_quantgate.report.model import JudgedFile
from tests.results import GATES, GPU, make_result, make_results, write_result

ALL = {("clip", gate): Status.PASS for gate in GATES}
RELEASE = "release: 1\nsuites: [{suite: clip.quantgate.yaml}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards, of two machines, that pass together."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    cpu = make_results({("clip", gate): Status.PASS for gate in GATES[:3]})
    gpu = make_results({("clip", gate): Status.PASS for gate in GATES[3:]})
    write_result(tmp_path / "cpu.json", make_result("", cpu))
    (tmp_path / "gpu").mkdir()
    result = make_result("", gpu, created="2026-11-30T13:00:00Z", environment=GPU, device="cuda")
    write_result(tmp_path / "gpu/report.json", result)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_results_that_pass_together_may_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conclude", "cpu.json", "gpu"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cpu.json: 3 gates, 2026-11-30 12:00, cpu; Linux x86_64, a processor",
        "gpu/report.json: 1 gate, 2026-11-30 13:00, cuda; NVIDIA H200; Linux x86_64, another",
        "clip",
        "  PASS  sanity       sanity is PASS",
        "  PASS  coverage     coverage is PASS",
        "  PASS  accuracy[a]  accuracy[a] is PASS",
        "  PASS  latency[b]   latency[b] is PASS",
        "clip: may ship: 4 gates passed",
    ]


@pytest.mark.usefixtures("folder")
def test_one_shard_alone_is_not_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conclude", "cpu.json"]) == 1
    assert "clip: not decided: 3 passed, 1 gate did not run" in capsys.readouterr().out


def test_every_report_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conclude", "cpu.json", "gpu", "--report", "out"]) == 0
    assert capsys.readouterr().out.count("report written: out/") == 5

    report = read_report((folder / "out/report.json").read_bytes(), name="r")
    assert report.conclusion.sentence == "May ship: 4 gates passed"
    assert [result.name for result in report.results] == ["cpu.json", "gpu/report.json"]
    assert report.created == "2026-11-30T13:00:00Z"
    html = (folder / "out/index.html").read_text()
    for words in ("May ship: 4 gates passed", "Who measured what where", "(from gpu/report.json)"):
        assert words in html
    markdown = (folder / "out/report.md").read_text()
    assert "May ship: 4 gates passed" in markdown
    assert "NVIDIA H200" in markdown
    assert 'tests="4" failures="0"' in (folder / "out/junit.xml").read_text()
    assert json.loads((folder / "out/manifest.json").read_text())["subject"]


def test_a_verdict_that_turns_takes_the_manifest_back(folder: Path) -> None:
    assert main(["conclude", "cpu.json", "gpu", "--report", "out"]) == 0
    assert main(["conclude", "cpu.json", "--report", "out"]) == 1

    assert not (folder / "out/manifest.json").exists()
    assert (folder / "out/manifest.json.previous").exists()


def test_order_and_repetition_change_no_byte(folder: Path) -> None:
    main(["conclude", "cpu.json", "gpu", "--report", "one"])
    main(["conclude", "gpu", "cpu.json", "gpu", "--report", "two"])

    for name in ("index.html", "report.json", "report.md", "junit.xml", "manifest.json"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_what_each_result_built_for_itself_is_noted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        built = JudgedFile(artifact="checkpoint", name="m", sha256=name * 64, built=True)
        write_result(folder / f"{name}.json", make_result("", make_results(ALL), files=(built,)))

    assert main(["conclude", "a.json", "b.json"]) == 0
    assert "note on clip: each result is of its own checkpoint, so that no manifest names them" in (
        capsys.readouterr().out
    )


def edit(data: dict[str, Any]) -> object:
    return data["suites"][0]["gates"][0].update(status="FAIL")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit, "this report was edited after it was written: run again"),
        (lambda d: d.update(seal=""), "this report was edited after it was written: run again"),
        (lambda d: d.pop("seal"), "this report was edited after it was written: run again"),
        (lambda d: d.update(version=3),
         "a report of version 3 does not say which files it is of: run again with this release"),
        (lambda d: d.update(version=99), "a report of version 99, here versions "),
        (lambda d: d.pop("suites"), "damaged report: Report: field 'suites' is missing"),
        (lambda d: d.clear(), "this is no report: its `format` is not "),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_trusted_is_a_line_and_red(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[dict[str, Any]], object],
    words: str,
) -> None:
    data = json.loads((folder / "cpu.json").read_text())
    damage(data)
    (folder / "cpu.json").write_text(json.dumps(data))

    assert main(["conclude", "cpu.json", "gpu"]) == 1
    output = capsys.readouterr()
    (line,) = (x for x in output.out.splitlines() if x.startswith("error: "))
    assert line.startswith(f"error: cpu.json: {words}")
    assert output.err == ""


def list_places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a JSON tree."""
    inner: dict[Any, Any] = {}
    if isinstance(node, (dict, list)):
        inner = node if isinstance(node, dict) else dict(enumerate(node))
    for key, value in inner.items():
        yield (*path, key)
        yield from list_places(value, (*path, key))


STATUSES = st.sampled_from([status.value for status in Status])
ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just([]) | STATUSES  # type: ignore[var-annotated]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_result_that_was_made_up_and_sealed_is_no_traceback(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever can write a result can seal it too."""
    folder = tmp_path_factory.mktemp("made-up")
    file = JudgedFile(artifact="model", name="m", sha256="a" * 64)
    made = make_result("", make_results(ALL), environment=GPU, device="cuda", files=(file,))
    plain = to_json(made.report)
    *way, last = data.draw(st.sampled_from(sorted(list_places(plain), key=str)))
    node = plain
    for key in way:
        node = node[key]
    node[last] = data.draw(ODD)
    plain["seal"] = digest_of({name: value for name, value in plain.items() if name != "seal"})
    (folder / "x.json").write_text(json.dumps(plain))
    write_result(folder / "y.json", make_result("", make_results(ALL)))

    names = [str(folder / name) for name in ("x.json", "y.json")]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(["conclude", *names, "--report", str(folder / "out")]) in (0, 1)
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_result_is_a_line_and_red(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (folder / "cpu.json").write_bytes(content)

    assert main(["conclude", "cpu.json", "gpu"]) == 1
    assert "error: cpu.json: this is no " in capsys.readouterr().out


def test_truncated_huge_and_absent_results_are_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (folder / "cpu.json").read_text()
    (folder / "cut.json").write_text(text[: len(text) // 2])
    monkeypatch.setattr(bounds, "JSON_BYTES", len(text) - 1)

    assert main(["conclude", "cpu.json", "cut.json", "none.json", "."]) == 1
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("error: ")]
    assert len(lines) == 4
    assert f"cpu.json: cannot be read: it is larger than {len(text) - 1} bytes" in lines[0]
    assert "cut.json: this is no JSON" in lines[1]
    assert "none.json: cannot be read: No such file or directory" in lines[2]
    assert "report.json: cannot be read: No such file or directory" in lines[3]


def test_a_release_decides_with_the_suites_that_are_here(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "release.quantgate.yaml").write_text(RELEASE)
    arguments = ["conclude", "cpu.json", "gpu", "--release", "release.quantgate.yaml"]
    assert main(arguments) == 0
    (folder / "clip.quantgate.yaml").write_text("quantgate: 1 # a later suite\n")
    capsys.readouterr()

    assert main(arguments) == 1
    assert "not comparable: clip.quantgate.yaml: the suite itself differs: 555555555555 in " in (
        capsys.readouterr().out
    )


def test_wrong_use_is_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "release.quantgate.yaml").write_text("release: 1\nsuits: []\n")
    (folder / "foreign").mkdir()
    (folder / "foreign/index.html").write_text("<h1>mine</h1>")
    for arguments, words in (
        (["--release", "release.quantgate.yaml"], "release.quantgate.yaml:2: suits: unknown key"),
        (["--release", "none.quantgate.yaml"], "none.quantgate.yaml:1: cannot read the suite"),
        (["--report", "cpu.json"], "--report cpu.json: this is a file: name a folder"),
        (["--report", "foreign"], "was not written by pytest-quantgate and is left as it is"),
        (["--report", "gpu"], "--report gpu: gpu/report.json is a result that is joined"),
    ):
        assert main(["conclude", "cpu.json", "gpu", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_results_cannot_forge_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = make_results({**ALL}, errors=("a\n::error::b\x1b[31m",))
    write_result(folder / "x\n.json", make_result("", results))

    assert main(["conclude", "x\n.json", "--report", "out"]) == 1
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "error: x\\n.json: a\\n::error::b\\x1b[31m" in output.splitlines()
