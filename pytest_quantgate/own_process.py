"""The one place that starts processes: modules of ours, and programs such as git and nvidia-smi.

What lies in the working folder, or in a relative folder of PATH or PYTHONPATH, is never run: in a
pull request its author put it there.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds

#: The new interpreter takes this package from where it is here, and nothing else from beside it.
_START = """\
import importlib.util, runpy, sys
_, init, module, *arguments = sys.argv
spec = importlib.util.spec_from_file_location("pytest_quantgate", init)
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

#: Settings of git that name a program, or have one started, each switched off: a repository that
#: was handed over may set any of them. The commands that are used here run no filters, text
#: conversions, merge drivers and aliases, whose settings have names of their own.
GIT_SETTINGS = {
    "core.alternateRefsCommand": "true",
    "core.askPass": "true",
    "core.editor": "true",
    "core.fsmonitor": "false",
    "core.gitProxy": "",
    "core.hooksPath": os.devnull,
    "core.pager": "cat",
    "core.sshCommand": "false",
    "credential.helper": "",
    "diff.external": "",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "gpg.program": "false",
    "interactive.diffFilter": "cat",
    "log.showSignature": "false",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "sequence.editor": "true",
    "submodule.recurse": "false",
}

#: The same in the environment. Without a protocol nothing is fetched, whatever is missing here:
#: git before 2.45 does not know GIT_NO_LAZY_FETCH.
GIT_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_ASKPASS": "true",
    "GIT_EDITOR": "true",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_PAGER": "cat",
    "GIT_PROXY_COMMAND": "",
    "GIT_SEQUENCE_EDITOR": "true",
    "GIT_SSH": "false",
    "GIT_SSH_COMMAND": "false",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


def start_module(module: str, *arguments: str, cwd: Path, **streams: Any) -> subprocess.Popen[str]:
    """Start `python -m module` in `cwd`; `streams` are those of `subprocess.Popen`, as text.

    It runs the code of this package that runs here, with the packages that are installed. Nothing
    is imported from `cwd`, from the folder that this process works in, or from beside the package.
    """
    init = Path(__file__).with_name("__init__.py")
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, str(init), module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_list_folders("PYTHONPATH"))},
        text=True,
        **streams,
    )


class TooMuchOutput(Exception):
    """A program that wrote more than is read of it, and was ended."""


def read_output(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes,
    max_bytes: int,
    timeout_s: float,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program and return what it wrote, at most `max_bytes`.

    Raises OSError where it cannot be run, TooMuchOutput where it writes more,
    subprocess.TimeoutExpired where it takes longer. It is ended then.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(stdin)
        given.seek(0)
        with subprocess.Popen(
            command, cwd=cwd, env=env, stdin=given, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            assert process.stdout is not None
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout_s, end)
            timer.start()
            try:
                out = process.stdout.read(max_bytes + 1)
                is_whole = len(out) <= max_bytes
                if not is_whole:
                    process.kill()
            finally:
                timer.cancel()
        if late.is_set():
            raise subprocess.TimeoutExpired(command, timeout_s)
        if not is_whole:
            raise TooMuchOutput
        errors.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out, errors.read())


def run_program(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run an installed program, with the options of `subprocess.run`.

    Raises FileNotFoundError where PATH has none outside the folder that this process works in.
    """
    name, *arguments = command
    program, path = _find_program(name)
    environ = {**options.pop("env", os.environ), "PATH": path}
    return subprocess.run([program, *arguments], env=environ, **options)


def run_git(
    arguments: Sequence[str],
    *,
    cwd: Path,
    stdin: bytes = b"",
    max_bytes: int = bounds.GIT_LISTING_BYTES,
    timeout_s: float = bounds.WORKER_SECONDS,
) -> subprocess.CompletedProcess[bytes]:
    """Ask git about the repository at `cwd`; no program that its configuration names is run.

    `arguments` begin with a command that reads objects and names: rev-parse, merge-base, ls-tree,
    cat-file. Raises as `read_output`, FileNotFoundError where git is not installed.
    """
    settings = [word for key, value in GIT_SETTINGS.items() for word in ("-c", f"{key}={value}")]
    environ = {key: value for key, value in os.environ.items() if key != "GIT_EXTERNAL_DIFF"}
    program, path = _find_program("git")
    return read_output(
        [program, *settings, *arguments],
        cwd=cwd,
        env={**environ, **GIT_ENVIRONMENT, "PATH": path},
        stdin=stdin,
        max_bytes=max_bytes,
        timeout_s=timeout_s,
    )


def _find_program(name: str) -> tuple[str, str]:
    """Return where a program is, and the PATH that it is run with."""
    path = os.pathsep.join(_list_folders("PATH"))
    program = shutil.which(name, path=path)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "not installed", name)
    return program, path


def _list_folders(variable: str) -> list[str]:
    """Return the folders of a search path without relative ones and the working folder itself."""
    entries = os.environ.get(variable, "").split(os.pathsep)
    here = Path.cwd().resolve()
    return [
        entry for entry in entries if Path(entry).is_absolute() and Path(entry).resolve() != here
    ]
