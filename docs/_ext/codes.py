"""Every code that a verdict can have, read out of the source: what is said, why, and what mends it.

A code stands where its verdict is made, so nothing here is kept by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pytest_quantgate"

#: What stands for a part of a text that is known in a run only.
GAP = "…"
#: Any gate's name, in front of a finding that several gates share.
ANY_GATE = "<gate>"

#: What makes a verdict out of a finding of its module's gate, and a headline.
OF_FINDINGS = ("_fail", "_open", "_refuse")
MAKERS = ("Verdict", "Finding", *OF_FINDINGS)
#: An error that has a code becomes a verdict of it.
ERRORS = ("BaselineError", "DataError", "ModelError")


@dataclass(frozen=True, kw_only=True)
class Code:
    """A code, or a pattern of codes with gaps, and the texts that go with it; empty if varying."""

    code: str
    says: str
    cause: str
    fix: str

    @property
    def gate(self) -> str:
        return self.code.partition(".")[0]


@cache  # parsing the package takes seconds
def list_codes(package: Path = PACKAGE) -> tuple[Code, ...]:
    """Return all codes, sorted; one that several places give has the texts of the first."""
    found: dict[str, Code] = {}
    for path in sorted(package.rglob("*.py")):
        for code in _read(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(code.code, code)
    return tuple(sorted(found.values(), key=lambda code: code.code))


def list_without_code(package: Path = PACKAGE) -> Iterator[str]:
    """Yield `file:line` of each verdict that may be anything but green or unmeasured, without a
    code. What the self-test says is of the gates themselves, and has none."""
    for path in sorted(set(package.rglob("*.py")) - set(package.glob("selftest/*"))):
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            status = _argument(call, "status") or (call.args[0] if call.args else None)
            name = status.attr if isinstance(status, ast.Attribute) else ""
            has_code = _argument(call, "code") or _name(call) in OF_FINDINGS
            if name not in ("PASS", "NOT_MEASURED") and not has_code:
                yield f"{path.relative_to(package.parent)}:{call.lineno}"


def matches(pattern: str, code: str) -> bool:
    """Return whether a code of a run is one of those that a listed one stands for."""
    parts = re.split(f"({re.escape(ANY_GATE)}|{GAP})", pattern)
    spelt = "".join("[a-z0-9-]+" if part in (ANY_GATE, GAP) else re.escape(part) for part in parts)
    return re.fullmatch(spelt, code) is not None


def _read(tree: ast.Module) -> Iterator[Code]:
    known = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }
    gate = known.get("GATE", ANY_GATE)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _read_error(node)
    for call in _calls(tree):
        texts = {
            "says": _text(_argument(call, "headline") or _headline(call), known=known),
            "cause": _text(_argument(call, "cause"), known=known),
            "fix": _text(_argument(call, "next_step"), known=known),
        }
        written = _argument(call, "code")
        if written is not None:
            codes = _templates(written, known=known)
        elif _name(call) in OF_FINDINGS and len(call.args) > 1 and "GATE" in known:
            findings = _templates(call.args[0], known=known)
            codes = [f"{gate}.{finding}" for finding in findings if finding != GAP]
        else:
            continue
        for code in codes:
            if "." in code:
                yield Code(code=code, **texts)
    for call in _calls(tree, names=ERRORS):
        for code in _templates(_argument(call, "code"), known=known):
            yield Code(code=code, says=_text(call.args[0], known=known), cause="", fix="")
    for call in _calls(tree, names=("name_all",)):
        for code in _templates(call.args[0], known=known):
            if code != GAP:
                yield Code(
                    code=code,
                    says=f"{GAP} {_text(call.args[3], known=known)}: {GAP}",
                    cause=_text(_argument(call, "cause"), known=known),
                    fix=_text(_argument(call, "next_step"), known=known),
                )
    for call in _calls(tree, names=("Fault",)):
        for finding in _templates(_argument(call, "finding"), known=known):
            yield Code(
                code=f"sanity.{finding}",
                says=_text(_argument(call, "text"), known=known),
                cause="",
                fix=_text(_argument(call, "fix"), known=known),
            )


def _read_error(node: ast.ClassDef) -> Iterator[Code]:
    """Yield the code of an error that becomes a verdict: its class names the finding."""
    for part in node.body:
        if (
            isinstance(part, ast.Assign)
            and isinstance(part.value, ast.Constant)
            and isinstance(part.value.value, str)
            and [target.id for target in part.targets if isinstance(target, ast.Name)]
            == ["finding"]
        ):
            says = (ast.get_docstring(node) or "").partition("\n")[0]
            yield Code(code=f"{ANY_GATE}.{part.value.value}", says=says, cause="", fix="")


def _calls(tree: ast.AST, *, names: tuple[str, ...] = MAKERS) -> Iterator[ast.Call]:
    """Yield the calls that make a verdict; one that passes `**more` on is a maker's own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _name(node) not in names:
            continue
        if all(keyword.arg for keyword in node.keywords):
            yield node


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def _headline(call: ast.Call) -> ast.expr | None:
    return call.args[1] if len(call.args) > 1 else None


def _text(node: ast.expr | None, *, known: Mapping[str, str]) -> str:
    """Return a text with gaps; empty where nothing of it is written in the place itself."""
    found = [text for text in _templates(node, known=known) if text.strip(f" {GAP}")]
    return " / ".join(dict.fromkeys(found))


def _templates(node: ast.expr | None, *, known: Mapping[str, str]) -> list[str]:
    """Return what a string expression can be: both sides of a condition, with gaps."""
    if node is None:
        return []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value else []
    if isinstance(node, ast.Name):
        return [known[node.id]] if node.id in known else [GAP]
    if isinstance(node, ast.Attribute):
        return [_name_part(node.attr)]
    if isinstance(node, ast.IfExp):
        return [text for side in (node.body, node.orelse) for text in _templates(side, known=known)]
    if isinstance(node, ast.Call) and _name(node) == "code_of":
        gates, findings = (_templates(part, known=known) for part in node.args[:2])
        return [f"{g}.{f}{end}" for g in gates for f in findings for end in ("", "-open")]
    if isinstance(node, ast.JoinedStr):
        pieces = [_pieces(part, known=known) for part in node.values]
        return ["".join(chosen) for chosen in product(*pieces)]
    return [GAP]


def _pieces(node: ast.expr, *, known: Mapping[str, str]) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    assert isinstance(node, ast.FormattedValue)
    value = node.value
    if isinstance(value, ast.IfExp):
        return _templates(value, known=known)
    last = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    if last == "finding":
        return []  # in a maker itself: whoever calls it says which
    if isinstance(value, ast.Name) and value.id in known:
        return [known[value.id]]
    return [_name_part(last)]


def _name_part(name: str) -> str:
    """Return what stands for a part of a code that is a variable."""
    return ANY_GATE if name in ("gate", "kind") else GAP
