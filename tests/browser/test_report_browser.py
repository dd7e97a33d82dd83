"""The HTML report in a real browser: no error, no request, keyboard and screen reader friendly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.comparison import render as diff
from pytest_quantgate.comparison.report_files import compare_reports
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.html import render_html
from tests.report_builder import make_audit, make_outcomes, make_run, verdict

AXE = Path(__file__).parent / "assets" / "axe.min.js"
HOSTILE = "</script><img src=//example.org/x onerror=console.error(1)>\u2028'\"&"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A green, a red and a not measured report; the red one is full of hostile names. And what
    `quantgate diff` says of the green and the red one."""
    root = tmp_path_factory.mktemp("pages")
    broken = make_audit(prefix="x." + HOSTILE)
    broken = replace(
        broken,
        quantizers=(
            replace(broken.quantizers[0], enabled=False),
            replace(broken.quantizers[1], amax_finite=False),
            replace(broken.quantizers[3], tower_calls={}),
            *broken.quantizers[2:],
        ),
    )
    failed = verdict(
        "export", Status.FAIL, headline=HOSTILE, evidence=(HOSTILE,), cause=HOSTILE,
        next_step=HOSTILE,
    )  # fmt: skip
    timed = verdict("latency[torch-vision-batch1]", Status.PASS, figures={"latency_ratio": 0.5})
    absent = verdict("engine[sm89]", Status.NOT_MEASURED, headline="no TensorRT is installed")
    reports = {
        "green": make_run(root / "green", extra=[timed]).collect(),
        "red": make_run(
            root / "red",
            audit=broken,
            outcomes=make_outcomes(samples=90, class_names=[HOSTILE, "owl"], lost=20, won=1),
            extra=[failed],
        ).collect(errors=(HOSTILE,)),
        "unmeasured": make_run(root / "none", extra=[absent], not_run=["roundtrip"]).collect(),
    }
    found = {}
    for name, report in reports.items():
        found[name] = root / f"{name}.html"
        found[name].write_text(render_html(report), encoding="utf-8")
    found["diff"] = root / "diff.html"
    compared = compare_reports(reports["green"], reports["red"], labels=("main", HOSTILE))
    found["diff"].write_text(diff.render_html(compared), encoding="utf-8")
    return found


class Visit:
    """A page that was opened, and what it did meanwhile."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.own = path.as_uri()


@pytest.fixture
def visit(chromium: Any, pages: dict[str, Path]) -> Iterator[Any]:
    opened: list[Visit] = []

    def go(name: str, **context: Any) -> Visit:
        opened.append(Visit(chromium, pages[name], **context))
        return opened[-1]

    yield go
    for visited in opened:
        visited.context.close()


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)], ids=["desktop", "phone"]
)
@pytest.mark.parametrize("name", ["green", "red", "unmeasured", "diff"])
def test_page_is_quiet_alone_and_accessible(
    visit: Any, name: str, viewport: dict[str, int], scheme: str
) -> None:
    visited = visit(name, viewport=viewport, color_scheme=scheme)
    page = visited.page
    for details in page.query_selector_all("details"):
        details.evaluate("element => { element.open = true; }")

    assert visited.complaints == []
    assert {url for url in visited.requests if not url.startswith("data:")} == {visited.own}
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.evaluate(AXE.read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run().then(found => found.violations)")
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in violations] == []


def test_tab_reaches_all_that_can_be_used(visit: Any) -> None:
    page = visit("red", viewport=DESKTOP).page
    expected = page.evaluate(
        "[...document.querySelectorAll("
        "'a[href], summary, input, select, button, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).map((e, i) => { e.dataset.stop = i; return i; })"
    )
    reached = []
    for _ in expected:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.stop"))

    assert reached == [str(place) for place in expected]


def test_arrow_keys_walk_a_map_and_show_its_numbers(visit: Any) -> None:
    page = visit("red", viewport=DESKTOP).page
    page.focus('table[role="grid"] td[tabindex="0"]')
    first = page.text_content("#tip")
    page.keyboard.press("ArrowRight")
    second = page.text_content("#tip")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")

    assert "q_proj.input_quantizer: missing (it is off)" in first
    assert "q_proj.weight_quantizer: uncalibrated (its amax is NaN or Inf), E4M3" in second
    assert "layers.1.self_attn.q_proj.weight_quantizer: on" in below
    assert page.text_content("#tip") == first
    assert page.evaluate("document.querySelectorAll('table.map [tabindex=\"0\"]').length") == 2
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_flips_are_sifted_by_words_by_side_and_by_class(visit: Any) -> None:
    page = visit("red", viewport=DESKTOP).page
    counted = page.locator(".filter output")
    page.select_option(".filter [name=side]", "won")
    won = counted.text_content()
    shown = page.locator(".flipped :is(.lost, .won):not([hidden])").count()
    page.select_option(".filter [name=side]", "")
    page.select_option(".filter [name=class]", "owl")
    owls = int(counted.text_content().split()[0])
    page.focus(".filter [name=words]")
    page.keyboard.type("no such")

    assert (won, shown) == ("1 of 21", 1)
    assert 0 < owls < 21
    assert counted.text_content() == "0 of 21"
    assert page.locator(".flipped tbody[data-class]:not([hidden])").count() == 0


def test_a_command_is_copied_by_keyboard(visit: Any) -> None:
    page = visit("red", viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"]).page
    button = page.locator("button").last
    button.focus()
    page.keyboard.press("Enter")

    page.wait_for_function("document.getElementById('tip').textContent === 'Copied'")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("pytest ")
    assert button.get_attribute("aria-label") == f"Copy {command}"


def test_hover_shows_numbers(visit: Any) -> None:
    visited = visit("green", viewport=DESKTOP)
    visited.page.hover('table[role="grid"] td.cell >> nth=3')

    assert "E4M3 per-tensor, amax" in visited.page.text_content("#tip")


def test_a_phone_shows_first_what_decides(visit: Any) -> None:
    page = visit("green", viewport=PHONE).page
    folded = "document.querySelectorAll('details.section:not([open])').length"

    assert page.evaluate("document.documentElement.scrollHeight") < 19_000 / 3
    assert page.evaluate(folded) == page.locator("details.section").count() > 3
    page.click("nav a[href$='/coverage']")
    assert page.locator("table.map").first.is_visible()
    assert visit("green", viewport=DESKTOP).page.evaluate(folded) == 0


def test_skip_link_comes_first_and_works(visit: Any) -> None:
    page = visit("green", viewport=DESKTOP).page
    page.keyboard.press("Tab")

    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")


def test_page_without_scripts_tells_the_same(visit: Any) -> None:
    page = visit("green", viewport=DESKTOP, java_script_enabled=False).page

    text = page.text_content("main")
    for words in ("80.00 %", "79.33 %", "drop, pp", "Layers that add the most noise"):
        assert words in text
    assert page.locator("table.map td.cell").count() == 64
    assert page.locator("fieldset.filter:visible, button").count() == 0
    assert page.locator("svg.chart").count() >= 4
    assert page.locator("svg.chart").first.bounding_box()["height"] > 60


def test_links_inside_the_page_lead_somewhere(visit: Any) -> None:
    page = visit("red", viewport=DESKTOP).page

    assert (
        page.evaluate(
            "[...document.querySelectorAll('a[href^=\"#\"]')]"
            ".filter(a => !document.getElementById(a.getAttribute('href').slice(1)))"
            ".map(a => a.outerHTML)"
        )
        == []
    )
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
