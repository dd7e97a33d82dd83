"""`quantgate export`: write the variant that a suite judges, for who serves it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.commands.case import add_places, open_case
from pytest_quantgate.run.handover import RECORD, WRITERS, hand_over

EXAMPLES = """\
examples:
  quantgate export suites/clip.quantgate.yaml out/onnx --to onnx
  quantgate export suites/clip.quantgate.yaml out/served --to compressed-tensors

onnx: the files that the gates judge, one a tower. modelopt: the checkpoint with ModelOpt's state.
compressed-tensors: codes and scales of Linear layers, as vLLM and transformers load them; a variant
that quantizes more is refused. The tokenizer and the image processor are put beside them, and a
record with the SHA-256 of each file. It writes the variant, whatever the gates say of it.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write the variant that a suite judges, for who serves it",
        description="Write the quantized variant that a suite judges to a new folder.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--to", required=True, choices=tuple(WRITERS))
    add_places(parser)


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.text.words import count
    from pytest_quantgate.text.wrapping import say

    case = open_case(parsed, environ=environ)
    done = hand_over(case, format=parsed.to, folder=parsed.folder)
    case.progress.finish()
    say(f"written: {done.folder} ({count(len(done.files), 'file')}, {RECORD})")
    say(f"  {done.checked}")
    for name, digest in done.files.items():
        if name.endswith((".onnx", ".safetensors", ".pth")):
            say(f"  sha256 {digest}  {name}")
    say(f"next: quantgate check {done.folder}")
    return 0
