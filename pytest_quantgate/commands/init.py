"""`quantgate init`: write a first suite for a model, from flags or in a dialogue."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.store.disk import describe_write_error, refuse_links, temporary_folder
from pytest_quantgate.tasks.kind import BUILTIN

if TYPE_CHECKING:
    from pytest_quantgate.commands.suite_text import Request

RECIPE = "fp8-attention"

EXAMPLES = """\
examples:
  quantgate init                                               # asks, in a terminal
  quantgate init --model reference --data scenes --output suites/clip.quantgate.yaml
  quantgate init --model ./my-clip --data ./photos --target sm89 --output suites/my.quantgate.yaml
  quantgate init --model openai/clip-vit-base-patch32 --revision COMMIT \\
      --data cifar100 --root '${QUANTGATE_DATA}/cifar100' --output suites/b32.quantgate.yaml

--data is what ships (scenes, digits), a local WebDataset folder, or a data set of clip-benchmark
with its --root. The suite is loaded and checked before it is written; a file that is there already
is never touched. With --output - it is printed.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "init",
        help="write a first suite for a model",
        description="Write a first suite for a model: gates that it can have, and limits that the "
        "data can decide.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--model", metavar="PATH_OR_ID", help="reference, a folder, or a hub id")
    parser.add_argument("--revision", metavar="COMMIT", help="commit of the hub id")
    parser.add_argument("--data", metavar="DATASET", help="what is evaluated and calibrated on")
    parser.add_argument("--root", metavar="DIR", help="the folder that the data set is in")
    parser.add_argument(
        "--task",
        choices=BUILTIN,
        metavar="TASK",
        help=f"{', '.join(BUILTIN)}; default: what the data is for and the model can do",
    )
    parser.add_argument("--recipe", metavar="RECIPE", help=f"default: {RECIPE}")
    parser.add_argument(
        "--exclude", metavar="PATTERN", action="append", help="what stays unquantized; repeatable"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="a quantized checkpoint of --model that is handed over; --recipe is what it should be",
    )
    parser.add_argument(
        "--onnx",
        metavar="PATH",
        action="append",
        help="an exported tower that is handed over; repeatable",
    )
    parser.add_argument(
        "--fp16-onnx",
        metavar="PATH",
        action="append",
        help="the tower before it was quantized, where ONNX files are all there is, and --model is "
        "a folder with config.json, tokenizer and image processor; repeatable",
    )
    parser.add_argument("--target", metavar="SM", help="build engines for it too, such as sm89")
    parser.add_argument("--output", metavar="FILE", help="the suite to write; -: print it")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    if any(value is None for value in (parsed.model, parsed.data, parsed.output)):
        _ask_for_the_rest(parsed)
    target = _check_output(parsed.output)
    request = _request(parsed, environ=environ)
    text = _checked(request, name=target.name if target is not None else "suite", environ=environ)
    if target is None:
        sys.stdout.write(text)
        return 0
    _write(target, text)
    from pytest_quantgate.text.wrapping import say

    say(f"written: {target}")
    say(f"next: quantgate plan {target}; pytest {target}")
    say(f"limits from what is measured: quantgate limits {target}")
    return 0


def _request(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> Request:
    from pytest_quantgate.commands.suite_text import (
        Request,
        as_model,
        as_path,
        describe_data,
        read_shape,
    )
    from pytest_quantgate.encoders.source import is_local

    model = as_model(parsed.model)
    if model != "reference" and not is_local(model) and not parsed.revision:
        raise SuiteError(
            f"--model {model} is a hub id (there is no such folder): pin it with --revision "
            f"COMMIT, so that the model cannot change under the gate"
        )
    if parsed.revision and (model == "reference" or is_local(model)):
        raise SuiteError(f"--revision: {model} has no revision, only a hub id has one")
    if parsed.revision and not re.fullmatch(r"[0-9a-f]{40}", parsed.revision):
        raise SuiteError(
            f"--revision {parsed.revision} is no commit (40 hexadecimal digits): a branch or a tag "
            f"can be moved under the gate"
        )
    if parsed.target and not re.fullmatch(r"sm\d{2,3}", parsed.target):
        raise SuiteError(f"--target {parsed.target} is no compute capability, such as sm89")
    shape = read_shape(model, environ=environ)
    towers = None if shape is None else [tower.name for tower in shape.towers]
    checkpoint = None if parsed.checkpoint is None else as_path(parsed.checkpoint)
    onnx, dtype = _describe_onnx(parsed.onnx or (), option="--onnx", environ=environ)
    before, dtype_before = _describe_onnx(
        parsed.fp16_onnx or (), option="--fp16-onnx", environ=environ
    )
    if before:
        _check_alone(parsed, towers=towers, onnx=onnx, before=before)
        dtype = dtype_before if dtype == "unknown" else dtype  # all that it stores are codes
    return Request(
        model=model,
        revision=parsed.revision,
        recipe=parsed.recipe or (RECIPE if checkpoint is None else _guess_recipe(checkpoint)),
        exclude=tuple(parsed.exclude or ()),
        data=describe_data(
            parsed.data, root=parsed.root, task=parsed.task, environ=environ, towers=towers
        ),
        target=parsed.target,
        shape=shape,
        checkpoint=checkpoint,
        is_expected=parsed.recipe is not None,
        onnx=onnx,
        fp16_onnx=before,
        dtype=dtype,
    )


def _check_alone(
    parsed: argparse.Namespace,
    *,
    towers: Sequence[str] | None,
    onnx: Mapping[str, str],
    before: Mapping[str, str],
) -> None:
    """Raise SuiteError where a suite of ONNX files alone cannot be what was asked for."""
    others = [name for name in ("checkpoint", "recipe", "exclude") if getattr(parsed, name)]
    if others:
        raise SuiteError(
            f"--{others[0]} with --fp16-onnx: a suite of ONNX files alone quantizes nothing and "
            f"has no checkpoint: leave out one of both"
        )
    for option, files in (("--onnx", onnx), ("--fp16-onnx", before)):
        missing = [tower for tower in towers or {**onnx, **before} if tower not in files]
        if missing:
            raise SuiteError(f"{option} names no file of the {missing[0]} tower: name it, too")


def _describe_onnx(
    paths: Sequence[str], *, option: str, environ: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """Return files by the tower that their inputs tell, and the type that they compute in.

    Raises SuiteError for one of no tower, two of one, and files of different types.
    """
    from pytest_quantgate.artifacts.given_onnx import find_precision
    from pytest_quantgate.artifacts.onnx_file import read_onnx_graph
    from pytest_quantgate.artifacts.onnx_operands import find_tower
    from pytest_quantgate.commands.suite_text import as_path
    from pytest_quantgate.suite.where import expand_path

    if not paths:
        return {}, None
    found: dict[str, str] = {}
    types: dict[str, str] = {}
    for text in map(as_path, paths):
        graph = read_onnx_graph(expand_path(text, where=option, environ=environ))
        tower = find_tower(graph)
        if tower == "other":
            raise SuiteError(
                f"{option} {text}: its inputs ({', '.join(graph.inputs)}) do not tell which tower "
                f"it is: write artifacts: {{onnx: {{vision: {text}}}}} into the suite"
            )
        if tower in found:
            raise SuiteError(f"{option} {text}: {found[tower]} is a {tower} tower already")
        found[tower] = text
        types[find_precision(graph)] = text
    if len(types) > 1:
        raise SuiteError(
            f"{option}: the files compute in {' and '.join(types)} ({', '.join(types.values())}): "
            f"a suite ships one type"
        )
    return found, next(iter(types), None)


def _guess_recipe(checkpoint: str) -> str:
    """Return the recipe that a checkpoint looks like; the default where it is none of ours."""
    from pytest_quantgate.artifacts.checkpoints import read_files, read_quantizers
    from pytest_quantgate.quantization.quantizers import slot_of

    if "${" in checkpoint:
        return RECIPE
    files = read_files(Path(checkpoint).expanduser())
    found = [q for q in read_quantizers(files).values() if q.enabled]
    if any(quantizer.format == "INT8" for quantizer in found):
        is_smooth = files.state is not None and files.state.algorithm == "smoothquant"
        return "int8-smoothquant" if is_smooth else "int8"
    has_attention = any(slot_of(quantizer.name) == "q" for quantizer in found)
    return "fp8-attention" if has_attention or not found else "fp8"


def _checked(request: Request, *, name: str, environ: Mapping[str, str]) -> str:
    """Return the text of a suite that loads and whose names are all known; raises SuiteError."""
    from pytest_quantgate.commands.suite_checks import check_suite
    from pytest_quantgate.commands.suite_text import write_suite
    from pytest_quantgate.suite.load import load_suite

    text = write_suite(request)
    with temporary_folder() as folder:
        draft = folder / name
        draft.write_text(text, encoding="utf-8")
        found = check_suite(load_suite(draft, relative_to=folder), environ=environ)
    if found.errors:
        raise SuiteError(f"nothing was written: {found.errors[0]}")
    return text


def _check_output(output: str) -> Path | None:
    from pytest_quantgate.suite.names import SUFFIX

    if output == "-":
        return None
    path = Path(output)
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise SuiteError(f"--output {output}: a suite is a file NAME{SUFFIX}")
    if path.exists() or path.is_symlink():
        raise SuiteError(f"{path} is there already and was not touched: choose another --output")
    return path


def _write(path: Path, text: str) -> None:
    """Write a new file; raises SuiteError, also where somebody else made it meanwhile."""
    try:
        refuse_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        out = path.open("x", encoding="utf-8")
        try:
            with out:
                out.write(text)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise SuiteError(f"{path} is there already and was not touched") from error
    except OSError as error:
        reason = describe_write_error(error, folder=path.parent)
        raise SuiteError(f"cannot write {path}: {reason}") from error


def _ask_for_the_rest(parsed: argparse.Namespace) -> None:
    """Ask for what no flag says; raises SuiteError where nobody can answer."""
    missing = [name for name in ("model", "data", "output") if getattr(parsed, name) is None]
    if not sys.stdin.isatty():
        raise SuiteError(
            f"{', '.join(f'--{name}' for name in missing)} missing, and there is no terminal to "
            f"ask in: quantgate init --model reference --data scenes "
            f"--output suites/clip.quantgate.yaml"
        )
    try:
        _ask(parsed, ask=_ask_in_terminal)
    except (EOFError, KeyboardInterrupt) as error:
        print()
        raise SuiteError("ended before all was answered: nothing was written") from error


def _ask(parsed: argparse.Namespace, *, ask: Callable[[str, str], str]) -> None:
    """Fill in the answers; `ask(question, default)` returns what was typed."""
    from pytest_quantgate.commands.suite_text import as_model
    from pytest_quantgate.encoders.source import is_local
    from pytest_quantgate.tasks.registry import BUILTIN

    if parsed.model is None:
        parsed.model = ask("model: reference, a folder, or a hub id", "reference")
    model = as_model(parsed.model)
    if model != "reference" and not is_local(model) and parsed.revision is None:
        parsed.revision = ask("commit of the hub id (40 digits)", "")
    if parsed.data is None:
        parsed.data = ask(
            "data: scenes, digits, a WebDataset folder, or clip-benchmark's", "scenes"
        )
        is_folder = is_local(parsed.data) or Path(parsed.data).is_dir()
        if parsed.data not in BUILTIN and not is_folder and parsed.root is None:
            root = ask("the folder that it is in", f"${{QUANTGATE_DATA}}/{parsed.data}")
            parsed.root = root or None
    if parsed.recipe is None and not parsed.fp16_onnx:
        parsed.recipe = ask(f"recipe: {', '.join(RECIPES)}, a preset or a file", RECIPE)
    if parsed.target is None:
        parsed.target = ask("build engines for (sm89, sm120, ...; empty: no engines)", "") or None
    if parsed.output is None:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", model.rstrip("/").rpartition("/")[2]).strip("._-")
        parsed.output = ask("write to", f"suites/{name or 'clip'}.quantgate.yaml")


def _ask_in_terminal(question: str, default: str) -> str:
    shown = f" [{default}]" if default else ""
    return input(f"{question}{shown}: ").strip() or default
