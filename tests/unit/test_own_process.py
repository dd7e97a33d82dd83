"""Processes of ours run installed code alone, and git runs no program that a repository names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_quantgate.comparison.changes import DiffError
from pytest_quantgate.comparison.paths import compare_trees
from pytest_quantgate.measure.roundtrip import GO
from pytest_quantgate.own_process import GIT_SETTINGS, run_git, run_program, start_module
from pytest_quantgate.report.environment import read_commit

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parents[2] / "pytest_quantgate"

#: The one place that starts processes.
DOOR = "own_process.py"


@pytest.fixture
def trap(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a module and a program of everybody's name that touch the canary."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    code = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("safetensors", "torch", "numpy", "json", "argparse", "runpy", "sitecustomize"):
        (folder / f"{name}.py").write_text(code)
    for name in ("git", "nvidia-smi", "true", "false", "ssh"):
        (folder / name).write_text(f"#!/bin/sh\n: > '{canary}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("path", ["", ".", "HERE", ":.:", "../checkout"])
def test_nothing_in_the_working_folder_is_imported_by_a_module(
    trap: Path, canary: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", path.replace("HERE", str(trap)))

    process = start_module(
        "pytest_quantgate.measure.restore",
        str(trap / "nowhere"),
        cwd=trap,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, said = process.communicate(f"{GO}\n")

    assert process.returncode == 1, said
    assert not canary.exists()


def test_a_module_runs_the_package_that_runs_here_and_nothing_from_beside_it(
    trap: Path, canary: Path
) -> None:
    """As in a checkout that is on the path: its package is ours, its `json.py` is not Python's."""
    package = trap / "pytest_quantgate"
    package.mkdir()
    (package / "own_process.py").write_bytes((PACKAGE / "own_process.py").read_bytes())
    (package / "__init__.py").write_text("__version__ = 'of the checkout'\n")
    (package / "tell.py").write_text("import json, sys, pytest_quantgate\nprint(sys.argv[1:])\n")
    code = (
        f"import sys, pathlib; sys.path.append({str(trap)!r});"
        "sys.modules.pop('pytest_quantgate', None);"
        "import importlib.util as u;"
        f"spec = u.spec_from_file_location('own', {str(package / 'own_process.py')!r});"
        "own = u.module_from_spec(spec); spec.loader.exec_module(own);"
        "own.start_module('pytest_quantgate.tell', 'a', cwd=pathlib.Path.home()).wait()"
    )

    told = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )

    assert told.stdout == "['a']\n"
    assert not canary.exists()


def test_the_command_as_a_module_imports_nothing_from_the_working_folder(
    trap: Path, canary: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_quantgate", "doctor"], capture_output=True, text=True
    )

    assert "pytest plugin" in done.stdout, done.stderr
    assert not canary.exists()


@pytest.mark.parametrize("path", [".", "", "HERE"])
def test_a_program_in_the_working_folder_is_not_run(
    trap: Path, canary: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = path.replace("HERE", str(trap))
    monkeypatch.setenv("PATH", os.pathsep.join((entry, os.environ["PATH"])))

    assert run_git(["rev-parse", "--git-dir"], cwd=trap).returncode == 128  # no repository
    monkeypatch.setenv("PATH", entry)
    with pytest.raises(FileNotFoundError):
        run_program(["git", "--version"])
    assert not canary.exists()


def test_one_module_starts_processes() -> None:
    """Whoever needs a process asks `own_process`: everything above holds for it then."""
    starters = {"subprocess", "multiprocessing", "os", "asyncio", "pty"}
    calls = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "system", "popen"}
    calls |= {"execv", "execve", "execvp", "spawnv", "posix_spawn", "fork", "forkpty", "startfile"}
    calls |= {"create_subprocess_exec", "create_subprocess_shell", "get_context", "spawn"}
    trees = {
        path.relative_to(PACKAGE).as_posix(): list(ast.walk(ast.parse(path.read_text("utf-8"))))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    found = [
        f"{name}:{node.lineno}"
        for name, nodes in trees.items()
        if name != DOOR
        for types in [[node.value for node in nodes if isinstance(node, ast.Subscript)]]
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node not in types  # as in Popen[str]
        and node.attr in calls
        and isinstance(node.value, ast.Name)
        and node.value.id in starters
    ]

    assert found == []


# -- git ------------------------------------------------------------------------------------------

#: Every setting by which a repository can name a program, as git's documentation has them.
PROGRAMS = """
[core]
    repositoryFormatVersion = 1
    alternateRefsCommand = PROGRAM
    askPass = PROGRAM
    editor = PROGRAM
    fsmonitor = PROGRAM
    gitProxy = PROGRAM
    hooksPath = HOOKS
    pager = PROGRAM
    sshCommand = PROGRAM
    attributesFile = ATTRIBUTES
[extensions]
    partialClone = origin
[alias]
    rev-parse = !PROGRAM
    ls-tree = !PROGRAM
    cat-file = !PROGRAM
    merge-base = !PROGRAM
[credential]
    helper = !PROGRAM
[credential "https://example.invalid"]
    helper = !PROGRAM
[diff]
    external = PROGRAM
    tool = evil
[diff "evil"]
    command = PROGRAM
    textconv = PROGRAM
[difftool "evil"]
    cmd = PROGRAM
[filter "evil"]
    smudge = PROGRAM
    clean = PROGRAM
    process = PROGRAM
    required = true
[gpg]
    program = PROGRAM
[gpg "ssh"]
    program = PROGRAM
    defaultKeyCommand = PROGRAM
[interactive]
    diffFilter = PROGRAM
[log]
    showSignature = true
[merge "evil"]
    driver = PROGRAM
[mergetool "evil"]
    cmd = PROGRAM
[pager]
    ls-tree = PROGRAM
    rev-parse = PROGRAM
[receive]
    procReceiveRefs = refs/
[remote "origin"]
    url = URL
    promisor = true
    partialclonefilter = blob:none
    uploadpack = PROGRAM
    receivepack = PROGRAM
    proxy = http://example.invalid
[remote "helper"]
    url = ext::PROGRAM
    promisor = true
[remote "foreign"]
    vcs = evil
    url = x
    promisor = true
[sequence]
    editor = PROGRAM
[submodule "evil"]
    update = !PROGRAM
    url = ext::PROGRAM
[submodule]
    recurse = true
[tar "tar"]
    command = PROGRAM
[trailer "evil"]
    command = PROGRAM
    cmd = PROGRAM
[uploadpack]
    packObjectsHook = PROGRAM
[url "ext::PROGRAM"]
    insteadOf = https://example.invalid
"""

#: Where a missing object would be fetched from.
URLS = ("ssh://example.invalid/x", "ext::PROGRAM", "HERE", "file://HERE", "git://127.0.0.1:1/x")


@pytest.fixture
def program(tmp_path: Path, canary: Path) -> Path:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n: > '{canary}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a suite; the blob of the second one is gone, as in a partial clone."""
    folder = tmp_path / "repository"
    (folder / "suites").mkdir(parents=True)

    def git(*arguments: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
        done = subprocess.run(
            ["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (folder / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    for text in ("one", "two"):
        (folder / "suites" / "x.quantgate.yaml").write_text(f"# {text}\n")
        git("add", ".")
        git("commit", "-q", "-m", text)
    blob = git("rev-parse", "HEAD:suites/x.quantgate.yaml")
    (folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    return folder


def plant(repository: Path, *, program: Path, url: str) -> None:
    hooks = repository / "hooks"
    hooks.mkdir()
    for name in ("reference-transaction", "post-index-change", "pre-auto-gc", "post-checkout"):
        (hooks / name).symlink_to(program)
        (repository / ".git" / "hooks").mkdir(exist_ok=True)
        (repository / ".git" / "hooks" / name).symlink_to(program)
    text = PROGRAMS.replace("URL", url).replace("HERE", str(repository.parent / "other"))
    text = text.replace("PROGRAM", str(program)).replace("HOOKS", str(hooks))
    text = text.replace("ATTRIBUTES", str(repository / ".gitattributes"))
    (repository / ".git" / "config").write_text(text)


@pytest.mark.parametrize("url", URLS)
def test_no_program_of_a_repository_is_run(
    repository: Path,
    program: Path,
    canary: Path,
    tmp_path: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subprocess.run(["git", "clone", "-q", "--bare", repository / ".git", tmp_path / "other"])
    plant(repository, program=program, url=url)
    for name in ("GIT_SSH_COMMAND", "GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_ASKPASS", "GIT_EDITOR"):
        monkeypatch.setenv(name, str(program))
    (tmp_path / "room").mkdir()

    with pytest.raises(DiffError, match="is not in this clone: clone the repository whole"):
        compare_trees(
            "HEAD~1..HEAD",
            baselines="baselines",
            suites="suites",
            here=repository,
            room=tmp_path / "room",
        )
    assert read_commit(repository, environ={})
    assert not canary.exists()


def test_the_planted_settings_do_run_programs(
    repository: Path, program: Path, canary: Path
) -> None:
    """What git does by itself with such a repository: else the test above shows nothing."""
    plant(repository, program=program, url="ssh://example.invalid/x")

    subprocess.run(
        ["git", "cat-file", "-p", "HEAD:suites/x.quantgate.yaml"],
        cwd=repository,
        capture_output=True,
        check=False,
    )

    assert canary.exists()


def test_every_setting_that_names_a_program_is_switched_off(
    repository: Path, program: Path
) -> None:
    """By the list above: those without a name of their own, as git understands them."""
    plant(repository, program=program, url="x")
    listed = run_git(["config", "--local", "--list", "--name-only"], cwd=repository).stdout.decode()
    named = {key for key in listed.splitlines() if key.count(".") == 1}
    harmless = {"core.repositoryformatversion", "core.attributesfile", "extensions.partialclone"}
    harmless |= {"diff.tool", "receive.procreceiverefs"}  # names of what is not run
    not_read = {"uploadpack.packobjectshook"}  # git reads it from the user's own settings alone
    aliases = {key for key in named if key.startswith(("alias.", "pager."))}  # never of its own

    missing = named - {key.lower() for key in GIT_SETTINGS} - harmless - not_read - aliases
    assert missing == set()
    for key, value in GIT_SETTINGS.items():
        found = run_git(["config", "--get", key], cwd=repository)
        assert found.stdout.decode().strip() == value, key
