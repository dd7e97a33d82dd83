"""Kills what writes with SIGKILL at random moments and looks at what is left: 200 trials.

    .venv/bin/python benchmarks/faults.py [--trials N] [--seed N] [--only PART]

Four parts, by share of the trials: a process that writes and accepts baselines without end, one
that builds and repairs cache entries without end, whole runs of pytest that create and update
baselines of a tiny CLIP, and two processes that embed samples for this one, one of which is killed
while they do: every row must come once, in order, with the bytes of one process. After each other
kill everything in the places that a run reads is checked, and that what was acknowledged before the
kill is still there; then the next run must do its work and leave nothing of the killed ones behind.
Prints a table and exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pytest_quantgate.store.baselines import Store, accept_obtained, write_obtained
from pytest_quantgate.store.cache import Cache, find_damage
from pytest_quantgate.store.records import Record, parse_record

SHARES = {"baseline files": 0.45, "cache entries": 0.4, "pytest runs": 0.1, "workers": 0.05}
KEYS = tuple(f"{number:02x}" * 32 for number in range(4))
TASKS = ("scenes/classification", "digits/classification")


# -- baselines -------------------------------------------------------------------------------------


def make_record(task: str, *, version: int) -> Record:
    """Return a record that says which version it is."""
    side = {
        "samples": 800,
        "ids_digest": "1" * 64,
        "correct_bits": base64.b64encode(b"\xff" * 100).decode(),
        "value": 1.0,
        "data_digest": "2" * 64,
    }
    plain = {
        "schema": 1,
        "suite": "demo",
        "key": f"{task}-acc1",
        "task": task,
        "metric": "acc1",
        "fp16": side,
        "accepted": side,
        "first": side,
        "fingerprint": dict.fromkeys(("model", "data", "calibration", "recipe"), "3" * 64),
        "versions": {},
        "created": "2026-11-21",
        "updated": "2026-11-21",
        "reason": f"version {version}",
        "first_accepted": "2026-11-21",
        "first_reason": "why",
    }
    return replace(parse_record(json.dumps(plain)), verdicts={"sanity": "PASS"})


def write_baselines(folder: Path) -> None:
    """Write versions of two baselines without end, every other one through `accept`."""
    store, obtained = Store(folder / "baselines"), folder / "obtained"
    records = {task: make_record(task, version=0) for task in TASKS}
    version = 0
    print("ready", flush=True)
    while True:
        version += 1
        for task in TASKS:
            record = replace(records[task], reason=f"version {version}")
            if version % 2:
                store.write(record)
            else:
                path = write_obtained(obtained, record)
                accept_obtained(obtained, store=store, reason=record.reason)
                path.unlink()
            print(f"{task} {version}", flush=True)


def check_baselines(folder: Path, *, acknowledged: list[str]) -> Counter[str]:
    """Return what is wrong with the baselines after a kill, and whether it hit a write."""
    found: Counter[str] = Counter()
    store = Store(folder / "baselines")
    found["hit a write"] = bool(list(folder.rglob(".writing-*")))
    known = {task: int(version) for task, version in (line.split() for line in acknowledged)}
    for task in TASKS:
        record = store.read("demo", f"{task}-acc1")  # raises for half a file
        version = 0 if record is None else int(record.reason.removeprefix("version "))
        # The write that was under way may or may not have been done; an acknowledged one is.
        if not known.get(task, 0) <= version <= known.get(task, 0) + 1:
            found["lost"] += 1
    if (folder / "obtained").exists():
        for path in (folder / "obtained").rglob("*.json"):
            parse_record(path.read_text(encoding="utf-8"))
    return found


def next_baselines(folder: Path) -> None:
    """Do what the next run does; old leftovers go with it."""
    for path in folder.rglob(".writing-*"):
        os.utime(path, (0, 0))  # as if it were of yesterday
    for root in (folder / "baselines", folder / "obtained"):
        for task in TASKS:
            Store(root).write(make_record(task, version=-1))


# -- cache entries ---------------------------------------------------------------------------------


def build_entry(folder: Path, *, key: str) -> None:
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "weights").write_bytes(key.encode() * 20_000)
    (folder / "value.json").write_text(json.dumps(key), encoding="utf-8")


def build_entries(folder: Path) -> None:
    """Build entries, damage them and repair them without end."""
    cache = Cache(root=folder)
    chance = random.Random(folder.name)
    print("ready", flush=True)
    while True:
        for key in KEYS:
            entry = cache.get_or_build(kind="variant", key=key, build=partial(build_entry, key=key))
            print(key, flush=True)
            if chance.random() < 0.5:
                print(f"damage {key}", flush=True)
                (entry / "value.json").write_text('"half', encoding="utf-8")
                cache.get_or_build(kind="variant", key=key, build=partial(build_entry, key=key))
                print(key, flush=True)


def check_entries(folder: Path, *, acknowledged: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    found["hit a write"] = bool(list(folder.glob("v1/*/*/.*-*")))
    cache = Cache(root=folder)
    last = {line.split()[-1]: line for line in acknowledged}
    for key in KEYS:
        entry = cache.load(kind="variant", key=key)
        if entry is not None:  # what is read is whole, in every byte
            weights = (entry / "checkpoint" / "weights").read_bytes()
            good = weights == key.encode() * 20_000 and find_damage(entry) is None
            found["half accepted"] += not good
        elif last.get(key) == key:
            found["lost"] += 1
    return found


def next_entries(folder: Path) -> None:
    """Ask for every entry, and for a new one: what nobody works on is swept then."""
    cache = Cache(root=folder)
    for key in (*KEYS, "f" * 64):
        cache.get_or_build(kind="variant", key=key, build=partial(build_entry, key=key))


# -- whole runs ------------------------------------------------------------------------------------

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8-attention}}
gates:
  coverage: {{}}
  regression: {{task: scenes/classification, metric: acc1, samples: 64, max_fp16_drop: 20pp,
    max_drop: 20pp, max_drop_since_first: 20pp}}
"""


def save_tiny_clip(folder: Path) -> None:
    """Save a random two-layer CLIP with the reference model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    from pytest_quantgate.reference import weights_dir

    tokenizer = AutoTokenizer.from_pretrained(weights_dir())
    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        **common,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**common, "image_size": 48, "patch_size": 16}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor.from_pretrained(weights_dir()).save_pretrained(folder)


def pytest_command(folder: Path, *, mode: str, workers: int = 0) -> list[str]:
    return [
        sys.executable, "-m", "pytest", "suites", "-q", "-p", "no:randomly",
        "-n", str(workers), f"--rootdir={folder}", f"--quantgate-cache-dir={folder / 'cache'}",
        f"--quantgate-baselines={mode}", "--quantgate-reason=trial",
    ]  # fmt: skip


def run_trials(*, trials: int, chance: random.Random) -> Counter[str]:
    """Kill runs of pytest; every fourth time a whole run must then go through."""
    found: Counter[str] = Counter()
    environ = {k: v for k, v in os.environ.items() if k not in ("CI", "BUILD_NUMBER")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_tiny_clip(folder / "clip")
        suite = folder / "suites" / "tiny.quantgate.yaml"
        suite.parent.mkdir()
        suite.write_text(SUITE.format(model=folder / "clip"), encoding="utf-8")
        store, cache = Store(folder / "baselines"), Cache(root=folder / "cache")

        def run(mode: str, *, kill_after_s: float | None) -> float:
            started = time.perf_counter()
            process = subprocess.Popen(
                pytest_command(folder, mode=mode),
                cwd=folder,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=kill_after_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                found["killed"] += 1
            else:
                if process.returncode:
                    print(output.decode(), file=sys.stderr)
                    found["next run failed"] += 1
            return time.perf_counter() - started

        whole_s = run("create", kill_after_s=None)
        first = store.read("suites/tiny", "scenes/classification-acc1")
        for trial in range(trials):
            if trial % 4 == 0:  # everything from the beginning, so that kills meet every stage
                for path in sorted((folder / "cache" / "v1").glob("*/*/*")):
                    found["hit a write"] += path.name.startswith(".building-")
                subprocess.run(["rm", "-rf", str(folder / "cache" / "v1")], check=True)
            run(("create", "update")[trial % 2], kill_after_s=chance.uniform(0.1, 1.0) * whole_s)
            now = store.read("suites/tiny", "scenes/classification-acc1")  # raises for half a file
            found["lost"] += first is not None and (now is None or not now.same_result(first))
            for path in (folder / "cache" / "v1").glob("*/*/[!.]*"):
                found["half accepted"] += find_damage(path) is not None
            if trial % 4 == 3 or trial == trials - 1:
                found["hit a write"] += bool(list((folder / "cache" / "v1").glob("*/*/.*-*")))
                run("check", kill_after_s=None)
                next_entries(folder / "cache")
                found["left behind"] += len(list((folder / "cache" / "v1").glob("*/*/.*-*")))
        assert cache.root.exists()
    return found


# -- workers ---------------------------------------------------------------------------------------

#: Eight ranges of whole batches.
EMBEDDED = 2048


def worker_trials(*, trials: int, chance: random.Random) -> Counter[str]:
    """Kill one of two workers at a random moment of each pass over the samples."""
    import numpy

    from pytest_quantgate.measure.embeddings import embed_images
    from pytest_quantgate.run.measured import BOTH, Drawn
    from pytest_quantgate.run.variants import BATCH_SIZE
    from pytest_quantgate.run.worker import open_case
    from pytest_quantgate.run.workers import ProcessWorker, Workers, cut_ranges

    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_tiny_clip(folder / "clip")
        suite = folder / "tiny.quantgate.yaml"
        suite.write_text(SUITE.format(model=folder / "clip"), encoding="utf-8")
        places = {"path": suite, "root": folder, "working_dir": folder, "cache_dir": folder / "c"}
        asked = {**{name: str(path) for name, path in places.items()}, "device": "cpu", "env": []}
        case = open_case(asked, environ=os.environ)
        drawn = Drawn(name="scenes/test", count=EMBEDDED, purpose="classification", first=False)
        samples = case.samples(**drawn)
        wanted = embed_images(
            [case.fp16, case.quantized],
            samples,
            batch_size=BATCH_SIZE,
            preprocess=case.fp16.preprocess,
        )
        question = case.describe_question(BOTH, drawn=drawn, stage="torch", task=None)
        ranges = cut_ranges(len(samples), batch_size=BATCH_SIZE)
        at_work: dict[int, ProcessWorker] = {}

        def start(place: int) -> ProcessWorker:
            at_work[place] = ProcessWorker()
            return at_work[place]

        workers = Workers(start, count=2)

        def embed() -> float:
            """Ask for every sample, and look at what comes back."""
            told: list[int] = []
            started = time.perf_counter()
            parts = workers.embed(question, ranges, progress=told.append)
            taken_s = time.perf_counter() - started
            whole = [numpy.concatenate(each) for each in zip(*parts, strict=True)]
            found["lost"] += sum(told) != len(samples) or any(
                one.tobytes() != other.numpy().tobytes()
                for one, other in zip(whole, wanted, strict=True)
            )
            return taken_s

        _ = case.quantized  # workers read it from the cache
        embed()
        whole_s = embed()
        for _trial in range(trials):
            place = chance.randrange(2)
            victim = at_work[place]
            timer = threading.Timer(chance.uniform(0, 1) * whole_s, victim.kill)
            timer.start()
            embed()
            timer.join()
            found["killed"] += 1
            found["hit a write"] += at_work[place] is not victim
            if at_work[place] is victim:  # it had done its part: the next question finds it gone
                embed()
        workers.close()
    found["left behind"] += len(list_children())
    return found


def list_children() -> list[str]:
    """Return the processes that this one has started and that have not ended."""
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [pid for path in own for pid in path.read_text(encoding="ascii").split()]


# -- the trials ------------------------------------------------------------------------------------

Check = Callable[..., "Counter[str]"]


def kill_trials(
    part: str, *, check: Check, mend: Callable[[Path], None], trials: int, chance: random.Random
) -> Counter[str]:
    """Start the endless writer, kill it, check what it left, and let the next run work."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for trial in range(trials):
            folder = Path(scratch, f"trial-{trial}")
            process = subprocess.Popen(
                [sys.executable, __file__, "--child", part, str(folder)], stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            acknowledged = process.stdout.read().decode().splitlines()
            process.wait()
            process.stdout.close()
            found["killed"] += 1
            found += check(folder, acknowledged=acknowledged)
            mend(folder)
            check(folder, acknowledged=[])
            leftovers = [*folder.rglob(".writing-*"), *folder.glob("v1/*/*/.*-*")]
            found["left behind"] += len(leftovers)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill what writes and look at what is left.")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(SHARES))
    parser.add_argument("--child", nargs=2, metavar=("PART", "DIR"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        part, folder = chosen.child
        {"baseline files": write_baselines, "cache entries": build_entries}[part](Path(folder))
    columns = ("killed", "hit a write", "half accepted", "lost", "next run failed", "left behind")
    print(f"{'part':<16}{'trials':>8}" + "".join(f"{name:>17}" for name in columns))
    bad = 0
    for part, share in SHARES.items():
        if chosen.only not in (None, part):
            continue
        trials = max(1, round(chosen.trials * (1 if chosen.only else share)))
        chance = random.Random(f"{part} {chosen.seed}")
        if part == "baseline files":
            found = kill_trials(
                part, check=check_baselines, mend=next_baselines, trials=trials, chance=chance
            )
        elif part == "cache entries":
            found = kill_trials(
                part, check=check_entries, mend=next_entries, trials=trials, chance=chance
            )
        elif part == "pytest runs":
            found = run_trials(trials=trials, chance=chance)
        else:
            found = worker_trials(trials=trials, chance=chance)
        print(f"{part:<16}{trials:>8}" + "".join(f"{found[name]:>17}" for name in columns))
        bad += sum(found[name] for name in columns[2:])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
