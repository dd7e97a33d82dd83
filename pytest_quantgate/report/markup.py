"""HTML built from values: whatever is not HTML already is escaped, so that nothing is forgotten."""

from __future__ import annotations

import html
from collections.abc import Iterable

from pytest_quantgate.text.printable import printable

_VOID = frozenset({"br", "img", "input", "meta", "link", "hr", "col"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def join(*children: Child) -> Html:
    """Return children one after the other: `Html` as it is, anything else escaped."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (str, int, float)):
            parts.append(html.escape(printable(str(child))))
        else:
            parts.append(join(*child))
    return Html("".join(parts))


def tag(element: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Return an element. `class_` means `class`, `aria_label` means `aria-label`; an attribute
    that is None or False is left out, True has no value."""
    shown = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown.append(key if value is True else f'{key}="{html.escape(printable(str(value)))}"')
    start = f"<{' '.join((element, *shown))}>"
    return Html(start) if element in _VOID else Html(f"{start}{join(*children)}</{element}>")
