"""The documentation in a real browser: no error, no request outside, keyboard, screen readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parent / "assets" / "axe.min.js"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MAIN = ("index", "tutorial", "guides/ci", "guides/failures", "concepts/gates", "statistics",
        "reference/suite", "reference/options", "reference/assertions")  # fmt: skip


@pytest.fixture
def visit(chromium: Any, site: Path) -> Iterator[Any]:
    """Open a page of the site from the disk; returns it with its complaints and requests."""
    contexts = []

    def go(name: str, **options: Any) -> tuple[Any, list[str], list[str]]:
        context = chromium.new_context(**options)
        contexts.append(context)
        page, complaints, requests = context.new_page(), [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / f"{name}.html").as_uri())
        return page, complaints, requests

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize(
    ("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)], ids=["desktop", "phone"]
)
@pytest.mark.parametrize("name", MAIN)
def test_a_page_is_quiet_alone_and_accessible(
    visit: Any, site: Path, name: str, scheme: str, viewport: dict[str, int]
) -> None:
    page, complaints, requests = visit(name, viewport=viewport, color_scheme=scheme)

    assert complaints == []
    assert [url for url in requests if not url.startswith((site.as_uri(), "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.evaluate(AXE.read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run({preload: false}).then(found => found.violations)")
    assert [(v["id"], n["html"][:160]) for v in violations for n in v["nodes"]] == []


@pytest.mark.parametrize("name", ["index", "tutorial", "reference/suite"])
def test_tab_reaches_all_that_can_be_used(visit: Any, name: str) -> None:
    page, _, _ = visit(name, viewport=DESKTOP)
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, summary, input, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility({visibilityProperty: true}) && e.tabIndex >= 0)"
        ".map((e, i) => { e.dataset.stop = i; return i; }).length"
    )
    reached = set()
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        stop = page.evaluate("document.activeElement.dataset.stop")
        if stop is not None:
            reached.add(int(stop))

    assert wanted > 30
    assert reached == set(range(wanted))


def test_search_finds_a_key_of_a_suite(visit: Any) -> None:
    page, _, requests = visit("index", viewport=DESKTOP)
    page.fill("input[name=q]", "waive")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("#search-results li a")

    found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.textContent)")
    assert "Suite files" in " ".join(found)
    # From the disk a browser refuses the excerpts below the results, and says so on its console.
    assert [url for url in requests if not url.startswith("file:")] == []
