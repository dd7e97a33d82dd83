"""`quantgate check`: exit status, outputs, and that nothing of others is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.commands.cli import main
from pytest_quantgate.inspection.findings import Finding, Inspection, Report, Row
from pytest_quantgate.inspection.inspect import inspect_paths
from pytest_quantgate.report.inspection import render_markdown, render_text
from tests.unit.inspection.quantized_files import (
    INT8_CONFIG,
    make_base,
    make_int8,
    write_safetensors,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "good"
    write_safetensors(folder / "model.safetensors", make_int8(make_base()))
    (folder / "config.json").write_text(json.dumps(INT8_CONFIG))
    return folder


@pytest.fixture
def spoiled(good: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "spoiled"
    tensors = make_int8(make_base())
    kind, scale = tensors["visual_projection.input_scale"]
    tensors["visual_projection.input_scale"] = (kind, scale * np.float32(0))
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(INT8_CONFIG))
    return folder


def test_status_0_without_a_finding(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(good)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "no finding"
    assert "38 of 38 Linear layers INT8" in " ".join(out.split())


def test_status_1_with_its_code_and_the_next_step(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(spoiled)]) == 1
    out = capsys.readouterr().out
    assert "  ! check.range-zero\n    1 range zero: visual_projection.input\n" in out
    assert "    next step: calibrate again" in out
    assert out.splitlines()[-1] == "1 finding: check.range-zero"


def test_a_finding_may_be_ignored_by_its_code(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(spoiled), "--ignore", "check.range-zero"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no finding; ignored: check.range-zero"


def test_neither_torch_nor_transformers_is_imported(good: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from pytest_quantgate.inspection.inspect import inspect_paths;"
        "report = inspect_paths([Path(sys.argv[1])]);"
        "print(len(report.inspections), sorted({'torch', 'transformers', 'onnx', 'modelopt'}"
        " & set(sys.modules)))"
    )

    out = subprocess.run(
        [sys.executable, "-c", code, str(good)], capture_output=True, text=True, check=True
    ).stdout

    assert out == "1 []\n"


def test_a_folder_of_several_files_is_searched(
    good: Path, spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layers.json").write_text('{"Layers": ["a"]}')
    (tmp_path / "other.json").write_text('{"of": "nobody"}')

    assert main(["check", str(tmp_path), "--json", "-"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert [Path(f["path"]).name for f in found["files"]] == ["layers.json", "good", "spoiled"]
    assert found["findings"] == 2
    assert found["refused"] == []


def test_what_lies_beside_a_checkpoint_is_checked_too(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (good / "layers.json").write_text('{"Layers": ["a"]}')
    (good / "pytorch_model.bin").write_bytes(b"\x80")
    (good / "onnx").mkdir()
    (good / "onnx" / "vision.onnx").write_bytes(b"")

    assert main(["check", str(good), "--json", "-"]) == 2

    found = json.loads(capsys.readouterr().out)
    assert [Path(f["path"]).name for f in found["files"]] == ["good", "layers.json"]
    assert [Path(r["path"]).name for r in found["refused"]] == ["vision.onnx"]
    assert found["notes"] == ["good/pytorch_model.bin is a pickle and was not read"]


def test_what_is_not_searched_is_said(
    good: Path, spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all"
    deep = folder / "1/2/3/4/5"
    deep.mkdir(parents=True)
    for place in (folder / "good", folder / ".hidden", deep / "deep"):
        shutil.copytree(spoiled if place.name != "good" else good, place)
    (folder / "link").symlink_to(spoiled)
    (tmp_path / "away.onnx").write_bytes(b"")
    (folder / "m.onnx").symlink_to(tmp_path / "away.onnx")

    assert main(["check", str(folder), "--json", "-"]) == 0

    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith("not searched (hidden, a link, or too deep): ")
    for name in (".hidden", "link", "1/2/3/4/5", "m.onnx"):
        assert f"{folder.as_posix()}/{name}" in note


def test_every_operand_is_in_the_json_and_shown_on_request(
    spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(spoiled), "--json", "-"])
    operands = json.loads(capsys.readouterr().out)["files"][0]["operands"]
    main(["check", str(spoiled), "--all"])
    text = capsys.readouterr().out

    (input_,) = (o for o in operands if (o["layer"], o["slot"]) == ("visual_projection", "input"))
    assert input_ == {
        "layer": "visual_projection", "tower": "vision", "kind": "linear", "slot": "input",
        "format": "INT8", "scales": "per-tensor", "dynamic": False, "symmetric": True,
        "stored": "", "is_packed": False, "smallest": 0.0, "largest": 0.0,
    }  # fmt: skip
    (weight,) = (o for o in operands if (o["layer"], o["slot"]) == ("visual_projection", "weight"))
    assert (weight["stored"], weight["is_packed"], weight["scales"]) == ("I8", True, "per-channel")
    shown = [line.split() for line in text.splitlines() if "visual_projection  " in line]
    assert ["visual_projection", "input", "INT8", "tensor", "0"] in shown


def test_outputs_are_written_and_replaced(
    spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["--json", str(tmp_path / "c.json"), "--markdown", str(tmp_path / "c.md")]
    for _ in range(2):
        assert main(["check", str(spoiled), *targets]) == 1

    found = json.loads((tmp_path / "c.json").read_text())
    assert found["check"] == "1 finding: check.range-zero"
    assert found["files"][0]["findings"][0]["code"] == "check.range-zero"
    text = (tmp_path / "c.md").read_text()
    assert text.startswith("### Quantized files: 1 finding: check.range-zero\n")
    assert "- `check.range-zero` 1 range zero" in text
    assert "| vision | Linear weight | 19 of 19 | INT8 | channel | I8 |" in text
    assert "! check.range-zero" in capsys.readouterr().out


def test_nobody_elses_file_is_replaced(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text("{}")

    assert main(["check", str(good), "--json", str(tmp_path / "mine.json")]) == 2
    assert (tmp_path / "mine.json").read_text() == "{}"
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ignore", "range-zero"], "--ignore takes a code of a finding"),
        (["--json", "-", "--markdown", "-"], "would both be printed"),
        (["--json", "{good}/x.json"], "is part of what is checked"),
        (["--base", "{good}"], "is quantized itself: a base is the FP16 model"),
        (["--base", "{good}/nothing"], "does not exist"),
    ],
)
def test_wrong_use_is_status_2(
    good: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    given = [argument.format(good=good) for argument in arguments]

    assert main(["check", str(good), *given]) == 2
    assert words in capsys.readouterr().err


# -- what is refused ---------------------------------------------------------------------------


class Runs:
    """A pickle of this creates a folder where it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


def write_zip(path: Path, value: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "weights.pkl", "x.ckpt"])
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_foreign_pickle_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    path, canary = tmp_path / name, tmp_path / "canary"
    if form == "zip":
        write_zip(path, {"model_state_dict": Runs(canary)})
    else:
        path.write_bytes(pickle.dumps(Runs(canary)))

    status = main(["check", str(path)])

    out = capsys.readouterr().out
    assert not canary.exists()
    assert status == 2 or "check.state-foreign" in out
    assert "pickle" in " ".join(out.split())


def test_a_state_that_would_run_code_is_a_finding_and_not_run(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    write_zip(good / "modelopt_state.pth", {"modelopt_state_dict": [], "x": Runs(canary)})

    assert main(["check", str(good)]) == 1
    assert "check.state-foreign" in capsys.readouterr().out
    assert not canary.exists()


@pytest.mark.parametrize(
    ("module", "name", "status"),
    [
        ("modelopt.torch.quantization.qtensor.fp8_tensor", "FP8QTensor", 0),
        ("modelopt.torch.quantization.qtensor.fp8_tensor", "torch.hub.load", 1),
        ("modelopt.torch.quantization.qtensor", "os.FP8QTensor.x", 1),
        ("os", "FP8QTensor", 1),
    ],
)
def test_a_class_of_compressed_weights_is_named_and_nothing_else(
    good: Path, module: str, name: str, status: int
) -> None:
    key = b"modelopt_state_dict"
    named = f"c{module}\n{name}\n".encode()
    data = b"\x80\x02}(U" + bytes([len(key)]) + key + b"]U\x01x" + named + b"u."
    with zipfile.ZipFile(good / "modelopt_state.pth", "w") as archive:
        archive.writestr("archive/data.pkl", data)

    (found,) = inspect_paths([good]).inspections

    assert ("check.state-foreign" in {f.code for f in found.findings}) == bool(status)


def plant(folder: Path, tensors: list[str], method: str = "") -> Path:
    write_safetensors(
        folder / "model.safetensors", {n: ("I8", np.zeros((2, 2), dtype="i1")) for n in tensors}
    )
    if method:
        config = {"quantization_config": {"quant_method": method}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("tensors", "method", "tool"),
    [
        (["a.weight", "a.SCB"], "", "bitsandbytes"),
        (["a.weight"], "bitsandbytes", "bitsandbytes"),
        (["a.weight._data"], "", "quanto"),
        (["a.qweight", "a.qzeros"], "", "awq"),
        (["a.qweight", "a.g_idx"], "", "gptq"),
        (["a.weight"], "gptq", "gptq"),
    ],
)
def test_tools_that_are_not_read_are_refused_by_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tensors: list[str],
    method: str,
    tool: str,
) -> None:
    folder = plant(tmp_path / "m", tensors, method)

    assert main(["check", str(folder)]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert f"of {tool}, which is not read: " in out
    assert out.endswith("1 file not read")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.gguf", b"GGUF\3\0\0\0", "is a GGUF file, of llama.cpp"),
        ("m.onnx", b"\xff" * 40, "is no ONNX model"),
        ("m.onnx", b"", "holds no ONNX graph"),
        ("m.safetensors", b"\xff" * 40, "is damaged"),
        ("m.txt", b"hello", "is nothing that is known here"),
        ("m.json", b"{", "is damaged: not JSON"),
    ],
)
def test_what_cannot_be_read_is_status_2_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)

    assert main(["check", str(tmp_path / name)]) == 2
    assert words in " ".join(capsys.readouterr().out.split())


def test_an_empty_folder_and_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path), str(tmp_path / "none")]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "holds no checkpoint" in out
    assert "does not exist" in out


@settings(max_examples=80, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bytes_=st.binary(min_size=1, max_size=4))
def test_a_damaged_checkpoint_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float, bytes_: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    tensors = make_int8(make_base())
    small = {n: t for n, t in tensors.items() if "layers.0.self_attn" in n or "logit" in n}
    write_safetensors(folder / "model.safetensors", small)
    content = bytearray((folder / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    start = int(place * header)
    content[start : start + len(bytes_)] = bytes_
    (folder / "model.safetensors").write_bytes(content)

    report = inspect_paths([folder])

    assert len(report.inspections) + len(report.refusals) == 1


@settings(max_examples=80, deadline=None)
@given(
    config=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("quantization_config", "quant_method", "config_groups", "weights", "ignore",
                 "targets", "input_activations", "num_bits", "type", "strategy", "dynamic",
                 "quant_algo", "producer", "architectures", "kv_cache_scheme")
            ),
            inner, max_size=5,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: Any
) -> None:
    folder = tmp_path_factory.mktemp("config")
    tensors = make_int8(make_base())
    small = {n: t for n, t in tensors.items() if "layers.0.self_attn" in n}
    write_safetensors(folder / "model.safetensors", small)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": config}))

    report = inspect_paths([folder])

    assert len(report.inspections) + len(report.refusals) == 1


# -- how it looks ------------------------------------------------------------------------------

FOUND = Report(
    inspections=(
        Inspection(
            path="out",
            what="checkpoint",
            tool="ModelOpt",
            headline="fp8 checkpoint of ModelOpt 0.47.0: " + "many words " * 12,
            rows=(
                Row(tower="vision", what="attention q k softmax v", quantized=12, total=100,
                    format="E4M3", scales="per-tensor asymmetric", stored="F16", share=0.5),
            ),
            findings=(
                Finding(code="check.x-y", headline="some words " * 20, cause="because " * 30,
                        next_step="do this " * 30),
            ),
            notes=("a note " * 30,),
            next_steps=("step " * 40,),
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    lines = render_text(FOUND, columns=columns).splitlines()

    assert max(map(len, lines)) <= columns
    assert max(map(len, lines)) > columns - 15


def test_what_others_named_cannot_forge_a_line() -> None:
    evil = "a\nPASS \x1b[32m<b>[x](http://y)"
    report = Report(
        inspections=(
            Inspection(
                path=evil,
                what="onnx",
                tool=evil,
                headline=evil,
                rows=(Row(tower=evil, what=evil, quantized=0, total=1, format=evil, scales=""),),
                findings=(Finding(code="check.x", headline=evil, next_step=evil, cause=evil),),
                notes=(evil,),
            ),
        ),
    )

    text, markdown = render_text(report), render_markdown(report)

    assert "\x1b" not in text + markdown
    assert not any(line.startswith("PASS") for line in (text + markdown).splitlines())
    assert "<b>" not in markdown
