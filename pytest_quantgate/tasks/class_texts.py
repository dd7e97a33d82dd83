"""Class names and templates that stand in files beside the data, as clip-benchmark keeps them."""

from __future__ import annotations

from pathlib import Path

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.sanity import TextPlaces
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.tasks.samples import check_prompts
from pytest_quantgate.untrusted import read_regular

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"

#: What a class is called in where a data set brings no templates.
USUAL_TEMPLATES = ("a photo of a {c}",)


def read_texts(root: Path) -> tuple[list[str], list[str]]:
    """Return the class names and the templates of a folder, both empty for one with captions.

    Raises DataError for what cannot be read, or is too much.
    """
    if (read_lines(root, "dataset_type.txt") or [""])[0] == "retrieval":
        return [], []
    names, templates = read_lines(root, CLASS_NAMES), read_lines(root, TEMPLATES)
    check_prompts(names, templates, name=str(root))
    return names, templates


def locate_texts(root: Path) -> TextPlaces:
    """Return the `file:line` of every class name and template of a folder."""

    def locate(name: str) -> tuple[str, ...]:
        return tuple(f"{root / name}:{line}" for line, _ in read_numbered(root, name))

    templates = locate(TEMPLATES)
    empty = (root / TEMPLATES).exists() and not templates
    return TextPlaces(
        class_names=locate(CLASS_NAMES),
        templates=templates,
        empty_templates=str(root / TEMPLATES) if empty else "",
    )


def read_classes(root: Path) -> tuple[list[str], list[str]]:
    """Return what the data calls each class, and the name of it that prompts use.

    A line of the class names is both, or has the one before a tab and the other after it.
    """
    lines = [line.partition("\t") for line in read_lines(root, CLASS_NAMES)]
    keys = [key.strip() for key, _, _ in lines]
    if len(set(keys)) < len(keys):
        doubled = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{root / CLASS_NAMES}: {doubled!r} stands twice")
    return keys, [name.strip() or key for key, (_, _, name) in zip(keys, lines, strict=True)]


def read_listed(root: Path) -> tuple[list[str], list[str]]:
    """Return the names that prompts use, and the templates, both as far as files hold them."""
    _, names = read_classes(root)
    templates = read_lines(root, TEMPLATES)
    check_prompts(names, templates, name=str(root))
    return names, templates


def read_templates(root: Path) -> list[str]:
    """Return the templates of a folder, or the usual one where it has none."""
    return read_lines(root, TEMPLATES) or list(USUAL_TEMPLATES)


def read_lines(root: Path, name: str) -> list[str]:
    """Return the lines of a file that hold anything, none where there is no such file."""
    return [text for _, text in read_numbered(root, name)]


def read_numbered(root: Path, name: str) -> list[tuple[int, str]]:
    """Return the lines that hold anything, each with its number; none where there is no file."""
    path = root / name
    try:
        check_inside(path, root=root)
        text = read_regular(path, max_bytes=bounds.CLASS_NAMES_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]
