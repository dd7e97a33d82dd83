"""What a user writes: the sections of `*.quantgate.yaml` as frozen dataclasses, and their loader.

`keys.py` are the kinds of keys, `specs.py` the sections of every suite; a gate's section stands
with its gate in `gates/`. `nodes.py` reads YAML with its lines, `load.py` makes a `Suite` of it.
"""
