"""One suite in one run: what is built and measured, once and kept, and what the gates say of it.

`variants.py` has the model and its data, `stages.py` the exported files and engines, `measured.py`
what gates ask for, `judging.py` their verdicts; `case.py` is all of it. No pytest here.
"""
