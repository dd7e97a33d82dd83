"""The verdict in a model card: read back by the hub's own parser, and nobody else's line lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import ReportError
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.model import Report
from pytest_quantgate.report.model_card import (
    BEGIN,
    END,
    check_card,
    render_card,
    render_section,
    update_card,
)
from tests.report_builder import make_run, verdict

CARD = """\
---
license: mit
tags:
- clip
model-index:
- name: my clip
  results:
  - task:
      type: zero-shot-image-classification
    dataset:
      name: beans
      type: beans
    metrics:
    - type: accuracy
      value: 0.5
---

# My CLIP

Text of mine.
"""


CARD_ALONE = "---\nlicense: mit\n---\n# Mine\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_run(tmp_path_factory.mktemp("run")).collect()


def parse(text: str) -> tuple[dict[str, object], str]:
    """Return the metadata and the text of a card, as the hub reads them."""
    from huggingface_hub import ModelCard

    card = ModelCard(text)
    return card.data.to_dict(), card.text  # type: ignore[no-untyped-call]


def test_the_hub_reads_the_metrics_beside_those_that_were_there(report: Report) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(render_card(CARD, report, name="README.md"))

    mine, ours = card.data.eval_results  # type: ignore[attr-defined]
    (task,) = report.suites[0].tasks
    assert (mine.dataset_name, mine.metric_value) == ("beans", 0.5)
    assert ours.task_type == "zero-shot-image-classification"
    assert (ours.dataset_name, ours.metric_type) == ("made", "accuracy")
    assert ours.metric_value == round(task.quantized.value, 6)
    assert ours.metric_name == "acc1, torch, 300 samples (pytest-quantgate)"
    assert (card.data.model_name, card.data.license, card.data.tags) == ("my clip", "mit", ["clip"])  # type: ignore[attr-defined]


def test_the_section_says_the_verdict_and_the_text_around_it_stays(report: Report) -> None:
    _, text = parse(render_card(CARD, report, name="README.md"))

    before, _, rest = text.partition(BEGIN)
    section, _, after = rest.partition(END)
    assert before == "\n# My CLIP\n\nText of mine.\n\n"
    assert after == "\n"
    assert "## Verdict on the quantized model\n\n✔ **May ship: 2 gates passed**" in section
    assert "| made/classification acc1 |" in section
    assert "| ✔ | coverage |" in section


def test_a_later_run_takes_the_place_of_the_earlier_one(report: Report, tmp_path: Path) -> None:
    first = render_card(CARD, report, name="x").replace(END, f"{END}\n\n## After it\n")
    red = make_run(tmp_path / "red", extra=[verdict("roundtrip", Status.FAIL)]).collect()

    again = render_card(first, report, name="x")
    later = render_card(first, red, name="x")

    assert again == first
    assert later.count(BEGIN) == later.count(END) == 1
    assert "Do not ship: roundtrip" in later
    assert "May ship" not in later
    assert later.endswith("\n\n## After it\n\n")
    assert later.count("(pytest-quantgate)") == 1


def test_what_was_not_measured_leaves_no_metric_of_an_earlier_run(report: Report) -> None:
    (suite,) = report.suites
    nothing = replace(report, suites=(replace(suite, tasks=()),))

    data, _ = parse(render_card(render_card(CARD, report, name="x"), nothing, name="x"))
    alone, _ = parse(render_card(render_card(CARD_ALONE, report, name="x"), nothing, name="x"))

    (model,) = data["model-index"]  # type: ignore[misc]
    assert [result["dataset"]["name"] for result in model["results"]] == ["beans"]  # type: ignore[has-type]
    assert "model-index" not in alone


@pytest.mark.parametrize(
    "text", ["", "# A title\n", "---\n\n---\n# Empty\n", "---\r\na: 1\r\n---\r\nx\r\n"]
)
def test_cards_without_metadata_get_some(report: Report, text: str) -> None:
    data, _ = parse(render_card(text, report, name="x"))

    assert data["model-index"][0]["name"] == "a made model"  # type: ignore[index]


def test_numbers_that_are_none_are_left_out(report: Report) -> None:
    (suite,) = report.suites
    (task,) = suite.tasks
    nan = replace(task, quantized=replace(task.quantized, value=float("nan")))
    damaged = replace(report, suites=(replace(suite, tasks=(nan,)),))

    assert render_card("", damaged, name="x") == f"{render_section(damaged)}\n"
    assert "model-index" not in parse(render_card(CARD_ALONE, damaged, name="x"))[0]


@pytest.mark.parametrize(
    "head",
    [
        "a: [",
        "- a\n- b",
        "model-index: 3",
        "model-index: [{}]",
        "model-index:\n- {name: a, results: []}\n- {name: b, results: []}",
        "a: !!python/object:os.system {}",
        "a: &x [1]\nb: " + "[" * 60 + "]" * 60,
        "tags: 3",
    ],
)
def test_metadata_that_cannot_be_read_is_a_line_and_the_card_stays(
    report: Report, tmp_path: Path, head: str
) -> None:
    path = tmp_path / "README.md"
    text = f"---\n{head}\n---\n# Mine\n"
    path.write_text(text)

    with pytest.raises(ReportError) as caught:
        update_card(path, report, option="--quantgate-model-card")

    assert str(caught.value).startswith(f"{path}: its ")
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_what_is_no_file_of_text_is_refused_before_a_run(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(b"\xff")
    (tmp_path / "link.md").symlink_to(path)
    for name, words in (
        ("README.md", "is not UTF-8"),
        ("link.md", "it is a link"),
        ("", "Is a directory"),
    ):
        with pytest.raises(ReportError, match=words):
            check_card(tmp_path / name, option="--quantgate-model-card")
    check_card(tmp_path / "new.md", option="--quantgate-model-card")


@settings(deadline=None)  # the first imports the hub's parser
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=80))
def test_no_text_of_the_author_is_lost(text: str, report: Report) -> None:
    _, found = parse(render_card(f"---\na: b\n---\n{text}", report, name="x"))

    assert found.startswith(text.rstrip())
    assert render_card(text, report, name="x").count(BEGIN) == 1
