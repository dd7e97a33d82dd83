"""The line of pytest's report header that says how gates are judged in this run."""

from __future__ import annotations

from pytest_quantgate.options import Settings


def describe_settings(settings: Settings) -> str:
    """Return one line with what differs between runs: mode, strictness, device."""
    cache = ", cache=off" if settings.cache == "off" else ""
    strict = ", strict" if settings.strict else ""
    return (
        f"quantgate: baselines={settings.baselines.value}, device={settings.device}{cache}{strict}"
    )
