"""What rounds say; more of it, and the tables, with the latency gate that asks."""

from __future__ import annotations

import pytest

from pytest_quantgate.statistics.rounds import student_quantile


@pytest.mark.parametrize(("share", "degrees"), [(0.49, 4), (1.0, 4), (0.95, 0)])
def test_where_there_is_none_it_is_refused(share: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile of Student's t"):
        student_quantile(share, degrees=degrees)
