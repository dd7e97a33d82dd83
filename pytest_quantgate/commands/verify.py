"""`quantgate verify`: say whether files that are about to be deployed are those that were judged.

Exit status: 0 they are, 1 they are not (differs, missing, extra weights), 2 something cannot be
read, or wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ArtifactError, QuantGateError

VERIFIED, DIFFERENT, TROUBLE = 0, 1, 2

EXAMPLES = """\
examples:
  quantgate verify out/ --manifest report/manifest.json            # a folder to deploy
  quantgate verify vision.plan text.plan --manifest manifest.json  # files by themselves
  quantgate verify out/ suites/ --result gpu/report.json           # is that result of these files?

A file is a judged one by its SHA-256, whatever it is called. In a folder, an artifact of which
weights are there must be there whole, and weights that nobody judged are a difference; links are
followed. The manifest is what a run that passes writes (--quantgate-manifest, or manifest.json in
the folder of --quantgate-report). Check its signature first, with whatever signed it. A result of
another job names the files that it judged too, whatever its verdict: with --result alone it is
checked to be as it was written.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="say whether files are those that were judged, by a manifest or a result",
        description="Hold the files that are about to be deployed against the manifest of a run "
        "that passed.",
        epilog=EXAMPLES,
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", type=Path, help="file or folder")
    known = parser.add_mutually_exclusive_group(required=True)
    known.add_argument("--manifest", metavar="FILE", type=Path, help="of a run that passed")
    known.add_argument(
        "--result", metavar="FILE", type=Path, help="of any run: its JSON report, as it was written"
    )
    parser.add_argument(
        "--ignore",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave out files of this name or path (*.md, cache/*); may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every file")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.release.manifest_file import read_judged, read_manifest
    from pytest_quantgate.release.verify import verify_files
    from pytest_quantgate.release.verify_text import render_verification, render_verification_json
    from pytest_quantgate.text.words import count
    from pytest_quantgate.text.wrapping import say

    try:
        manifest = read_judged(parsed.result) if parsed.result else read_manifest(parsed.manifest)
        if not parsed.paths:
            if parsed.manifest:
                raise ArtifactError("name the files or folders that will be deployed")
            shown = count(len(manifest.subjects), "file")
            say(f"{manifest.path}: {manifest.sentence}")
            say(f"as it was written, of {shown}: name files to compare with them")
            return VERIFIED
        found = verify_files(parsed.paths, manifest=manifest, ignored=parsed.ignore)
    except QuantGateError as error:
        say(f"quantgate: {error}", error=True)
        return TROUBLE
    render = render_verification_json if parsed.json else render_verification
    sys.stdout.write(render(found))
    if found.unread:
        return TROUBLE
    return DIFFERENT if found.differences else VERIFIED
