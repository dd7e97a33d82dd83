"""Verdicts for people and machines: failures, the summary, and reports in HTML, Markdown, JSON."""

#: What a report is, the first key of its JSON; `VERSION` is raised with its fields.
FORMAT = "pytest-quantgate report"
VERSION = 4

#: Versions that can be read: what a later one added is empty in them.
READABLE = (1, 2, 3, 4)

#: What the manifest of a run says of its subjects.
PREDICATE_TYPE = "urn:pytest-quantgate:verdict:v1"
