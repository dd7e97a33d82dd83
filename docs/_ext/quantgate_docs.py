"""Sphinx directives: recorded terminal sessions, and the reference out of the code itself."""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from codes import ANY_GATE, Code, list_codes
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from pages import read_output
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from pytest_quantgate.suite.keys import Key

OUTPUTS = Path(__file__).parents[1] / "outputs"
SECURITY = Path(__file__).parents[2] / "SECURITY.md"
SCREENSHOTS = Path(__file__).parents[1] / "screenshots"


#: The line that installs it today: from a clone of the project that lies in the folder where one
#: works. It stands here alone; every page asks for it with its extras.
INSTALL = "pip install './pytest-quantgate[{extras}]'"


class Install(SphinxDirective):
    """The line that installs the extras that are named: `clip,onnx`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = INSTALL.format(extras=self.arguments[0])
        return [nodes.literal_block(text, text, language="console")]


def install_role(
    _name: str, raw: str, extras: str, *_arguments: Any, **_options: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Return the line in a sentence."""
    return [nodes.literal(raw, INSTALL.format(extras=extras))], []


class Run(SphinxDirective):
    """A command and what it really printed; an output that is missing or stale is a warning."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"status": directives.nonnegative_int}

    def run(self) -> list[nodes.Node]:
        command = "\n".join(self.content).strip()
        name = self.arguments[0]
        self.env.note_dependency(str(OUTPUTS / f"{name}.txt"))
        try:
            recorded, output = read_output(OUTPUTS, name=name)
        except FileNotFoundError:
            missing = f"outputs/{name}.txt is missing: python docs/make_outputs.py"
            raise self.error(missing) from None
        if recorded != command:
            raise self.error(
                f"outputs/{name}.txt is of {recorded!r}, the page runs {command!r}: "
                f"python docs/make_outputs.py"
            )
        text = f"$ {command}\n{output}".rstrip("\n")
        block = nodes.literal_block(text, text, language="console", classes=["terminal"])
        self.set_source_info(block)
        return [block]


class Generated(SphinxDirective):
    """A directive whose content is Markdown that `lines()` writes."""

    def run(self) -> list[nodes.Node]:
        source = self.get_source_info()[0]
        content = StringList(list(self.lines()), source=source)
        container = nodes.Element()
        self.state.nested_parse(content, self.content_offset, container, match_titles=True)
        children: list[nodes.Node] = container.children
        return children

    def lines(self) -> Iterator[str]:
        raise NotImplementedError


def cell(text: str) -> str:
    """Return text for a Markdown table's cell."""
    return " ".join(text.split()).replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")


class SuiteKeys(Generated):
    """Every key of a suite, a table a section, out of the schema that reads it."""

    def lines(self) -> Iterator[str]:
        from pytest_quantgate.suite.specs import Suite

        yield from self.section(self.keys(Suite), title="The file", path="")

    @staticmethod
    def keys(section: type) -> dict[str, tuple[Key, bool]]:
        """Return each key of a section, and whether it must be given."""
        from pytest_quantgate.suite.keys import is_required, keys_of

        return {name: (key, is_required(field)) for name, (field, key) in keys_of(section).items()}

    @staticmethod
    def gates() -> dict[str, tuple[Key, bool]]:
        from pytest_quantgate.suite.gates import IMPLICIT, list_kinds

        kinds = (kind for kind in list_kinds() if kind.name not in IMPLICIT)
        return {kind.name: (kind.declared, False) for kind in kinds}

    def section(
        self, keys: Mapping[str, tuple[Key, bool]], *, title: str, path: str
    ) -> Iterator[str]:
        yield from (f"## {title}", "")
        if not keys:
            yield from ("No keys: `{}`.", "")
            return
        yield from ("| key | value | meaning |", "|---|---|---|")
        below = []
        for name, (key, is_required) in keys.items():
            inner, many = self.inner(key.schema)
            if inner is not None:
                below.append((inner, f"{path}{name}" + (".NAME" if many == "mapping" else "")))
            needed = " (required)" if is_required else ""
            yield f"| `{name}`{needed} | {self.value(key.schema)} | {cell(key.help)} |"
        yield ""
        for inner, name in below:
            yield from self.section(inner, title=f"`{name}`", path=f"{name}.")

    def inner(self, schema: Mapping[str, Any]) -> tuple[dict[str, tuple[Key, bool]] | None, str]:
        if "gates" in schema:
            return self.gates(), "gates"
        for kind in ("section", "sections", "mapping"):
            if kind in schema:
                return self.keys(schema[kind]), kind
        return None, ""

    def value(self, schema: Mapping[str, Any]) -> str:
        """Say in words what a schema allows."""
        if "kinds" in schema:
            return "a kind of gate"
        if "section" in schema or "gates" in schema:
            return "a mapping, below"
        if "mapping" in schema:
            return "a mapping of names, below"
        if "sections" in schema:
            return "a mapping or a list of them, below" if schema["single"] else "a list, below"
        if "enum" in schema:
            return ", ".join(f"`{choice}`" for choice in schema["enum"])
        if "const" in schema:
            return f"`{schema['const']}`"
        if "anyOf" in schema:
            return " or ".join(self.value(choice) for choice in schema["anyOf"])
        if "pattern" in schema:
            return UNITS.get(schema["pattern"].rpartition(" ?")[2], "a text")
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if kinds == ["array"]:
            return f"a list: {self.value(schema['items'])}" if "items" in schema else "a list"
        if "format" in schema:
            return "a day, `2027-03-01`"
        words = " or ".join(NAMES[kind] for kind in kinds)
        bounds = [schema.get("minimum"), schema.get("maximum")]
        if kinds == ["integer"] and bounds[1] == 10**9:
            return words if bounds[0] == 1 else f"{words}, at least {bounds[0]}"
        if bounds != [None, None]:
            return f"{words} from {bounds[0]} to {bounds[1]}"
        return words


NAMES = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "a mapping",
    "boolean": "`true` or `false`",
    "null": "nothing",
}
UNITS = {
    "pp$": "percentage points, `0.5pp`",
    "%$": "a percentage, `95%`",
    "[dD][bB]$": "decibels, `20dB`",
    "[xX]$": "a ratio, `0.6x`",
    "([KMG]i?B)$": "a size, `512MiB`",
    "(us|ms|s)$": "a time, `3ms`",
}


@dataclass(kw_only=True)
class Recorder:
    """Stands for pytest's parser: writes down what the plugin declares."""

    options: list[tuple[str, str, str]] = field(default_factory=list)
    ini: list[tuple[str, str, str]] = field(default_factory=list)

    def getgroup(self, *_names: str) -> Recorder:
        return self

    def addoption(self, name: str, *, help: str, metavar: str = "", **_others: Any) -> None:
        self.options.append((name, metavar, help))

    def addini(self, name: str, help: str, *, default: Any = "", **_others: Any) -> None:
        self.ini.append((name, help, default))


class PluginOptions(Generated):
    """The options and ini values of the plugin, as it declares them to pytest."""

    def lines(self) -> Iterator[str]:
        from pytest_quantgate.plugin.options import add_options

        seen = Recorder()
        add_options(seen)  # type: ignore[arg-type]
        kept = {name: (help, default) for name, help, default in seen.ini}
        yield from ("## Options", "", "| option | configuration file | default | meaning |")
        yield "|---|---|---|---|"
        for name, metavar, help in seen.options:
            ini = name.strip("-").replace("-", "_")
            _, default = kept.pop(ini, ("", None))
            shown = "" if default is None else f"`{ini}`"
            option = f"`{name}{'=' if metavar else ''}{metavar}`"
            yield f"| {option} | {shown} | {default_words(default)} | {cell(help)} |"
        for ini, (help, default) in kept.items():
            yield f"| | `{ini}` | {default_words(default)} | {cell(help)} |"
        yield ""


def default_words(default: Any) -> str:
    shown = " ".join(default) if isinstance(default, list) else str(default).lower()
    return "" if default is None or not shown else f"`{shown}`"


class Commands(Generated):
    """Every command of `quantgate` with its own `--help`."""

    def lines(self) -> Iterator[str]:
        from pytest_quantgate.commands.cli import build_parser

        parser = build_parser()
        parser.formatter_class = Wide
        # argparse has no other way to its commands and what is said of each.
        commands: Any = next(a for a in parser._actions if isinstance(a.choices, dict))
        helps = {choice.dest: choice.help for choice in commands._choices_actions}
        for name, command in commands.choices.items():
            yield from (f"## quantgate {name}", "", sentence(helps[name]), "")
            command.formatter_class = Wide
            yield from ("```text", *command.format_help().splitlines(), "```", "")


class Wide(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=96, max_help_position=28)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


class Fixtures(Generated):
    """The fixtures of the plugin: name, what they give, docstring."""

    def lines(self) -> Iterator[str]:
        import pytest_quantgate.plugin.fixtures as module

        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        for node in tree.body:
            decorators = getattr(node, "decorator_list", [])
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator).startswith("pytest.fixture") for decorator in decorators
            ):
                gives = ast.unparse(node.returns) if node.returns else ""
                yield from (f"## {node.name}", "", f"Gives `{gives}`.", "")
                yield from (*(ast.get_docstring(node) or "").splitlines(), "")


class ReportSchema(Generated):
    """The classes of the JSON report, a table each, out of its published schema."""

    def lines(self) -> Iterator[str]:
        from pytest_quantgate.report.json_report import json_schema

        schema = json_schema()
        first = schema["$ref"].rpartition("/")[2]
        definitions = schema["$defs"]
        for name in [first, *(other for other in definitions if other != first)]:
            yield from (f"### {name}", "")
            description = definitions[name].get("description", "")
            if description:
                yield from (description, "")
            yield from ("| field | value |", "|---|---|")
            for key, value in definitions[name].get("properties", {}).items():
                yield f"| `{key}` | {self.value(value)} |"
            yield ""

    def value(self, schema: Mapping[str, Any]) -> str:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        if "anyOf" in schema:
            return " or ".join(dict.fromkeys(self.value(choice) for choice in schema["anyOf"]))
        if "enum" in schema or "const" in schema:
            choices = schema.get("enum", [schema.get("const")])
            return ", ".join(f"`{json.dumps(choice)}`" for choice in choices)
        if schema.get("type") == "array":
            if "prefixItems" in schema:
                parts = ", ".join(self.value(item) for item in schema["prefixItems"])
                return f"a list of {len(schema['prefixItems'])}: {parts}"
            return f"a list: {self.value(schema['items'])}"
        if schema.get("type") == "object":
            return f"a mapping: {self.value(schema['additionalProperties'])}"
        return NAMES[schema["type"]]


class SecurityPolicy(Generated):
    """SECURITY.md of the project, without its title."""

    def lines(self) -> Iterator[str]:
        if not SECURITY.is_file():
            raise self.error(f"{SECURITY.name} is missing")
        text = SECURITY.read_text(encoding="utf-8")
        title, _, rest = text.partition("\n")
        yield from (rest if title.startswith("# ") else text).splitlines()


class Screenshots(Generated):
    """The pictures of the report that its own script has made, with what each one shows."""

    def lines(self) -> Iterator[str]:
        if not any(SCREENSHOTS.glob("*.png")):
            return
        for name, caption in SHOWN.items():
            if not (SCREENSHOTS / name).is_file():
                raise self.error(f"screenshots/{name} is missing: python docs/make_screenshots.py")
            yield from (f"![{caption}](/screenshots/{name})", "", f"*{caption}*", "")


class Codes(Generated):
    """Every code of a verdict, a table a gate, out of the places that make them."""

    def lines(self) -> Iterator[str]:
        found = list_codes()
        for gate in dict.fromkeys(code.gate for code in found):
            title = "Of several gates" if gate == ANY_GATE else f"`{gate}`"
            yield from (f"## {title}", "", "| code | what it says, and why | what mends it |")
            yield "|---|---|---|"
            yield from (self.row(code) for code in found if code.gate == gate)
            yield ""

    def row(self, code: Code) -> str:
        says = code.says.removeprefix(f"{code.gate}: ")
        why = f"{says}; likely cause: {code.cause}" if code.cause and says else says or code.cause
        return f"| `{code.code}` | {cell(why)} | {cell(code.fix)} |"


#: What is on each picture.
SHOWN = {
    "green-desktop-light.png": "The reference suite: every gate has passed.",
    "green-accuracy.png": "Accuracy of both variants, with intervals and limits drawn in.",
    "green-flips.png": "Samples that flipped, with both predictions.",
    "red-desktop-light.png": "ModelOpt's preset: the vision tower is not quantized.",
    "red-coverage.png": "The same as a map of the model: towers, blocks and kinds of quantizers.",
    "unmeasured-desktop-light.png": "A suite whose weights are not there: nothing is green.",
    "green-phone-dark.png": "On a phone, dark.",
}


#: What the theme's pages lack for a keyboard and a screen reader.
ACCESSIBLE = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    "<pre>": '<pre tabindex="0">',  # what scrolls must be reached
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    '\n<div id="search-results"></div>': '\n<h1>Search</h1><div id="search-results"></div>',
}


def make_accessible(app: Sphinx, error: Exception | None) -> None:
    """Mend the HTML pages that were written."""
    if error is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = mended = page.read_text(encoding="utf-8")
        for lacking, whole in ACCESSIBLE.items():
            mended = mended.replace(lacking, whole)
        if mended != text:
            page.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("run", Run)
    app.add_directive("install", Install)
    app.add_role("install", install_role)
    app.add_directive("suite-keys", SuiteKeys)
    app.add_directive("plugin-options", PluginOptions)
    app.add_directive("quantgate-commands", Commands)
    app.add_directive("plugin-fixtures", Fixtures)
    app.add_directive("report-schema", ReportSchema)
    app.add_directive("verdict-codes", Codes)
    app.add_directive("security-policy", SecurityPolicy)
    app.add_directive("screenshots", Screenshots)
    app.connect("build-finished", make_accessible)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
