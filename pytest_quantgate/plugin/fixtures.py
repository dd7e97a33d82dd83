"""Fixtures for hand-written tests. The bodies import what is heavy, so collecting stays cheap.

A test names its suite by a marker, and all its fixtures follow it::

    @pytest.mark.quantgate(suite="suites/clip.quantgate.yaml")
    def test_logit_scale_is_kept(quantgate_fp16, quantgate_quantized):
        assert quantgate_fp16.module.logit_scale == quantgate_quantized.module.logit_scale

Without the marker the ini value `quantgate_suite` or `--quantgate-suite` is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.run.case import Case


@pytest.fixture
def quantgate_case(request: pytest.FixtureRequest) -> Case:
    """The case of this test's suite: `.fp16`, `.quantized`, `.audit`, `.outcomes(...)`,
    `.judge(kind="coverage")`; everything is built on first use and cached."""
    from pytest_quantgate.errors import QuantGateError
    from pytest_quantgate.plugin.session import SESSION
    from pytest_quantgate.suite.load import load_suite
    from pytest_quantgate.text.printable import printable

    session = request.config.stash[SESSION]
    marker = request.node.get_closest_marker("quantgate")
    name = (marker.kwargs.get("suite") if marker else None) or session.settings.suite
    if not name:
        raise pytest.UsageError(
            f"{request.node.nodeid} uses a quantgate fixture but names no suite: add "
            f'@pytest.mark.quantgate(suite="suites/NAME.quantgate.yaml") or set quantgate_suite '
            f"in the ini file"
        )
    try:
        suite = load_suite(request.config.rootpath / name, relative_to=request.config.rootpath)
    except QuantGateError as error:
        pytest.fail(printable(str(error)), pytrace=False)
    return session.case_for(suite)


@pytest.fixture
def quantgate_fp16(request: pytest.FixtureRequest, quantgate_case: Case) -> Encoder:
    """The FP16 variant of the suite's model."""
    return _build(request, lambda: quantgate_case.fp16)


@pytest.fixture
def quantgate_quantized(request: pytest.FixtureRequest, quantgate_case: Case) -> Encoder:
    """The quantized variant, calibrated as the suite says."""
    return _build(request, lambda: quantgate_case.quantized)


@pytest.fixture
def quantgate_baseline(request: pytest.FixtureRequest, quantgate_case: Case) -> Callable[..., None]:
    """The baseline check: `quantgate_baseline(task=..., metric=...)` fails the test as the
    suite's own regression gate would; `fp16=` and `quantized=` take outcomes of your own."""
    from pytest_quantgate.plugin.results import TRIED, carry
    from pytest_quantgate.plugin.session import SESSION

    session = request.config.stash[SESSION]
    carried = request.node.stash[TRIED].carried

    def check(
        *,
        task: str,
        metric: str,
        fp16: Outcomes | None = None,
        quantized: Outcomes | None = None,
    ) -> None:
        __tracebackhide__ = True
        judged = quantgate_case.judging.check_baseline(
            task=task, metric=metric, fp16=fp16, quantized=quantized
        )
        carried.append(carry(judged, warnings=session.warnings))
        _require(request, judged.verdict)

    return check


def _require(request: pytest.FixtureRequest, verdict: Verdict) -> None:
    """Let the test end here where its verdict is not PASS; what may be missing skips it."""
    from pytest_quantgate.evidence.verdict import Status
    from pytest_quantgate.plugin.own_tests import tell
    from pytest_quantgate.plugin.session import SESSION
    from pytest_quantgate.report.terminal import render_failure
    from pytest_quantgate.suite.names import OWN_TESTS
    from pytest_quantgate.text.printable import printable

    __tracebackhide__ = True
    tell(verdict)
    settings = request.config.stash[SESSION].settings
    if verdict.status is Status.NOT_MEASURED and settings.may_be_missing(OWN_TESTS):
        pytest.skip(f"not measured: {printable(verdict.headline)}")
    if not verdict.passed:
        pytest.fail(render_failure(verdict), pytrace=False)


def _build(request: pytest.FixtureRequest, make: Callable[[], Encoder]) -> Encoder:
    """Build a variant; what is absent is not measured, bad input fails with its message."""
    from pytest_quantgate.errors import NotMeasured, QuantGateError
    from pytest_quantgate.evidence.verdict import Status, Verdict

    __tracebackhide__ = True
    try:
        return make()
    except NotMeasured as error:
        headline, status, code = str(error), Status.NOT_MEASURED, ""
    except QuantGateError as error:
        headline, status = str(error), Status.FAIL
        code = error.code or f"test.{error.finding}"
    _require(request, Verdict(gate="test", status=status, headline=headline, code=code))
    raise AssertionError("a verdict that is not PASS ends the test")
