"""The example of an encoder of one's own code, through every gate of a suite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_quantgate.reference import weights_dir

Run = Callable[..., pytest.RunResult]

EXAMPLE = Path(__file__).parents[2] / "examples" / "factory"

pytestmark = pytest.mark.slow


@pytest.fixture
def write(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Write the example's suite, and let its module be imported."""
    monkeypatch.setenv("QUANTGATE_OWN_CLIP", str(weights_dir()))

    def make(*changes: tuple[str, str], code: str = "", gates: str = "") -> None:
        text = (EXAMPLE / "own_clip.quantgate.yaml").read_text(encoding="utf-8")
        if gates:
            text = text[: text.index("gates:")] + gates
        for old, new in (("samples: 128", "samples: 64"), *changes):
            assert old in text
            text = text.replace(old, new)
        source = (EXAMPLE / "own_clip.py").read_text(encoding="utf-8")
        if code:
            old, _, new = code.partition(" => ")
            assert old in source
            source = source.replace(old, new)
        (pytester.path / "own_clip.py").write_text(source, encoding="utf-8")
        path = pytester.path / "suites" / "own_clip.quantgate.yaml"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")

    monkeypatch.syspath_prepend(pytester.path)
    sys.modules.pop("own_clip", None)
    yield make
    sys.modules.pop("own_clip", None)


def test_the_example_passes_every_gate(write: Callable[..., None], run_gates: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    write(("samples: 300", "samples: 150"))

    result = run_gates("--quantgate-baselines=create")

    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(
        [
            "*attention q k v output in 4+3 blocks*",
            "*amax and both towers bit-identical, 3 planted damages refused*",
            "*as Q/DQ + softmax, none added*",
            "*25 of 25 linear in FP8; attention vision 4/4 fused in FP8*",
            "*may ship: 10 gates passed*",
        ]
    )


def test_it_passes_in_int8(write: Callable[..., None], run_gates: Run) -> None:
    write(
        ("fp8-attention", "int8"),
        gates="gates:\n  coverage: {}\n  export: {}\n  parity: {samples: 8}\n",
    )

    result = run_gates()

    result.assert_outcomes(passed=4)


#: What is done to the code of the example, and how the gate says so.
SABOTAGES = {
    "a mask for the image tower": (
        "x = block(x, None) => x = block(x, torch.full((37, 37), -torch.inf).triu(1))",
        "*FP16 embeds 150 different images of digits/test alike*",
    ),
    "one block left out": (
        "for block in self.blocks:\n            x = block(x, None) => "
        "for block in self.blocks[1:]:\n            x = block(x, None)",
        "*layers run in no forward, first blocks.0.*",
    ),
    "the first token is pooled": (
        "[torch.arange(x.shape[0], device=x.device), end] => [:, 0]",
        "*FAIL*sanity*",
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_fault_in_the_code_is_red(write: Callable[..., None], run_gates: Run, name: str) -> None:
    code, line = SABOTAGES[name]
    write(
        code=code,
        gates="gates:\n  coverage: {}\n"
        "  accuracy: {task: digits/classification, metric: acc1, max_drop: 4pp, floor: 70%, "
        "samples: 150}\n",
    )

    result = run_gates("--quantgate-baselines=create")

    assert result.ret == 1
    result.stdout.fnmatch_lines([line])
