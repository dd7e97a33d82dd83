"""Feeds damaged and hostile input to every reader: 100,000 cases, the same ones each time.

    .venv/bin/python benchmarks/fuzz.py [--cases N] [--seed N] [--only TARGET] [--keep DIR]

The answer to whatever stands in a file must be a value or one of our own errors: never another
exception, never more than `LIMIT_S` seconds, never more memory than the limit of the process. The
cases are good files spoiled by cuts, doublings, foreign bytes, hostile tokens and, in JSON, values
of other kinds at any place. Prints a table; what breaks a reader is written to DIR.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import QuantGateError

#: One case; a suite of the largest size that is taken needs three seconds on one core.
LIMIT_S = 20
#: Of address space, over what the libraries take: an alias bomb would want a hundred times that.
LIMIT_BYTES = 2 << 30

TOKENS = [
    b"", b":", b": ", b"- ", b"? ", b"!", b"!!python/object/apply:os.system [true]", b"!!binary ",
    b"&a ", b"*a", b"<<: *a", b"|", b">", b"%YAML 9.9\n", b"@", b"`", b"#", b"[", b"]", b"{", b"}",
    b",", b"'", b'"', b"\\", b'"\\x00"', b'"\\ud800"', b'"\\UFFFFFFFF"', b"\t", b"\n", b"\r\n",
    b"---\n", b"...\n", b"~", b"null", b"true", b"NaN", b"-Infinity", b"Infinity", b".nan", b".inf",
    b"-0", b"0x1F", b"1_000", b"1:30:59", b"1e9999", b"1e999999999pp", b"9" * 5000, b"-1",
    b"1e-400", "٥pp".encode(), b"pp", b"%", b"dB", b"${", b"${HOME}", b"$(id)", "\u202e".encode(),
    "\u2028".encode(), b"\xef\xbb\xbf", b"\x00", b"\x1b[31m", b"\xff\xfe", b"\xed\xa0\x80",
    b"::error::x", b"##[error]x", b"../../../etc/passwd", b"/dev/zero", b"C:\\x", b"a" * 3000,
    b"[" * 3000, b"{a: " * 60, b'{"a":' * 3000, b"\x80\x04\x95", b"2027-02-30", b"~nobody9/x",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, "", "a", "0.5", "nan",
    "\x1b[2J", "a\n::error::b", "\ud800", "../x", "/etc/passwd", "x" * 20_000, [], {}, [[]], [None],
    {"": None}, [1, "a"], {"a": {"b": []}}, "AAAA", "=" * 8, "2026-13-45", "f" * 64, "F" * 64,
]  # fmt: skip


@dataclass(kw_only=True)
class Target:
    """One reader: `seeds` are good inputs, `read` is given the bytes of a spoiled one."""

    name: str
    seeds: list[bytes]
    read: Callable[[bytes], Any]
    share: float
    is_json: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    findings: list[str] = field(default_factory=list)


class Hang(BaseException):
    """A case that ran too long; no reader may catch it."""


def spoil(data: bytes, *, chance: random.Random, others: list[bytes]) -> bytes:
    """Return `data` with one to five cuts, doublings, swaps or foreign parts."""
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.choice([0, 0, 1, 2, 8, 40, 200]))
        kind = chance.randrange(7)
        if kind == 0:
            part = chance.choice(TOKENS)
        elif kind == 1:
            part = data[start:end] * chance.choice([0, 2, 3, 50])
        elif kind == 2:
            part = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        elif kind == 3 and start < len(data):
            part, end = bytes([data[start] ^ (1 << chance.randrange(8))]), start + 1
        elif kind == 4:
            other = chance.choice(others)
            cut = chance.randint(0, len(other))
            part = other[cut : cut + chance.randint(0, 200)]
        elif kind == 5:
            lines = data.splitlines(keepends=True) or [b""]
            line = chance.randrange(len(lines))
            mended = [*lines[:line], chance.choice(lines), *lines[line:]]
            data, start, end, part = b"".join(mended), 0, 0, b""
        else:
            part = chance.choice(TOKENS) + data[start:end]
        data = data[:start] + part + data[end:]
        if chance.random() < 0.02:
            data = data[: chance.randint(0, len(data))]
    return data


def spoil_json(data: bytes, *, chance: random.Random) -> bytes:
    """Return JSON with values of another kind, keys lost, renamed or moved, lists grown."""
    value = json.loads(data)
    for _ in range(chance.randint(1, 3)):
        value = _spoil_value(value, chance=chance)
    return json.dumps(value).encode()


def _spoil_value(value: Any, *, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        changed = dict(value)
        kind = chance.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[chance.choice(["", "x", key + " ", "\ud800", "__class__"])] = changed.pop(key)
        elif kind == 2:
            changed[key] = value[chance.choice(sorted(value))]
        else:
            changed[key] = _spoil_value(value[key], chance=chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        kind = chance.randrange(6)
        if kind == 0:
            return value[:index] + value[index + 1 :]
        if kind == 1:
            return value[:index] + [value[index]] * chance.choice([2, 100]) + value[index + 1 :]
        return [*value[:index], _spoil_value(value[index], chance=chance), *value[index + 1 :]]
    return chance.choice(VALUES)


def run_case(target: Target, data: bytes, *, keep: Path | None) -> None:
    """Read one case and note what came out."""
    started = time.perf_counter()
    try:
        signal.alarm(LIMIT_S)
        try:
            target.read(data)
        finally:
            signal.alarm(0)
        outcome = "taken"
    except QuantGateError:
        outcome = "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = "BROKEN"
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        target.findings.append(f"{type(error).__name__} at {where}: {str(error)[:120]!r}")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            name = hashlib.sha256(data).hexdigest()[:16]
            (keep / f"{target.name.replace(' ', '-')}-{name}").write_bytes(data)
    target.outcomes[outcome] += 1
    target.slowest_s = max(target.slowest_s, time.perf_counter() - started)


# -- the readers -----------------------------------------------------------------------------------

SUITE = b"""\
quantgate: 1
model: {source: transformers, id: "${QUANTGATE_CLIP}"}
datasets: {photos: {dataset: wds/photos, root: ./photos, language: en}}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize:
  recipe: {quant_cfg: [{quantizer_name: "*weight_quantizer", cfg: {num_bits: [4, 3]}}]}
  exclude: ["*patch_embedding*"]
gates:
  coverage:
    attention: [q, k]
    waive: [{modules: "*proj*", reason: "INT-412: overflow", until: 2027-03-01}]
  calibration: {max_clipped: 0.1%}
  fidelity: {data: scenes/test, samples: 32, min_cosine: 0.5, min_sqnr: 20dB}
  accuracy: {task: scenes/classification, metric: acc1, max_drop: 1pp, floor: 70%}
  regression: {task: scenes/retrieval, metric: image_retrieval_recall@5, max_fp16_drop: 1pp,
    max_drop: 1pp, max_drop_since_first: 2pp, confidence: 99%}
  roundtrip: {}
  export: {allow: [softmax], max_size_ratio: 0.6x}
  engine: {target: sm89, attention: fused-fp8, max_plan: 512MiB}
"""
SMALL_SUITE = b"""\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8}
gates: {coverage: {}}
"""
RECIPE = b"""\
metadata: {recipe_type: ptq}
quantize:
  algorithm: max
  quant_cfg:
    - {quantizer_name: "*", enable: false}
    - quantizer_name: "*weight_quantizer"
      cfg: {num_bits: e4m3, axis: null}
    - &input {quantizer_name: "*input_quantizer", cfg: {num_bits: [4, 3]}}
"""
BARE_RECIPE = b"""\
quant_cfg:
  "*weight_quantizer": {num_bits: 8, axis: 0}
  "*input_quantizer": {num_bits: 8, axis: null}
  default: {enable: false}
algorithm: {method: smoothquant, alpha: 0.5}
"""


def suite_target(folder: Path) -> Target:
    from pytest_quantgate.baselines import Store
    from pytest_quantgate.collect import list_gates
    from pytest_quantgate.fingerprint import digest_of
    from pytest_quantgate.models.recipes import build_recipe
    from pytest_quantgate.suite_file import load_suite

    path = folder / "fuzz.quantgate.yaml"
    store = Store(folder)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        suite = load_suite(path)
        # What is taken becomes tests, keys and names of files.
        for gate in list_gates(suite):
            assert gate.name.isprintable()
        store.orphans([suite])
        quantize = suite.quantize
        if not isinstance(quantize.recipe, str):
            digest_of([quantize.recipe, quantize.exclude])
            build_recipe(quantize.recipe, name="inline")

    return Target(name="suites", seeds=[SUITE, SMALL_SUITE], read=read, share=0.3)


def record_seed() -> bytes:
    side = {
        "samples": 10,
        "ids_digest": "1" * 64,
        "correct_bits": base64.b64encode(b"\xff\x80").decode(),
        "value": 0.9,
        "data_digest": "2" * 64,
    }
    record = {
        "schema": 1,
        "suite": "demo",
        "key": "scenes/classification-acc1",
        "task": "scenes/classification",
        "metric": "acc1",
        "fp16": side,
        "accepted": side,
        "first": side,
        "fingerprint": dict.fromkeys(("model", "data", "calibration", "recipe"), "3" * 64),
        "versions": {"torch": "2.8"},
        "created": "2026-11-21",
        "updated": "2026-11-21",
        "reason": "why",
        "first_accepted": "2026-11-21",
        "first_reason": "why",
    }
    return json.dumps(record, sort_keys=True, indent=2).encode()


def baseline_target(folder: Path) -> Target:
    """Reads as a regression gate and as `quantgate accept` do; what is taken must survive both."""
    from pytest_quantgate.baselines import Store, accept_obtained

    obtained, store = folder / "obtained", Store(folder / "baselines")
    path = Store(obtained).path("demo", "scenes/classification-acc1")
    path.parent.mkdir(parents=True)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        Store(obtained).orphans([])
        Store(obtained).read("demo", "scenes/classification-acc1")
        (written,) = accept_obtained(obtained, store=store, reason="fuzz")
        store.read("demo", "scenes/classification-acc1")
        written.unlink()

    return Target(name="baselines", seeds=[record_seed()], read=read, share=0.3, is_json=True)


def cache_target(folder: Path) -> Target:
    """Entries whose manifest fits what stands in them: only the value is there to be checked."""
    from pytest_quantgate.cache import Cache, seal
    from pytest_quantgate.measurement import (
        Fidelity,
        Outcomes,
        TowerFidelity,
        from_json,
        to_json,
    )

    outcomes = Outcomes(
        task="scenes/classification",
        metric="acc1",
        variant="fp16",
        ids=tuple(f"id{i}" for i in range(6)),
        correct=(True,) * 6,
        answers=(0,) * 6,
        labels=(0,) * 6,
        class_names=("a",),
        value=1.0,
        data_digest="4" * 64,
    )
    tower = TowerFidelity(
        tower="vision",
        samples=6,
        cosine_mean=0.99,
        cosine_worst=0.9,
        cosine_worst_id="id3",
        sqnr_mean_db=25.0,
        sqnr_worst_db=12.0,
        sqnr_worst_id="id3",
        nonfinite=0,
    )
    fidelity = Fidelity(data="scenes/test", towers=(tower,), worst_layers=(("a.b", 12.5),))
    cache, key = Cache(root=folder / "cache"), "ab" * 32

    def read(data: bytes) -> None:
        for good in (outcomes, fidelity):
            kind = type(good)
            entry = cache.path(kind=kind.__name__, key=key)
            shutil.rmtree(entry, ignore_errors=True)
            entry.mkdir(parents=True)
            (entry / "value.json").write_bytes(data)
            seal(entry)
            found = cache.get_or_measure(
                kind=kind.__name__,
                key=key,
                measure=lambda good=good: to_json(good),
                read=lambda value, kind=kind: from_json(kind, value),
            )
            assert isinstance(found, kind)

    seeds = [json.dumps(to_json(value)).encode() for value in (outcomes, fidelity)]
    return Target(name="cached values", seeds=seeds, read=read, share=0.2, is_json=True)


def entry_target(folder: Path) -> Target:
    """An entry whose manifest, value or files are spoiled: it must be built again, never read."""
    from pytest_quantgate.cache import MANIFEST, Cache, find_damage, seal

    cache, key = Cache(root=folder / "entries"), "cd" * 32
    entry = cache.path(kind="fidelity", key=key)
    sample = folder / "sample"
    sample.mkdir()
    (sample / "value.json").write_text('{"a":1}')
    seal(sample)

    def read(data: bytes) -> None:
        shutil.rmtree(entry, ignore_errors=True)
        shutil.copytree(sample, entry)
        (entry / MANIFEST).write_bytes(data)
        found = cache.get_or_measure(kind="fidelity", key=key, measure=lambda: {"a": 1})
        assert found == {"a": 1}
        assert find_damage(entry) is None

    seed = (sample / MANIFEST).read_bytes()
    return Target(name="cache manifests", seeds=[seed], read=read, share=0.1, is_json=True)


def checkpoint_target(folder: Path) -> Target:
    """The manifest of a saved variant, and the config.json of a model."""
    from pytest_quantgate.models.checkpoint import CONFIG, FILES, verify_checkpoint
    from pytest_quantgate.models.loading import check_files
    from pytest_quantgate.models.source import CheckpointSource

    here = folder / "checkpoint"
    here.mkdir()
    for name in FILES:
        (here / name).write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    manifest = {
        "format": 1,
        "base_weights": "5" * 64,
        "compute_dtype": "float32",
        "attention": "diffusers",
        "files": dict.fromkeys(FILES, digest),
        "amax": {"a.input_quantizer": "6" * 64},
        "dtypes": {"a.weight": "float32"},
    }
    part = {"hidden_size": 32, "num_hidden_layers": 2, "image_size": 48, "patch_size": 16}
    config = {"model_type": "clip", "text_config": part, "vision_config": part}
    source = CheckpointSource(directory=here, digest="", description="")

    def read(data: bytes) -> None:
        try:
            (here / "manifest.json").write_bytes(data)
            verify_checkpoint(here)
        except QuantGateError:
            (here / CONFIG).write_bytes(data)
            try:
                check_files(source, where="x")
            finally:
                (here / CONFIG).write_text("{}")

    seeds = [json.dumps(value, indent=1).encode() for value in (manifest, config)]
    return Target(name="checkpoint JSON", seeds=seeds, read=read, share=0.05, is_json=True)


def recipe_target(folder: Path) -> Target:
    from pytest_quantgate.models.recipes import resolve_recipe
    from pytest_quantgate.models.source import recipe_content
    from pytest_quantgate.suite import QuantizeSpec, Where

    path = folder / "recipe.yaml"
    spec = QuantizeSpec(where=Where(file="x", line=1), recipe=str(path))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        recipe_content(spec.recipe, where=spec.where, environ={})
        resolve_recipe(spec, environ={})

    return Target(name="recipe files", seeds=[RECIPE, BARE_RECIPE], read=read, share=0.02)


def shard_target(folder: Path) -> Target:
    """A WebDataset shard: its members, its images and its labels."""
    from PIL import Image

    from pytest_quantgate.tasks.webdataset import load_webdataset

    root = folder / "photos"
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1\n")
    (root / "classnames.txt").write_text("cat\ndog\n")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for index in range(3):
            image = io.BytesIO()
            Image.new("RGB", (8, 6), (index, 2, 3)).save(image, ("PNG", "JPEG", "WEBP")[index])
            suffix = ("png", "jpg", "webp")[index]
            for name, content in (
                (f"s{index}.{suffix}", image.getvalue()),
                (f"s{index}.cls", b"1"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    def read(data: bytes) -> None:
        (root / "test" / "0.tar").write_bytes(data)
        samples = load_webdataset(root, split="test", name="photos/test", count=None)
        samples.digest  # noqa: B018  # every text of it must be one that UTF-8 holds
        for index in range(len(samples)):
            samples.images[index]

    return Target(name="WebDataset shards", seeds=[stream.getvalue()], read=read, share=0.03)


def onnx_target(folder: Path) -> Target:
    """An ONNX file as the export gate reads it, and ModelOpt's state as `quantgate diff` does."""
    import onnx
    import torch
    from onnx import TensorProto, helper

    from pytest_quantgate.comparison.modelopt_state import read_state
    from pytest_quantgate.runtimes.onnx_graph import read_graph

    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    weight = helper.make_tensor("w", TensorProto.INT8, [2, 2], [1, 2, 3, 4])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="a.input_quantizer/Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="a.input_quantizer/DQ"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"], name="a.weight_quantizer/DQ"),
        helper.make_node("MatMul", ["d", "v"], ["y"], name="/a/MatMul"),
    ]
    value = helper.make_tensor_value_info
    ends = [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends, [scale, zero, weight]),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    helper.set_model_props(model, {"quantgate.quantizers": '["a.input_quantizer"]'})
    path, state = folder / "model.onnx", folder / "modelopt_state.pth"
    stream = io.BytesIO()
    torch.save({"modelopt_state_dict": [("quantize", {"config": {}})]}, stream)
    assert onnx.checker.check_model(model) is None

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read_graph(path)
        except QuantGateError:
            state.write_bytes(data)
            read_state(state)

    seeds = [model.SerializeToString(), stream.getvalue()]
    return Target(name="ONNX and state", seeds=seeds, read=read, share=0.02)


TARGETS = (
    suite_target,
    baseline_target,
    cache_target,
    entry_target,
    checkpoint_target,
    recipe_target,
    shard_target,
    onnx_target,
)


def fuzz(target: Target, *, cases: int, seed: int, keep: Path | None, others: list[bytes]) -> None:
    chance = random.Random(f"{target.name} {seed}")
    for data in target.seeds:
        run_case(target, data, keep=keep)
    for _ in range(cases - len(target.seeds)):
        data = chance.choice(target.seeds)
        if target.is_json and chance.random() < 0.6:
            data = spoil_json(data, chance=chance)
        if not target.is_json or chance.random() < 0.5:
            data = spoil(data, chance=chance, others=others)
        run_case(target, data, keep=keep)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed damaged and hostile input to every reader.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target by its name")
    parser.add_argument("--keep", type=Path, help="where cases that break a reader are written")
    chosen = parser.parse_args()

    def stop(_signal: int, _frame: Any) -> None:
        raise Hang(f"more than {LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as scratch:
        targets = []
        for make in TARGETS:
            folder = Path(scratch, make.__name__)
            folder.mkdir()
            targets.append(make(folder))
        others = [seed for target in targets for seed in target.seeds]
        # What is imported late would otherwise count as the memory and the time of a case.
        for target in targets:
            target.read(target.seeds[0])
        limit = mapped_bytes() + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        print(f"{'reader':<20}{'cases':>8}{'taken':>8}{'refused':>9}{'BROKEN':>8}"
              f"{'slowest s':>11}{'peak rise MB':>14}")  # fmt: skip
        for target in targets:
            if chosen.only not in (None, target.name):
                continue
            before = peak_bytes()
            cases = round(chosen.cases * target.share)
            fuzz(target, cases=cases, seed=chosen.seed, keep=chosen.keep, others=others)
            found = target.outcomes
            print(f"{target.name:<20}{found.total():>8}{found['taken']:>8}{found['refused']:>9}"
                  f"{found['BROKEN']:>8}{target.slowest_s:>11.2f}"
                  f"{(peak_bytes() - before) / 1e6:>14.0f}", flush=True)  # fmt: skip
    broken = Counter(text for target in targets for text in target.findings)
    for text, count in broken.most_common(50):
        print(f"{count:>6}  {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
