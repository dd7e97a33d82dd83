"""Proof that the gates of a suite can turn red: known damage is planted, and each gate must see it.

`sabotage.py` says what a sabotage is, `model.py` and `measurements.py` hold those that work on any
suite, `proof.py` runs them against one gate (`pytest --quantgate-selftest`).
"""
