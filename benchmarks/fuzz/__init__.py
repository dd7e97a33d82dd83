"""Damaged and hostile input for every reader of a file: `python -m benchmarks.fuzz`."""
