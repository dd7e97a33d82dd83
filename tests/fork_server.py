"""Processes that begin with the libraries imported, as a server forks them from one that did it.

Importing PyTorch, transformers and ModelOpt takes eight seconds. What a process of its own shows
is the same in a forked one: it knows nothing of the tests, has the environment and the folder that
it is given, and dies alone. That the libraries are imported at all, and when, it does not show:
tests of that start Python themselves.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

#: No module of this package: each process imports it anew, as it is then.
LIBRARIES = (
    "transformers.models.clip.modeling_clip",
    "modelopt.torch.opt",
    "modelopt.torch.quantization",
    "onnxruntime",
)


class ForkServer:
    """Runs modules, one after the other; starts with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self,
        module: str,
        *arguments: str,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        said: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m module` in `cwd`, told `said`; return what it wrote, and its status."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            given, out, err = (Path(folder) / name for name in ("in", "out", "err"))
            given.write_text(said, "utf-8")
            asked = {
                "module": module,
                "arguments": arguments,
                "cwd": str(cwd),
                "environ": dict(os.environ if environ is None else environ),
                "streams": [str(given), str(out), str(err)],
            }
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(
                [module, *arguments], status, out.read_text("utf-8"), err.read_text("utf-8")
            )

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def serve() -> None:
    """Fork for each question on standard input; answer with the status of the process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.close(answers.fileno())
            become(**json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def become(
    *,
    module: str,
    arguments: list[str],
    cwd: str,
    environ: dict[str, str],
    streams: list[str],
) -> None:
    """Be the process `python -m module`, up to its end."""
    for descriptor, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [module, *arguments]
    status = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    # Taking the libraries down takes a second; what is registered from here on still runs.
    atexit.register(end)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, int | None):
            status = error.code or 0
        raise


if __name__ == "__main__":
    serve()
