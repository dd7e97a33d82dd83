"""Makes the package of examples/plugin/ known as an installer would, which takes no network."""

from __future__ import annotations

import tomllib
from pathlib import Path

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"


def write_metadata(site: Path) -> tuple[Path, Path]:
    """Write into `site` what an installer makes of pyproject.toml; return what goes on the path."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site, PLUGIN
