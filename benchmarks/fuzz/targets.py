"""The readers that are fed: each takes the bytes of a file, and seeds are good ones."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.fuzz import artifact_targets, data_targets
from benchmarks.fuzz.target import Target
from pytest_quantgate.errors import QuantGateError

#: Where the reports of the tests are made.
TESTS = Path(__file__).parents[2] / "tests"


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
STAGES_SUITE = b"""\
quantgate: 1
model: {source: reference, dtype: float16, attn_implementation: eager}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: int8-smoothquant}
family: none
gates:
  coverage: {towers: [vision]}
  accuracy:
    - {task: digits/classification, metric: acc1, max_drop: 3pp, floor: 80%, stage: onnx}
  parity: {}
  engine:
    - {target: sm120, max_weights_ratio: 0.6x}
  memory: {target: sm89, max_plan: 1GiB}
  trace: {target: sm89}
  latency:
    - {tower: vision, batch: [1, 8], max_ratio: 0.9x, max_latency: 3ms, rounds: 30, threads: 1}
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
    from pytest_quantgate.comparison.suite_files import compare_suite
    from pytest_quantgate.evidence.fingerprint import digest_of
    from pytest_quantgate.quantization.recipes import build_recipe
    from pytest_quantgate.store.owners import list_baselines
    from pytest_quantgate.suite.load import load_suite

    path = folder / "fuzz.quantgate.yaml"
    good = folder / "good.quantgate.yaml"
    good.write_bytes(SUITE)
    other = load_suite(good)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        suite = load_suite(path)
        # What is taken becomes tests, keys and names of files.
        for gate in suite.gates:
            assert gate.name.isprintable()
        list_baselines(suite)
        compare_suite(other, suite)
        quantize = suite.quantize
        if quantize is not None and not isinstance(quantize.recipe, str):
            digest_of([quantize.recipe, quantize.exclude])
            build_recipe(quantize.recipe, name="inline")

    return Target(
        name="suites",
        seeds=(SUITE, STAGES_SUITE, SMALL_SUITE),
        read=read,
        share=0.25,
        guided_share=0.25,
        form="yaml",
    )


def record_seed() -> bytes:
    from pytest_quantgate.evidence.fingerprint import Fingerprint
    from pytest_quantgate.evidence.outcomes import StoredOutcomes
    from pytest_quantgate.store.records import Chain, Look, Record, canonical_text

    side = StoredOutcomes(
        samples=10,
        ids_digest="1" * 64,
        correct_bits=base64.b64encode(b"\xff\x80").decode(),
        value=0.9,
        data_digest="2" * 64,
        effective_samples=8.5,
    )
    chain = Chain(
        first_accepted="2026-11-01",
        first_reason="why",
        ended="2026-11-21",
        reason="why",
        samples=10,
        data_digest="4" * 64,
        first_fp16_value=0.9,
        first_value=0.8,
        last_fp16_value=0.9,
        last_value=0.7,
    )
    record = Record(
        suite="demo",
        key="scenes/classification-acc1",
        task="scenes/classification",
        metric="acc1",
        fp16=side,
        accepted=side,
        first=side,
        first_fp16=side,
        fingerprint=Fingerprint(
            **dict.fromkeys(("model", "data", "calibration", "recipe"), "3" * 64),
            recipe_entries=("*: off", "*q_bmm_quantizer: E4M3"),
            settings={"dtype": "float16", "device": "cpu"},
            data_parts={"images": "5" * 64},
        ),
        versions={"torch": "2.8"},
        created="2026-11-21",
        updated="2026-11-21",
        reason="why",
        first_accepted="2026-11-21",
        first_reason="why",
        chains=(chain,),
        verdicts={"coverage": "PASS", "regression[scenes/classification-acc1]": "FAIL"},
        looks=(Look(samples=10, data_digest="2" * 64, day="2026-11-21"),),
    )
    return canonical_text(record).encode()


def old_record_seed() -> bytes:
    """As version 0.1 wrote it."""
    record = json.loads(record_seed())
    for name in ("kind", "digest", "first_fp16", "chains", "verdicts", "looks"):
        del record[name]
    for name in ("recipe_entries", "settings", "data_parts"):
        del record["fingerprint"][name]
    for name in ("fp16", "accepted", "first"):
        del record[name]["effective_samples"]
    return json.dumps({**record, "schema": 1}, sort_keys=True, indent=2).encode()


def latency_record_seed() -> bytes:
    from pytest_quantgate.evidence.latency import Machine
    from pytest_quantgate.store.records import LatencyRecord, canonical_text

    record = LatencyRecord(
        suite="demo",
        key="tensorrt-rtx-vision-batch8",
        runtime="tensorrt-rtx",
        machine=Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu"),
        rounds=30,
        fp16_ms=4.0,
        quantized_ms=2.5,
        versions={"torch": "2.15.0"},
        created="2026-11-01",
        updated="2026-11-02",
        reason="first",
        verdicts={"coverage": "PASS"},
    )
    return canonical_text(record).encode()


def seal(data: bytes) -> bytes:
    """Return a record with the digest of its content, so that more than the digest is tried."""
    from pytest_quantgate.store.records import digest_of_record

    try:
        record = json.loads(data)
        return json.dumps({**record, "digest": digest_of_record(record)}).encode()
    except (ValueError, TypeError, RecursionError):
        return data


def baseline_target(folder: Path) -> Target:
    """Reads as gates, `quantgate accept` and `diff` do; what is taken must survive all of them."""
    from pytest_quantgate.comparison.baseline_files import compare_records, read_records
    from pytest_quantgate.store.baselines import Store, accept_obtained
    from pytest_quantgate.store.records import LatencyRecord

    obtained, store = Store(folder / "obtained", project=folder), Store(folder / "baselines")
    accuracy = ("demo", "scenes/classification-acc1")
    latency = ("demo", "tensorrt-rtx-vision-batch8")
    seeds = (record_seed(), latency_record_seed(), old_record_seed())
    good = []
    for name, seed in zip(("accuracy.json", "latency.json"), seeds, strict=False):
        (folder / name).write_bytes(seed)
        good.append(read_records(folder / name))
    obtained.path(*accuracy).parent.mkdir(parents=True)

    def read(data: bytes) -> None:
        is_latency = b'"latency"' in data
        place = latency if is_latency else accuracy
        path = obtained.path(*place, kind="latency" if is_latency else "regression")
        path.write_bytes(seal(data))

        def read_from(store: Store) -> None:
            if is_latency:
                store.read_timed(*place, kind=LatencyRecord)
            else:
                store.read(*place)

        try:
            obtained.orphans()
            read_from(obtained)
            if b'"schema": 1,' in data:
                return  # of version 0.1: read, and not accepted
            (written,) = accept_obtained(obtained.root, store=store, reason="fuzz")
        finally:
            path.unlink()
        read_from(store)
        compare_records(good[is_latency], read_records(written), labels=("a", "b"), by_name=False)
        written.unlink()

    return Target(
        name="baselines", seeds=seeds, read=read, share=0.25, guided_share=0.25, form="json"
    )


def cache_target(folder: Path) -> Target:
    """Entries whose manifest fits what stands in them: only the value is there to be checked."""
    from pytest_quantgate.evidence.codec import from_json, to_json
    from pytest_quantgate.evidence.fidelity import Fidelity, TowerFidelity
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.store.cache import Cache, seal

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
                measure=partial(to_json, good),
                read=partial(from_json, kind),
            )
            assert isinstance(found, kind)

    seeds = tuple(json.dumps(to_json(value)).encode() for value in (outcomes, fidelity))
    return Target(
        name="cached values", seeds=seeds, read=read, share=0.15, guided_share=0.15, form="json"
    )


def entry_target(folder: Path) -> Target:
    """An entry whose manifest, value or files are spoiled: it must be built again, never read."""
    from pytest_quantgate.store.cache import MANIFEST, Cache, find_damage, seal

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
    return Target(
        name="cache manifests", seeds=(seed,), read=read, share=0.1, guided_share=0.1, form="json"
    )


def checkpoint_target(folder: Path) -> Target:
    """The manifest of a saved variant, and the config.json of a model."""
    from safetensors.numpy import save

    from pytest_quantgate.encoders.loading import check_files
    from pytest_quantgate.encoders.source import CheckpointSource
    from pytest_quantgate.quantization.checkpoint import CONFIG, FILES, WEIGHTS, verify_checkpoint

    here = folder / "checkpoint"
    here.mkdir()
    contents = {name: save({}) if name == WEIGHTS else b"{}" for name in FILES}
    for name, content in contents.items():
        (here / name).write_bytes(content)
    manifest = {
        "format": 1,
        "base_weights": "5" * 64,
        "compute_dtype": "float32",
        "attention": "diffusers",
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
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

    seeds = tuple(json.dumps(value, indent=1).encode() for value in (manifest, config))
    return Target(
        name="checkpoint JSON", seeds=seeds, read=read, share=0.05, guided_share=0.05, form="json"
    )


def recipe_target(folder: Path) -> Target:
    from pytest_quantgate.encoders.source import recipe_content
    from pytest_quantgate.quantization.recipes import resolve_recipe
    from pytest_quantgate.suite.specs import QuantizeSpec
    from pytest_quantgate.suite.where import Where

    path = folder / "recipe.yaml"
    spec = QuantizeSpec(where=Where(file="x", line=1), recipe=str(path))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        recipe_content(spec.recipe, where=spec.where, environ={})
        resolve_recipe(spec, environ={})

    return Target(
        name="recipe files",
        seeds=(RECIPE, BARE_RECIPE),
        read=read,
        share=0.02,
        guided_share=0.05,
        form="yaml",
    )


def shard_target(folder: Path) -> Target:
    """A WebDataset shard: its members, its images and its labels."""
    from PIL import Image

    from pytest_quantgate.tasks.drawing import Draw
    from pytest_quantgate.tasks.reader import Source
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
        samples = load_webdataset(Source.of_folder(root, split="test"), Draw())
        samples.digest  # noqa: B018  # every text of it must be one that UTF-8 holds
        for index in range(len(samples)):
            samples.images[index]

    return Target(
        name="WebDataset shards",
        seeds=(stream.getvalue(),),
        read=read,
        share=0.03,
        guided_share=0.02,
    )


def onnx_target(folder: Path) -> Target:
    """An ONNX file as the export gate reads it, and ModelOpt's state as `quantgate diff` does."""
    import onnx
    import torch
    from onnx import TensorProto, helper

    from pytest_quantgate.artifacts.modelopt_state import read_state
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
    onnx.checker.check_model(model)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read_graph(path)
        except QuantGateError:
            state.write_bytes(data)
            read_state(state)

    return Target(
        name="ONNX and state",
        seeds=(model.SerializeToString(), stream.getvalue()),
        read=read,
        share=0.02,
        guided_share=0.02,
    )


def weights_target(folder: Path) -> Target:
    """The header of a safetensors file, which `quantgate diff` reads and maps by itself."""
    from pytest_quantgate.artifacts.safetensors_file import read_header

    path = folder / "model.safetensors"
    tensors = {
        "__metadata__": {"format": "pt"},
        "a._amax": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]},
        "a.weight": {"dtype": "F8_E4M3", "shape": [2, 3], "data_offsets": [2, 8]},
        "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [8, 16]},
    }

    def read(data: bytes) -> None:
        path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(16))
        for tensor in read_header(path).values():
            tensor.raw()
            tensor.values()

    seed = json.dumps(tensors).encode()
    return Target(
        name="weights", seeds=(seed,), read=read, share=0.01, guided_share=0.03, form="json"
    )


def model_target(folder: Path) -> Target:
    """A safetensors file as the FP16 model is loaded from it, and as `quantgate diff` reads it."""
    from safetensors.numpy import save

    from pytest_quantgate.artifacts.safetensors_file import read_header
    from pytest_quantgate.encoders.loading import check_files, read_weights
    from pytest_quantgate.encoders.source import CheckpointSource

    here = folder / "model"
    here.mkdir()
    (here / "config.json").write_text('{"model_type": "clip"}')
    source = CheckpointSource(directory=here, digest="", description="")
    path = here / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        check_files(source, where="x")
        read_weights(source, where="x")
        for tensor in read_header(path).values():
            tensor.values()

    import numpy

    tensors = {
        "a.weight": numpy.ones((2, 3), dtype="float16"),
        "b.weight": numpy.arange(4, dtype="float32"),
        "c": numpy.zeros((), dtype="int64"),
    }
    return Target(
        name="model files",
        seeds=(save(tensors, {"format": "pt"}), save({})),
        read=read,
        share=0.05,
        guided_share=0.02,
    )


def settings_target(folder: Path) -> Target:
    """The other JSON files of a model: of its tokenizer, its image processor, its shards."""
    from safetensors.numpy import save

    from pytest_quantgate.encoders.loading import check_files
    from pytest_quantgate.encoders.source import INDEX, CheckpointSource
    from pytest_quantgate.measure.model_checks import inspect_checkpoint
    from pytest_quantgate.reference import weights_dir

    here = folder / "settings"
    shutil.copytree(weights_dir(), here)
    (here / "model.safetensors").write_bytes(save({}))
    source = CheckpointSource(directory=here, digest="", description="")
    places = {
        name: here / name
        for name in ("tokenizer_config.json", "preprocessor_config.json", "config.json", INDEX)
    }
    (here / INDEX).write_text('{"weight_map": {"a": "model.safetensors"}}')
    good = {name: path.read_bytes() for name, path in places.items()}

    marks = {
        b"weight_map": INDEX,
        b"model_type": "config.json",
        b"image_": "preprocessor_config.json",
    }

    def read(data: bytes) -> None:
        name = next((marks[mark] for mark in marks if mark in data), "tokenizer_config.json")
        places[name].write_bytes(data)
        try:
            check_files(source, where="x")
            inspect_checkpoint(here)
        finally:
            places[name].write_bytes(good[name])

    return Target(
        name="model settings",
        seeds=tuple(good.values()),
        read=read,
        share=0.04,
        guided_share=0.02,
        form="json",
    )


def git_target(folder: Path) -> Target:
    """A tree of git, whose bytes are its author's: its names, modes and what they point to."""
    import subprocess

    from pytest_quantgate.comparison.revisions import extract

    here, room = folder / "repository", folder / "room"
    here.mkdir()

    def git(*arguments: str, data: bytes = b"") -> bytes:
        done = subprocess.run(
            ["git", *arguments], cwd=here, input=data, capture_output=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    blob = bytes.fromhex(git("hash-object", "-w", "--stdin", data=b"{}").decode())
    inner = b"100644 a.json\0" + blob + b"100755 b.json\0" + blob + b"120000 link\0" + blob
    name = git("hash-object", "-w", "-t", "tree", "--stdin", data=inner)
    outer = b"40000 baselines\0" + bytes.fromhex(name.decode()) + b"100644 suites\0" + blob

    def read(data: bytes) -> None:
        tree = git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", data=data).decode()
        room.mkdir()
        try:
            for paths in ((), ("baselines", "suites")):
                extract(tree, paths=paths, folder=here, into=room)
        finally:
            shutil.rmtree(room)
        assert not (folder / "x").exists()

    return Target(name="git trees", seeds=(inner, outer), read=read, share=0.01, guided_share=0.01)


def report_target(folder: Path) -> Target:
    """A JSON report as `quantgate diff` reads it: another one of the same suite beside it."""
    sys.path.insert(0, str(TESTS))
    from pytest_quantgate.comparison.report_files import compare_reports, read_report
    from pytest_quantgate.report.json_report import render_json
    from tests.report_builder import make_audit, make_outcomes, make_run

    outcomes = make_outcomes(samples=10, class_names=["cat", "dog"], lost=1, won=1)
    run = make_run(folder / "cache", audit=make_audit(blocks=1), outcomes=outcomes, pictures=1)
    seed = render_json(run.collect()).encode()
    path = folder / "report.json"
    path.write_bytes(seed)
    good = read_report(path)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        compare_reports(good, read_report(path), labels=("before", "after"))

    return Target(
        name="reports", seeds=(seed,), read=read, share=0.02, guided_share=0.03, form="json"
    )


TARGETS: dict[str, Callable[[Path], Target]] = {
    "suites": suite_target,
    "baselines": baseline_target,
    "cached values": cache_target,
    "cache manifests": entry_target,
    "checkpoint JSON": checkpoint_target,
    "recipe files": recipe_target,
    "WebDataset shards": shard_target,
    "ONNX and state": onnx_target,
    "weights": weights_target,
    "reports": report_target,
    "model files": model_target,
    "model settings": settings_target,
    "git trees": git_target,
    "artifacts": artifact_targets.artifact_target,
    "artifact JSON": artifact_targets.label_target,
    "given states": artifact_targets.given_target,
    "image tables": data_targets.table_target,
    "Parquet files": data_targets.parquet_target,
    "saved data sets": data_targets.saved_target,
}


def make_target(name: str, *, scratch: Path) -> Target:
    """Return a reader that has taken its seeds, so that whatever it imports late is there."""
    folder = scratch / name.replace(" ", "-")
    folder.mkdir()
    target = TARGETS[name](folder)
    for seed in target.seeds:
        target.read(seed)
    return target
