"""What the options of a run let suites see and leave out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.plugin.options import resolve_settings
from pytest_quantgate.suite.where import ALLOWED_VARIABLES


def test_a_run_allows_the_variables_of_its_environment_and_of_its_options(
    pytestconfig: pytest.Config,
) -> None:
    settings = replace(resolve_settings(pytestconfig), env=("MODELS",))

    assert settings.read_environment({"A": "1"}) == {"A": "1", ALLOWED_VARIABLES: "MODELS"}
    found = settings.read_environment({ALLOWED_VARIABLES: "DATA"})
    assert found == {ALLOWED_VARIABLES: "DATA,MODELS"}


@pytest.mark.parametrize(
    ("options", "demands"),
    [
        ({"strict": False, "ci": ""}, False),
        ({"strict": True, "ci": ""}, True),
        ({"strict": False, "ci": "CI"}, True),
        ({"strict": False, "ci": "CI", "selftest": True}, False),
    ],
)
def test_what_may_be_missing(
    pytestconfig: pytest.Config, options: dict[str, object], demands: bool
) -> None:
    settings = replace(resolve_settings(pytestconfig), allow_unmeasured=("engine",), **options)  # type: ignore[arg-type]

    assert settings.demands_all is demands
    assert settings.may_be_missing("engine")
    assert settings.may_be_missing("latency", suite=["latency"])
    assert settings.may_be_missing("coverage") is not demands
