"""`quantgate verify`: its exit status, what it prints, and what it prints of hostile names."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.model import JudgedFile
from tests.manifests import write_files, write_manifest
from tests.results import make_result, make_results, write_result

FILES = {"checkpoint/model.safetensors": b"weights", "checkpoint/config.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "manifest.json", FILES)
    return write_files(tmp_path / "out", {Path(name).name: data for name, data in FILES.items()})


@pytest.mark.usefixtures("folder")
def test_files_that_were_judged_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "out", "--manifest", "manifest.json"]) == 0
    assert capsys.readouterr().out == (
        "manifest.json: May ship: 2 gates passed (2026-11-30)\n"
        "  judged   out/config.json        clip/checkpoint/config.json\n"
        "  judged   out/model.safetensors  clip/checkpoint/model.safetensors\n"
        "these are files that were judged: 2 files\n"
    )


def test_differences_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").write_bytes(b"others")
    (folder / "lora.bin").write_bytes(b"x")
    (folder / "config.json").unlink()
    (folder / "README.md").write_bytes(b"hello")

    assert main(["verify", "out", "--manifest", "manifest.json"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  EXTRA    out/lora.bin: nobody judged it",
        "  DIFFERS  out/model.safetensors is 01db91d06032, judged was "
        "clip/checkpoint/model.safetensors (9a129038d9a0)",
        "  not judged, no weights: out/README.md",
        "these are not the files that were judged: 2 differences",
    ]


def test_json_says_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "out", "--manifest", "manifest.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True

    (folder / "lora.bin").write_bytes(b"x")
    assert main(["verify", "out", "--manifest", "manifest.json", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is False
    assert [(each["what"], each["path"]) for each in found["differences"]] == [
        ("extra", "out/lora.bin")
    ]


def test_what_cannot_be_read_is_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "lora.bin").symlink_to("nowhere")

    assert main(["verify", "out", "--manifest", "manifest.json"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "not verified: 1 file cannot be read"
    for arguments in (["out", "--manifest", "none.json"], ["none", "--manifest", "manifest.json"]):
        assert main(["verify", *arguments]) == 2
        assert capsys.readouterr().err.startswith("quantgate: none")


def write_judged(folder: Path, *, status: Status) -> Path:
    files = tuple(
        JudgedFile(
            artifact="checkpoint", name=path.name, sha256=sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.iterdir())
    )
    results = make_results({("clip", "sanity"): status})
    return write_result(folder.parent / "gpu.json", make_result("", results, files=files))


@pytest.mark.parametrize("status", list(Status))
def test_a_result_of_another_machine_is_held_against_the_files_here(
    folder: Path, capsys: pytest.CaptureFixture[str], status: Status
) -> None:
    """Whatever its verdict: the question is whether it is of these files."""
    write_judged(folder, status=status)

    assert main(["verify", "out", "--result", "gpu.json"]) == 0
    assert "gpu.json: " in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"others")
    assert main(["verify", "out", "--result", "gpu.json"]) == 1


def test_a_result_alone_is_as_it_was_written_or_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_judged(folder, status=Status.FAIL)

    assert main(["verify", "--result", "gpu.json"]) == 0
    assert capsys.readouterr().out == (
        "gpu.json: Do not ship: sanity\n"
        "as it was written, of 3 files: name files to compare with them\n"
    )
    path.write_text(path.read_text().replace("FAIL", "PASS"))
    assert main(["verify", "--result", "gpu.json"]) == 2
    assert capsys.readouterr().err == (
        "quantgate: gpu.json: this report was edited after it was written: run again\n"
    )
    assert main(["verify", "--manifest", "manifest.json"]) == 2
    assert main(["verify", "--result", "none.json"]) == 2


def test_names_cannot_forge_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a\n::error::.bin").write_bytes(b"x")

    assert main(["verify", "out", "--manifest", "manifest.json"]) == 1
    assert "EXTRA    out/a\\n::error::.bin: nobody judged it" in capsys.readouterr().out
