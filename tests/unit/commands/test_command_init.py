"""`quantgate init`: suites that are valid by construction, and files that are never overwritten."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.commands.init import _ask
from pytest_quantgate.commands.suite_checks import check_suite
from pytest_quantgate.commands.suite_text import propose_drop, quote
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.calibration import CalibrationGate
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.export import ExportGate
from pytest_quantgate.gates.fidelity import FidelityGate
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.roundtrip import RoundtripGate
from pytest_quantgate.gates.sections import TaskGate
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import Suite
from tests.suite_texts import quantize_of, section_of

Captured = pytest.CaptureFixture[str]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "clip",
        "vision_config": {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "image_size": 224,
            "patch_size": 16,
        },
        "text_config": {"num_hidden_layers": 3, "max_position_embeddings": 16},
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_webdataset(
    folder: Path, *, splits: tuple[str, ...] = ("train", "test"), count: int = 20
) -> Path:
    for split in splits:
        (folder / split).mkdir(parents=True)
        (folder / split / "nshards.txt").write_text("1")
        with tarfile.open(folder / split / "0.tar", "w") as archive:
            for index in range(count):
                member = tarfile.TarInfo(f"{index:04d}.jpg")
                member.size = 4
                archive.addfile(member, io.BytesIO(b"jpeg"))
    (folder / "classnames.txt").write_text("a\nb\n")
    return folder


def init(*arguments: str, environ: dict[str, str] | None = None) -> Suite:
    assert main(["init", *arguments, "--output", "s.quantgate.yaml"], environ=environ or {}) == 0
    suite = load_suite(Path("s.quantgate.yaml"))
    assert check_suite(suite, environ=environ or {}).errors == ()
    return suite


def test_reference_suite_has_every_gate_that_it_can_have() -> None:
    suite = init("--model", "reference", "--data", "scenes", "--target", "sm89")

    gates = suite.gates
    assert gates.one(CoverageGate) is not None
    assert section_of(gates, CoverageGate).attention == ("q", "k", "v", "output")
    assert [float(gate.max_drop) for gate in gates.all(AccuracyGate)] == [0.01]
    assert [gate.key for gate in gates.all(EngineGate)] == ["sm89-vision", "sm89-text"]
    assert [(gate.min_fp8_gemms, gate.attention) for gate in gates.all(EngineGate)] == [
        (25, "fused-fp8"),
        (19, None),
    ]
    for part in (
        gates.one(CalibrationGate),
        gates.one(FidelityGate),
        gates.one(RoundtripGate),
        gates.one(ExportGate),
        gates.one(ParityGate),
    ):
        assert part is not None


@pytest.mark.parametrize(("count", "limit"), [(20, "0.148"), (640, "0.005"), (2000, "0.005")])
def test_smoothquant_gets_a_limit_that_its_calibration_can_keep(count: int, limit: str) -> None:
    """A new sample is over the largest of n in one of n + 1 cases, channel by channel."""
    write_webdataset(Path("photos"), count=count)

    suite = init("--model", "reference", "--data", "./photos", "--recipe", "int8-smoothquant")

    gate = suite.gates.one(CalibrationGate)
    assert gate is not None
    assert gate.max_clipped == Fraction(limit)
    assert 1 / (suite.calibration.samples + 1) < gate.max_clipped


def test_local_model_is_looked_at() -> None:
    write_config(Path("models/clip"))
    suite = init("--model", "models/clip", "--data", "digits", "--target", "sm120")

    assert suite.model.id == "./models/clip"
    text = Path("s.quantgate.yaml").read_text(encoding="utf-8")
    assert "# vision: 2 blocks of width 64, 4 heads, 197 tokens" in text
    assert "# text: 3 blocks of width 512, 8 heads, 16 tokens" in text
    assert [gate.min_fp8_gemms for gate in suite.gates.all(EngineGate)] == [13, 19]


def test_local_folder_of_data_is_declared_and_counted() -> None:
    write_webdataset(Path("my photos"))
    suite = init("--model", "reference", "--data", "my photos")

    spec = suite.datasets["my_photos"]
    assert (spec.dataset, spec.root) == ("wds/my_photos", "./my photos")
    assert suite.calibration.data == "my_photos/train"
    assert (suite.calibration.samples, suite.calibration.held_out_samples) == (16, 4)
    assert suite.gates.one(FidelityGate) is not None
    assert section_of(suite.gates, FidelityGate).samples == 20
    assert [gate.task for gate in suite.gates.all(AccuracyGate)] == ["my_photos/classification"]


VISION = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("holds", "task", "metric"),
    [
        ("classification", "photos/knn", "acc1"),
        ("retrieval", "photos/neighbours", "top1"),
    ],
)
def test_a_model_without_texts_gets_a_task_that_it_can_do(
    holds: str, task: str, metric: str
) -> None:
    write_config(Path("vit"), **VISION)
    write_webdataset(Path("photos")).joinpath("dataset_type.txt").write_text(f"{holds}\n")
    suite = init("--model", "vit", "--data", "photos")

    assert [(gate.task, gate.metric) for gate in suite.gates.all(TaskGate)] == [
        (task, metric),
        (task, metric),
    ]
    text = Path("s.quantgate.yaml").read_text(encoding="utf-8")
    assert ("add floor" in text) is (metric == "acc1")  # FP16 agrees with itself


def test_another_task_than_the_usual_is_written_as_asked() -> None:
    write_webdataset(Path("photos"))
    suite = init("--model", "reference", "--data", "photos", "--task", "neighbours")

    assert {gate.task for gate in suite.gates.all(TaskGate)} == {"photos/neighbours"}


def test_a_task_that_the_model_cannot_do_is_refused(capsys: Captured) -> None:
    write_config(Path("vit"), **VISION)
    arguments = ["--model", "vit", "--data", "digits", "--task", "classification"]

    assert main(["init", *arguments, "--output", "s.quantgate.yaml"]) != 0
    assert "no text tower, and digits/classification needs one" in capsys.readouterr().err
    assert not Path("s.quantgate.yaml").exists()


def test_retrieval_data_gets_retrieval_tasks() -> None:
    write_webdataset(Path("pairs")).joinpath("dataset_type.txt").write_text("retrieval\n")
    suite = init("--model", "reference", "--data", "./pairs")

    assert [gate.metric for gate in suite.gates.all(AccuracyGate)] == [
        "image_retrieval_recall@5",
        "text_retrieval_recall@5",
    ]


def test_hub_model_and_clip_benchmark_data_are_pinned_and_rooted() -> None:
    suite = init(
        "--model", "openai/clip-vit-base-patch32", "--revision", COMMIT,
        "--data", "cifar100", "--root", "${QUANTGATE_DATA}/cifar100",
        "--recipe", "int8", "--exclude", "*patch_embedding*", "--exclude", "*proj*",
    )  # fmt: skip

    assert (suite.model.id, suite.model.revision) == ("openai/clip-vit-base-patch32", COMMIT)
    assert suite.datasets["cifar100"].root == "${QUANTGATE_DATA}/cifar100"
    assert quantize_of(suite).exclude == ("*patch_embedding*", "*proj*")
    assert suite.gates.one(CoverageGate) is not None
    assert section_of(suite.gates, CoverageGate).attention is None


@pytest.mark.parametrize(
    "recipe", ["fp8", "fp8-attention", "int8", "int8-smoothquant", "FP8_DEFAULT_CFG"]
)
@pytest.mark.parametrize("data", ["scenes", "digits"])
@pytest.mark.parametrize("target", [None, "sm89"])
def test_every_combination_is_valid(recipe: str, data: str, target: str | None) -> None:
    suite = init(
        "--model", "reference", "--data", data, "--recipe", recipe,
        *(["--target", target] if target else []),
    )  # fmt: skip

    assert quantize_of(suite).recipe == recipe


def test_existing_file_is_never_touched(capsys: Captured) -> None:
    path = Path("s.quantgate.yaml")
    path.write_text("mine", encoding="utf-8")

    arguments = ["init", "--model", "reference", "--data", "scenes", "--output", str(path)]
    assert main(arguments, environ={}) == 1

    assert capsys.readouterr().err == (
        "quantgate: s.quantgate.yaml is there already and was not touched: "
        "choose another --output\n"
    )
    assert path.read_text(encoding="utf-8") == "mine"


def test_dangling_link_is_not_followed(capsys: Captured) -> None:
    Path("s.quantgate.yaml").symlink_to("elsewhere")

    arguments = ["init", "--model", "reference", "--data", "scenes"]
    assert main([*arguments, "--output", "s.quantgate.yaml"], environ={}) == 1
    assert not Path("elsewhere").exists()


def test_suite_can_be_printed(capsys: Captured) -> None:
    assert main(["init", "--model", "reference", "--data", "scenes", "--output", "-"]) == 0
    assert capsys.readouterr().out.startswith("# Written by quantgate init.")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "a/b", "--data", "scenes"], "a/b is a hub id (there is no such folder): pin"),
        (["--model", "a/b", "--revision", "main", "--data", "scenes"], "main is no commit"),
        (["--model", "reference", "--revision", COMMIT, "--data", "scenes"], "has no revision"),
        (["--model", "./no", "--data", "scenes"], "--model ./no: no is no directory"),
        (
            ["--model", "./blip", "--data", "scenes"],
            "model_type is 'blip', a suite needs '",
        ),
        (["--model", "./odd", "--data", "scenes"], "the sizes of its towers make no sense"),
        (["--model", "./empty", "--data", "scenes"], "config.json is missing or unreadable"),
        (["--model", "reference", "--data", "cifar100"], "--data cifar100 needs --root"),
        (["--model", "reference", "--data", "./empty"], "has no test/nshards.txt (splits: none)"),
        (["--model", "reference", "--data", "./test-only"], "has only the split test"),
        (["--model", "reference", "--data", "./no-images"], "no-images/test has 0 images"),
        (["--model", "reference", "--data", "scenes", "--root", "x"], "has no --root"),
        (["--model", "reference", "--data", "digits", "--task", "retrieval"], "no captions"),
        (["--model", "reference", "--data", "scenes", "--recipe", "fp9"], "unknown recipe 'fp9'"),
        (["--model", "reference", "--data", "scenes", "--target", "h100"], "no compute capability"),
        (["--model", "reference", "--data", "scenes", "--exclude", "a b"], "can match no module"),
    ],
)
def test_bad_request_writes_nothing(capsys: Captured, arguments: list[str], words: str) -> None:
    write_config(Path("blip"), model_type="blip")
    write_config(Path("odd"), vision_config={"patch_size": 0})
    Path("empty").mkdir()
    write_webdataset(Path("test-only"), splits=("test",))
    write_webdataset(Path("no-images"), count=0)

    assert main(["init", *arguments, "--output", "s.quantgate.yaml"], environ={}) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not Path("s.quantgate.yaml").exists()


@pytest.mark.parametrize("output", ["s.yaml", ".quantgate.yaml", "suites/"])
def test_output_has_the_suffix_of_suites(capsys: Captured, output: str) -> None:
    arguments = ["init", "--model", "reference", "--data", "scenes", "--output", output]

    assert main(arguments, environ={}) == 1
    assert "a suite is a file NAME.quantgate.yaml" in capsys.readouterr().err


def test_nobody_is_asked_without_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_quantgate", "init", "--model", "reference"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("quantgate: --data, --output missing, and there is no terminal")


def ask_in_a_terminal(typed: bytes) -> subprocess.CompletedProcess[str]:
    controller, terminal = pty.openpty()
    os.write(controller, typed)
    done = subprocess.run(
        [sys.executable, "-m", "pytest_quantgate", "init"],
        stdin=terminal, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    os.close(terminal)
    os.close(controller)
    return done


def test_dialogue_in_a_terminal_writes_a_suite(tmp_path: Path) -> None:
    done = ask_in_a_terminal(b"\n\n\nsm89\nmine.quantgate.yaml\n")

    assert done.returncode == 0, done.stderr
    suite = load_suite(tmp_path / "mine.quantgate.yaml")
    assert suite.model.source == "reference"
    assert quantize_of(suite).recipe == "fp8-attention"
    assert {gate.target for gate in suite.gates.all(EngineGate)} == {"sm89"}
    assert "model: reference, a folder, or a hub id [reference]: " in done.stdout


def test_dialogue_that_ends_early_writes_nothing(tmp_path: Path) -> None:
    done = ask_in_a_terminal(b"reference\n\x04")

    assert done.returncode == 1
    assert done.stderr == "quantgate: ended before all was answered: nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_missing_is_asked() -> None:
    asked = []

    def ask(question: str, default: str) -> str:
        asked.append(question.partition(":")[0])
        return {"commit of the hub id (40 digits)": COMMIT}.get(asked[-1], default)

    parsed = argparse.Namespace(
        model="a/b", revision=None, data="cifar100", root=None, recipe="fp8", target="sm89",
        output=None,
    )  # fmt: skip
    _ask(parsed, ask=ask)

    assert asked == ["commit of the hub id (40 digits)", "write to"]
    assert (parsed.revision, parsed.output) == (COMMIT, "suites/b.quantgate.yaml")


@pytest.mark.parametrize(
    ("samples", "limit"),
    [(None, "1pp"), (50_000, "0.5pp"), (5000, "1pp"), (596, "3pp"), (9, "10pp")],
)
def test_proposed_limit_is_the_strictest_that_the_data_decides(
    samples: int | None, limit: str
) -> None:
    assert propose_drop(samples) == limit


@pytest.mark.parametrize(
    "text", ["a: b", "yes", "1.5", "*x*", 'q"u\\o', "${A}/b", "", "#x", "null", ".inf", "./x"]
)
def test_texts_are_quoted_where_yaml_would_read_something_else(text: str) -> None:
    import yaml

    assert yaml.safe_load(f"{{x: {quote(text)}}}") == {"x": text}


def test_help_shows_an_example(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["init", "--help"])

    assert "quantgate init --model reference --data scenes" in capsys.readouterr().out
