"""The HTML report without a browser: what stands in it, and that nobody's text is markup."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report import charts
from pytest_quantgate.report.facts import worst_parts
from pytest_quantgate.report.flips import group_flips
from pytest_quantgate.report.html import render_html
from pytest_quantgate.report.markdown import render_markdown
from pytest_quantgate.report.markup import join, tag
from pytest_quantgate.report.model import GateResult
from pytest_quantgate.report.numbers import show_bytes, show_points, show_ratio
from pytest_quantgate.report.parts import mark_commands
from pytest_quantgate.report.previews import list_flips
from pytest_quantgate.report.tasks import describe_task
from tests.report_builder import PIXEL, make_audit, make_outcomes, make_run, verdict

HOSTILE = "</script></style></title><img src=x onerror=alert(1)>\u2028'\"&<!--\x1b[31m\u202e]]>"


class Reader(HTMLParser):
    """Collects elements and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.words.append(data)


def count_elements(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, _ in Reader(text).elements:
        found[name] = found.get(name, 0) + 1
    return found


def test_verdict_is_the_title_and_the_only_h1(tmp_path: Path) -> None:
    text = render_html(make_run(tmp_path).collect())

    assert "<title>May ship: 2 gates passed - quantgate</title>" in text
    assert count_elements(text)["h1"] == 1


def test_waiver_stands_in_the_headline(tmp_path: Path) -> None:
    figures = {"waivers": 2, "waived_until": "2027-03-01"}
    extra = [verdict("coverage[x]", Status.PASS, figures=figures)]
    text = render_html(make_run(tmp_path, extra=extra).collect())

    assert "<span>May ship: 3 gates passed, 2 waivers until 2027-03-01</span>" in text


def test_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    elements = Reader(render_html(make_run(tmp_path).collect())).elements

    for name, attributes in elements:
        for key in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), (name, value)
        assert not any(key.startswith("on") or key == "style" for key in attributes), name


def test_policy_lets_in_exactly_the_scripts_of_the_page(tmp_path: Path) -> None:
    text = render_html(make_run(tmp_path).collect())
    policy = next(
        str(attributes["content"])
        for name, attributes in Reader(text).elements
        if name == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )

    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    assert len(scripts) == 1
    assert f"script-src {allowed};" in policy
    assert policy.startswith("default-src 'none';")


def test_hostile_names_add_no_element(tmp_path: Path) -> None:
    def render(folder: str, name: str) -> str:
        outcomes = make_outcomes(samples=60, class_names=[name, "owl"], lost=9, won=0)
        failed = verdict("export", Status.FAIL, headline=name, evidence=(name,), cause=name,
                         next_step=name, figures={"x": name})  # fmt: skip
        run = make_run(
            tmp_path / folder, outcomes=outcomes, extra=[failed], audit=make_audit(prefix=name),
            not_run=[name],
        )  # fmt: skip
        return render_html(run.collect(errors=(name,)))

    plain, hostile = render("a", "plain"), render("b", HOSTILE)

    assert count_elements(hostile) == count_elements(plain)
    assert html.escape(HOSTILE[:20]) in hostile
    for char in ("\x1b", "\u202e", "\u2028", "<img src=x"):
        assert char not in hostile


def test_failure_tells_all_that_the_gate_says(tmp_path: Path) -> None:
    failed = verdict(
        "export",
        Status.FAIL,
        headline="export: 3 of 9 lost",
        evidence=("first", "second"),
        cause="an old exporter",
        next_step="export again",
    )
    words = " ".join(Reader(render_html(make_run(tmp_path, extra=[failed]).collect())).words)

    for text in ("export: 3 of 9 lost", "first", "second", "an old exporter", "export again"):
        assert text in words
    assert "Failures" in words


def test_a_failure_says_what_to_do_before_its_evidence_which_is_folded(tmp_path: Path) -> None:
    failed = verdict(
        "export", Status.FAIL, headline="export: 3 of 9 lost", evidence=("first", "second"),
        cause="an old exporter", next_step="export again", where="suites/made.quantgate.yaml:12",
    )  # fmt: skip
    text = render_html(make_run(tmp_path, extra=[failed]).collect())
    article = text[text.index("<article") : text.index("</article>")]

    order = ("3 of 9 lost", "an old exporter", "export again", "<details", "first",
             "</details>", "suites/made.quantgate.yaml:12")  # fmt: skip
    places = [article.index(each) for each in order]
    assert places == sorted(places)


def test_what_follows_is_folded_under_its_cause_and_links_to_it(tmp_path: Path) -> None:
    rows = [
        verdict("export", Status.FAIL, headline="export: 3 of 9 lost", code="export.lost"),
        verdict("trace[sm89]", Status.FAIL, headline="trace: 3 gone", follows="export"),
    ]
    report = make_run(tmp_path, extra=rows).collect()
    text = render_html(report)

    assert text.count("<article") == 1
    article = text[text.index("<article") : text.index("</article>")]
    assert "1 gate follows from it: trace[sm89]" in article
    (suite,) = report.suites
    assert f'<a href="#{suite.name}/failures/export">trace[sm89]</a>' in text
    assert "follows from export" in text
    markdown = render_markdown(report)
    assert markdown.count("3 gone") == 0
    assert "- follow from it: trace\\[sm89\\]" in markdown


def test_red_suites_stand_first(tmp_path: Path) -> None:
    (green,) = make_run(tmp_path / "a", suite="green").collect().suites
    red = make_run(tmp_path / "b", suite="red", extra=[verdict("export", Status.FAIL)]).collect()
    text = render_html(replace(red, suites=(green, *red.suites)))

    assert text.index('<a href="#red/">red</a>') < text.index('<a href="#green/">green</a>')
    assert re.findall(r'<h2 id="(\w+/)"', text) == ["red/", "green/"]


def test_places_have_names_that_stay(tmp_path: Path) -> None:
    text = render_html(make_run(tmp_path, suite="my clip").collect())

    assert 'id="my%20clip/accuracy"' in text
    assert 'href="#my%20clip/accuracy"' in text


def test_green_page_has_no_failures(tmp_path: Path) -> None:
    words = Reader(render_html(make_run(tmp_path).collect())).words

    assert "Failures" not in words


def test_not_measured_stands_at_the_top(tmp_path: Path) -> None:
    missing = verdict("engine[sm89]", Status.NOT_MEASURED, headline="TensorRT is not installed")
    text = render_html(make_run(tmp_path, extra=[missing], not_run=["roundtrip"]).collect())
    top = " ".join(Reader(text[text.index("<header") : text.index("</header>")]).words)

    assert "engine[sm89] : TensorRT is not installed" in top
    assert "roundtrip : did not run" in top
    assert "no gate asks for calibration" in top


def test_every_quantizer_that_is_meant_has_a_cell(tmp_path: Path) -> None:
    audit = make_audit(blocks=3)
    cells = [
        attributes
        for name, attributes in Reader(
            render_html(make_run(tmp_path, audit=audit).collect())
        ).elements
        if name == "td" and "cell" in (attributes.get("class") or "").split()
    ]

    assert len(cells) == len(audit.intended)
    assert all(cell["class"] == "cell s-on" for cell in cells)
    assert sum(cell["tabindex"] == "0" for cell in cells) == 2  # one stop a tower


def test_state_is_never_said_by_colour_alone(tmp_path: Path) -> None:
    audit = make_audit()
    off = replace(audit.quantizers[0], enabled=False)
    broken = replace(audit.quantizers[1], amax_finite=False)
    audit = replace(audit, quantizers=(off, broken, *audit.quantizers[2:]))
    text = render_html(make_run(tmp_path, audit=audit).collect())

    signs = dict(re.findall(r'class="cell s-(\w+)"[^>]*><span aria-hidden="true">(.)</span>', text))
    assert signs == {"on": "\N{BLACK CIRCLE}", "missing": "\N{MULTIPLICATION X}",
                     "uncalibrated": "?"}  # fmt: skip


def test_charts_draw_the_numbers_of_the_gates(tmp_path: Path) -> None:
    outcomes = make_outcomes(samples=400, class_names=["a", "b"], lost=12, won=2)
    report = make_run(tmp_path, outcomes=outcomes, max_drop=Fraction(1, 50)).collect()
    gates = [gate for gate in report.suites[0].gates if gate.kind == "accuracy"]

    interval, drop, limit = charts.draw_drops(gates).marks
    values = charts.draw_values(gates).marks

    assert drop.x == pytest.approx(2.5)
    assert interval.end is not None
    assert interval.x < 2.5 < interval.end
    assert limit.x == pytest.approx(2.0)
    assert [mark.series for mark in values] == ["fp16", "quantized"]
    assert [mark.x for mark in values] == pytest.approx([80.0, 77.5])


def test_worst_classes_are_those_that_lost_on_balance() -> None:
    outcomes = make_outcomes(samples=900, class_names=["a", "b", "c"], lost=0, won=0)
    fp16, quantized = outcomes
    changed = list(quantized.correct)
    for label, right, number in ((0, True, 9), (1, True, 4), (2, False, 5)):
        places = [i for i, r in enumerate(fp16.correct) if r is right and fp16.labels[i] == label]
        for place in places[:number]:
            changed[place] = not right
    task = describe_task(
        fp16=fp16,
        quantized=replace(quantized, correct=tuple(changed)),
        stage="torch",
        gates=(),
        previews={},
    )

    assert [(facts.name, facts.right_to_wrong) for facts in worst_parts(task.classes)] == [
        ("a", 9),
        ("b", 4),
    ]


def test_slices_by_the_columns_of_the_data_stand_beside_the_classes(tmp_path: Path) -> None:
    fp16, quantized = make_outcomes(samples=900, class_names=["a", "b", "c"], lost=12, won=0)
    lost = {i for i, right in enumerate(fp16.correct) if right and not quantized.correct[i]}
    columns = {
        "light": ["night" if i in lost or i > 800 else "day" for i in range(900)],
        "taken": [f"{i}" for i in range(900)],
        "camera": ["left"] * 900,
    }
    task = describe_task(
        fp16=fp16, quantized=quantized, stage="torch", gates=(), previews={}, columns=columns
    )
    report = make_run(tmp_path).collect()
    suite = replace(report.suites[0], tasks=(task,))

    page = render_html(replace(report, suites=(suite,)))

    assert [(facts.name, facts.right_to_wrong) for facts in task.slices] == [
        ("light=day", 0),
        ("light=night", 12),
    ]
    assert "All 2 slices with samples of" in page
    assert "Worst slices of" in page


def test_a_page_is_small_enough_to_send_around(tmp_path: Path) -> None:
    """What every report carries in itself, with charts and without pictures."""
    assert len(render_html(make_run(tmp_path).collect()).encode()) < 150_000


def test_floor_is_drawn_where_it_is_near_and_the_caption_says_so(tmp_path: Path) -> None:
    report = make_run(tmp_path).collect()
    (suite,) = report.suites
    (gate,) = [gate for gate in suite.gates if gate.kind == "accuracy"]
    near = replace(gate, figures={**gate.figures, "floor": 0.75})

    def page(*gates: GateResult) -> str:
        return render_html(replace(report, suites=(replace(suite, gates=gates),)))

    chart = charts.draw_values([gate])
    values = [mark.x for mark in chart.marks]
    assert len(values) == 2
    assert chart.x.low <= min(values) <= max(values) <= chart.x.high
    limit = gate.figures["max_drop_points"]
    assert isinstance(limit, float)
    assert chart.x.high - chart.x.low >= limit
    assert [name for *_, name in chart.legend] == ["FP16", "quantized"]
    assert charts.draw_values([near]).marks[2].x == 75.0
    assert "FP16 and quantized; 1 floor far below in the table alone" in page(gate)
    assert "FP16, quantized and the floor" in page(near)


def test_changed_counts_what_its_caption_says(tmp_path: Path) -> None:
    fp16, quantized = make_outcomes(samples=100, class_names=["a", "b", "c"], lost=5, won=3)
    wrong = [i for i in range(100) if not fp16.correct[i] and not quantized.correct[i]][:7]
    answers = list(quantized.answers)
    for i in wrong:
        answers[i] = (answers[i] + 1) % 3
        answers[i] = (answers[i] + 1) % 3 if answers[i] == fp16.labels[i] else answers[i]
    quantized = replace(quantized, answers=tuple(answers))

    report = make_run(tmp_path, outcomes=(fp16, quantized)).collect()

    (task,) = report.suites[0].tasks
    assert (task.right_to_wrong, task.wrong_to_right, task.answers_changed) == (5, 3, 5 + 3 + 7)
    page = render_html(report)
    assert "<td>5</td><td>3</td><td>15</td>" in page
    assert "Changed are all samples with another answer, lost and won among them" in page
    assert "changed all other answers" not in page


def test_captions_count_what_is_there(tmp_path: Path) -> None:
    audit = make_audit()
    some = [
        replace(quantizer, amax_min=0.0, amax_max=0.0) if place % 5 == 0 else quantizer
        for place, quantizer in enumerate(q for q in audit.quantizers if q.enabled)
    ]
    off = [quantizer for quantizer in audit.quantizers if not quantizer.enabled]
    outcomes = make_outcomes(samples=40, class_names=["a", "b", "c", "never"], lost=2, won=0)
    outcomes = tuple(replace(o, labels=tuple(label % 3 for label in o.labels)) for o in outcomes)  # type: ignore[assignment]
    report = make_run(
        tmp_path, audit=replace(audit, quantizers=(*some, *off)), outcomes=outcomes
    ).collect()
    page = render_html(report)

    facts = report.suites[0].audit
    assert facts is not None
    on = [quantizer for quantizer in facts.quantizers if quantizer.enabled]
    drawn = charts.draw_amax(facts.quantizers).marks
    assert len(on) == len(some) > len(drawn)
    assert f"Calibrated range (amax) of {len(drawn)} of {len(on)} quantizers that are on" in page
    shown = sum(quantizer.state != "off" for quantizer in facts.quantizers)
    assert f"All {shown} quantizers that are on, or were meant to be" in page
    assert "All 3 classes with samples of made/classification acc1" in page


def test_layers_are_drawn_in_the_models_order_without_infinities() -> None:
    chart = charts.draw_layers(
        [("a", 30.0), ("b", float("inf")), ("c", 20.0)], towers={"a": "vision", "c": "text"}
    )

    assert [(mark.x, mark.text) for mark in chart.marks] == [
        (0, "a: SQNR 30.0 dB"),
        (2, "c: SQNR 20.0 dB"),
    ]


def test_nan_accuracy_is_a_page_all_the_same(tmp_path: Path) -> None:
    fp16, quantized = make_outcomes(samples=40, class_names=["a", "b"], lost=0, won=0)
    broken = replace(quantized, value=float("nan"), nonfinite=40)
    text = render_html(make_run(tmp_path, outcomes=(fp16, broken)).collect())

    assert "not finite" in text
    assert "Do not ship" in text


def test_pictures_show_both_answers(tmp_path: Path) -> None:
    text = render_html(make_run(tmp_path, pictures=2).collect())

    assert text.count(f'<img src="{PIXEL}"') == 2
    assert "4 more" not in text
    assert "2 more by name" in text


def test_flips_stand_by_class_the_one_that_lost_most_first(tmp_path: Path) -> None:
    outcomes = make_outcomes(samples=300, class_names=["cat", "dog", "owl"], lost=9, won=2)
    report = make_run(tmp_path, outcomes=outcomes, pictures=0).collect()
    (task,) = report.suites[0].tasks
    groups = group_flips(task.flips)
    page = render_html(report)

    lost = [sum(flip.right_to_wrong for flip in flips) for flips in groups.values()]
    assert sum(lost) == 9
    assert lost == sorted(lost, reverse=True)
    heads = re.findall(r'<th scope="rowgroup" colspan="3" class="group">(\w+): ', page)
    assert heads == list(groups)
    assert page.count('<tr class="lost">') == 9
    assert page.count('<tr class="won">') == 2


def test_answers_that_take_the_place_of_others_are_counted(tmp_path: Path) -> None:
    fp16, quantized = make_outcomes(samples=60, class_names=["cat", "dog", "owl"], lost=0, won=0)
    answers = list(quantized.answers)
    cats = [i for i, answer in enumerate(answers) if answer == 0]
    for i in cats[:5]:
        answers[i] = 2
    correct = tuple(a == label for a, label in zip(answers, quantized.labels, strict=True))
    changed = replace(quantized, answers=tuple(answers), correct=correct)
    report = make_run(tmp_path, outcomes=(fp16, changed)).collect()
    (task,) = report.suites[0].tasks

    (pair,) = task.confusions
    lost = sum(fp16.correct[i] and not correct[i] for i in cats)
    won = sum(correct[i] and not fp16.correct[i] for i in cats)
    assert (pair.fp16_answer, pair.quantized_answer, pair.samples) == ("cat", "owl", 5)
    assert (pair.lost, pair.won) == (lost, won)
    row = f"<td>5</td><td>{lost}</td><td>{won}</td>"
    assert f'<th scope="row">cat \N{RIGHTWARDS ARROW} owl</th>{row}' in render_html(report)


def test_of_graded_samples_those_stand_first_that_changed_most() -> None:
    fp16, quantized = make_outcomes(samples=5, class_names=["a", "b"], lost=0, won=0)
    fp16 = replace(fp16, correct=(True, 0.5, 0.75, True, 0.25))
    quantized = replace(quantized, correct=(0.75, 0.75, True, False, 0.25))

    assert list_flips(fp16, quantized) == (3, 0, 1, 2)


def test_flips_are_told_by_how_much_the_one_that_changed_most_first(tmp_path: Path) -> None:
    fp16, quantized = make_outcomes(samples=60, class_names=["cat", "dog"], lost=3, won=0)
    lost = list_flips(fp16, quantized)
    moves = dict(zip(lost, (0.01, 0.25, 0.06), strict=True))
    fp16 = replace(fp16, margins=(0.005,) * 60)
    quantized = replace(
        quantized, margins=tuple(0.005 - moves.get(index, 0.0) for index in range(60))
    )

    assert list_flips(fp16, quantized) == (lost[1], lost[2], lost[0])
    page = render_html(make_run(tmp_path, outcomes=(fp16, quantized)).collect())
    for margin in ("0.2450", "0.0550", "0.0050"):
        assert f" by {margin}<" in page
    assert "in cosine similarity" in page
    plain = make_outcomes(samples=60, class_names=["cat", "dog"], lost=3, won=0)
    assert "in cosine similarity" not in render_html(
        make_run(tmp_path / "plain", outcomes=plain).collect()
    )


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("look at the export gate, then at pytest itself", []),
        ("run quantgate repair suites/x.yaml: it looks", ["quantgate repair suites/x.yaml"]),
        (
            "pytest a.quantgate.yaml --quantgate-baselines=update --quantgate-reason='why', then",
            ["pytest a.quantgate.yaml --quantgate-baselines=update --quantgate-reason='why'"],
        ),
        ("quantgate repair a/x.yaml --dtype.", ["quantgate repair a/x.yaml --dtype"]),
    ],
)
def test_commands_are_marked_in_what_to_do_next(text: str, commands: list[str]) -> None:
    found = re.findall(r'<code class="command">(.*?)</code>', mark_commands(text))

    assert [html.unescape(command) for command in found] == commands


def test_a_failure_says_how_to_run_it_again(tmp_path: Path) -> None:
    failed = verdict("accuracy[x/y-acc1]", Status.FAIL, next_step="look")
    page = render_html(make_run(tmp_path, extra=[failed]).collect())

    again = "pytest 'suites/made.quantgate.yaml::accuracy[x/y-acc1]'"
    assert f'<code class="command">{html.escape(again)}</code>' in page


def test_markup_escapes_all_that_is_not_html() -> None:
    assert tag("p", "<b>", tag("i", "&"), None, [1, "\x07"], title='"') == (
        '<p title="&quot;">&lt;b&gt;<i>&amp;</i>1\\x07</p>'
    )
    assert join("a", None, ["b"]) == "ab"


def test_numbers_read_well() -> None:
    assert show_bytes(1023) == "1023 B"
    assert show_bytes(3 * 2**20 + 2**19) == "3.5 MiB"
    assert show_points(-0.001) == "0.00"
    assert show_points(float("nan")) == "not finite"
    assert show_ratio(1, 0) == "-"
