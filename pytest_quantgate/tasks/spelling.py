"""Names that look the same and are different texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def spell_plain(name: str) -> str:
    """Return a name in one spelling: accents composed (NFC), and single spaces between words.

    A Mac writes the names of its files decomposed, which looks the same and is another text.
    """
    return " ".join(unicodedata.normalize("NFC", name).split())


def find_twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names that differ, but not once both are spelt plainly; None without such."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(spell_plain(name), name)
        if other != name:
            return other, name
    return None
