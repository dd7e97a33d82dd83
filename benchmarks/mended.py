"""A mended bug and a replaced package on the warm cache that they filled: is anything replayed?

    python -m benchmarks.mended [--only REGEX] [--record benchmarks/mended.md]

A good run fills a cache. Then a bug is planted in each measuring module of a copy of the package in
turn, and the same measurement is taken again on that cache: its value must change. At the end all
is mended, and the first values must come back. A second part puts another ONNX Runtime before the
installed one, of the same version, whose vision outputs come out reversed.

Each run is a fork of a process that has imported PyTorch and what is slow beside it, but nothing of
this package; a replaced package that is imported there already gets a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_quantgate"
PAGE = Path(__file__).with_suffix(".md")

SUITE = """\
quantgate: 1
model: {source: reference}
datasets: {pictures: {dataset: wds/pictures, root: "${QUANTGATE_ROOT}"}}
calibration: {data: scenes/calibration, samples: 8, batch_size: 4, held_out_samples: 8}
quantize: {recipe: fp8-attention}
gates:
  coverage: {}
  fidelity: {data: scenes/test, samples: 8, min_cosine: 0.1}
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 90pp, samples: 32}
    - {task: scenes/retrieval, metric: text_retrieval_recall@1, max_drop: 90pp, samples: 16}
    - {task: pictures/classification, metric: acc1, max_drop: 90pp, samples: 12}
  roundtrip: {}
  parity: {samples: 8}
"""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A bug: code put at the end of a module, and the measurement that it spoils.

    `moves` says whether its value changes; otherwise it is measured again to the same.
    """

    module: str
    code: str
    spoils: str
    moves: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one plant did on the cache of the good run."""

    name: str
    spoils: str
    words: str
    ok: bool

    @classmethod
    def of(cls, plant: Plant, found: Mapping[str, Any], *, good: Mapping[str, Any]) -> Row:
        if "error" in found:
            last = found["error"].strip().splitlines()[-1]
            return cls(name=plant.module, spoils=plant.spoils, words=last, ok=False)
        moved = found["values"][plant.spoils] != good["values"][plant.spoils]
        built = len(found["built"])
        words = f"measured again ({built} built), {'another' if moved else 'the same'} value"
        return cls(
            name=plant.module,
            spoils=plant.spoils,
            words=words if built else "REPLAYED",
            ok=bool(built) and moved == plant.moves,
        )

    @property
    def line(self) -> str:
        return f"{'ok ' if self.ok else 'BAD'}  {self.name:<34} {self.spoils:<12} {self.words}"


def wrap(function: str, body: str) -> str:
    """Return code that replaces a function by one that may call the good one as `good`."""
    return f"good = {function}\ndef {function}(*given, **named):\n    {body}\n"


PLANTS = (
    Plant(  # FP16 compared with itself
        module="run/measured.py",
        code="good = Measured._image_embeddings\n"
        "Measured._image_embeddings = lambda self, *about: good(self, *about)[:1] * 2",
        spoils="outcomes",
    ),
    Plant(
        module="run/exported.py",
        code="good = ExportedTowers.encode\n"
        "ExportedTowers.encode = lambda self, *inputs: good(self, *inputs).flip(1)",
        spoils="parity",
    ),
    Plant(
        module="run/sensitivity.py",
        code="take_spread = lambda samples, count: samples.select([0, 1])",
        spoils="suspects",
    ),
    Plant(
        module="run/timed_runs.py",
        code="good = make_batch\nmake_batch = lambda stages, size: good(stages, size=1)",
        spoils="timed inputs",
    ),
    Plant(
        module="evidence/codec.py",
        code=wrap(
            "to_json",
            "found = good(*given)\n"
            "    return round(found, 1) if isinstance(found, float) else found",
        ),
        spoils="fidelity",
    ),
    Plant(
        module="measure/accuracy.py",
        code=wrap(
            "classification_outcomes", "return good(**{**named, 'images': -named['images']})"
        ),
        spoils="outcomes",
    ),
    Plant(
        module="measure/activations.py",
        code=wrap("measure_activations", "return good(*given, **named)[1:]"),
        spoils="activations",
    ),
    Plant(
        module="measure/audit.py",
        code=wrap(
            "audit_quantizers",
            "return good(*given, **{**named, 'held_out': named['held_out'][:1]})",
        ),
        spoils="audit",
    ),
    Plant(
        module="measure/embeddings.py",
        code=wrap("average_templates", "return -good(*given, **named)"),
        spoils="outcomes",
    ),
    Plant(
        module="measure/fidelity.py", code="to_db = lambda signal, noise: 30.0", spoils="fidelity"
    ),
    Plant(
        module="measure/groups.py",
        code=wrap("group_quantizers", "return good(*given)[-1:]"),
        spoils="suspects",
    ),
    Plant(
        module="measure/operations.py",
        code="FUNCTIONS = {}",
        spoils="audit",
    ),
    Plant(
        module="measure/invariance.py",
        code="_distances = lambda value, reference: value.abs().sum(dim=1)",
        spoils="audit",
    ),
    Plant(
        module="measure/outliers.py",
        code="def find_outliers(name, *_, **__):\n"
        "    return None if slot_of(name) != 'input' else OutlierChannels(\n"
        "        quantizer=name, place='fc1', format='E4M3', channels=(0,), channels_count=64,\n"
        "        largest_ratio=9.0, smallest_ratio=9.0, range_ratio=0.5, levels=None,\n"
        "        levels_count=None, smoothable=False)",
        spoils="suspects",
    ),
    Plant(module="measure/parity.py", code="NUDGE = 0.1", spoils="parity"),
    Plant(
        module="measure/quantizers.py",
        code=wrap("count_clipped", "return [1] * len(given[1]), given[1].numel()"),
        spoils="audit",
    ),
    Plant(
        module="measure/roundtrip.py",
        code="plant_damage = lambda *_, **__: ((), ())",
        spoils="roundtrip",
    ),
    Plant(
        module="measure/sanity.py",
        code=wrap(
            "measure_sanity",
            "import dataclasses\n    found = good(*given, **named)\n"
            "    return dataclasses.replace(found, tasks=found.tasks[1:])",
        ),
        spoils="sanity",
    ),
    Plant(
        module="measure/shipped.py",
        code=wrap(
            "measure_shipped",
            "import dataclasses\n    found = good(*given, **named)\n"
            "    return dataclasses.replace(found, samples=0)",
        ),
        spoils="shipped",
    ),
    Plant(module="measure/sensitivity.py", code="noise_ratio = lambda *_: 0.5", spoils="suspects"),
    Plant(
        module="quantization/search.py",
        code="import dataclasses\n"
        + wrap(
            "search_formats", "return dataclasses.replace(good(*given, **named), asked_bits=1.0)"
        ),
        spoils="search",
    ),
    Plant(
        module="measure/texts.py",
        code="TextReader.as_heard = lambda _self, texts: [(0,)] * len(texts)",
        spoils="sanity",
    ),
    Plant(
        module="quantization/attention.py",
        code="from contextlib import nullcontext\nattention_class = lambda *_, **__: nullcontext()",
        spoils="audit",
    ),
    Plant(
        module="quantization/checkpoint.py",
        code=wrap("verify_checkpoint", "return json.loads((given[0] / MANIFEST).read_text())"),
        spoils="roundtrip",
    ),
    Plant(
        module="encoders/encoder.py",
        code="good = Encoder._place\n"
        "Encoder._place = lambda self, *given: {\n"
        "    name: -value if value.is_floating_point() else value\n"
        "    for name, value in good(self, *given).items()\n"
        "}",
        spoils="fidelity",
    ),
    Plant(
        module="encoders/loading.py",
        code=wrap(
            "load_fp16",
            "found = good(*given, **named)\n"
            "    found.module.visual_projection.weight.mul_(-1)\n    return found",
        ),
        spoils="outcomes",
    ),
    Plant(
        module="quantization/quantize.py",
        code=wrap(
            "_calibrate_batch",
            "model, batch = given\n"
            "    doubled = {'pixel_values': batch.pixel_values * 2}\n"
            "    batch = batch.with_inputs('vision', doubled)\n"
            "    return good(model, batch, **named)",
        ),
        spoils="audit",
    ),
    Plant(
        module="quantization/recipes.py",
        code=wrap("named_recipes", "return {name: good()['int8'] for name in good()}"),
        spoils="audit",
    ),
    Plant(
        module="reference/scenes.py",
        code=wrap("_sine", "return -good(*given)"),
        spoils="contents",
    ),
    Plant(
        module="runtimes/onnx_blocks.py",
        code=wrap(
            "cut_blocks",
            "found = good(*given, **named)\n"
            "    blocks = [*filter(None, found)]\n"
            "    return {**found, **dict(zip(blocks, [found[name] for name in blocks[::-1]]))}",
        ),
        spoils="parity",
    ),
    Plant(
        module="runtimes/onnx_export.py",
        code=wrap(
            "_copy_tower",
            "found = good(*given, **named)\n"
            "    for weight in found.parameters():\n        weight.data.mul_(2)\n"
            "    return found",
        ),
        spoils="export",
    ),
    Plant(
        module="runtimes/onnx_graph.py",
        code=wrap(
            "read_graph",
            "import dataclasses\n    found = good(*given, **named)\n"
            "    return dataclasses.replace(found, pairs=found.pairs[1:])",
        ),
        spoils="export",
    ),
    Plant(
        module="runtimes/onnx_surgery.py",
        code=wrap(
            "_add_pair",
            "import dataclasses\n    quantizer = named['quantizer']\n"
            "    return good(*given, quantizer=dataclasses.replace("
            "quantizer, amax=quantizer.amax * 2))",
        ),
        spoils="export",
    ),
    Plant(
        module="runtimes/onnxruntime_session.py",
        code="good = OnnxRuntimeModel._compute\n"
        "OnnxRuntimeModel._compute = lambda self, feeds: [-x for x in good(self, feeds)]",
        spoils="parity",
    ),
    Plant(
        module="tasks/builtin.py",
        code=wrap(
            "load_scenes",
            "import dataclasses\n    found = good(*given, **named)\n"
            "    labels = found.labels and (*found.labels[1:], found.labels[0])\n"
            "    return dataclasses.replace(found, labels=labels)",
        ),
        spoils="outcomes",
    ),
    Plant(
        module="tasks/contents.py", code="hash_pixels = lambda _image: '0' * 64", spoils="contents"
    ),
    Plant(
        module="tasks/drawing.py",
        code="order_draw = lambda labels: list(range(len(labels)))",
        spoils="pictures",
    ),
    Plant(
        module="tasks/registry.py",
        code=wrap("split_calibration", "return good(*given, **named)[::-1]"),
        spoils="audit",
    ),
    Plant(
        module="tasks/samples.py",
        code="fill = lambda template, class_name: template",
        spoils="outcomes",
    ),
    Plant(
        module="tasks/webdataset.py",
        code=wrap("_read_label", "return 0"),
        spoils="pictures",
    ),
)


#: Packages that the issue names, each with code that changes what it computes, put at the end of
#: one of its files. The version stays.
REPLACED = (
    Plant(
        module="onnxruntime/__init__.py",
        code="""
good = InferenceSession.run
def run(self, names, feeds, *more):
    found = good(self, names, feeds, *more)
    return [x[..., ::-1].copy() for x in found] if "pixel_values" in feeds else found
InferenceSession.run = run
""",
        spoils="parity",
    ),
    Plant(
        module="onnx/numpy_helper.py",
        code=wrap("to_array", "return 2 * good(*given, **named)"),
        spoils="export",
    ),
    Plant(
        module="PIL/Image.py",
        code="good = Image.convert\n"
        "Image.convert = lambda self, *given: good(self, *given).transpose(1)",
        spoils="contents",
    ),
    Plant(
        module="torchvision/transforms/v2/functional/_misc.py",
        code="# patched",
        spoils="fidelity",
        moves=False,
    ),
    Plant(module="tokenizers/__init__.py", code="# patched", spoils="fidelity", moves=False),
)


# -- a run: in a fork, with the copy of the package ------------------------------------------------


def measure(kinds: Sequence[str], *, folder: Path) -> dict[str, Any]:
    """Return what a run in this process measures of each kind, and how many entries it built."""
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.run.progress import silent
    from pytest_quantgate.store.baseline_mode import BaselineMode
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.cache import Cache
    from pytest_quantgate.store.settings import Settings
    from pytest_quantgate.suite.load import load_suite

    built: list[str] = []

    class Counting(Cache):
        def get_or_build(self, *, kind: str, key: str, build: Callable[[Path], None]) -> Path:
            def counted(entry: Path) -> None:
                built.append(kind)
                build(entry)

            return super().get_or_build(kind=kind, key=key, build=counted)

    settings = Settings(
        baselines=BaselineMode.CHECK,
        baselines_dir=folder / "baselines",
        obtained_dir=folder / "obtained",
        cache_dir=folder / "cache",
        reason="",
        strict=False,
        device="cpu",
        suite="",
        root=folder,
    )
    case = Case(
        suite=load_suite(folder / "suite.quantgate.yaml"),
        settings=settings,
        store=Store(settings.baselines_dir),
        cache=Counting(root=settings.cache_dir),
        progress=silent(),
        environ={"QUANTGATE_ROOT": str(folder / "pictures")},
    )
    values = {kind: KINDS[kind](case) for kind in kinds}
    return {"values": json.loads(json.dumps(values, default=repr)), "built": built}


def _outcomes(case: Case, place: int) -> Any:
    from pytest_quantgate.gates.accuracy import AccuracyGate

    gate = case.suite.gates.all(AccuracyGate)[place]
    return [repr(case.outcomes(task=gate.task, metric=gate.metric, samples=gate.samples))]


def _search(case: Case) -> Any:
    from dataclasses import replace

    from pytest_quantgate.run.case import Case

    spec = case.suite.quantize
    assert spec is not None
    spec = replace(spec, recipe={"auto": {"bits": 9, "formats": ["int4", "fp8"]}})
    searched = Case(
        suite=replace(case.suite, quantize=spec),
        settings=case.settings,
        store=case.store,
        cache=case.cache,
        progress=case.progress,
        environ=case.environ,
    )
    return repr(searched.search)


def _timed_inputs(case: Case) -> Any:
    from pytest_quantgate.gates.latency import LatencyGate
    from pytest_quantgate.run.timed_runs import keep_inputs
    from pytest_quantgate.suite.where import Where

    gate = LatencyGate(where=Where(file="x", line=1), tower="text", batch=2)
    return hashlib.sha256(Path(keep_inputs(case.stages, gate)).read_bytes()).hexdigest()


def _suspects(case: Case) -> Any:
    from pytest_quantgate.gates.accuracy import AccuracyGate
    from pytest_quantgate.run.sensitivity import Study

    return repr(Study(case).suspects(case.suite.gates.all(AccuracyGate)[0]))


def _export(case: Case) -> Any:
    return repr(case.stages.onnx_audit(variant="quantized", tower="vision", precision="float32"))


KINDS: dict[str, Callable[[Case], Any]] = {
    "activations": lambda case: repr(case.activations()),
    "audit": lambda case: repr(case.audit),
    "contents": lambda case: repr(case.evaluation_hashes()),
    "export": _export,
    "fidelity": lambda case: repr(case.fidelity()),
    "outcomes": lambda case: [_outcomes(case, 0), _outcomes(case, 1)],
    "parity": lambda case: repr(case.stages.parity(samples=4)),
    "pictures": lambda case: _outcomes(case, 2),
    "roundtrip": lambda case: repr(case.roundtrip()),
    "sanity": lambda case: repr(case.sanity),
    "search": _search,
    "shipped": lambda case: repr(case.stages.shipped_towers(samples=4)),
    "suspects": _suspects,
    "timed inputs": _timed_inputs,
}


def in_fork(kinds: Sequence[str], *, folder: Path, first: Sequence[Path] = ()) -> dict[str, Any]:
    """Return what `measure` does in a fork of this process; `{"error": ...}` where it raises.

    `first` are folders that come first on its path.
    """
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            sys.path[:0] = [str(path) for path in (*first, folder / "copy")]
            found = measure(kinds, folder=folder)
        except BaseException:  # noqa: BLE001 (what the parent reports; a fork must not go on)
            found = {"error": traceback.format_exc()}
        answer.write_text(json.dumps(found))
        os._exit(0)
    os.waitpid(child, 0)
    found = json.loads(answer.read_text())
    return dict(found)


def in_process(kinds: Sequence[str], *, folder: Path, first: Path) -> dict[str, Any]:
    """Return what `measure` does in a new process, with a folder first on its path."""
    code = "import sys; from benchmarks import mended; mended.answer(sys.argv[1], sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *kinds],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (first, folder / "copy", ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": done.stderr}
    return dict(json.loads((folder / "answer.json").read_text()))


def answer(folder: str, kinds: Sequence[str]) -> None:
    found = measure(kinds, folder=Path(folder))
    (Path(folder) / "answer.json").write_text(json.dumps(found))


# -- the bench -------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write a copy of the package, the suite, and a folder of pictures."""
    shutil.copytree(
        PACKAGE, folder / "copy" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "suite.quantgate.yaml").write_text(SUITE, encoding="utf-8")
    root = folder / "pictures"
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("red\ngreen\nblue\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} circle\n")
    (root / "test" / "nshards.txt").write_text("1\n")
    draw = numpy.random.default_rng(0)
    with tarfile.open(root / "test" / "0.tar", "w") as shard:
        for index in range(48):
            picture = Image.fromarray(draw.integers(0, 256, (48, 48, 3), dtype=numpy.uint8))
            content = io.BytesIO()
            picture.save(content, format="PNG")
            for suffix, data in (("png", content.getvalue()), ("cls", b"%d" % (index % 3))):
                member = tarfile.TarInfo(f"{index:04d}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def try_all(plants: Sequence[Plant], replaced: Sequence[Plant], *, folder: Path) -> list[Row]:
    """Return what each bug and each package did to a measurement on the good run's cache."""
    kinds = sorted({plant.spoils for plant in (*plants, *replaced)})
    good = in_fork(kinds, folder=folder)
    if "error" in good:
        raise SystemExit(good["error"])
    rows = []
    for plant in plants:
        path = folder / "copy" / PACKAGE.name / plant.module
        before = path.read_text("utf-8")
        path.write_text(f"{before}\n{plant.code}\n", encoding="utf-8")
        rows.append(Row.of(plant, in_fork([plant.spoils], folder=folder), good=good))
        path.write_text(before, encoding="utf-8")
        print(rows[-1].line, flush=True)
    for plant in replaced:
        first = folder / "shadow"
        name = plant.module.partition("/")[0]
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        (installed,) = spec.submodule_search_locations
        ignored = shutil.ignore_patterns("__pycache__", "test")
        shutil.copytree(installed, first / name, ignore=ignored)
        # Found beside the package that needs them.
        for libraries in Path(installed).parent.glob("*.libs"):
            (first / libraries.name).symlink_to(libraries)
        with (first / plant.module).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{plant.code}\n")
        if name in sys.modules:
            found = in_process([plant.spoils], folder=folder, first=first)
        else:
            found = in_fork([plant.spoils], folder=folder, first=[first])
        shutil.rmtree(first)
        rows.append(Row.of(plant, found, good=good))
        print(rows[-1].line, flush=True)
    mended = in_fork(kinds, folder=folder)
    same = mended.get("values") == good["values"]
    rows.append(
        Row(
            name="all mended",
            spoils=", ".join(kinds),
            ok=same and not mended["built"],
            words="the first values, nothing built" if same else "other values",
        )
    )
    print(rows[-1].line, flush=True)
    return rows


def warm_up() -> None:
    """Import what is slow and what no plant replaces, so that each fork has it already."""
    import modelopt.torch.quantization  # noqa: F401
    import torch
    from transformers import CLIPModel  # noqa: F401

    torch.set_num_threads(1)  # a pool of threads does not live on in a fork


def render_page(rows: Sequence[Row]) -> str:
    bad = sum(not row.ok for row in rows)
    lines = [
        "# Mended bugs and replaced packages on a warm cache",
        "",
        f"Written by `python -m benchmarks.mended` on {datetime.now(UTC).date().isoformat()}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}. "
        f"{bad} of {len(rows)} rows are bad.",
        "",
        "A bug was planted in one module at a time, or a package of the same version put before "
        "the installed one, and the measurement taken again on the cache of the good run.",
        "",
        "| what was changed | measurement | what happened | as it must be |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row.name}` | {row.spoils} | {row.words} | {'yes' if row.ok else '**no**'} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="REGEX", default="", help="plants in these modules")
    parser.add_argument("--record", action="store_true", help=f"write {PAGE.name} beside this file")
    asked = parser.parse_args()
    plants, replaced = (
        [plant for plant in group if re.search(asked.only, plant.module)]
        for group in (PLANTS, REPLACED)
    )
    warm_up()
    with tempfile.TemporaryDirectory(prefix="quantgate-") as name:
        prepare(Path(name))
        rows = try_all(plants, replaced, folder=Path(name))
    if asked.record:
        PAGE.write_text(render_page(rows), encoding="utf-8")
    return int(not all(row.ok for row in rows))


if __name__ == "__main__":
    sys.exit(main())
