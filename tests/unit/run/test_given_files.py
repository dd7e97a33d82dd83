"""Files that a suite was handed: how they are named where a manifest lists them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pytest_quantgate.artifacts.given_engine import ReportFiles
from pytest_quantgate.run.given_files import GivenReport


@pytest.mark.parametrize(
    ("layers", "engine", "names"),
    [
        ("out/v.json", "out/v.plan", {"v.json", "v.plan"}),
        ("layers/vision", "engines/vision", {"layers/vision", "engines/vision"}),
        ("vision", "engines/vision", {"vision", "engines/vision"}),
    ],
)
def test_two_files_of_one_name_keep_a_digest_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str, engine: str, names: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"layers": Path(layers), "engine": tmp_path / engine}
    for key, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(key)

    found = GivenReport(files=ReportFiles.read(paths), where="s.yaml:1").digests

    assert found.keys() == names
    assert set(found.values()) == {hashlib.sha256(key.encode()).hexdigest() for key in paths}
