"""What a run may do with the stored baselines; by itself, so that starting pytest is cheap."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from pytest_quantgate.errors import QuantGateError


class BaselineMode(Enum):
    """What a run does with the stored baselines."""

    CHECK = "check"
    CREATE = "create"
    UPDATE = "update"
    PRUNE = "prune"

    @classmethod
    def parse(cls, text: str) -> BaselineMode:
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(mode.value for mode in cls)
            raise QuantGateError(
                f"{text!r} is not a valid quantgate baselines mode. Valid modes: {known}."
            ) from None


def check_write_allowed(
    mode: BaselineMode, *, environ: Mapping[str, str], allow_ci_write: bool
) -> None:
    """Raise QuantGateError for a writing mode under CI that was not allowed in so many words."""
    if mode is BaselineMode.CHECK or allow_ci_write:
        return
    refuse_ci(
        f"--quantgate-baselines={mode.value}", environ=environ, flag="--quantgate-allow-ci-write"
    )


def refuse_ci(action: str, *, environ: Mapping[str, str], flag: str) -> None:
    """Raise QuantGateError where a CI variable is set: a CI job that writes approves itself."""
    variable = find_ci(environ)
    if variable:
        raise QuantGateError(
            f"{action} would write baselines under CI ({variable} is set): run it where "
            f"somebody reviews the change, or add {flag}"
        )


def find_ci(environ: Mapping[str, str]) -> str:
    """Return the variable that says this is a CI job, as pytest reads it; empty outside of CI."""
    return next((name for name in ("CI", "BUILD_NUMBER") if environ.get(name)), "")
