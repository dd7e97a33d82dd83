"""Gates on what follows PyTorch: ONNX files, ONNX Runtime, engines without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]

STAGES = """\
  export: {allow: [softmax], max_size_ratio: 1.5x}
  parity: {samples: 16}
  engine:
    - {target: sm89, towers: [vision], min_fp8_gemms: 13}
    - {target: sm120, towers: [text], min_fp8_gemms: 13}
  memory: {target: sm89, max_weights_ratio: 0.9x, max_activation: 64MiB}
"""
ONLY = ("-k", "export or parity or engine or onnx or memory")


@pytest.fixture
def write_stages(write_suite: WriteSuite) -> Callable[..., Path]:
    """Write the tiny suite with gates on its later stages; `replace` as in write_suite."""

    def write(*, recipe: str = "fp8-attention", **changes: str) -> Path:
        text = STAGES
        for old, new in changes.pop("replace", {}).items():  # type: ignore[union-attr]
            assert old in text
            text = text.replace(old, new)
        return write_suite(
            recipe=recipe,
            replace={
                "  roundtrip: {}\n": text,
                "max_drop: 100pp, max_flips: 90%, samples: 64}": (
                    "max_drop: 100pp, max_flips: 90%, samples: 64}\n"
                    "    - {task: scenes/classification, metric: acc1, max_drop: 100pp,"
                    " max_flips: 90%, samples: 64, stage: onnx}"
                ),
            },
        )

    return write


def test_a_good_export_passes_every_stage(
    write_stages: Callable[..., Path], run_gates: Run
) -> None:
    pytest.importorskip("tensorrt_rtx")
    write_stages(recipe='fp8-attention, exclude: ["*patch_embedding*"]')

    result = run_gates(*ONLY)

    result.assert_outcomes(passed=6, deselected=6)
    result.stdout.fnmatch_lines(
        [
            "  PASS  accuracy[[]scenes/classification-acc1-onnx[]] *",
            "  PASS  export *  * of * quantizers as Q/DQ + softmax, none added; *x of FP16's*",
            "  PASS  parity *",
            "  PASS  engine[[]sm89-vision[]] *  13 of 13 linear in FP8; *",
            "  PASS  engine[[]sm120-text[]] *",
        ]
    )


def test_int8_goes_through_onnx_runtime(write_stages: Callable[..., Path], run_gates: Run) -> None:
    write_stages(recipe="int8", replace={"allow: [softmax], ": ""})

    run_gates("-k", "export or parity or onnx").assert_outcomes(passed=3, deselected=9)


def test_a_text_tower_exported_from_fp16_is_red(
    write_stages: Callable[..., Path],
    run_gates: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pytest_quantgate.encoders import loading
    from pytest_quantgate.runtimes import onnx_export

    export, load = onnx_export.export_tower, loading.load_fp16
    kept: list[Any] = []

    def keep(*arguments: Any, **options: Any) -> Any:
        kept.append(load(*arguments, **options))
        return kept[-1]

    def mixed_up(model: Any, *, tower: str, softmax: bool, **options: Any) -> Any:
        if tower == "text":
            model, softmax = replace(kept[0]), False
        return export(model, tower=tower, softmax=softmax, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "load_fp16", keep)
    monkeypatch.setattr(onnx_export, "export_tower", mixed_up)
    write_stages()

    result = run_gates("-k", "export or parity", f"--quantgate-cache-dir={tmp_path}")

    result.assert_outcomes(failed=2, deselected=10)
    result.stdout.fnmatch_lines(
        [
            "FAIL export: * of * quantizers of the text tower are not in its graph *",
            "*likely cause: the file was exported from another variant (FP16?)",
            "FAIL parity: text *",
        ]
    )


def test_a_target_without_fp8_units_says_so(
    write_stages: Callable[..., Path], run_gates: Run
) -> None:
    pytest.importorskip("tensorrt_rtx")
    write_stages(replace={"sm120, towers: [text]": "sm86, towers: [text]"})

    result = run_gates("-k", "sm86")

    result.assert_outcomes(failed=1, deselected=11)
    result.stdout.fnmatch_lines(
        ["FAIL suites/tiny.quantgate.yaml:*: the text tower, quantized: cannot build for sm86, *"]
    )


def test_without_the_library_the_install_line_is_shown(
    write_stages: Callable[..., Path], run_gates: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    write_stages()

    loose, strict = (
        run_gates("-k", "engine", "-rs"),
        run_gates("-k", "engine", "--quantgate-strict"),
    )

    loose.assert_outcomes(skipped=2, deselected=10)
    loose.stdout.fnmatch_lines(["SKIPPED*pip install 'pytest-quantgate[[]rtx[]]'*"])
    strict.assert_outcomes(failed=12, deselected=10)  # those that were left out are not green


def test_an_engine_of_another_file_than_the_audited_one_is_incomparable(
    write_stages: Callable[..., Path],
    run_gates: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan that ships must come from the file that the export gate read."""
    pytest.importorskip("tensorrt_rtx")
    from pytest_quantgate.runtimes import engine

    build = engine.build_engine

    def build_older(*, onnx_path: Path, **options: Any) -> Any:
        older = tmp_path / "older.onnx"
        content = onnx_path.read_bytes()
        # One more metadata entry (field 14): valid, the same graph, another file.
        older.write_bytes(content + b"\x72\x08\x0a\x03old\x12\x01x")
        return build(onnx_path=older, **options)

    monkeypatch.setattr(engine, "build_engine", build_older)
    write_stages()
    cache = f"--quantgate-cache-dir={tmp_path / 'cache'}"

    result = run_gates("-k", "sm89-vision", cache)

    result.assert_outcomes(failed=1, deselected=11)
    result.stdout.fnmatch_lines(
        ["INCOMPARABLE engine: the plan of the vision tower was built from another ONNX file: *"]
    )
