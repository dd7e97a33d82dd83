"""What stands before any detail: scope, what ships, changes, costs, waivers, what is missing."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.first_screen import describe_scope
from pytest_quantgate.report.html import render_html
from pytest_quantgate.report.model import ModelFacts, OnnxFacts, RecipeFacts, Report
from tests.report_builder import make_run, verdict

MODEL = ModelFacts(
    source="reference",
    description="the reference model",
    revision="",
    dtype="float16",
    attn_implementation="sdpa",
    digest="a" * 64,
)
RECIPE = RecipeFacts(
    name="fp8-attention",
    lines=("fp8-attention",),
    exclude=("*patch*",),
    formats=(),
    digest="b" * 64,
)


def head(report: Report) -> str:
    """Return the words of the page's first screen."""
    page = render_html(report)
    found = page[page.index("<header") : page.index("</header>")]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split())


def onnx(variant: str, size: int) -> OnnxFacts:
    return OnnxFacts(
        variant=variant,  # type: ignore[arg-type]
        tower="vision",
        precision="float16",
        opset=20,
        file_bytes=size,
        digest="c" * 64,
        pairs=1,
        lost=(),
        undeclared=0,
        weights_bytes={},
    )


@pytest.fixture
def report(tmp_path: Path) -> Report:
    extra = [
        verdict("export", Status.PASS),
        verdict("regression[made-acc1]", Status.PASS, brief="FP16 80.00 -> 80.00 %, drop 0.00"),
        verdict("coverage[x]", Status.PASS, figures={"waivers": 2, "waived_until": "2027-03-01"}),
    ]
    found = make_run(tmp_path, extra=extra).collect()
    suite = replace(
        found.suites[0],
        model=MODEL,
        recipe=RECIPE,
        device="cpu",
        onnx=(onnx("fp16", 4_000_000), onnx("quantized", 2_000_000)),
    )
    return replace(found, suites=(suite,))


def test_the_first_screen_says_what_a_reader_decides_by(report: Report) -> None:
    words = head(report)

    for text in (
        "Judged as PyTorch and ONNX; not judged: engine, speed.",
        "the reference model, aaaaaaaaaaaa quantized by fp8-attention without *patch* , revision "
        "c0ffeec0ffee , on cpu",
        "FP16 80.00 -> 80.00 %, drop 0.00",
        "0.50x of FP16's",
        "2 waivers until 2027-03-01",
        "no gate asks for",
    ):
        assert text in words, words
    assert re.search(
        r"80\.00 % to 79\.33 %, drop 0\.67 \[-?[\d.]+, [\d.]+\] of at most 3\.00", words
    )


def test_a_red_change_says_its_numbers_once(tmp_path: Path) -> None:
    words = head(make_run(tmp_path, max_drop=Fraction(1, 1000)).collect())

    assert re.search(r"drop 0\.67 \[-?[\d.]+, [\d.]+\] of at most 0\.10 points", words)
    assert words.count("drop 0.67") == 1


def test_what_is_absent_is_said(tmp_path: Path) -> None:
    words = head(make_run(tmp_path).collect())

    assert "Size and speed not measured" in words
    assert "Waivers none" in words


def test_a_half_of_the_files_gives_no_ratio(report: Report) -> None:
    (suite,) = report.suites
    half = replace(suite, onnx=(onnx("quantized", 2_000_000), onnx("quantized", 1_000_000)))
    other = replace(onnx("fp16", 4_000_000), tower="text")

    for files in (half.onnx, (*half.onnx, other)):
        assert "of FP16's" not in head(replace(report, suites=(replace(suite, onnx=files),)))


def test_several_suites_are_a_table_first(report: Report) -> None:
    (suite,) = report.suites
    other = replace(suite, name="int8", recipe=replace(RECIPE, name="int8"), tasks=(), onnx=())
    page = render_html(replace(report, suites=(suite, other)))
    words = head(replace(report, suites=(suite, other)))

    assert '<a href="#int8/">int8</a>' in page[: page.index("</header>")]
    assert "accuracy not measured size and speed not measured" in words
    assert "80.00 % to 79.33 %" in words


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "Judged as PyTorch; not judged: ONNX, engine, speed."),
        (["parity", "engine[sm89-vision]", "latency[x]"],
         "Judged as PyTorch and ONNX and engine, and its speed."),
        (["accuracy[made-acc1-onnx]"], "Judged as PyTorch and ONNX; not judged: engine, speed."),
    ],
)  # fmt: skip
def test_the_scope_is_what_has_a_verdict(tmp_path: Path, extra: list[str], words: str) -> None:
    judged = [verdict(gate, Status.PASS) for gate in extra]
    missing = verdict("engine[sm120-vision]", Status.NOT_MEASURED)

    (suite,) = make_run(tmp_path, extra=[*judged, missing]).collect().suites

    assert describe_scope(suite) == words


def test_nothing_judged_is_said(tmp_path: Path) -> None:
    (suite,) = make_run(tmp_path).collect().suites
    gates = tuple(replace(gate, status="NOT_MEASURED") for gate in suite.gates)

    assert describe_scope(replace(suite, gates=gates)) == "Nothing was judged."


def test_passes_are_folded_beside_what_did_not_pass(tmp_path: Path) -> None:
    green = render_html(make_run(tmp_path / "a").collect())
    red = render_html(make_run(tmp_path / "b", extra=[verdict("export", Status.FAIL)]).collect())

    assert "gates passed</summary>" not in green
    assert "<summary>2 gates passed</summary>" in red
