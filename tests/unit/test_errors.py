"""Errors: one family that the plugin and the command line may show without a traceback."""

from __future__ import annotations

import pytest

from pytest_quantgate import errors
from pytest_quantgate.errors import MissingPackage, NotMeasured, QuantGateError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_of_the_family(kind: type[BaseException]) -> None:
    assert issubclass(kind, QuantGateError)


def test_family_is_no_builtin_error() -> None:
    """`except ValueError` or `except OSError` around a gate must not swallow a verdict."""
    assert QuantGateError.__mro__[1:] == (Exception, BaseException, object)


def test_missing_package_says_what_to_install() -> None:
    error = MissingPackage("diffusers", extra="clip", purpose="FP8 attention")

    assert str(error) == (
        "FP8 attention needs the package 'diffusers', which is not installed: "
        "pip install 'pytest-quantgate[clip]'"
    )
    assert (error.package, error.extra) == ("diffusers", "clip")


def test_missing_package_is_not_measured_and_no_failure() -> None:
    assert issubclass(MissingPackage, NotMeasured)
