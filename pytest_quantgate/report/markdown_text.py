"""Text of others in Markdown: as it is, and nothing that a site makes more of. Pure."""

from __future__ import annotations

import re

from pytest_quantgate.text.printable import printable

#: An empty comment: what stands on both sides of it is shown side by side, and is no word.
_GAP = "<!-- -->"

_SPECIAL = re.compile(r"([\\`*\[\]|~$#])")
_LONE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

#: What would begin a quotation or a list where a text begins a line.
_BLOCK = re.compile(r"^(\s*)(?=>|[-+](?:[-+\s]|$))")
_NUMBER = re.compile(r"^(\s*\d+)(?=[.)](?:\s|$))")

#: What GitHub and GitLab make links, references and pings of, each cut where the gap goes.
_ACTIVE = re.compile(
    r"(?<=:)(?=//)"  # https://...
    r"|(?i:(?<=www)(?=\.)|(?<=mailto)(?=:)|(?<=xmpp)(?=:)|(?<=tel)(?=:))"
    r"|(?<=@)(?=\S)(?!(?<=[A-Za-z]@)\d{1,4}(?![\w.-]))"  # @team, mail, o/r@commit; no recall@5
    r"|(?<=[#!%^~$])(?=\w)|(?<=&amp;)(?=\w)"  # #2, owner/repo#2, !2, %2, ~2, $2, &2
    r"|(?<=[A-Za-z]-)(?=\d)|(?i:(?<=GHSA)(?=-))"  # GH-1, CVE-2026-1, a tracker's keys
)

#: The name of a commit, or the beginning of one.
_COMMIT = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{7,40}(?![0-9A-Za-z])")
_PART = 6


def escape(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, link, mention, or further line."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    shown = _SPECIAL.sub(r"\\\1", shown)
    shown = _LONE_UNDERSCORE.sub(r"\\_", shown)
    shown = _NUMBER.sub(r"\1\\", _BLOCK.sub(r"\1\\", shown))
    shown = _ACTIVE.sub(_GAP, shown)
    return _COMMIT.sub(lambda match: _cut(match[0]), shown)


def _cut(name: str) -> str:
    return _GAP.join(name[start : start + _PART] for start in range(0, len(name), _PART))
