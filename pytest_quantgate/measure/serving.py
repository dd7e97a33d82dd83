"""Asks a serving runtime, in its own interpreter, to load a folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.serving import Loaded
from pytest_quantgate.own_process import TooMuchOutput, read_output
from pytest_quantgate.store.disk import temporary_folder

#: The script of each runtime, and what it calls itself.
SCRIPTS = {"vllm": ("load_in_vllm.py", "vLLM")}

#: A loader that takes longer is stopped.
SECONDS = 900.0
_MOST_BYTES = 1 << 24

#: Nothing is fetched, counted or sent; a CPU is enough to load.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}

#: What is taken over of the environment of this run.
_KEPT = ("LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH", "SYSTEMROOT", "TMPDIR")


def ask_runtime(
    runtime: str,
    *,
    python: Path,
    folder: Path,
    dtype: str,
    name: str,
    origin: str,
    is_tied: bool,
    environ: Mapping[str, str],
) -> Loaded:
    """Return what the loader of a runtime makes of a folder.

    `name` and `origin` are how messages call the folder, and where it is from, `is_tied` whether it
    is what the suite judges. Raises NotMeasured
    where the interpreter cannot be run or has no such runtime, or is not done in time.
    """
    script, title = SCRIPTS[runtime]
    if not python.is_file():
        raise NotMeasured(
            f"{python} is not there: name the interpreter of an environment with {title}"
        )
    path = Path(__file__).with_name(script)
    with temporary_folder() as home:
        kept = {key: environ[key] for key in _KEPT if key in environ}
        try:
            done = read_output(
                [str(python), "-I", str(path), str(folder.absolute()), dtype],
                cwd=home,
                env={**kept, **_QUIET, "HOME": str(home)},
                stdin=b"",
                max_bytes=_MOST_BYTES,
                timeout_s=SECONDS,
            )
        except OSError as error:
            raise NotMeasured(f"{python} cannot be run: {error.strerror or error}") from error
        except (subprocess.TimeoutExpired, TooMuchOutput) as error:
            raise NotMeasured(
                f"{title}'s loader was stopped after {SECONDS:.0f} s, or wrote too much"
            ) from error
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
    if not lines:
        raise NotMeasured(f"{python} has no {title} that can be imported: {last[:300]}")
    ended = json.dumps({"refused_at": "load", "error": f"its process ended: {last[:300]}"})
    known = to_json(Loaded(runtime=title, version="", folder=name, origin=origin, is_tied=is_tied))
    del known["version"]  # the first line is to say it
    try:
        version, answer = map(json.loads, (lines[0], [*lines, ended][1]))
        found: Loaded = from_json(Loaded, {**known, **version, **answer})
    except (ValueError, TypeError) as error:
        raise NotMeasured(f"{python} answered something else: {lines[0][:200]!r}") from error
    return found
