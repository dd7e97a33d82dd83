"""Student's quantiles, where there are any; what they decide is tested with the latency gate."""

from __future__ import annotations

import pytest

from pytest_quantgate.statistics.rounds import student_quantile


@pytest.mark.parametrize(
    ("share", "degrees", "value"),  # of the usual tables
    [(0.95, 1, 6.314), (0.95, 4, 2.132), (0.975, 9, 2.262), (0.5, 3, 0.0)],
)
def test_quantiles_are_those_of_the_tables(share: float, degrees: int, value: float) -> None:
    assert student_quantile(share, degrees=degrees) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(("share", "degrees"), [(0.49, 4), (1.0, 4), (0.95, 0)])
def test_where_there_is_none_it_is_refused(share: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile of Student's t"):
        student_quantile(share, degrees=degrees)
