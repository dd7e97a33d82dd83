"""Hand-written tests that use this package: how a run learns what its assertions said.

An assertion knows no test and no session: it needs no fixture, and may run in a helper, a thread or
an event loop. So it tells whoever listens in this process, which during a test is the plugin. The
listeners are the one value of this package that a module holds; a run within a run adds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytest_quantgate.evidence.verdict import Verdict

Listener = Callable[[Verdict | None], None]

_LISTENERS: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` hear of every assertion while the block runs.

    It hears None when one starts and the verdict when there is one: an assertion that ends in an
    error was used, too.
    """
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


def tell(verdict: Verdict | None) -> None:
    """Tell the innermost listener, if there is one."""
    if _LISTENERS:
        _LISTENERS[-1](verdict)
