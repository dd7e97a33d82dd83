"""A really trained SigLIP on photographs that it has not seen, through every gate of a suite.

The data is not part of the project. QUANTGATE_TEST_DATA names the folder (`siglip-cifar10-tiny/`,
`cifar10-heldout/`); by default it is looked for beside the checkout, in `shared/data`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
MODEL = DATA / "siglip-cifar10-tiny"
PHOTOS = DATA / "cifar10-heldout"

pytestmark = pytest.mark.skipif(
    not (MODEL.is_dir() and PHOTOS.is_dir()),
    reason=f"{MODEL.name} or {PHOTOS.name} not in {DATA}: set QUANTGATE_TEST_DATA to their folder",
)

#: The head pools with nn.MultiheadAttention, which no recipe quantizes.
HEAD = ', exclude: ["*head.attention*"]'

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  photos: {{dataset: wds/photos, root: "{photos}"}}
calibration: {{data: photos/train, samples: 128, batch_size: 64, held_out_samples: 64}}
quantize: {{recipe: {recipe}{exclude}}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 0.5%}}
  fidelity: {{data: photos/test, samples: 128, min_cosine: 0.99, min_sqnr: 15dB}}
  accuracy:
    - {{task: photos/classification, metric: acc1, max_drop: 2pp, floor: 50%}}
  regression:
    - {{task: photos/classification, metric: acc1, max_fp16_drop: 1pp, max_drop: 2pp,
       max_drop_since_first: 2pp}}
  roundtrip: {{}}
  export: {{allow: [{softmax}]}}
  parity: {{samples: 16}}
"""

ENGINE = """\
  engine:
    - {{target: sm89, towers: [vision], min_fp8_gemms: 26, attention: fused-fp8}}
    - {{target: sm89, towers: [text], min_fp8_gemms: 13}}
  memory: {{target: sm89, max_weights_ratio: 0.9x}}
  trace: {{target: sm89}}
"""

#: Q/DQ in FP8 has no fast kernel on a CPU: what is asked is that it is timed at all.
LATENCY = "  latency: {{tower: vision, batch: 8, max_ratio: 100x}}\n"


def write_suite(
    folder: Path, *, model: Path = MODEL, recipe: str = "fp8-attention", more: str = "",
    exclude: str = HEAD,
) -> Path:  # fmt: skip
    path = folder / "suites" / "siglip.quantgate.yaml"
    path.parent.mkdir(exist_ok=True)
    text = (SUITE + more).format(
        model=model,
        photos=PHOTOS,
        recipe=recipe,
        exclude=exclude,
        softmax="softmax" if recipe == "fp8-attention" else "",
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def copy_model(tmp_path: Path) -> Callable[..., Path]:
    """Copy the trained SigLIP; `<file>=edit` edits one of its JSON files."""

    def copy(**edits: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / "siglip"
        shutil.copytree(MODEL, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        for name, edit in edits.items():
            path = folder / f"{name}.json"
            data = json.loads(path.read_text("utf-8"))
            edit(data)
            path.write_text(json.dumps(data), encoding="utf-8")
        return folder

    return copy


@pytest.fixture
def judge(tmp_path: Path, make_case: Callable[..., Case]) -> Callable[..., Verdict]:
    """Judge one gate of the suite, with changes."""

    def make(gate: str, *, key: str = "", **changes: Any) -> Verdict:
        case = make_case(load_suite(write_suite(tmp_path, **changes)))
        return case.judge(kind=gate, key=key).verdict

    return make


@cache
def count_right_without_us() -> int:
    """Zero-shot classification with transformers alone: cosines, templates averaged."""
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, SiglipImageProcessor, SiglipModel

    model: Any = SiglipModel.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    processor: Any = SiglipImageProcessor.from_pretrained(MODEL)
    names, templates = (
        (PHOTOS / f"{name}.txt").read_text("utf-8").splitlines()
        for name in ("classnames", "zeroshot_classification_templates")
    )
    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(PHOTOS / "test" / "0.tar") as archive:
        for member in archive:
            name, _, kind = member.name.partition(".")
            stream = archive.extractfile(member)
            assert stream is not None
            files.setdefault(name, {})[kind] = stream.read()
    labels = torch.tensor([int(parts.pop("cls")) for parts in files.values()])
    images = [Image.open(io.BytesIO(*parts.values())).convert("RGB") for parts in files.values()]
    with torch.inference_mode():
        classes = []
        for name in names:
            ids = tokenizer(
                [template.replace("{c}", name) for template in templates],
                padding="max_length",
                max_length=16,
                return_tensors="pt",
            )["input_ids"]
            found = model.get_text_features(input_ids=ids).pooler_output
            classes.append(torch.nn.functional.normalize(found, dim=-1).mean(0))
        weights = torch.nn.functional.normalize(torch.stack(classes), dim=-1)
        right = 0
        for start in range(0, len(images), 500):
            batch = processor(images=images[start : start + 500], return_tensors="pt")
            found = model.get_image_features(**batch).pooler_output
            answers = (torch.nn.functional.normalize(found, dim=-1) @ weights.T).argmax(1)
            right += int((answers == labels[start : start + 500]).sum())
    return right


@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
def test_every_gate_passes(
    pytester: pytest.Pytester, run_gates: Callable[..., pytest.RunResult], recipe: str
) -> None:
    pytest.importorskip("onnxruntime")
    more = LATENCY
    if recipe == "fp8-attention":
        pytest.importorskip("tensorrt_rtx")
        more += ENGINE
    else:
        more += "  trace: {{}}\n"
    write_suite(pytester.path, recipe=recipe, more=more)

    result = run_gates("--quantgate-baselines=create", "--quantgate-json=found.json")

    result.assert_outcomes(passed=14 if recipe == "fp8-attention" else 11)
    report = json.loads((pytester.path / "found.json").read_text("utf-8"))
    gates = report["suites"][0]["gates"]
    figures = {gate["name"].partition("[")[0]: gate["figures"] for gate in gates}
    assert figures["accuracy"]["fp16_value"] == pytest.approx(count_right_without_us() / 3000)
    assert figures["coverage"]["weights_covered_share"] == pytest.approx(0.941, abs=0.001)


def test_the_head_must_be_named(judge: Callable[..., Verdict]) -> None:
    verdict = judge("coverage", exclude="")

    assert verdict.code == "coverage.attention-missing"
    assert 'add exclude: ["*head.attention*"]' in verdict.next_step


# -- sabotages ----------------------------------------------------------------------------------


def test_a_preset_that_leaves_the_vision_tower_out(judge: Callable[..., Verdict]) -> None:
    verdict = judge("coverage", recipe="FP8_DEFAULT_CFG", exclude="")

    assert verdict.code == "coverage.tower-off"
    assert "the whole vision tower is unquantized" in verdict.headline
    assert "'*vision_model*'" in verdict.headline


def test_padding_on_the_other_side(
    judge: Callable[..., Verdict], copy_model: Callable[..., Path]
) -> None:
    """FP16 itself then loses five points, and quantization nothing more."""
    folder = copy_model(tokenizer_config=lambda config: config.update(padding_side="left"))

    verdict = judge("sanity", model=folder)

    assert verdict.code == "sanity.padding-side"
    assert verdict.next_step == "set padding_side in tokenizer_config.json to 'right'"


def test_the_processor_of_another_size(
    judge: Callable[..., Verdict], copy_model: Callable[..., Path]
) -> None:
    folder = copy_model(preprocessor_config=lambda c: c.update(size={"height": 224, "width": 224}))

    verdict = judge("sanity", model=folder)

    assert verdict.code == "sanity.image-size"
    assert "of 3 x 224 x 224 (channels, height, width)" in verdict.headline


def test_an_end_token_in_the_config_means_nothing_here(
    judge: Callable[..., Verdict], copy_model: Callable[..., Path]
) -> None:
    folder = copy_model(config=lambda config: config["text_config"].update(eos_token_id=7))

    verdict = judge("sanity", model=folder)

    assert verdict.passed, verdict.headline
    assert "texts read whole" in verdict.headline


# -- commands -----------------------------------------------------------------------------------


def test_the_commands_know_it(
    tmp_path: Path,
    copy_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = write_suite(tmp_path)

    assert main(["validate", "--deep", str(suite)], environ={}) == 0
    assert main(["doctor", str(MODEL)], environ={}) == 0
    assert "config.json and the files beside it fit together" in capsys.readouterr().out

    written = ["init", "--model", str(MODEL), "--data", str(PHOTOS), "--recipe", "fp8-attention"]
    assert main([*written, "--target", "sm89", "--output", "-"], environ={}) == 0
    text = capsys.readouterr().out
    assert 'quantize: {recipe: fp8-attention, exclude: ["*head.attention*"]}' in text
    assert "towers: [vision], min_fp8_gemms: 26, attention: fused-fp8" in text
    assert "towers: [text], min_fp8_gemms: 13" in text

    folder = copy_model(
        preprocessor_config=lambda config: config.update(size={"height": 64, "width": 64})
    )
    assert main(["doctor", str(folder)], environ={}) == 1
    assert "makes images of 3 x 64 x 64" in capsys.readouterr().out
