"""Text encoders alone, through every gate of a suite: calibrated and judged with texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from tests.text_encoders import KINDS, save_text_encoder

Run = Callable[..., pytest.RunResult]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: {model}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantize: {{recipe: {recipe}}}
gates:
{gates}"""

GATES = """\
  coverage: {}
  calibration: {max_clipped: 10%}
  fidelity: {data: scenes/test, min_sqnr: 10dB, samples: 32}
  roundtrip: {}
  export: {}
  parity: {samples: 16}
  latency: {tower: text, batch: 4, max_ratio: 1000x}
"""

ENGINE = """\
  engine: {target: sm89, min_fp8_gemms: 12}
  memory: {target: sm89, max_weights_ratio: 0.9x}
  trace: {target: sm89}
"""


@pytest.fixture
def write(pytester: pytest.Pytester, tmp_path: Path) -> Callable[..., None]:
    """Write a suite of a tiny text encoder of a kind."""

    def make(kind: str, gates: str, *, recipe: str = "fp8-attention") -> None:
        save_text_encoder(kind, tmp_path / kind)
        path = pytester.path / "suites" / "text.quantgate.yaml"
        path.parent.mkdir()
        text = SUITE.format(model=tmp_path / kind, gates=gates, recipe=recipe)
        path.write_text(text, encoding="utf-8")

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_every_gate_that_needs_no_images(
    write: Callable[..., None], run_gates: Run, kind: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    write(kind, GATES.replace("export: {}", "export: {allow: [softmax]}") + ENGINE)

    linears = 12 + (kind == "projection")

    result = run_gates()

    result.assert_outcomes(passed=11)
    result.stdout.fnmatch_lines(
        [
            "*PASS  sanity*a text runs*",
            "*attention q k v output in 2 blocks*",
            "*text cosine*",
            f"*{linears} of {linears} linear in FP8*",
            "*may ship: 11 gates passed*",
        ]
    )
    assert "vision tower" not in result.stdout.str()


@pytest.mark.slow
@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_it_passes_them_in_int8(write: Callable[..., None], run_gates: Run, kind: str) -> None:
    write(kind, GATES + "  trace: {}\n", recipe="int8")

    result = run_gates()

    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["*INT8 on 100.0 % of matrix weights*", "*9 gates passed*"])


@pytest.mark.slow
def test_the_tokenizer_of_another_model_is_red(
    write: Callable[..., None], run_gates: Run, tmp_path: Path
) -> None:
    """All words are unknown to it: every text gives the same embedding, in any number format."""
    write("bert", "  coverage: {}\n")
    path = tmp_path / "bert" / "tokenizer.json"
    stored = json.loads(path.read_text("utf-8"))
    words = stored["model"]["vocab"]
    stored["model"]["vocab"] = {f"{w}{'' if w[0] == '[' else 'x'}": n for w, n in words.items()}
    stored["pre_tokenizer"] = None
    path.write_text(json.dumps(stored), encoding="utf-8")

    result = run_gates()

    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*different texts of scenes/calibration read alike*"])


@pytest.mark.slow
def test_what_needs_images_says_so(write: Callable[..., None], run_gates: Run) -> None:
    write(
        "bert",
        "  coverage: {towers: [vision]}\n"
        "  accuracy: {task: digits/classification, metric: acc1, max_drop: 3pp}\n",
    )

    result = run_gates()

    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*text.quantgate.yaml:6: the model has no vision tower: it has text*",
            "*has no vision tower, and digits/classification needs one*",
        ]
    )


@pytest.mark.slow
def test_a_block_that_is_left_out_is_named(write: Callable[..., None], run_gates: Run) -> None:
    write(
        "bert",
        "  coverage: {}\n",
        recipe="{quant_cfg: {'*layer.0*weight_quantizer': {num_bits: [4, 3], axis: null}, "
        "'*layer.0*input_quantizer': {num_bits: [4, 3], axis: null}, default: {enable: false}}}",
    )

    result = run_gates()

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*encoder.layer.1.*"])


def test_init_and_validate_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_text_encoder("bert", tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    written = ["init", "--model", "./bert", "--data", "scenes", "--target", "sm89"]

    assert main([*written, "--output", "bert.quantgate.yaml"], environ={}) == 0
    text = (tmp_path / "bert.quantgate.yaml").read_text("utf-8")
    assert "# text: 2 blocks of width 32, 2 heads, 16 tokens" in text
    assert "- {task: scenes/text_neighbours, metric: top1" in text
    assert main(["validate", "--deep", "bert.quantgate.yaml"], environ={}) == 0
    assert "bert.quantgate.yaml: valid" in capsys.readouterr().out
