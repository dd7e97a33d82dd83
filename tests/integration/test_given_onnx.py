"""ONNX files that were handed over, through the gates of a suite."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from pytest_quantgate.commands.cli import main
from pytest_quantgate.comparison.suite_files import compare_suite
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"{dtype}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}}}
{artifacts}
gates:
  export: {{max_size_ratio: 1.5x}}
  parity: {{samples: 16}}
  accuracy: {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%,
    samples: 32, stage: onnx}}
  engine: {{target: sm89, max_weights_ratio: 2x, towers: [vision]}}
"""

ACCURACY = "scenes/classification-acc1-onnx"


@pytest.fixture
def write(tmp_path: Path, tiny_clip: Path) -> Callable[..., Path]:
    """Write a suite with these `artifacts`, as YAML; {folder} stands for the test's own."""

    def make(artifacts: str = "", *, recipe: str = "int8", dtype: str = ", dtype: float32") -> Path:
        path = tmp_path / "given.quantgate.yaml"
        text = SUITE.format(model=tiny_clip, recipe=recipe, artifacts=artifacts, dtype=dtype)
        path.write_text(text.replace("{folder}", str(tmp_path)), encoding="utf-8")
        return path

    return make


@pytest.fixture
def open_case(
    write: Callable[..., Path], make_case: Callable[..., Case], assume_sane: Any
) -> Callable[..., Case]:
    def make(*arguments: Any, **options: Any) -> Case:
        case: Case = assume_sane(make_case(load_suite(write(*arguments, **options))))
        return case

    return make


@pytest.fixture
def hand_over(open_case: Callable[..., Case], tmp_path: Path) -> Callable[..., Path]:
    """Copy what an earlier run exported out of the cache, as vision.onnx, vision-fp16.onnx."""

    def make(*towers: Any, **options: Any) -> Path:
        case = open_case(**options)
        for variant, end in (("quantized", ""), ("fp16", "-fp16")):
            for tower in towers or case.towers:
                path = case.stages.onnx_path(
                    variant=variant,
                    tower=tower,
                    precision=case.stages.shipped,
                )
                shutil.copyfile(path, tmp_path / f"{tower}{end}.onnx")
        return tmp_path

    return make


VISION = "artifacts: {onnx: {vision: '{folder}/vision.onnx'}}"
BOTH = "artifacts: {onnx: {vision: '{folder}/vision.onnx', text: '{folder}/text.onnx'}}"


def spoil(path: Path) -> None:
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("layer_norm1.weight"))
    values = numpy_helper.to_array(tensor) * 3
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("dtype", [", dtype: float32", ""])
def test_a_good_export_of_ours_is_judged_like_one_that_is_built(
    open_case: Callable[..., Case], hand_over: Callable[..., Path], dtype: str
) -> None:
    hand_over(dtype=dtype)
    built, given = open_case(dtype=dtype), open_case(BOTH, dtype=dtype)

    for kind, key in (("export", ""), ("parity", ""), ("accuracy", ACCURACY)):
        one, two = (case.judge(kind=kind, key=key).verdict for case in (built, given))
        assert two.status is Status.PASS, two
        if dtype:  # else float16 constants are made float32 again, and the last digits differ
            assert (two.headline, two.figures) == (one.headline, one.figures)
        lines = [line for line in two.evidence if "ONNX was given: " in line]
        assert [line.partition(" (sha256 ")[0] for line in lines] == [
            "the vision ONNX was given: vision.onnx",
            "the text ONNX was given: text.onnx",
        ]


def test_the_manifest_names_the_file_that_was_given_and_says_when_it_is_another(
    hand_over: Callable[..., Path],
    write: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    tmp_path: Path,
) -> None:
    path = hand_over("vision") / "vision.onnx"
    model = onnx.load(path)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])  # so that what is judged is a sorted copy of it
    onnx.save(model, path)
    manifest = str(tmp_path / "manifest.json")
    suite = write(VISION)
    suite.write_text(suite.read_text().partition("  accuracy:")[0])

    result = run_gates("-rP", f"--quantgate-manifest={manifest}", path=str(suite))

    result.stdout.fnmatch_lines(["*the vision ONNX was given: vision.onnx (sha256 *"])
    assert main(["verify", str(path), f"--manifest={manifest}"], environ={}) == 0
    spoil(path)
    assert main(["verify", str(path), f"--manifest={manifest}"], environ={}) == 1


def test_an_engine_is_built_from_the_file_that_was_given(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    hand_over("vision")
    built, given = open_case(), open_case(VISION)

    one, two = (case.judge(kind="engine", key="sm89-vision").verdict for case in (built, given))

    assert two.status is Status.PASS, two
    assert (two.headline, two.figures) == (one.headline, one.figures)
    assert "the vision ONNX was given: vision.onnx" in " ".join(two.evidence)


def test_a_file_that_tensorrt_refuses_is_refused_before_the_build(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = hand_over("vision") / "vision.onnx"
    model = onnx.load(path)
    zero = next(
        t for t in model.graph.initializer if t.name.endswith("fc1.input_quantizer.zero_point")
    )
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + 3, zero.name))
    onnx.save(model, path)

    verdict = open_case(VISION).judge(kind="engine", key="sm89-vision").verdict

    assert (verdict.status, verdict.code) == (Status.FAIL, "engine.given-file-unusable")
    assert "TensorRT takes symmetric ranges alone" in verdict.headline


def test_a_spoiled_file_is_red_and_so_is_what_it_computes(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    spoil(hand_over("vision") / "vision.onnx")
    case = open_case(VISION)

    export = case.judge(kind="export").verdict
    parity = case.judge(kind="parity").verdict

    assert export.code == "export.weights-differ"
    assert (
        "1 of 40 tensors of the vision tower in vision.onnx are not the model's" in export.headline
    )
    assert "the vision ONNX was given: vision.onnx" in " ".join(export.evidence)
    assert parity.code == "parity.embeddings-differ"
    assert "the export gate names what differs" in parity.next_step


def test_the_key_is_that_of_the_weights_in_another_file_too(
    open_case: Callable[..., Case], hand_over: Callable[..., Path], tmp_path: Path
) -> None:
    path = hand_over("vision") / "vision.onnx"
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="v.data", size_threshold=64
    )
    assert open_case(VISION).judge(kind="export").verdict.passed

    content = bytearray((tmp_path / "v.data").read_bytes())
    content[len(content) // 2] ^= 0x55
    (tmp_path / "v.data").write_bytes(content)

    assert not open_case(VISION).judge(kind="export").verdict.passed


def test_fp16_counterparts_are_held_against_the_model_too(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    folder = hand_over()
    files = BOTH[:-1] + ", fp16: {onnx: {vision: '{folder}/vision-fp16.onnx'}}}"
    good = open_case(files).judge(kind="export").verdict
    assert good.passed, good
    assert "the vision FP16 ONNX was given: vision-fp16.onnx" in " ".join(good.evidence)

    spoil(folder / "vision-fp16.onnx")
    assert open_case(files).judge(kind="export").verdict.code == "export.fp16-differs"

    shutil.copyfile(folder / "vision.onnx", folder / "vision-fp16.onnx")
    assert open_case(files).judge(kind="export").verdict.code == "export.fp16-quantized"


def test_without_parity_what_is_not_found_in_the_file_is_red(
    open_case: Callable[..., Case], hand_over: Callable[..., Path], tmp_path: Path
) -> None:
    """The class token, folded into the first position."""
    path = hand_over("vision") / "vision.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("class_embedding"))
    values = numpy_helper.to_array(tensor).reshape(1, 1, -1).repeat(2, axis=0)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    case = open_case(VISION)
    assert "left to parity: vision_model.embeddings.class_embedding" in " ".join(
        case.judge(kind="export").verdict.evidence
    )

    text = (tmp_path / "given.quantgate.yaml").read_text()
    (tmp_path / "given.quantgate.yaml").write_text(text.replace("  parity: {samples: 16}\n", ""))
    alone = replace(case.suite, gates=load_suite(tmp_path / "given.quantgate.yaml").gates)
    case.suite, case.judging._verdicts = alone, {}

    assert case.judge(kind="export").verdict.code == "export.weights-unproven"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, Status.NOT_MEASURED, "vision.onnx is not there: set artifacts.onnx.vision"),
        (b"", Status.FAIL, "holds no ONNX graph"),
        (b"PK\x03\x04 nothing", Status.FAIL, "is no ONNX model"),
    ],
)
def test_a_file_that_is_none_is_never_green(
    open_case: Callable[..., Case],
    tmp_path: Path,
    content: bytes | None,
    status: Status,
    words: str,
) -> None:
    if content is not None:
        (tmp_path / "vision.onnx").write_bytes(content)

    verdict = open_case(VISION).judge(kind="export").verdict

    assert verdict.status is status
    assert words in verdict.headline
    assert ":5: " in verdict.headline
    assert verdict.code == ("export.given-file-unusable" if status is Status.FAIL else "")


def test_a_file_that_changes_while_it_is_read_is_not_taken_for_it(
    open_case: Callable[..., Case], hand_over: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_quantgate.artifacts import given_onnx

    path = hand_over("vision") / "vision.onnx"
    for _ in range(3):  # a file that no other test has put into the cache
        spoil(path)
    prepare = given_onnx.prepare_graph

    def swap(*arguments: Any, **named: Any) -> None:
        prepare(*arguments, **named)
        spoil(path)

    monkeypatch.setattr(given_onnx, "prepare_graph", swap)

    verdict = open_case(VISION).judge(kind="export").verdict

    assert verdict.code == "export.given-file-unusable"
    assert "was changed while the suite ran" in verdict.headline


# -- commands --------------------------------------------------------------------------------------


def run(pytester: pytest.Pytester, command: str, path: Path) -> str:
    found = pytester.run(sys.executable, "-m", "pytest_quantgate", command, str(path))
    return found.stdout.str() + found.stderr.str()


def test_validate_and_doctor_look_at_the_files(
    write: Callable[..., Path], pytester: pytest.Pytester, tmp_path: Path
) -> None:
    suite = write(VISION)
    assert "vision.onnx is not there" in run(pytester, "validate", suite)
    assert "vision.onnx is not there" in run(pytester, "doctor", suite)

    (tmp_path / "vision.onnx").write_bytes(b"PK\x03\x04 nothing")
    assert "is no ONNX model" in run(pytester, "validate", suite)

    head = suite.read_text().partition("gates:")[0]
    suite.write_text(f"{head}gates:\n  coverage: {{}}\n")
    assert "no gate reads the artifacts" in run(pytester, "validate", suite)


@pytest.mark.parametrize(
    ("artifacts", "words"),
    [
        ("artifacts: {}", "names no file: set onnx, engine or engine_report"),
        ("artifacts: {onnx: {image: a.onnx}}", "unknown key; known: vision, text"),
        ("artifacts: {onnx: a.onnx}", "expected a mapping"),
        ("artifacts: {engine_report: {vision: {layers: a.json}}}", "engine is missing"),
    ],
)
def test_a_suite_says_what_its_keys_may_be(
    write: Callable[..., Path], artifacts: str, words: str
) -> None:
    from pytest_quantgate.errors import SuiteError

    with pytest.raises(SuiteError) as caught:
        load_suite(write(artifacts))

    assert words.replace("engine is", "engine: is") in str(caught.value).replace(
        "engine is", "engine: is"
    )


def test_a_diff_says_what_is_given_now(write: Callable[..., Path]) -> None:
    before, after = load_suite(write()), load_suite(write(VISION))

    (change,) = compare_suite(before, after)

    assert "artifacts.onnx.vision: built here -> " in change.text
    assert "vision.onnx" in change.text


def test_init_writes_the_suite_of_onnx_files(
    hand_over: Callable[..., Path],
    tiny_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hand_over()
    output = tmp_path / "new.quantgate.yaml"
    arguments = ["init", "--model", str(tiny_clip), "--data", "scenes", "--output", str(output)]
    files = [str(tmp_path / f"{tower}.onnx") for tower in ("text", "vision")]
    named = [part for path in files for part in ("--onnx", path)]

    assert main([*arguments, "--recipe", "int8", *named], environ={}) == 0

    suite = load_suite(output)
    assert suite.artifacts is not None
    assert dict(suite.artifacts.onnx) == {"text": files[0], "vision": files[1]}
    assert suite.model.dtype == "float32"  # what the files compute in

    output.unlink()
    assert main([*arguments, "--onnx", files[0], "--onnx", files[0]], environ={}) == 1
    assert "is a text tower already" in capsys.readouterr().err
