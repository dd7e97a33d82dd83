"""`quantgate doctor`: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands import machine as machine_module
from pytest_quantgate.commands.cli import main
from pytest_quantgate.commands.machine import (
    Check,
    Gpu,
    Machine,
    check_cache,
    check_hub,
    check_packages,
    check_python,
    find_gpus,
)
from pytest_quantgate.commands.needs import list_kinds, list_needs
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates:
  coverage: {}
  parity: {}
  engine: {target: sm89, min_fp8_gemms: 1}
"""
REQUIREMENTS = (
    "pytest>=8.3",
    'nvidia-modelopt<0.49,>=0.47; extra == "clip"',
    'onnxruntime>=1.20; extra == "onnx"',
    'tensorrt-rtx-cu12>=1.7; extra == "rtx"',
    'ruff>=0.9; extra == "dev"',
)

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def versions(**found: str) -> Callable[[str], str]:
    def version_of(name: str) -> str:
        if name.replace("-", "_") not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name.replace("-", "_")]

    return version_of


def packages(**found: str) -> dict[str, Check]:
    checked = check_packages(REQUIREMENTS, version_of=versions(**found))
    return {check.name: check for group in checked.values() for check in group}


# -- packages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("0.47.0", "OK"),
        ("0.47.3", "OK"),
        ("0.46.1", "TOO OLD"),
        ("0.48.0rc1", "OK"),
        ("0.48.0", "OK"),
        ("0.49.0", "TOO NEW"),
        ("1.0", "TOO NEW"),
    ],
)
def test_modelopt_is_held_against_its_range(version: str, state: str) -> None:
    check = packages(nvidia_modelopt=version)["nvidia-modelopt"]

    assert check.state == state
    if state != "OK":
        assert check.detail == f"{version}, supported is <0.49,>=0.47"
        assert check.fix == "pip install 'nvidia-modelopt<0.49,>=0.47'"


def test_missing_package_names_its_extra() -> None:
    found = packages()

    assert found["nvidia-modelopt"].state == "MISSING"
    assert found["nvidia-modelopt"].fix == "pip install 'pytest-quantgate[clip]'"
    assert found["pytest"].fix == "pip install 'pytest>=8.3'"
    assert "ruff" not in found


def test_another_build_of_a_library_counts() -> None:
    found = packages(onnxruntime_gpu="1.24.4", tensorrt_rtx_cu13="1.7.1")

    assert (found["onnxruntime"].state, found["onnxruntime"].detail) == (
        "OK",
        "1.24.4 (onnxruntime-gpu)",
    )
    assert found["tensorrt-rtx-cu12"].state == "OK"


def test_ranges_are_those_of_the_project_itself() -> None:
    names = {check.name for group in check_packages().values() for check in group}

    assert {"pytest", "PyYAML", "torch", "transformers", "nvidia-modelopt"} <= names


@pytest.mark.parametrize(("version", "state"), [((3, 11, 0), "OK"), ((3, 10, 9), "TOO OLD")])
def test_python_is_held_against_its_range(version: tuple[int, ...], state: str) -> None:
    assert check_python(version).state == state


# -- the machine ----------------------------------------------------------------------------------


def answer(stdout: str, *, status: int = 0, stderr: str = "") -> Callable[..., Any]:
    return lambda command, **_: subprocess.CompletedProcess(command, status, stdout, stderr)


def test_gpu_is_described_from_the_driver(tmp_path: Path) -> None:
    said = "NVIDIA L4, 8.9, 23034 MiB, 550.1\nNVIDIA A100, 8.0, 40960 MiB, 550.1\n"

    gpus, check = find_gpus(run=answer(said), node=tmp_path)

    assert [(gpu.target, gpu.has_fp8) for gpu in gpus] == [("sm89", True), ("sm80", False)]
    assert check.state == "OK"
    assert "NVIDIA L4, sm89, FP8 units, 23034 MiB, driver 550.1; NVIDIA A100" in check.detail
    assert "sm80, no FP8 units" in check.detail


def test_machine_without_a_driver_is_fine(tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("nvidia-smi was called")

    gpus, check = find_gpus(run=refuse, node=tmp_path / "no")

    assert gpus == ()
    assert check.state == "NOTE"


def test_driver_that_does_not_answer_is_broken(tmp_path: Path) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    def hangs(command: Any, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 20)

    for run, words in (
        (missing, "nvidia-smi is not installed"),
        (hangs, "nvidia-smi does not answer"),
        (answer("", status=9, stderr="Driver/library version mismatch\n"), "version mismatch"),
        (answer(""), "nvidia-smi: status 0"),
    ):
        gpus, check = find_gpus(run=run, node=tmp_path)
        assert gpus == ()
        assert check.state == "BROKEN"
        assert words in check.detail
        assert check.fix


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_flags_are_named(name: str) -> None:
    assert f"offline ({name} is set)" in check_hub({name: "1"}).detail
    assert "not forbidden" in check_hub({name: "0"}).detail


def test_cache_is_measured_and_never_made(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_bytes(b"x" * 2_000_000)

    assert "2.0 MB used" in check_cache(tmp_path / "cache").detail
    assert "0.0 MB used" in check_cache(tmp_path / "new" / "cache").detail
    assert not (tmp_path / "new").exists()


def test_cache_in_the_place_of_a_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert check_cache(tmp_path / "file" / "cache").state == "BROKEN"


# -- what can be measured -------------------------------------------------------------------------


def make_machine(*gpus: Gpu, **missing: str) -> Machine:
    bad = {
        extra: (Check(name=name, state="MISSING", detail="", fix=f"pip install {name}"),)
        for extra, name in missing.items()
    }
    return Machine(packages={"clip": (), **bad}, gpus=gpus, others=())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def only(**found: str) -> None:
        monkeypatch.setattr(machine_module.metadata, "version", versions(**found))  # type: ignore[attr-defined]

    return only


def kinds(machine: Machine) -> dict[str, tuple[str, ...]]:
    return {need.gate: tuple(part.what for part in need.missing) for need in list_kinds(machine)}


def test_nothing_installed_measures_nothing(installed: Callable[..., None]) -> None:
    installed()

    found = kinds(make_machine(clip="torch"))

    assert all(found.values())
    assert found["coverage"] == ("torch (missing)",)
    assert "onnxruntime (missing)" in found["parity"]
    assert "tensorrt-rtx (missing)" in found["engine"]


def test_engines_need_no_gpu_with_tensorrt_for_rtx(installed: Callable[..., None]) -> None:
    installed(tensorrt_rtx_cu12="1.7", onnxruntime="1.24")

    found = kinds(make_machine())

    assert found["engine"] == found["parity"] == found["latency, runtime: onnxruntime"] == ()
    assert found["latency, runtime: tensorrt-rtx"] == ("no NVIDIA GPU",)
    assert found["accuracy, stage: engine"] == ("no NVIDIA GPU",)


def test_gpu_makes_the_rest_measurable(installed: Callable[..., None]) -> None:
    installed(tensorrt_rtx_cu12="1.7", onnxruntime_gpu="1.24", tensorrt_cu12="10.9")
    gpu = Gpu(name="L4", capability=8.9, memory="", driver="")

    assert not any(kinds(make_machine(gpu)).values())


def needs(
    text: str, *, machine: Machine, environ: dict[str, str] | None = None
) -> dict[str, list[tuple[str, str]]]:
    path = Path("s.quantgate.yaml")
    path.write_text(text, encoding="utf-8")
    found = list_needs(load_suite(path), machine=machine, environ=environ or {})
    return {need.gate: [(part.what, part.fix) for part in need.missing] for need in found}


def test_suite_needs_only_what_its_gates_need(installed: Callable[..., None]) -> None:
    installed(tensorrt_rtx_cu12="1.7")

    assert needs(SUITE, machine=make_machine()) == {
        "sanity": [],
        "coverage": [],
        "parity": [("onnxruntime (missing)", "pip install 'pytest-quantgate[onnx]'")],
        "engine[sm89]": [],
    }


def test_library_without_targets_needs_that_very_gpu(installed: Callable[..., None]) -> None:
    installed(tensorrt="10.9", onnxruntime="1.24")
    text = SUITE.replace("target: sm89", "target: sm89, library: tensorrt")
    other = Gpu(name="A100", capability=8.0, memory="", driver="")
    right = Gpu(name="L4", capability=8.9, memory="", driver="")

    gate = "engine[sm89-tensorrt]"
    assert needs(text, machine=make_machine())[gate][0][0] == "no NVIDIA GPU"
    assert needs(text, machine=make_machine(other))[gate][0][0] == (
        "the GPU here is sm80, the gate is for sm89"
    )
    assert needs(text, machine=make_machine(right))[gate] == []


def test_model_and_data_that_are_not_here_are_named(
    installed: Callable[..., None], tmp_path: Path
) -> None:
    installed(onnxruntime="1.24", tensorrt_rtx_cu12="1.7")
    commit = "a" * 40
    text = SUITE.replace(
        "{source: reference}", f"{{source: transformers, id: a/b, revision: {commit}}}"
    )
    text = text.replace("scenes/calibration", "photos/train")
    text = text.replace(
        "quantize:", 'datasets: {photos: {dataset: wds/x, root: "${QUANTGATE_D}"}}\nquantize:'
    )

    found = needs(text, machine=make_machine(), environ={"HF_HOME": str(tmp_path)})
    assert found["coverage"] == [
        ("s.quantgate.yaml:2: a/b was not downloaded", f"hf download a/b --revision {commit}"),
        (
            "s.quantgate.yaml:4: environment variable QUANTGATE_D is not set",
            "export QUANTGATE_D=PATH",
        ),
    ]

    (tmp_path / "hub" / "models--a--b" / "snapshots" / commit).mkdir(parents=True)
    environ = {"HF_HOME": str(tmp_path), "QUANTGATE_D": str(tmp_path)}
    assert needs(text, machine=make_machine(), environ=environ)["coverage"] == []


# -- the command ----------------------------------------------------------------------------------


def test_every_line_has_a_state(capsys: Captured, tmp_path: Path) -> None:
    status = main(["doctor", "--cache-dir", str(tmp_path)], environ={})

    lines = capsys.readouterr().out.splitlines()
    assert status in (0, 1)
    states = ("OK", "MISSING", "TOO OLD", "TOO NEW", "BROKEN", "NOTE")
    checks = lines[: lines.index("")]
    assert all(line.strip().startswith(states) for line in checks)
    assert any("pytest plugin" in line and "OK" in line for line in checks)
    assert "gates that can be measured here" in lines


def test_status_follows_the_suite(
    capsys: Captured, tmp_path: Path, installed: Callable[..., None]
) -> None:
    path = Path("s.quantgate.yaml")
    path.write_text(SUITE.replace("{source: reference}", "{source: transformers, id: ./no}"))
    arguments = ["doctor", str(path), "--cache-dir", str(tmp_path)]

    assert main(arguments, environ={}) == 1
    out = capsys.readouterr().out
    assert "  MISSING  coverage      [1]" in out
    assert "  [1] s.quantgate.yaml:2: no is no directory; put the checkpoint there" in out

    assert main([*arguments, "--json"], environ={}) == 1
    found = json.loads(capsys.readouterr().out)
    assert {gate["gate"]: gate["measurable"] for gate in found["suites"][0]["gates"]} == {
        "sanity": False,
        "coverage": False,
        "parity": False,
        "engine[sm89]": False,
    }


def test_invalid_suite_is_refused(capsys: Captured) -> None:
    Path("s.quantgate.yaml").write_text("x")

    assert main(["doctor", "s.quantgate.yaml"], environ={}) == 1
    assert capsys.readouterr().err.startswith("quantgate: s.quantgate.yaml:1: ")


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from pytest_quantgate.commands.cli import main; main(['doctor']);"
        "assert not {'torch', 'modelopt', 'onnxruntime'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_shows_an_example(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])

    assert "quantgate doctor suites/" in capsys.readouterr().out
