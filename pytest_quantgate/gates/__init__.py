"""Pure decisions: measurements and limits in, verdicts out. Neither torch nor pytest here."""

from pytest_quantgate.gates.accuracy import judge_accuracy
from pytest_quantgate.gates.calibration import judge_calibration, judge_ranges
from pytest_quantgate.gates.coverage import judge_coverage
from pytest_quantgate.gates.fidelity import judge_fidelity, judge_tower
from pytest_quantgate.gates.regression import judge_regression
from pytest_quantgate.gates.roundtrip import judge_roundtrip

__all__ = [
    "judge_accuracy",
    "judge_calibration",
    "judge_coverage",
    "judge_fidelity",
    "judge_ranges",
    "judge_regression",
    "judge_roundtrip",
    "judge_tower",
]
