"""The line of pytest's report header that says how gates are judged in this run."""

from __future__ import annotations

from pytest_quantgate.store.settings import Settings


def describe_settings(settings: Settings) -> str:
    """Return one line with what differs between runs: mode, device, what may be missing."""
    parts = [f"baselines={settings.baselines.value}", f"device={settings.device}"]
    if settings.cache == "off":
        parts.append("cache=off")
    if settings.env:
        parts.append(f"env={','.join(settings.env)}")
    if settings.strict:
        parts.append("strict")
    elif settings.demands_all:
        parts.append(f"{settings.ci} is set: what is not measured fails")
    if settings.demands_all and settings.allow_unmeasured:
        parts.append(f"may be missing: {' '.join(settings.allow_unmeasured)}")
    return f"quantgate: {', '.join(parts)}"
