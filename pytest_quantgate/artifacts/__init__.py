"""What others made: readers of checkpoints, ONNX files, engines and their layer reports.

Nothing here judges, and nothing that is read can run code: see `untrusted.py` and `bounds.py`.
"""
