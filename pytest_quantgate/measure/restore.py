"""`python -m pytest_quantgate.measure.restore DIR`: the new process of a round trip."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.measure.roundtrip import GO, restore_here

if __name__ == "__main__":
    try:
        if sys.stdin.readline().strip() == GO:
            restore_here(Path(sys.argv[1]))
    except QuantGateError as error:
        sys.exit(str(error))
