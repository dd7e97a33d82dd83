"""How numbers, names and foreign strings are written: the same wherever they are read."""
