"""The manifest of a report: an in-toto statement of what was judged, of a run that passes alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.manifest import (
    list_subjects,
    may_have_manifest,
    render_manifest,
)
from pytest_quantgate.report.model import JudgedFile, Report
from pytest_quantgate.store.cache import MANIFEST, Cache
from tests.report_builder import make_run, verdict


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A report that passes, of a suite with a model that it was given and what it built."""
    run = make_run(tmp_path)
    (collected,) = run.summary.results.suites
    given = JudgedFile(artifact="model", name="model.safetensors", sha256="a" * 64)
    evidence = {"made": replace(run.evidence["made"], files=(given,))}
    run = replace(run, evidence=evidence)
    return run.collect(suites=(replace(collected, digest="5" * 64),))


def test_subjects_are_the_judged_files_with_their_digests(report: Report) -> None:
    statement = json.loads(render_manifest(report))

    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:pytest-quantgate:verdict:v1"
    assert statement["subject"] == [
        {"name": "made/model/model.safetensors", "digest": {"sha256": "a" * 64}},
        {"name": "made/suite/suites/made.quantgate.yaml", "digest": {"sha256": "5" * 64}},
    ]


def test_predicate_says_what_was_decided_and_with_what(report: Report) -> None:
    predicate = json.loads(render_manifest(report))["predicate"]

    assert predicate["conclusion"] == {"status": "PASS", "sentence": "May ship: 2 gates passed"}
    assert predicate["created"] == report.created
    assert predicate["version"] == report.product_version
    assert predicate["environment"]["packages"]["torch"] == "2.15.0"
    (suite,) = predicate["suites"]
    assert set(suite["gates"].values()) == {"PASS"}
    assert suite["artifacts"] == {
        "model": ["model.safetensors"],
        "suite": ["suites/made.quantgate.yaml"],
    }


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PASS])
def test_what_does_not_pass_has_no_manifest(tmp_path: Path, status: Status) -> None:
    run = make_run(tmp_path, extra=[verdict("roundtrip", status)])
    (collected,) = run.summary.results.suites
    report = run.collect(suites=(replace(collected, digest="5" * 64),))

    assert not may_have_manifest(report)
    with pytest.raises(ValueError, match=f"^no manifest of what is {status.value}$"):
        render_manifest(report)


def test_a_report_of_no_files_has_no_manifest(report: Report) -> None:
    (suite,) = report.suites

    assert not may_have_manifest(replace(report, suites=(replace(suite, files=()),)))


def test_files_of_the_cache_count_as_they_were_sealed(tmp_path: Path) -> None:
    """A checkpoint and ONNX files that the run built; reports beside an engine are none."""
    files = {
        "variant": ("checkpoint/model.safetensors", "checkpoint/config.json", "notes.json"),
        "onnx": ("model.onnx", "model.onnx.data"),
        "engine": ("model.plan", "report.json"),
    }

    found = list_subjects(_with_built(tmp_path, files))

    assert list(found) == [
        "made/checkpoint/config.json",
        "made/checkpoint/model.safetensors",
        "made/engine-quantized-vision-ampere-1-tensorrt/model.plan",
        "made/onnx-quantized-vision-float16/model.onnx",
        "made/onnx-quantized-vision-float16/model.onnx.data",
    ]


def test_a_checkpoint_that_was_given_is_what_ships_and_no_copy_of_it(tmp_path: Path) -> None:
    given = JudgedFile(artifact="checkpoint", name="model.safetensors", sha256="b" * 64)
    files = {"variant": ("checkpoint/model.safetensors", "checkpoint/manifest.json")}

    found = list_subjects(_with_built(tmp_path, files, given=(given,)))

    assert found == {"made/checkpoint/model.safetensors": "b" * 64}


def test_an_onnx_file_that_was_given_is_what_ships_and_no_copy_of_it(tmp_path: Path) -> None:
    given = JudgedFile(artifact="onnx-quantized-vision", name="v.onnx", sha256="c" * 64)

    found = list_subjects(_with_built(tmp_path, {"onnx": ("model.onnx",)}, given=(given,)))

    assert found == {"made/onnx-quantized-vision/v.onnx": "c" * 64}


def _with_built(
    tmp_path: Path, files: Mapping[str, tuple[str, ...]], given: tuple[JudgedFile, ...] = ()
) -> Report:
    from pytest_quantgate.report.evidence import Use

    of = {
        "variant": (),
        "onnx": ("quantized", "vision", "float16"),
        "engine": ("quantized", "vision", "ampere", "1", "tensorrt"),
    }
    run = make_run(tmp_path)
    cache = Cache(root=tmp_path / "built")
    used = []
    for kind, names in files.items():

        def build(folder: Path, names: tuple[str, ...] = names) -> None:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)

        cache.get_or_build(kind=kind, key="9" * 64, build=build)
        used.append(Use(about=(kind, *of[kind]), key="9" * 64))
    evidence = replace(run.evidence["made"], used=tuple(used), files=given)
    return replace(run, evidence={"made": evidence}, cache=cache).collect()


def test_an_entry_without_a_readable_manifest_has_no_digests(tmp_path: Path) -> None:
    cache = Cache(root=tmp_path)
    folder = cache.get_or_build(
        kind="onnx",
        key="9" * 64,
        build=lambda into: (into / "a").touch() and None,  # type: ignore[func-returns-value]
    )

    assert set(cache.digests(kind="onnx", key="9" * 64)) == {"a"}
    for damage in ("[]", '{"a": 1}', "{"):
        (folder / MANIFEST).write_text(damage)
        assert cache.digests(kind="onnx", key="9" * 64) == {}
    assert cache.digests(kind="onnx", key="8" * 64) == {}
