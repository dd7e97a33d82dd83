"""Pure decisions: measurements and limits in, verdicts out. Neither torch nor pytest here."""

from pytest_quantgate.gates.accuracy import judge_accuracy
from pytest_quantgate.gates.calibration import judge_calibration, judge_ranges
from pytest_quantgate.gates.coverage import judge_coverage
from pytest_quantgate.gates.engine import judge_engine
from pytest_quantgate.gates.export import judge_export
from pytest_quantgate.gates.fidelity import judge_fidelity, judge_tower
from pytest_quantgate.gates.latency import judge_latency
from pytest_quantgate.gates.memory import judge_memory
from pytest_quantgate.gates.parity import judge_parity
from pytest_quantgate.gates.regression import judge_regression
from pytest_quantgate.gates.roundtrip import judge_roundtrip
from pytest_quantgate.gates.sanity import judge_sanity
from pytest_quantgate.gates.trace import judge_trace

__all__ = [
    "judge_accuracy",
    "judge_calibration",
    "judge_coverage",
    "judge_engine",
    "judge_export",
    "judge_fidelity",
    "judge_latency",
    "judge_memory",
    "judge_parity",
    "judge_ranges",
    "judge_regression",
    "judge_roundtrip",
    "judge_sanity",
    "judge_tower",
    "judge_trace",
]
