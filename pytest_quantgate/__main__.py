"""`python -m pytest_quantgate`: the `quantgate` command, importing nothing from the working folder.

Python puts that folder first on the path: an `argparse.py` there would run in place of Python's.
"""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]
    from pytest_quantgate.commands.cli import main

    sys.exit(main())
