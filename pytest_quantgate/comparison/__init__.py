"""What changed between two checkpoints, baselines, suites or reports, for who reviews the change.

`changes.py` holds the plain values; one module a kind reads two things and says what differs; no
torch, no pytest. `report/diff.py` renders the result.
"""
