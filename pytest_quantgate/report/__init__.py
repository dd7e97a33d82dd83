"""Verdicts for people and machines: failures, the summary, and reports in HTML, Markdown, JSON."""

#: What a report is, the first key of its JSON; `VERSION` is raised with its fields.
FORMAT = "pytest-quantgate report"
VERSION = 3

#: Versions that can be read: what a later one added is empty in them.
READABLE = (1, 2, 3)
