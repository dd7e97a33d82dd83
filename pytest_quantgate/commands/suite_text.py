"""Writes the text of a first suite: gates that the model can have, limits that the data can decide.

Pure but for reading `config.json` and counting samples; the command writes the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantgate.encoders.families import describe_settings, find_config, read_settings
from pytest_quantgate.encoders.source import is_local, refuse_pipeline
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ModelError, SuiteError
from pytest_quantgate.formats.table import FP8_ATTENTION_MIN_TOKENS
from pytest_quantgate.gates.fused import name_fused
from pytest_quantgate.statistics.intervals import Flips, Result
from pytest_quantgate.statistics.sizes import samples_to_settle
from pytest_quantgate.suite.where import expand_path
from pytest_quantgate.tasks.builtin import Purpose
from pytest_quantgate.tasks.clip_benchmark import CAPTIONED
from pytest_quantgate.tasks.kind import BUILTIN as TASKS
from pytest_quantgate.tasks.kind import find_task
from pytest_quantgate.tasks.registry import BUILTIN

#: The flip rate at which the proposed limits are chosen, as `quantgate plan` assumes it.
FLIPS = 0.05
CONFIDENCE = 0.95
#: Limits of which the strictest that the data can decide is proposed.
DROPS_POINTS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
CALIBRATION_SAMPLES, HELD_OUT_SAMPLES, BATCH_SIZE = 512, 128, 64
#: How much more than its expected share SmoothQuant may clip.
SMOOTH_ROOM = 2.5


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """One tower, from its configuration.

    `outer_linears` are the Linear layers beside those of the blocks, `fused` the modules that no
    quantizer gets into.
    """

    name: str
    blocks: int
    width: int
    heads: int
    tokens: int
    outer_linears: int
    fused: tuple[str, ...]

    @property
    def linears(self) -> int:
        """q, k, v, output, fc1 and fc2 in every block, and those beside them."""
        return 6 * self.blocks + self.outer_linears


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The towers of a model."""

    towers: tuple[TowerShape, ...]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is evaluated and calibrated on.

    `name` is the data set in the suite, `dataset` and `root` its declaration (None: it ships),
    `samples` how many a task has, None where it takes loading them to know.
    """

    name: str
    task: str
    calibration_split: str
    dataset: str | None = None
    root: str | None = None
    samples: int | None = None
    calibration_samples: int | None = None
    test_split: str = "test"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a suite is wanted for.

    `checkpoint` is one that was handed over; `is_expected` is whether the recipe is what the user
    expects of it, or what it looks like. `onnx` are files that were handed over, by tower, `dtype`
    what they compute in. With `fp16_onnx`, which are FP16's, files are all there is.
    """

    model: str
    revision: str | None
    recipe: str
    exclude: tuple[str, ...]
    data: Data
    target: str | None = None
    shape: Shape | None = None
    checkpoint: str | None = None
    is_expected: bool = True
    onnx: Mapping[str, str] = field(default_factory=dict)
    fp16_onnx: Mapping[str, str] = field(default_factory=dict)
    dtype: str | None = None


def read_shape(model: str, *, environ: Mapping[str, str]) -> Shape | None:
    """Return the shape of a local model, None for a hub id or a variable that is not set.

    Raises ModelError for a model of no family, QuantGateError for a path that is none.
    """
    if model == "reference":
        from pytest_quantgate.reference import weights_dir

        return _read_config(weights_dir())
    if not is_local(model):
        return None
    if "${" in model and any(not environ.get(name) for name in re.findall(r"\$\{(\w+)\}", model)):
        return None
    folder = expand_path(model, where="--model", environ=environ)
    if not folder.is_dir():
        raise ModelError(f"--model {model}: {folder} is no directory")
    refuse_pipeline(folder, where="--model")
    return _read_config(folder)


def _read_config(folder: Path) -> Shape:
    path = find_config(folder)
    settings = read_settings(folder)
    try:
        return Shape(towers=tuple(map(_measure_tower, describe_settings(settings))))
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the sizes of its towers make no sense: {error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _measure_tower(tower: TowerSpec) -> TowerShape:
    return TowerShape(
        name=tower.name,
        blocks=int(tower.config.num_hidden_layers),
        width=int(tower.config.hidden_size),
        heads=int(tower.config.num_attention_heads),
        tokens=tower.tokens,
        outer_linears=tower.linears,
        fused=tower.fused,
    )


def describe_data(
    text: str,
    *,
    root: str | None,
    task: str | None,
    environ: Mapping[str, str],
    towers: Sequence[str] | None = None,
) -> Data:
    """Return the data that `--data` names: what ships, a local folder, or clip-benchmark's.

    Without a `task` it is one that the data is for and a model with these `towers` can do (None:
    not known, both are taken for granted).

    Raises QuantGateError where a root is missing, or a folder is not in WebDataset's layout.
    """
    if text in BUILTIN:
        if root is not None:
            raise SuiteError(f"--data {text} ships with the package and has no --root")
        return _describe_builtin(text, task=task, towers=towers)
    if is_local(text) or text.startswith("wds/") or Path(text).is_dir():
        return _describe_folder(text, root=root, task=task, environ=environ, towers=towers)
    if root is None:
        raise SuiteError(
            f"--data {text} needs --root: the folder that its files are in, such as "
            f"--root '${{QUANTGATE_DATA}}/{text}' (or name a local WebDataset folder)"
        )
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)
    return Data(
        name=name,
        dataset=text,
        root=as_path(root),
        task=task or choose_task("retrieval" if text in CAPTIONED else "classification", towers),
        calibration_split="train",
    )


def choose_task(purpose: Purpose, towers: Sequence[str] | None) -> str:
    """Return the first task that such data is for and a model with these towers can do; empty
    where there is none."""
    for name in TASKS:
        kind = find_task(f"data/{name}")
        if kind.purpose in (purpose, "images") and set(kind.towers) <= set(towers or kind.towers):
            return name
    return ""


def _describe_builtin(name: str, *, task: str | None, towers: Sequence[str] | None) -> Data:
    from pytest_quantgate.commands.planning import count_builtin

    task = task or choose_task("classification", towers)
    if name == "scenes":  # they have captions too
        task = task or choose_task("retrieval", towers)
    if name != "scenes" and task == "retrieval":
        raise SuiteError(f"--data {name} has labels and no captions: leave out --task retrieval")
    return Data(
        name=name,
        task=task,
        calibration_split="calibration" if name == "scenes" else "train",
        samples=count_builtin(
            name, purpose=find_task(f"{name}/{task}").purpose if task else "classification"
        ).samples,
    )


def _describe_folder(
    text: str,
    *,
    root: str | None,
    task: str | None,
    environ: Mapping[str, str],
    towers: Sequence[str] | None,
) -> Data:
    from pytest_quantgate.tasks.reader import Source
    from pytest_quantgate.tasks.webdataset import count_webdataset

    folder = root if root is not None else text
    last = text.removeprefix("wds/").rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", re.sub(r"\$\{\w+\}", "", last)).strip("_.-") or "data"
    if text.startswith("wds/") and root is None:
        raise SuiteError(f"--data {text} needs --root: the folder that it is in")
    written = as_path(folder)
    dataset = f"wds/{name}"
    if "${" in folder and any(
        not environ.get(variable) for variable in re.findall(r"\$\{(\w+)\}", folder)
    ):
        return Data(
            name=name,
            dataset=dataset,
            root=written,
            task=task or choose_task("classification", towers),
            calibration_split="train",
        )
    path = expand_path(written, where="--data", environ=environ)
    kind = path / "dataset_type.txt"
    said = kind.read_text(encoding="utf-8").strip() if kind.is_file() else "classification"
    found: Purpose = "retrieval" if said == "retrieval" else "classification"
    if task is not None and find_task(f"{name}/{task}").purpose not in (found, "images"):
        raise SuiteError(f"{kind}: the data is for {found}, --task says {task}")
    splits = sorted(shards.parent.name for shards in path.glob("*/nshards.txt"))
    if "test" not in splits:
        raise SuiteError(
            f"{path} has no test/nshards.txt (splits: {', '.join(splits) or 'none'}): a data set "
            f"in WebDataset's layout has train/ and test/ with 0.tar, ... and nshards.txt"
        )
    others = [split for split in splits if split != "test"]
    if not others:
        raise SuiteError(
            f"{path} has only the split test: calibration needs another one, so that no sample is "
            f"used for both"
        )
    calibration = "train" if "train" in others else others[0]
    counts = {
        split: count_webdataset(Source.of_folder(path, split=split)).images
        for split in ("test", calibration)
    }
    for split, count in counts.items():
        if count < 2:  # calibration needs one, and one that is held out
            raise SuiteError(f"{path / split} has {count} images: there is nothing to measure on")
    return Data(
        name=name,
        dataset=dataset,
        root=written,
        task=task or choose_task(found, towers),
        calibration_split=calibration,
        samples=counts["test"],
        calibration_samples=counts[calibration],
    )


def as_model(text: str) -> str:
    """Return a model as a suite writes it: a relative folder that exists gets its `./`."""
    if text == "reference" or is_local(text):
        return text
    return f"./{text}" if Path(text).is_dir() else text


def as_path(text: str) -> str:
    """Return a path as a suite writes it: a relative one gets its `./`."""
    return text if is_local(text) else f"./{text}"


def write_suite(request: Request) -> str:
    """Return the text of a suite file."""
    data, shape = request.data, request.shape
    lines = ["# Written by quantgate init. Every limit is a proposal: say what you can ship."]
    if shape is not None:
        lines += [f"# {line}" for line in _describe_shape(shape)]
    lines += ["quantgate: 1", _model_line(request)]
    if data.dataset is not None and data.root is not None:
        lines += [
            "datasets:",
            f"  {quote(data.name)}: {{dataset: {quote(data.dataset)}, root: {quote(data.root)}}}",
        ]
    lines += _calibration_lines(data)
    fused = [name for tower in shape.towers for name in tower.fused] if shape is not None else []
    patterns = dict.fromkeys([*request.exclude, *map(name_fused, fused)])
    lines += [
        f"# stays in FP16, its family says (docs/guides/encoders.md): {name}" for name in fused
    ]
    exclude = f", exclude: [{', '.join(map(quote, patterns))}]" if patterns else ""
    if not request.fp16_onnx:
        lines.append(_variant_line(request, exclude=exclude))
    if request.onnx:
        lines += ["artifacts:", f"  {_write_files(request.onnx)}"]
    if request.fp16_onnx:
        lines.append(f"  fp16: {{{_write_files(request.fp16_onnx)}}}")
    lines += ["gates:", *(f"  {line}" for line in _gate_lines(request))]
    return "\n".join(lines) + "\n"


def _write_files(files: Mapping[str, str]) -> str:
    return f"onnx: {{{', '.join(f'{tower}: {quote(path)}' for tower, path in files.items())}}}"


def _variant_line(request: Request, *, exclude: str) -> str:
    if request.checkpoint is None:
        return f"quantize: {{recipe: {quote(request.recipe)}{exclude}}}"
    expect = f", expect: {quote(request.recipe)}" if request.is_expected else ""
    return f"quantized: {{checkpoint: {quote(request.checkpoint)}{expect}{exclude}}}"


def _describe_shape(shape: Shape) -> list[str]:
    return [
        f"{tower.name}: {tower.blocks} blocks of width {tower.width}, {tower.heads} heads, "
        f"{tower.tokens} tokens"
        for tower in shape.towers
    ]


def _model_line(request: Request) -> str:
    dtype = f", dtype: {request.dtype}" if request.dtype not in (None, "float16") else ""
    if request.model == "reference":
        return f"model: {{source: reference{dtype}}}"
    revision = f", revision: {quote(request.revision)}" if request.revision else ""
    source = "onnx" if request.fp16_onnx else "transformers"
    return f"model: {{source: {source}, id: {quote(request.model)}{revision}{dtype}}}"


def _split_pairs(data: Data) -> tuple[int, int]:
    """Return how many pairs calibrate, and how many are held out."""
    there = data.calibration_samples
    if there is None or there >= CALIBRATION_SAMPLES + HELD_OUT_SAMPLES:
        return CALIBRATION_SAMPLES, HELD_OUT_SAMPLES
    return max(1, there * 4 // 5), max(1, there - there * 4 // 5)


def _calibration_lines(data: Data) -> list[str]:
    there, note = data.calibration_samples, []
    samples, held_out = _split_pairs(data)
    if there is not None and samples < CALIBRATION_SAMPLES:
        note = [f"# the split has {there} samples; 512 and more give steadier ranges"]
    batch = min(BATCH_SIZE, samples)
    extra = f", held_out_samples: {held_out}" if held_out != HELD_OUT_SAMPLES else ""
    return [
        *note,
        f"calibration: {{data: {quote(f'{data.name}/{data.calibration_split}')}, "
        f"samples: {samples}, batch_size: {batch}{extra}}}",
    ]


def _gate_lines(request: Request) -> list[str]:
    data, recipe = request.data, request.recipe
    has_attention = recipe == "fp8-attention"
    test = quote(f"{data.name}/{data.test_split}")
    fidelity_samples = min(512, data.samples) if data.samples is not None else 512
    fidelity = f"data: {test}, samples: {fidelity_samples}, min_cosine: 0.99"
    if request.fp16_onnx:  # what looks at a PyTorch model is left out
        tasks = _accuracy_lines(data, stage="onnx") if data.task else ()
        files = ["export: {}", f"fidelity: {{{fidelity}, stage: onnx}}", *tasks]
        return [*files, *_engine_lines(request)]
    lines = [
        "coverage: {attention: [q, k, v, output]}" if has_attention else "coverage: {}",
        *_clipping_lines(request),
        f"fidelity: {{{fidelity}}}",
        *(_accuracy_lines(data) if data.task else ()),  # a model may have no task on such data
        "roundtrip: {}",
        "export: {allow: [softmax]}" if has_attention else "export: {}",
        "parity: {}",
    ]
    return [*lines, *_engine_lines(request)]


def _clipping_lines(request: Request) -> list[str]:
    """Return a limit that the calibration can keep.

    SmoothQuant divides each channel by its own largest calibrated value, which a new sample is over
    in one of n + 1 cases; a range of all channels together is hardly ever left.
    """
    if request.recipe != "int8-smoothquant":
        return ["calibration: {max_clipped: 0.1%}"]
    samples, _ = _split_pairs(request.data)
    percent = math.ceil(10 * SMOOTH_ROOM * 100 / (samples + 1)) / 10
    return [
        f"# SmoothQuant: a new sample is over the largest of {samples} in {1 / (samples + 1):.1%}",
        f"calibration: {{max_clipped: {min(percent, 100):g}%}}",
    ]


def _accuracy_lines(data: Data, *, stage: str = "") -> list[str]:
    """Return the gates of a task; of a `stage`, without one against a baseline."""
    drop = propose_drop(data.samples)
    assumption = f"if {FLIPS:.0%} of the answers change"
    if data.samples is None:
        why = f"# run `quantgate plan` with the data in place: are there samples enough for {drop}?"
    else:
        why = f"# {data.samples} samples decide {drop}, {assumption} (quantgate plan)"
    task = quote(f"{data.name}/{data.task}")
    kind = find_task(f"{data.name}/{data.task}")
    metrics = kind.proposed
    lines = ["accuracy:", f"  # {kind.help}", f"  {why}"]
    if not kind.needs_fp16:
        lines.append("  # add floor: a little under what FP16 reaches")
    if kind.bank == "must":
        task += f", bank: {quote(f'{data.name}/{data.calibration_split}')}"
    at = f", stage: {stage}" if stage else ""
    lines += [f"  - {{task: {task}, metric: {metric}, max_drop: {drop}{at}}}" for metric in metrics]
    if stage:
        return lines
    lines += ["regression:", "  # against baselines/: pytest suites/ --quantgate-baselines=create"]
    lines += [
        f"  - {{task: {task}, metric: {metric}, max_fp16_drop: {drop}, max_drop: {drop}, "
        f"max_drop_since_first: {drop}}}"
        for metric in metrics
    ]
    return lines


def propose_drop(samples: int | None) -> str:
    """Return the strictest limit of `DROPS_POINTS` that so many samples decide in 80 % of runs."""
    if samples is None:
        return "1pp"
    flips = Flips(right_to_wrong=FLIPS / 2, wrong_to_right=FLIPS / 2, samples=1)
    for points in DROPS_POINTS:
        if is_decided(flips, samples=samples, confidence=CONFIDENCE, limit=points / 100):
            return f"{points:g}pp"
    return f"{DROPS_POINTS[-1]:g}pp"


def is_decided(found: Result, *, samples: float, confidence: float, limit: float) -> bool:
    """Return whether so many samples at these rates decide a limit in 80 % of runs."""
    needed = samples_to_settle(found, confidence=confidence, limit=limit)
    return needed is not None and needed <= samples


def _engine_lines(request: Request) -> list[str]:
    if request.target is None:
        return ["# engine: {target: sm89}   # quantgate init --target sm89 proposes its limits"]
    if request.recipe not in ("fp8", "fp8-attention"):
        return ["memory:", f"  - {{target: {request.target}, max_weights_ratio: 0.9x}}"]
    shape = request.shape
    if shape is None:
        return [
            "engine:",
            "  # linear layers of the towers that must run in FP8: 6 a block, and the projections",
            f"  - {{target: {request.target}, min_fp8_gemms: 1}}",
        ]
    lines = ["engine:", "  # 6 linear layers a block, and those beside the blocks"]
    for tower in shape.towers:
        fused = request.recipe == "fp8-attention" and tower.tokens >= FP8_ATTENTION_MIN_TOKENS
        attention = ", attention: fused-fp8" if fused else ""
        if request.recipe == "fp8-attention" and not fused:
            lines.append(
                f"  # FP8 attention fuses from {FP8_ATTENTION_MIN_TOKENS} tokens on: "
                f"{tower.name} has {tower.tokens}"
            )
        lines.append(
            f"  - {{target: {request.target}, towers: [{tower.name}], "
            f"min_fp8_gemms: {tower.linears}{attention}}}"
        )
    return lines


def quote(text: str) -> str:
    """Return a text as YAML takes it in a flow mapping: plain where that is safe."""
    if (
        re.fullmatch(r"(?:[A-Za-z_/]|\.\.?/)[A-Za-z0-9_./@-]*", text)
        and text.lower() not in _YAML_WORDS
    ):
        return text
    return json.dumps(text, ensure_ascii=False)


_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
