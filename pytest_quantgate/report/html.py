"""A `Report` -> one HTML file that opens offline. Pure: facts in, text out.

Every number and every chart is in the page itself, so it can be read without scripts; a script lets
arrow keys walk the coverage map. A content security policy in the file forbids
everything else: no network, no other script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from pytest_quantgate import __version__
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.facts import describe_machine
from pytest_quantgate.report.first_screen import (
    describe_scope,
    render_first_screen,
    render_unmeasured,
)
from pytest_quantgate.report.markup import Child, Html, join, tag
from pytest_quantgate.report.model import Report
from pytest_quantgate.report.parts import (
    STATUSES,
    Charts,
    badge,
    bullets,
    card,
    class_of,
    definitions,
    name_place,
    row,
    table,
)
from pytest_quantgate.report.sections import list_sections, render_suite
from pytest_quantgate.report.svg import draw_markers
from pytest_quantgate.text.words import count


def render_html(report: Report) -> str:
    """Return the report as one self-contained HTML document; of several suites, the worst first."""
    worst_first = sorted(
        report.suites, key=lambda suite: Status(suite.conclusion.status).severity, reverse=True
    )
    report = replace(report, suites=tuple(worst_first))
    drawn = Charts()
    several = len(report.suites) > 1
    body = join(
        _render_head(report),
        _render_contents(report),
        tag(
            "main",
            _render_own_tests(report),
            _render_messages(report),
            _render_results(report),
            (render_suite(suite, alone=not several, drawn=drawn) for suite in report.suites),
            _render_lists([("Written in this run", (*report.written, *report.obtained), "card")]),
            _render_environment(report),
            id="content",
        ),
    )
    if drawn.placed:
        body = join(draw_markers(), body)
    return render_page(title=report.conclusion.sentence, body=body)


def render_page(*, title: str, body: Html) -> str:
    """Return an HTML document in the style of the report."""
    script = _read_asset("report.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=f"pytest-quantgate {__version__}"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} - quantgate"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(_read_asset("report.css"))),
    )
    page = tag(
        "html",
        tag("head", head),
        tag(
            "body",
            tag("a", "Skip to the report", href="#content", class_="skip"),
            body,
            tag("div", id="tip", role="status", hidden=True),
            tag("script", Html(script)),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


@cache
def _read_asset(name: str) -> str:
    return resources.files("pytest_quantgate.report").joinpath("assets", name).read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _render_head(report: Report) -> Html:
    conclusion = report.conclusion
    created = report.created.replace("T", " ").removesuffix("Z")[:16]
    commit = f", revision {report.environment.commit[:12]}" if report.environment.commit else ""
    return tag(
        "header",
        tag(
            "div",
            tag("p", f"quantgate report, {created} UTC{commit}", class_="kicker"),
            tag(
                "h1",
                tag("span", STATUSES[conclusion.status][0], class_="sign", aria_hidden="true"),
                tag("span", conclusion.sentence),
            ),
            tag("p", describe_scope(report.suites[0]), class_="scope")
            if len(report.suites) == 1
            else None,
            tag("p", _count_gates(report), class_="counts"),
            render_first_screen(report),
            render_unmeasured(report),
            class_="wide",
        ),
        class_=f"verdict v-{class_of(conclusion.status)}",
    )


def _count_gates(report: Report) -> Html:
    gates = [gate for suite in report.suites for gate in suite.gates]
    parts: list[Child] = [f"{count(len(gates), 'gate')} of {count(len(report.suites), 'suite')}"]
    for status, (_, words) in STATUSES.items():
        number = sum(gate.status == status for gate in gates)
        if number:
            parts.append(badge(status, text=f"{number} {words}"))
    not_run = sum(len(suite.not_run) for suite in report.suites)
    if not_run:
        parts.append(badge("NOT_MEASURED", text=f"{not_run} did not run"))
    if report.own_tests:
        red = sum(test.status != "PASS" for test in report.own_tests)
        parts.append(f"{count(len(report.own_tests), 'own test')}, {red} not passed")
    return join(parts)


def _render_contents(report: Report) -> Html:
    links: list[Html] = []
    for suite in report.suites:
        if len(report.suites) > 1:
            link = tag("a", suite.name, href=f"#{name_place(suite)}")
            links.append(tag("li", link, class_="suite"))
        links.extend(
            tag("li", tag("a", title, href=f"#{name_place(suite, anchor)}"))
            for anchor, title in list_sections(suite)
        )
    if report.own_tests:
        links.append(tag("li", tag("a", "Own tests", href="#own-tests")))
    if report.results:
        links.append(tag("li", tag("a", "Results", href="#results")))
    links.append(tag("li", tag("a", "Environment", href="#environment")))
    return tag("nav", tag("ul", links, class_="wide"), aria_label="Sections")


def _render_own_tests(report: Report) -> Html | None:
    """Return the project's own tests that count, red ones with what they found."""
    if not report.own_tests:
        return None
    order = sorted(report.own_tests, key=lambda test: test.status == "PASS")  # stable: red first
    rows = [
        tag(
            "tr",
            tag("td", badge(test.status)),
            tag("th", test.test, scope="row"),
            tag(
                "td",
                test.headline,
                tag("p", "Code: ", tag("code", test.code)) if test.code else None,
                bullets(f"{attempt.status}: {attempt.headline}" for attempt in test.attempts)
                if test.attempts
                else None,
            ),
        )
        for test in order
    ]
    return tag(
        "section",
        tag("h2", "The project's own tests", id="own-tests"),
        table(
            ["verdict", "test", "result"],
            rows,
            caption="Tests that use quantgate's assertions or fixtures",
            class_="gates",
        ),
        class_="card",
    )


def _render_messages(report: Report) -> Html:
    lists = [
        ("Errors", report.errors, "card errors"),
        ("Not comparable", report.incomparable, "card errors"),
        ("Not answered", report.unanswered, "card errors"),
        ("Stopped early", (report.stopped,) if report.stopped else (), "card errors"),
        ("Warnings", report.warnings, "card"),
        ("Orphaned baselines", report.orphans, "card"),
    ]
    return _render_lists(lists)


def _render_lists(lists: Iterable[tuple[str, Sequence[str], str]]) -> Html:
    return join(
        tag("section", tag("h2", title), bullets(lines), class_=classes)
        for title, lines, classes in lists
        if lines
    )


def _render_results(report: Report) -> Html | None:
    """Return which results were joined: where each was measured, when, and what it answers."""
    if not report.results:
        return None
    rows = [
        row(
            result.name,
            badge(result.conclusion.status),
            join(
                f"{describe_machine(result)}; {result.created.replace('T', ' ')}; ",
                join("revision ", tag("code", result.environment.commit[:12]), "; ")
                if result.environment.commit
                else None,
                "SHA-256 ",
                tag("code", result.sha256[:12], title=result.sha256),
            ),
            bullets(
                f"{suite}: {', '.join(gates) or 'nothing'}"
                for suite, gates in result.answered.items()
            ),
        )
        for result in report.results
    ]
    return tag(
        "section",
        tag("h2", "Results that were joined", id="results"),
        table(
            ["result", "its verdict", "where and when", "gates that it answers"],
            rows,
            caption="Who measured what where",
        ),
        class_="card",
    )


def _render_environment(report: Report) -> Html:
    environment = report.environment
    rows: list[tuple[str, Child]] = [
        ("Python", environment.python),
        ("system", environment.system),
        ("processor", f"{environment.processor}, {count(environment.cores, 'core')}"),
        ("revision", tag("code", environment.commit) if environment.commit else "unknown"),
    ]
    rows.extend(environment.packages.items())
    return card(tag("h2", "Environment", id="environment"), definitions(rows), decides=False)
