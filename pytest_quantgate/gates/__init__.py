"""One file a kind of gate: its section of a suite, what it decides, and its `KIND`.

`run.py` is what a gate may ask of its run; what several gates share stands beside them. Neither
torch nor pytest here.
"""
