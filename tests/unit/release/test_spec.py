"""`release.quantgate.yaml`: what is read, what is refused and where, and its schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from pytest_quantgate.commands.cli import main
from pytest_quantgate.errors import SuiteError
from pytest_quantgate.release.spec import json_schema, load_release
from pytest_quantgate.suite.names import is_release, list_suites

WHOLE = """\
release: 1
suites:
  - {suite: suites/clip.quantgate.yaml}
  - {suite: suites/siglip.quantgate.yaml, tier: advisory, allow_unmeasured: latency}
machines:
  - {name: h200, device: cuda, gpu: "NVIDIA H200*", gates: [engine, latency]}
allow_unmeasured: [memory]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "release.quantgate.yaml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    release = load_release(write(tmp_path, WHOLE))

    assert [(s.name, s.tier) for s in release.suites] == [
        ("suites/clip", "blocking"),
        ("suites/siglip", "advisory"),
    ]
    assert release.suites[1].allow_unmeasured == ("latency",)
    assert release.allow_unmeasured == ("memory",)
    (machine,) = release.machines
    assert (machine.name, machine.device, machine.gpu) == ("h200", "cuda", "NVIDIA H200*")
    assert machine.gates == ("engine", "latency")
    assert release.find("suites/other") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("release: 2\nsuites: [{suite: a.quantgate.yaml}]",
         "1: release: version 2 is not supported: this release reads 1"),
        ("release: 1", "1: suites: is missing"),
        ("release: 1\nsuites: []", "2: suites: is empty: leave it out or name at least one"),
        ("release: 1\nsuites: [{suite: clip.yaml}]",
         "2: suites.suite: 'clip.yaml' is no suite: name a file *.quantgate.yaml"),
        ("release: 1\nsuites:\n- {suite: a.quantgate.yaml}\n- {suite: ./a.quantgate.yaml}",
         "2: suites: ./a.quantgate.yaml stands twice"),
        ("release: 1\nsuites:\n- {suite: a.quantgate.yaml, tier: advisory}",
         "2: suites: none of them is blocking, so that nothing would be decided"),
        ("release: 1\nsuites:\n- {suite: a.quantgate.yaml, teir: advisory}",
         "3: suites.teir: unknown key; did you mean tier?"),
        ("release: 1\nsuites:\n- {suite: a.quantgate.yaml, tier: blokking}",
         "3: suites.tier: 'blokking' is none of blocking, advisory; did you mean blocking?"),
        ("release: 1\nsuites: [{suite: a.quantgate.yaml}]\nmachines: [{name: gpu}]",
         "3: machines: says nothing of the machine: give device, gpu, processor or system"),
        ("release: 1\nsuites: [{suite: a.quantgate.yaml}]\nallow_unmeasured: latncy",
         "3: allow_unmeasured: 'latncy' is none of "),
        ("quantgate: 1\nmodel: {}", "1: quantgate: unknown key; "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(SuiteError) as caught:
        load_release(path)

    assert str(caught.value).startswith(f"{path}:{words}")


def test_schema_takes_what_the_loader_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "release"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema).is_valid

    assert check(yaml.safe_load(WHOLE))
    assert not check(yaml.safe_load(WHOLE.replace("tier", "teir")))
    assert not check(yaml.safe_load(WHOLE.replace("advisory", "some")))
    assert not check({"release": 1})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("release.quantgate.yaml", True),
        ("spring.release.quantgate.yaml", True),
        ("prerelease.quantgate.yaml", False),
        ("release-candidate.quantgate.yaml", False),
        ("release.yaml", False),
    ],
)
def test_a_release_is_known_by_its_name(name: str, found: bool) -> None:
    assert is_release(Path("suites") / name) is found


def test_a_release_among_suites_is_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, WHOLE)
    (tmp_path / "clip.quantgate.yaml").write_text(
        "quantgate: 1\nmodel: {source: reference}\n"
        "calibration: {data: scenes/calibration, samples: 32, batch_size: 16}\n"
        "quantize: {recipe: fp8}\ngates: {coverage: {}}\n"
    )

    assert [path.name for path in list_suites(Path())] == ["clip.quantgate.yaml"]
    assert main(["validate", "."]) == 0
    assert capsys.readouterr().out == "clip.quantgate.yaml: valid (clip)\n"
    assert main(["validate", "release.quantgate.yaml"]) == 0
    assert capsys.readouterr().out == "release.quantgate.yaml: valid (a release of 2 suites)\n"
