"""What a user writes: the sections of `*.quantgate.yaml` as frozen dataclasses, and their loader.

`keys.py` are the kinds of keys, `specs.py` the sections of every suite; a gate's section stands
with its gate in `gates/`. `nodes.py` reads YAML with its lines, `load.py` makes a `Suite` of it.
"""

from pytest_quantgate.suite.gates import GateKind, Gates, GateSection
from pytest_quantgate.suite.load import SUFFIX, load_suite, name_suite
from pytest_quantgate.suite.specs import (
    CalibrationSpec,
    DatasetSpec,
    ModelSpec,
    QuantizeSpec,
    Suite,
)
from pytest_quantgate.suite.where import Where, expand_path

__all__ = [
    "SUFFIX",
    "CalibrationSpec",
    "DatasetSpec",
    "GateKind",
    "GateSection",
    "Gates",
    "ModelSpec",
    "QuantizeSpec",
    "Suite",
    "Where",
    "expand_path",
    "load_suite",
    "name_suite",
]
