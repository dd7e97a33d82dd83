"""Reading a manifest back: what is none, damaged or not of a run that passed is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.release.manifest_file import Subject, read_manifest
from tests.manifests import make_statement

Statement = dict[str, Any]
FILES = {"checkpoint/model.safetensors": b"weights", "checkpoint/config.json": b"{}"}


def test_subjects_are_read_with_their_artifacts(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(make_statement(FILES)))

    manifest = read_manifest(path)

    assert manifest.sentence == "May ship: 2 gates passed"
    assert (
        Subject(
            name="clip/checkpoint/config.json",
            artifact="clip/checkpoint",
            file="config.json",
            sha256="44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        )
        in manifest.subjects
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(_type="x"), "this is no in-toto statement"),
        (lambda d: d.update(predicateType="https://slsa.dev/provenance/v1"),
         "a statement of 'https://slsa.dev/provenance/v1', here "
         "urn:pytest-quantgate:verdict:v1 is known"),
        (lambda d: d["predicate"]["conclusion"].update(status="FAIL"),
         "damaged manifest: its verdict is FAIL, and only PASS may ship"),
        (lambda d: d["subject"][0].update(digest={"sha256": "short"}),
         "damaged manifest: subject 'clip/checkpoint/config.json' has no SHA-256"),
        (lambda d: d["subject"][0].update(digest={"sha1": "a" * 40}),
         "damaged manifest: 'sha256'"),
        (lambda d: d["subject"].append(d["subject"][0]),
         "damaged manifest: subject 'clip/checkpoint/config.json' is no name, or stands twice"),
        (lambda d: d["subject"].append({"name": "x", "digest": {"sha256": "a" * 64}}),
         "damaged manifest: subject 'x' is part of no artifact"),
        (lambda d: d["subject"].pop(), "damaged manifest: 'clip/checkpoint/model.safetensors'"),
        (lambda d: (d.update(subject=[]), d["predicate"].update(suites=[])),
         "damaged manifest: it has no subjects"),
        (lambda d: d.pop("predicate"), "damaged manifest: 'predicate'"),
        (lambda d: d.update(subject=3), "damaged manifest: "),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted_is_refused_in_a_line(
    tmp_path: Path, change: Callable[[Statement], object], words: str
) -> None:
    statement = make_statement(FILES)
    change(statement)
    path = tmp_path / "m.json"
    path.write_text(json.dumps(statement))

    with pytest.raises(ArtifactError) as caught:
        read_manifest(path)

    assert str(caught.value).startswith(f"{path}: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 9999])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"this is no (JSON|in-toto statement)"):
        read_manifest(path)


def test_no_file_and_no_regular_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_manifest(path)


@given(
    place=st.sampled_from(["_type", "predicateType", "subject", "predicate"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
)
def test_no_value_anywhere_is_more_than_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: object
) -> None:
    statement = make_statement(FILES)
    statement[place] = value
    path = tmp_path_factory.mktemp("m") / "m.json"
    path.write_text(json.dumps(statement))

    with pytest.raises(ArtifactError):
        read_manifest(path)
