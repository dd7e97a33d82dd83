"""Bad input through a whole run: what is wrong, where, and what mends it; never a traceback."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.store.records import canonical_text, parse_record

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]


@pytest.fixture
def run_bad(run_gates: Run, pytestconfig: pytest.Config) -> Callable[..., str]:
    """Run, assert that no more is green and no traceback is shown, and return the output."""

    def run(*arguments: str, passed: int = 0) -> str:
        result = run_gates(*arguments)
        text = result.stdout.str()
        assert result.ret != pytest.ExitCode.OK or "skipped" in text, text
        assert result.parseoutcomes().get("passed", 0) == passed, text
        for word in ("Traceback", "INTERNALERROR", "case.py:"):
            assert word not in text, text
        return text

    return run


@pytest.fixture
def copy_clip(tiny_clip: Path, pytester: pytest.Pytester) -> Path:
    """A copy of the tiny CLIP that a test may damage."""
    return Path(shutil.copytree(tiny_clip, pytester.path / "clip"))


def use(path: Path, model: Path) -> dict[str, str]:
    return {str(path): str(model)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_drop: 100pp, max_flips: 90%",
            "max_dorp: 50pp",
            "accuracy.max_dorp: unknown key; did you mean max_drop?",
        ),
        (
            "max_drop: 100pp, max_flips: 90%",
            "max_drop: 50ms",
            "accuracy.max_drop: 50ms has the unit 'ms', wants pp, such as 0.5pp",
        ),
        (
            "max_drop: 100pp, max_flips: 90%",
            "max_drop: 50",
            "accuracy.max_drop: 50 needs a unit: 50pp (50 percentage points)",
        ),
        (
            "task: scenes/classification, metric: acc1, max",
            "task: scenes/clasification, metric: acc1, max",
            "accuracy.task: unknown task 'scenes/clasification': tasks are classification, "
            "retrieval, knn, neighbours, text_neighbours, linear_probe, "
            "catalogue, filter, duplicates, multilingual; did you mean scenes/classification?",
        ),
    ],
)
def test_a_mistake_in_the_suite_has_its_line(
    write_suite: WriteSuite, run_bad: Callable[..., str], old: str, new: str, message: str
) -> None:
    write_suite(replace={old: new})

    assert f"suites/tiny.quantgate.yaml:10: {message}\n" in run_bad()


def test_a_missing_checkpoint(
    write_suite: WriteSuite, run_bad: Callable[..., str], tiny_clip: Path
) -> None:
    write_suite(replace=use(tiny_clip, Path("/no/such/clip")))

    assert (
        "tiny: not measured: suites/tiny.quantgate.yaml:2: /no/such/clip is no directory: "
        "set model.id to a checkpoint"
    ) in run_bad()


def test_damaged_weights(
    write_suite: WriteSuite, run_bad: Callable[..., str], tiny_clip: Path, copy_clip: Path
) -> None:
    weights = copy_clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    write_suite(replace=use(tiny_clip, copy_clip))

    text = run_bad("-k", "sanity")

    assert f"FAIL suites/tiny.quantgate.yaml:2: {weights} is damaged (" in text
    assert "download or save it again" in text


def test_weights_with_nan(
    write_suite: WriteSuite, run_bad: Callable[..., str], tiny_clip: Path, copy_clip: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy_clip / "model.safetensors")
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    weights[name][0, 0] = float("nan")
    save_file(weights, copy_clip / "model.safetensors", metadata={"format": "pt"})
    write_suite(replace=use(tiny_clip, copy_clip))

    text = run_bad()

    assert (
        f"1 weight tensors hold NaN or Inf (or lie outside the range of float16), first {name}"
        in text
    )


def test_a_pickled_checkpoint_is_never_loaded(
    write_suite: WriteSuite, run_bad: Callable[..., str], tiny_clip: Path, copy_clip: Path
) -> None:
    (copy_clip / "model.safetensors").rename(copy_clip / "pytorch_model.bin")
    write_suite(replace=use(tiny_clip, copy_clip))

    text = run_bad("-k", "sanity")

    assert (
        "holds no *.safetensors file; pytorch_model.bin is a pickle, which is never loaded" in text
    )


def test_an_empty_data_set(
    write_suite: WriteSuite, run_bad: Callable[..., str], pytester: pytest.Pytester
) -> None:
    root = pytester.path / "photos"
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("0\n", encoding="utf-8")
    (root / "classnames.txt").write_text("cat\n", encoding="utf-8")
    write_suite(
        replace={
            "calibration: {data: scenes": f"datasets: {{photos: {{dataset: wds, root: {root}}}}}\n"
            "calibration: {data: scenes",
            "task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%": (
                "task: photos/classification, metric: acc1, max_drop: 100pp, max_flips: 90%"
            ),
            "90%, samples: 64}": "90%}",
        }
    )

    text = run_bad("-k", "sanity")

    assert "FAIL photos/test: the data set is empty: nothing can be measured on it" in text


def test_an_exclude_that_matches_nothing(
    write_suite: WriteSuite, run_bad: Callable[..., str]
) -> None:
    write_suite(
        replace={"recipe: fp8-attention": 'recipe: fp8-attention, exclude: ["*patch_embeding*"]'}
    )

    text = run_bad("-k", "coverage")

    assert "FAIL coverage: exclude '*patch_embeding*' matches none of " in text
    assert "did you mean '*patch_embedding*'? (suites/tiny.quantgate.yaml:" in text


def test_a_recipe_that_quantizes_nothing(
    write_suite: WriteSuite, run_bad: Callable[..., str]
) -> None:
    write_suite(recipe='{quant_cfg: [{quantizer_name: "*", enable: false}], algorithm: max}')

    text = run_bad("-k", "not sanity")

    assert "quantizes nothing" in text


def test_an_unknown_recipe(write_suite: WriteSuite, run_bad: Callable[..., str]) -> None:
    write_suite(recipe="fp8-atention")

    assert (
        "FAIL suites/tiny.quantgate.yaml:4: unknown recipe 'fp8-atention'; did you mean "
        "'fp8-attention'? (or a ModelOpt preset, recipe id or YAML path)"
    ) in run_bad("-k", "coverage")


def test_the_stock_preset_leaves_the_vision_tower_out(
    write_suite: WriteSuite, run_bad: Callable[..., str]
) -> None:
    write_suite(recipe="FP8_DEFAULT_CFG")

    text = run_bad("-k", "coverage")

    assert "FAIL coverage: the whole vision tower is unquantized: 0 of " in text
    assert "switched off by pattern '*vision_model*' of the recipe" in text


def test_the_published_recipe_runs_as_it_was_published(
    write_suite: WriteSuite, run_gates: Run
) -> None:
    fp8 = "{num_bits: [4, 3], axis: null}"
    write_suite(
        recipe=f"""{{quant_cfg: {{
          "*weight_quantizer": {fp8}, "*input_quantizer": {fp8},
          "*output_quantizer": {{enable: false}},
          "*q_bmm_quantizer": {fp8}, "*k_bmm_quantizer": {fp8}, "*v_bmm_quantizer": {fp8},
          "*softmax_quantizer": {fp8}, "*bmm2_output_quantizer": {fp8},
          "default": {{enable: false}}}}, algorithm: max}}"""
    )

    # Bare patterns: norms and embeddings are quantized too, which the coverage gate says.
    run_gates("-k", "fidelity or roundtrip").assert_outcomes(passed=2, deselected=5)


def test_a_baseline_of_another_model(
    write_suite: WriteSuite,
    run_gates: Run,
    run_bad: Callable[..., str],
    tiny_clip: Path,
    copy_clip: Path,
) -> None:
    write_suite()
    run_gates("-k", "regression", "--quantgate-baselines=create").assert_outcomes(
        passed=1, deselected=6
    )
    tokenizer = copy_clip / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text("utf-8") + "\n", encoding="utf-8")
    write_suite(replace=use(tiny_clip, copy_clip))

    text = run_bad("-k", "regression")

    assert "INCOMPARABLE regression: the baseline of scenes/classification acc1 was made of" in text
    assert "\n    model weights or files differ: baseline " in text
    assert "--quantgate-baselines=update --quantgate-reason='why'" in text


def test_a_missing_package(
    write_suite: WriteSuite,
    run_bad: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from importlib import metadata

    version = metadata.version

    def lacking(name: str) -> str:
        if name == "nvidia-modelopt":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", lacking)
    write_suite()

    assert (
        "not measured: quantizing a model needs the package 'nvidia-modelopt', which is not "
        "installed: pip install 'pytest-quantgate[clip]'"
    ) in run_bad("-rs", f"--quantgate-cache-dir={tmp_path}", passed=1)  # sanity asks FP16 alone


def test_no_space_for_the_cache(
    write_suite: WriteSuite,
    run_bad: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    write_suite()

    text = run_bad("-k", "coverage", f"--quantgate-cache-dir={tmp_path}")

    assert "No space left on device" in text
    assert not list((tmp_path / "v1").rglob("audit.json"))


def test_no_space_for_a_baseline(
    pytester: pytest.Pytester,
    write_suite: WriteSuite,
    run_gates: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_suite()
    run_gates("-k", "regression", "--quantgate-baselines=create")
    (path,) = (pytester.path / "baselines").rglob("*.json")
    record = parse_record(path.read_text("utf-8"))
    other = replace(record, accepted=record.fp16)  # so that there is something to write
    path.write_text(canonical_text(other), encoding="utf-8")
    before = path.read_bytes()

    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = run_gates(
        "-k", "regression", "--quantgate-baselines=update", "--quantgate-reason=new data"
    )

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "No space left on device" in result.stdout.str()
    assert path.read_bytes() == before
    assert sorted(item.name for item in path.parent.iterdir()) == ["history.jsonl", path.name]
