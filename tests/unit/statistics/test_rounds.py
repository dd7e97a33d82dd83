"""What rounds say; more of it, and the tables, with the latency gate that asks."""

from __future__ import annotations

import math

import pytest

from pytest_quantgate.statistics.rounds import Levels, compare_levels, student_quantile


@pytest.mark.parametrize(("share", "degrees"), [(0.49, 4), (1.0, 4), (0.95, 0)])
def test_where_there_is_no_quantile_it_is_refused(share: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile of Student's t"):
        student_quantile(share, degrees=degrees)


def test_what_was_measured_apart_is_compared_with_the_doubts_of_both() -> None:
    """Levels of three processes each, as Welch takes them: means 2 and 1, and 10 % of doubt."""
    above, below = (
        Levels.of([middle * factor for factor in (1 / 1.1, 1, 1.1)], processes=3, pause_rounds=1e9)
        for middle in (2.0, 1.0)
    )

    ratio, limits = compare_levels(above, below, confidence=0.95)

    reach = student_quantile(0.95, degrees=2) * math.sqrt(2 * math.log(1.1) ** 2 / 3)
    assert ratio == pytest.approx(2)
    assert limits.low == pytest.approx(2 * math.exp(-reach))
    assert limits.high == pytest.approx(2 * math.exp(reach))
