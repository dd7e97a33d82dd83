"""`quantgate check`: say of a file that was handed over what is quantized, and what is wrong.

Exit status: 0 no finding, 1 findings, 2 a file that cannot be read, is none of those known, or
wrong use.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import ArtifactError, QuantGateError

if TYPE_CHECKING:
    from pytest_quantgate.inspection.findings import Report

CLEAN, FOUND, TROUBLE = 0, 1, 2

EXAMPLES = """\
examples:
  quantgate check out/                               # a checkpoint, or a folder of files
  quantgate check model.onnx layers.json             # an ONNX file, and what an engine made of it
  quantgate check out/ --base clip-fp16/             # SQNR by layer, and what is not the base's

PATH is a checkpoint (folder, *.safetensors, or the file of mto.save) of ModelOpt, its unified
export, compressed-tensors or torchao, an ONNX file of any tool, an engine plan, or the layer report
of trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed. Nothing is unpickled and no model
is built. The status is 0 without a finding, 1 with one, 2 where a file cannot be read.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="say what is quantized in a checkpoint, ONNX file or engine, and what is wrong",
        description="Say in seconds, without a suite, what a checkpoint, an ONNX file or an "
        "engine's layer report holds: what is quantized in which format, what is not, and what "
        "looks wrong.",
        epilog=EXAMPLES,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="file or folder")
    parser.add_argument(
        "--base", metavar="PATH", help="the FP16 model that it was made from: folder or file"
    )
    parser.add_argument(
        "--ignore",
        metavar="CODE",
        action="append",
        default=[],
        help="leave out findings of this code (check.loads-as-plain); may be repeated",
    )
    parser.add_argument("--json", metavar="FILE", help="write JSON (-: print it)")
    parser.add_argument("--markdown", metavar="FILE", help="write Markdown (-: print it)")
    parser.add_argument(
        "--all", action="store_true", help="show every operand, and every layer of --base"
    )


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.text.wrapping import say

    try:
        report = _inspect(parsed)
        _write(report, parsed)
    except QuantGateError as error:
        say(f"quantgate: {error}", error=True)
        return TROUBLE
    if report.refusals or not report.inspections:
        return TROUBLE
    return FOUND if report.findings else CLEAN


def _inspect(parsed: argparse.Namespace) -> Report:
    """Return the report of all paths; raises QuantGateError."""
    from pytest_quantgate.inspection.worker import inspect_paths

    for code in parsed.ignore:
        if not re.fullmatch(r"check\.[a-z0-9-]+", code):
            raise ArtifactError(f"--ignore takes a code of a finding (check.…), not {code[:80]!r}")
    if parsed.json == "-" and parsed.markdown == "-":
        raise ArtifactError("--json - and --markdown - would both be printed: write one to a file")
    for option in ("json", "markdown"):
        _check_output(getattr(parsed, option), option=option, parsed=parsed)
    return inspect_paths(parsed.paths, base=parsed.base, ignored=parsed.ignore)


def _write(report: Report, parsed: argparse.Namespace) -> None:
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.report.inspection import (
        MOST_LAYERS,
        render_json,
        render_markdown,
        render_text,
    )

    if parsed.json not in (None, "-"):
        replace_file(Path(parsed.json), render_json(report), kind="check-json", option="--json")
    if parsed.markdown not in (None, "-"):
        text = render_markdown(report)
        replace_file(Path(parsed.markdown), text, kind="check-markdown", option="--markdown")
    if parsed.json == "-":
        sys.stdout.write(render_json(report))
    elif parsed.markdown == "-":
        sys.stdout.write(render_markdown(report))
    else:
        columns = shutil.get_terminal_size().columns
        most = None if parsed.all else MOST_LAYERS
        sys.stdout.write(render_text(report, columns=columns, most_layers=most))


def _check_output(name: str | None, *, option: str, parsed: argparse.Namespace) -> None:
    """Raise ArtifactError for an output that is a part of what is checked."""
    if name in (None, "-"):
        return
    path = Path(str(name))
    for given in (*parsed.paths, parsed.base):
        if given is None:
            continue
        here, there = path.resolve(), Path(given).resolve()
        if here == there or (Path(given).is_dir() and here.parent == there):
            raise ArtifactError(f"--{option}: {path} is part of what is checked: name another")
