"""The CI recipes that people copy: valid, pinned, careful with tokens, and their steps run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_quantgate.release.spec import load_release
from pytest_quantgate.report.json_report import read_report, render_json
from tests.stub_gates import write_project

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "examples" / "ci"
RELEASE = RECIPES / "release.yml"
GITHUB = (
    RECIPES / "github-actions.yml",
    RECIPES / "nightly-gpu.yml",
    RECIPES / "base-suites.yml",
    RELEASE,
    REPOSITORY / ".github" / "workflows" / "ci.yml",
)
PUBLISH = REPOSITORY / ".github" / "workflows" / "publish.yml"
ACTION = REPOSITORY / "action.yml"
GITLAB = RECIPES / "gitlab-ci.yml"
CONTAINER = RECIPES / "Containerfile"

#: A suite whose model is nowhere: every option is read, every report written, nothing measured.
ABSENT = """\
quantgate: 1
model: {source: transformers, id: "${QUANTGATE_NO_SUCH_MODEL}"}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8}
gates:
  coverage: {}
"""


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def scripts() -> Iterator[tuple[str, str]]:
    """Yield (where, shell script) of every `run:` and every line of GitLab's `script:`."""
    for path in GITHUB:
        for job_name, job in read(path)["jobs"].items():
            for step in job["steps"]:
                if "run" in step:
                    yield f"{path.name}:{job_name}:{step['name']}", step["run"]
    for step in read(ACTION)["runs"]["steps"]:
        if "run" in step:
            yield f"action.yml:{step['name']}", step["run"]
    for index, line in enumerate(read(GITLAB)["gates"]["script"]):
        yield f"gitlab-ci.yml:{index}", line


def script_of(path: Path, *, name: str, job: str = "") -> str:
    steps = read(path)["jobs"][job]["steps"] if job else read(path)["runs"]["steps"]
    return str(next(step["run"] for step in steps if step.get("name") == name))


# -- what can be read from the files ------------------------------------------------------


def test_actions_are_pinned_to_one_commit_each() -> None:
    found: dict[str, set[str]] = {}
    for path in (*GITHUB, PUBLISH, ACTION):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" in line:
                match = re.search(r"uses: (\S+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)$", line)
                assert match, f"{path.name}: {line.strip()}"
                found.setdefault(match[1], set()).add(f"{match[2]} {match[3]}")

    assert {"actions/checkout", "actions/cache", "actions/upload-artifact"} <= set(found)
    assert {name: pins for name, pins in found.items() if len(pins) != 1} == {}


def test_what_is_published_was_tried_and_no_token_is_kept() -> None:
    workflow = read(PUBLISH)
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]

    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in build
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert "tools/release.sh" in [step.get("run") for step in build["steps"]]
    assert "secrets." not in PUBLISH.read_text(encoding="utf-8")
    assert not any("run" in step for step in publish["steps"])


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_what_runs_a_model_holds_no_token_that_can_write(path: Path) -> None:
    workflow = read(path)

    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        runs = " ".join(step.get("run", "") for step in job["steps"])
        writes = "write" in str(job.get("permissions", {}))
        assert not (writes and re.search(r"\bpytest (?!-)|\.ci/run", runs))
        if not writes:
            checkouts = [s for s in job["steps"] if "checkout" in s.get("uses", "")]
            assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize(("where", "script"), list(scripts()))
def test_no_expression_is_pasted_into_a_shell(where: str, script: str) -> None:
    assert "${{" not in script, where


def cache_steps() -> Iterator[tuple[str, Mapping[str, Any]]]:
    steps = [(ACTION.name, step) for step in read(ACTION)["runs"]["steps"]]
    for path in GITHUB:
        steps += [(path.name, s) for job in read(path)["jobs"].values() for s in job["steps"]]
    for name, step in steps:
        if step.get("uses", "").startswith("actions/cache@") and "quantgate" in str(step["with"]):
            yield name, step


def test_caches_are_restored_from_the_nearest_run_and_saved_anew() -> None:
    """A prefix may be restored: the name of an entry holds all that can change it.

    The last part of a key makes it new, as GitHub never replaces a saved cache.
    """
    steps = list(cache_steps())
    assert {name for name, _ in steps} == {"action.yml", "github-actions.yml"}

    for name, step in steps:
        key, prefixes = step["with"]["key"], step["with"]["restore-keys"].splitlines()
        lengths = [len(prefix) for prefix in prefixes]
        assert lengths == sorted(lengths, reverse=True), name  # the first that is found counts
        assert all(key.startswith(prefix) and key != prefix for prefix in prefixes), name
        assert all(prefix.endswith("-") for prefix in prefixes), name
        assert key.endswith("-${{ github.run_id }}-${{ github.run_attempt }}"), name
        expressions = set(re.findall(r"\$\{\{ (.*?) \}\}", key))
        hashed = {found for found in expressions if re.fullmatch(r"hashFiles\('[^']+'\)", found)}
        assert len(hashed) == 1, name
        known = {"runner.os", "runner.arch", "github.run_id", "github.run_attempt"}
        assert expressions - hashed == known, name


@pytest.mark.parametrize(("name", "step"), list(cache_steps()), ids=lambda value: str(value)[:20])
def test_only_the_default_branch_reads_and_writes_a_cache(
    name: str, step: Mapping[str, Any]
) -> None:
    """Neither a pull request nor what works on its files (pull_request_target, workflow_run).

    And never in the checkout, where a pull request could bring one along.
    """
    trusted = (
        """contains(fromJSON('["push", "schedule"]'), github.event_name) && """
        "github.ref == format('refs/heads/{0}', github.event.repository.default_branch)"
    )
    condition = " ".join(step["if"].split())
    assert condition in (trusted, f"inputs.cache == 'true' && {trusted}")
    assert step["with"]["path"] == "${{ runner.temp }}/quantgate-cache"
    assert '--quantgate-cache-dir="$RUNNER_TEMP/quantgate-cache"' in "".join(
        script for where, script in scripts() if where.startswith(name)
    )
    assert "cache" not in read(GITLAB)["gates"]


def test_every_job_has_a_time_limit() -> None:
    for path in GITHUB:
        assert all("timeout-minutes" in job for job in read(path)["jobs"].values()), path.name
    assert "timeout" in read(GITLAB)["gates"]


SCHEMAS = [
    (GITHUB, ("vendor.github-workflows",)),
    ((ACTION,), ("vendor.github-actions",)),
    ((GITLAB,), ("vendor.gitlab-ci", "--data-transform", "gitlab-ci")),
    ((REPOSITORY / ".github" / "dependabot.yml",), ("vendor.dependabot",)),
]


@pytest.mark.parametrize(("paths", "schema"), SCHEMAS, ids=[schema[0] for _, schema in SCHEMAS])
def test_the_schema_holds(paths: tuple[Path, ...], schema: tuple[str, ...]) -> None:
    pytest.importorskip("check_jsonschema")

    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> str:
    """Return the path of a tool of this environment; skips where it is not installed."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    shellcheck = tool("shellcheck")
    for index, (where, script) in enumerate(scripts()):
        path = tmp_path / f"{index}.sh"
        path.write_text(f"#!/usr/bin/env bash\n# {where}\nset -eo pipefail\n{script}\n")

    done = subprocess.run(
        [shellcheck, *map(str, sorted(tmp_path.glob("*.sh")))],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    actionlint = tool("actionlint")
    config = tmp_path / "actionlint.yaml"
    config.write_text("self-hosted-runner:\n  labels: [gpu]\n")

    done = subprocess.run(
        [actionlint, "-config-file", str(config), *map(str, GITHUB)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


# -- the steps, run -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A folder in which steps run as a CI runner runs them, with this environment's Python.

    `pip install` is only written down, in `installed`; `gh` too, in `called`.
    """

    path: Path
    bin: Path
    environ: Mapping[str, str]

    def run(self, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.path,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    @property
    def installed(self) -> list[str]:
        return self._read("installed")

    @property
    def called(self) -> list[str]:
        return self._read("called")

    def _read(self, name: str) -> list[str]:
        path = self.bin / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    work, stubs = tmp_path / "work", tmp_path / "bin"
    (work / "suites").mkdir(parents=True)
    stubs.mkdir()
    (tmp_path / "temp").mkdir()
    for name, script in {
        "python": (
            f'if [[ "$*" == *"-m pip "* ]]; then echo "$*" >> {stubs}/installed; exit 0; fi\n'
            f'exec {sys.executable} "$@"\n'
        ),
        "gh": f'echo "$*" >> {stubs}/called\n[ "$1 $2" != "pr view" ] || exit 1\n',
    }.items():
        path = stubs / name
        path.write_text(f"#!/bin/bash\n{script}")
        path.chmod(0o755)
    tools = Path(sys.executable).parent
    kept = ("HOME", "LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    return Machine(
        path=work,
        bin=stubs,
        environ=environ
        | {
            "PATH": os.pathsep.join((str(stubs), str(tools), os.environ["PATH"])),
            "CI": "true",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "pytest_quantgate.plugin",
            "RUNNER_TEMP": str(tmp_path / "temp"),
            "GITHUB_ACTION_PATH": str(REPOSITORY),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "GITHUB_PATH": str(tmp_path / "path"),
        },
    )


def write_absent(machine: Machine) -> None:
    (machine.path / "suites" / "absent.quantgate.yaml").write_text(ABSENT, encoding="utf-8")


def extras_of(requirement: str) -> set[str]:
    match = re.search(r"\[(.*?)\]", requirement)
    return set(match[1].split(",")) if match else set()


@pytest.mark.parametrize(
    "script",
    [script for _, script in scripts() if "pip install" in script],
)
def test_what_is_installed_exists(machine: Machine, script: str) -> None:
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    script = script.replace('python3 -m venv "$RUNNER_TEMP/venv"', "true")
    script = script.replace('"$RUNNER_TEMP/venv/bin/python"', "python")

    done = machine.run(script, EXTRAS="clip,onnx")

    assert done.returncode == 0, done.stderr
    (line,) = machine.installed
    requirement = line.split()[-1]
    path, _, _ = requirement.partition("[")
    assert path == known["name"] or (Path(path) / "pyproject.toml").is_file()
    assert extras_of(requirement) <= set(known["optional-dependencies"])


def test_the_github_gates_write_reports_and_a_release_is_strict(machine: Machine) -> None:
    write_absent(machine)
    script = script_of(GITHUB[0], name="Gates", job="gates")
    summary = machine.path.parent / "step-summary.md"

    usual = machine.run(script, RELEASE="", CACHE="on", GITHUB_STEP_SUMMARY=str(summary))
    release = machine.run(script, RELEASE="yes", CACHE="off")

    assert "device=auto, CI is set: what is not measured fails" in usual.stdout
    assert "device=auto, cache=off, strict" in release.stdout
    assert "cache=off" not in usual.stdout
    for done in (usual, release):
        assert done.returncode == 1, done.stdout + done.stderr
        assert "absent: not measured: suites/absent.quantgate.yaml:2: " in done.stdout
    report = machine.path / "report"
    uploaded = {path.name for path in report.iterdir()}
    assert uploaded == {"index.html", "report.json", "summary.md", "junit.xml"}
    assert "absent" in summary.read_text(encoding="utf-8")
    comment = script_of(GITHUB[0], name="Comment", job="comment")
    artifact = Path(machine.environ["RUNNER_TEMP"]) / "artifact"
    shutil.copytree(report, artifact / "report")
    commented = machine.run(comment, NUMBER="7", REPOSITORY="a/b")
    assert commented.returncode == 0, commented.stderr
    assert machine.called == [
        f"pr comment 7 --repo a/b --edit-last --create-if-none "
        f"--body-file {artifact}/report/summary.md"
    ]
    body = artifact / "report" / "summary.md"
    for spoil in (
        lambda: body.write_bytes(b"x" * 65537),
        lambda: (body.unlink(), body.symlink_to(summary)),  # type: ignore[func-returns-value]
    ):
        spoil()
        assert machine.run(comment, NUMBER="7", REPOSITORY="a/b").returncode != 0
    assert len(machine.called) == 1


LINKS = ("report", "obtained", "report/x", "obtained/a/b")


@pytest.mark.parametrize("place", LINKS)
def test_a_link_of_the_checkout_is_not_uploaded(machine: Machine, place: str) -> None:
    write_absent(machine)
    secret = machine.path.parent / "secret"
    secret.mkdir()
    link = machine.path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(secret, target_is_directory=True)
    inputs = {"SUITES": "suites", "STRICT": "true", "CACHE": "true", "REPORT": "report"}

    for script in (
        script_of(GITHUB[0], name="Refuse links where reports go", job="gates"),
        script_of(ACTION, name="Gates"),
    ):
        done = machine.run(script, **inputs)
        assert done.returncode != 0
        assert "holds a link: remove it from the checkout" in done.stdout
    assert not Path(machine.environ["GITHUB_OUTPUT"]).exists()
    assert list(secret.iterdir()) == []
    (upload,) = (
        step for step in read(ACTION)["runs"]["steps"] if "upload-artifact" in step.get("uses", "")
    )
    assert "steps.gates.outputs.verdict != ''" in upload["if"]


def test_the_gitlab_script_runs_and_its_artifacts_exist(machine: Machine) -> None:
    write_absent(machine)
    job = read(GITLAB)["gates"]

    usual = machine.run("\n".join(job["script"]))
    release = machine.run("\n".join(job["script"]), **job["rules"][0]["variables"])

    assert (usual.returncode, release.returncode) == (1, 1), usual.stdout + usual.stderr
    assert "cache=off, strict" in release.stdout
    assert "cache=off" in usual.stdout
    assert (machine.path / job["artifacts"]["reports"]["junit"]).is_file()
    assert (machine.path / "report" / "index.html").is_file()


def test_the_container_runs_the_suites_as_an_ordinary_user(machine: Machine) -> None:
    write_absent(machine)
    text = CONTAINER.read_text(encoding="utf-8")
    command = [
        *json.loads(re.search(r"^ENTRYPOINT (.*)$", text, flags=re.MULTILINE)[1]),  # type: ignore[index]
        *json.loads(re.search(r"^CMD (.*)$", text, flags=re.MULTILINE)[1]),  # type: ignore[index]
    ]
    install = re.search(r"^RUN (python -m pip install .*)$", text, flags=re.MULTILINE)

    done = machine.run(" ".join(command))
    assert install is not None
    installed = machine.run(install[1])

    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 gates: 2 not measured" in done.stdout
    assert installed.returncode == 0
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras_of(machine.installed[0]) <= set(known["optional-dependencies"])
    assert re.findall(r"^USER (\S+)$", text, flags=re.MULTILINE)[-1] != "root"


@pytest.mark.parametrize(
    ("suite", "changes", "status", "verdict"),
    [
        (ABSENT, {}, 1, "NOT_MEASURED"),
        (ABSENT, {"STRICT": "true"}, 1, "NOT_MEASURED"),
        (ABSENT, {"CACHE": "false"}, 1, "NOT_MEASURED"),
        (ABSENT, {"CACHE_STEP": "skipped"}, 1, "NOT_MEASURED"),
        # Of a suite of which nothing is measured nobody knows anything, whatever may be missing.
        (ABSENT, {"ALLOW_UNMEASURED": "coverage,sanity"}, 1, "NOT_MEASURED"),
        (ABSENT, {"ALLOW_UNMEASURED": "coverage", "CI": ""}, 0, "NOT_MEASURED"),
        (ABSENT, {"ALLOW_UNMEASURED": "covrage"}, 4, "ERROR"),
        (ABSENT.replace("coverage", "covrage"), {}, 2, "FAIL"),
        (ABSENT, {"PYTEST_ADDOPTS": "--quantgate-device=tpu"}, 4, "ERROR"),
    ],
)
def test_the_action_says_its_verdict(
    machine: Machine, suite: str, changes: dict[str, str], status: int, verdict: str
) -> None:
    (machine.path / "suites" / "a.quantgate.yaml").write_text(suite, encoding="utf-8")
    defaults = {name: str(known["default"]) for name, known in read(ACTION)["inputs"].items()}
    # What an earlier step left there is not this run's verdict.
    (machine.path / defaults["report"]).mkdir()
    stale = machine.path / defaults["report"] / "report.json"
    stale.write_text('{"format": "pytest-quantgate report", "conclusion": {"status": "PASS"}}')

    names = ("suites", "report", "strict", "cache", "allow-unmeasured")
    inputs = {name.upper().replace("-", "_"): defaults[name] for name in names}
    inputs["CACHE_STEP"] = "success"
    done = machine.run(script_of(ACTION, name="Gates"), **(inputs | changes))

    is_off = "CACHE" in changes or "CACHE_STEP" in changes
    assert ("cache=off" in done.stdout) == is_off
    output = Path(machine.environ["GITHUB_OUTPUT"]).read_text(encoding="utf-8")
    assert (done.returncode, output) == (status, f"verdict={verdict}\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"STRICT": "yes"}, "strict is 'yes': expected true or false"),
        ({"CACHE": "off"}, "cache is 'off': expected true or false"),
        ({"REPORT": "a/b"}, "report is 'a/b': expected a folder's name"),
    ],
)
def test_the_action_refuses_inputs_that_would_mislead(
    machine: Machine, environ: dict[str, str], message: str
) -> None:
    write_absent(machine)
    good = {"SUITES": "suites", "STRICT": "true", "CACHE": "true", "REPORT": "out"}

    done = machine.run(script_of(ACTION, name="Gates"), **(good | environ))

    assert done.returncode == 2
    assert f"::error::{message}" in done.stdout


MEASURED = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 16, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8}}
gates:
  regression:
    - {{task: scenes/classification, metric: acc1, samples: 64,
       max_fp16_drop: 90pp, max_drop: 12pp, max_drop_since_first: 20pp}}
"""


def test_the_nightly_job_proposes_its_baselines(machine: Machine, tiny_clip: Path) -> None:
    """The whole way: measured on a runner, accepted on a branch, pushed, a pull request opened."""

    def git(arguments: str) -> str:
        done = machine.run(f"git {arguments}", **identity)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    identity = {
        f"GIT_{who}_{what}": "tests@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    origin = machine.path.parent / "origin.git"
    suite = machine.path / "suites" / "tiny.quantgate.yaml"
    suite.write_text(MEASURED.format(model=tiny_clip), encoding="utf-8")
    (machine.path / ".gitignore").write_text("obtained/\nreport/\n.pytest_cache/\n")
    git(f"init --quiet --bare {origin}")
    git("init --quiet --initial-branch=main .")
    git("add .")
    git("commit --quiet --message first")
    git(f"remote add origin {origin}")
    git("push --quiet origin main")

    gates = script_of(GITHUB[1], name="Gates", job="measure")
    assert "--quantgate-device=cuda" in gates
    cache = machine.path.parent / "cache"
    here = f"--quantgate-device=cpu --quantgate-cache-dir={cache}"
    run = machine.run(gates.replace("--quantgate-device=cuda", here))
    assert run.returncode == 1, run.stdout + run.stderr
    output = Path(machine.environ["GITHUB_OUTPUT"]).read_text(encoding="utf-8")
    assert output == "differs=true\n"

    artifact = Path(machine.environ["RUNNER_TEMP"]) / "artifact"
    artifact.mkdir()
    (machine.path / "obtained").rename(artifact / "obtained")
    taken = machine.run(
        script_of(GITHUB[1], name="Take the records", job="propose"),
        GITHUB_WORKSPACE=str(machine.path),
    )
    assert taken.returncode == 0, taken.stdout + taken.stderr
    proposed = machine.run(
        script_of(GITHUB[1], name="Propose the baselines", job="propose"),
        BRANCH="quantgate/baselines",
        BASE="main",
        RUN="https://ci.example/1",
    )

    assert proposed.returncode == 0, proposed.stdout + proposed.stderr
    changed = git("diff --name-only origin/main quantgate/baselines").split()
    record_file = "baselines-gpu/suites/tiny/regression-scenes--classification-acc1.json"
    history = ["baselines-gpu/.gitattributes", "baselines-gpu/suites/tiny/history.jsonl"]
    assert changed == [*history, record_file]
    pushed = git("ls-remote origin refs/heads/quantgate/baselines").split()[0]
    assert pushed == git("rev-parse quantgate/baselines")
    assert machine.called[-1].startswith("pr create --base main --head quantgate/baselines")
    body = (Path(machine.environ["RUNNER_TEMP"]) / "body.md").read_text(encoding="utf-8")
    assert body.startswith("Obtained by https://ci.example/1.")
    assert "### Model change" in body
    record = (machine.path / record_file).read_text(encoding="utf-8")
    assert "nightly GPU run https://ci.example/1" in record


def test_a_red_night_proposes_nothing(machine: Machine, tiny_clip: Path) -> None:
    text = MEASURED.format(model=tiny_clip) + "  coverage: {attention: [q, k, v]}\n"
    (machine.path / "suites" / "tiny.quantgate.yaml").write_text(text, encoding="utf-8")
    cache = machine.path.parent / "cache"
    here = f"--quantgate-device=cpu --quantgate-cache-dir={cache}"

    gates = script_of(GITHUB[1], name="Gates", job="measure")
    run = machine.run(gates.replace("--quantgate-device=cuda", here))

    assert run.returncode == 1, run.stdout + run.stderr
    assert "no baseline for suites/tiny scenes/classification-acc1: coverage is FAIL" in run.stdout
    output = Path(machine.environ["GITHUB_OUTPUT"]).read_text(encoding="utf-8")
    assert output == "differs=false\n"


def test_a_night_without_a_difference_proposes_nothing(machine: Machine) -> None:
    write_absent(machine)
    gates = script_of(GITHUB[1], name="Gates", job="measure")

    done = machine.run(gates.replace("--quantgate-device=cuda", "--quantgate-device=cpu"))

    assert done.returncode == 1  # strict: what was not measured is no success
    output = Path(machine.environ["GITHUB_OUTPUT"]).read_text(encoding="utf-8")
    assert output == "differs=false\n"


# -- artifacts ------------------------------------------------------------------------------------


def downloads() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in GITHUB:
        for job in read(path)["jobs"].values():
            for step in job["steps"]:
                if "download-artifact" in step.get("uses", ""):
                    yield path.name, step["with"]


def test_artifacts_are_downloaded_outside_the_checkout() -> None:
    found = list(downloads())

    assert {name for name, _ in found} == {path.name for path in GITHUB[:4]}
    for name, options in found:
        assert options["path"].startswith("${{ runner.temp }}/"), name


def link_outside(folder: Path) -> None:
    (folder / "demo" / "regression-x.json").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / ".git").mkdir() or (folder / ".git" / "config").write_text(""),
        lambda folder: (folder / "demo" / "conftest.py").write_text("raise SystemExit"),
        lambda folder: (folder / "regression-x.json").write_text("{}"),
        lambda folder: (folder / "demo" / "regression-a b.json").write_text("{}"),
        lambda folder: (folder / "demo" / "regression-x\n.json").write_text("{}"),
        lambda folder: (
            (folder / "demo" / "large").mkdir()
            or (folder / "demo" / "large" / "regression-x.json").write_bytes(b" " * (8193 << 10))
        ),
        link_outside,
        lambda folder: (folder / "demo" / "linked").symlink_to("/etc"),
        lambda folder: os.mkfifo(folder / "demo" / "regression-pipe.json"),
        lambda folder: [
            (folder / "demo" / f"regression-{n}.json").write_text("{}") for n in range(1001)
        ],
    ],
)
def test_an_artifact_with_other_files_is_not_taken(machine: Machine, spoil: Any) -> None:
    obtained = Path(machine.environ["RUNNER_TEMP"]) / "artifact" / "obtained"
    (obtained / "demo").mkdir(parents=True)
    (obtained / "demo" / "regression-good.json").write_text("{}")
    script = script_of(GITHUB[1], name="Take the records", job="propose")
    good = machine.run(script, GITHUB_WORKSPACE=str(machine.path))
    assert good.returncode == 0, good.stdout + good.stderr
    assert (machine.path / "obtained" / "demo" / "regression-good.json").is_file()
    shutil.rmtree(machine.path / "obtained")

    spoil(obtained)
    done = machine.run(script, GITHUB_WORKSPACE=str(machine.path))

    assert done.returncode == 1
    assert "::error::obtained/ holds files that are no records" in done.stdout
    assert not (machine.path / "obtained").exists()


def test_records_are_taken_over_no_link(machine: Machine) -> None:
    obtained = Path(machine.environ["RUNNER_TEMP"]) / "artifact" / "obtained"
    (obtained / "demo").mkdir(parents=True)
    (obtained / "demo" / "regression-good.json").write_text("{}")
    outside = machine.path.parent / "outside"
    outside.mkdir()
    (machine.path / "obtained").symlink_to(outside, target_is_directory=True)

    script = script_of(GITHUB[1], name="Take the records", job="propose")
    assert machine.run(script, GITHUB_WORKSPACE=str(machine.path)).returncode == 0

    assert list(outside.iterdir()) == []
    assert (machine.path / "obtained" / "demo" / "regression-good.json").is_file()


def test_a_variant_of_a_pull_request_is_files_of_a_model(machine: Machine) -> None:
    folder = Path(machine.environ["RUNNER_TEMP"]) / "artifact"
    (folder / "model").mkdir(parents=True)
    for name in ("model/config.json", "model/model.safetensors", "recipe.yaml"):
        (folder / name).write_text("{}")
    script = script_of(GITHUB[2], name="Take the files that a variant has", job="gates")
    assert machine.run(script).returncode == 0

    others = ("conftest.py", "model/evil.py", "model/weights.bin", ".git", "model/a/config.json")
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
        assert machine.run(script).returncode == 1, name
        (folder / name).unlink()
    (folder / "model" / "link.json").symlink_to("/etc/passwd")
    assert machine.run(script).returncode == 1


def test_suites_of_the_base_branch_judge_what_a_pull_request_brings(machine: Machine) -> None:
    """Nothing of the pull request is checked out or on the path, and no cache is read."""
    workflow = read(GITHUB[2])
    assert set(workflow[True]) == {"workflow_run"}  # YAML reads `on` as true
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"actions": "read", "contents": "read"}
    checkout = next(step for step in job["steps"] if "checkout" in step.get("uses", ""))
    assert checkout["with"] == {"persist-credentials": False}
    variant = Path(machine.environ["RUNNER_TEMP"]) / "artifact"
    (variant / "model").mkdir(parents=True)
    (variant / "conftest.py").write_text("raise SystemExit('run')")
    suite = ABSENT.replace("${QUANTGATE_NO_SUCH_MODEL}", "${QUANTGATE_VARIANT}/model")
    (machine.path / "suites" / "a.quantgate.yaml").write_text(suite, encoding="utf-8")

    done = machine.run(
        script_of(GITHUB[2], name="Gates", job="gates"), QUANTGATE_VARIANT=str(variant)
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert "cache=off, strict" in done.stdout
    assert "artifact/model holds no *.safetensors file" in done.stdout


# -- a release of two machines --------------------------------------------------------------------


def run_job(machine: Machine, job: str, *, device: str) -> Path:
    """Run the gates of a job of the release, and return its result as it is downloaded.

    Nothing is measured here, so what it ran on is written into it.
    """
    done = machine.run(script_of(RELEASE, name="Gates", job=job))
    assert "report written: " in done.stdout, done.stdout + done.stderr
    temp = Path(machine.environ["RUNNER_TEMP"])
    place = temp / "results" / f"result-{job}"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    shutil.move(temp / "result", place)
    report = read_report((place / "report.json").read_bytes(), name=job)
    suites = tuple(replace(suite, device=device) for suite in report.suites)
    (place / "report.json").write_text(render_json(replace(report, suites=suites)))
    return place


@pytest.fixture
def released(machine: Machine) -> Machine:
    """A checkout with a suite whose verdicts are given, the release file, and what is to ship."""
    (machine.path / "suites").rmdir()
    write_project(machine.path)
    shutil.copy(RECIPES / "release.quantgate.yaml", machine.path)
    (machine.path / "out").mkdir()
    shutil.copy(machine.path / "suites/clip.quantgate.yaml", machine.path / "out")
    return machine


def decide(machine: Machine) -> subprocess.CompletedProcess[str]:
    summary = str(machine.path.parent / "step-summary.md")
    script = script_of(RELEASE, name="Verdict", job="verdict")
    return machine.run(script, GITHUB_STEP_SUMMARY=summary)


def test_a_release_is_published_where_both_machines_say_so(released: Machine) -> None:
    run_job(released, "cpu", device="cpu")
    run_job(released, "gpu", device="cuda")
    publish = script_of(RELEASE, name="Refuse what was not judged", job="publish")

    verdict = decide(released)
    published = released.run(publish)
    (released.path / "out/lora.safetensors").write_bytes(b"x")
    smuggled = released.run(publish)

    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert "clip: may ship: 4 gates passed" in verdict.stdout
    summary = released.path.parent / "step-summary.md"
    assert "May ship: 4 gates passed" in summary.read_text(encoding="utf-8")
    assert (published.returncode, smuggled.returncode) == (0, 1), published.stdout


def test_a_release_without_the_gpu_or_with_a_red_gate_is_held(released: Machine) -> None:
    run_job(released, "cpu", device="cpu")
    temp = Path(released.environ["RUNNER_TEMP"])

    alone = decide(released)
    assert alone.returncode == 1
    assert "machine GPU job has answered no gate of" in " ".join(alone.stdout.split())

    for tried in released.path.rglob("*.tried"):
        tried.unlink()
    (released.path / "verdicts.json").write_text('{"coverage": ["FAIL"]}')
    run_job(released, "gpu", device="cuda")
    red = decide(released)
    assert red.returncode == 1
    assert "two-answers" in (temp / "verdict/report.json").read_text(encoding="utf-8")
    assert not (temp / "verdict/manifest.json").exists()


def test_every_event_has_the_jobs_that_it_needs() -> None:
    jobs = read(RELEASE)["jobs"]

    assert jobs["verdict"]["needs"] == ["cpu", "gpu"]
    assert jobs["publish"]["needs"] == "verdict"
    assert jobs["publish"]["if"] == "${{ needs.verdict.result == 'success' }}"
    assert "pull_request" in jobs["gpu"]["if"]
    assert load_release(RECIPES / "release.quantgate.yaml").machines
