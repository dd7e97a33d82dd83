"""Verdicts for people and machines: failures, the summary, and reports in HTML, Markdown, JSON."""

#: What a report is, the first key of its JSON; `VERSION` is raised when a field changes or goes.
FORMAT = "pytest-quantgate report"
VERSION = 1
