"""Nothing is written or deleted through a link that came with a checkout, and no foreign file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.report.files import MARKS
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.disk import refuse_links, write_whole
from pytest_quantgate.suite.load import load_suite

SUITE = "suites/x.quantgate.yaml"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the checkout, and a file in it that stays as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "victim").write_text("victim")
    return folder


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    (folder / ".git").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def untouched(outside: Path) -> bool:
    files = [path for path in outside.rglob("*") if path.is_file()]
    return files == [outside / "victim"] and files[0].read_text() == "victim"


@pytest.mark.parametrize("path", ["link/x", "link/a/b", "a/../link/x", "a/link/x", "file"])
def test_no_file_is_written_through_a_link_of_a_checkout(
    checkout: Path, outside: Path, path: str
) -> None:
    (checkout / "a").mkdir()
    for place in ("link", "a/link"):
        (checkout / place).symlink_to(outside, target_is_directory=True)
    (checkout / "file").symlink_to(outside / "victim")

    for target in (Path(path), checkout / path):
        with pytest.raises(OSError, match="it is a link, and nothing is written through one"):
            write_whole(target, b"evil")

    assert untouched(outside)
    assert list(outside.iterdir()) == [outside / "victim"]


def test_links_to_a_checkout_and_elsewhere_belong_to_the_user(
    checkout: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with /tmp on macOS, a home on another disk, or a scratch folder that is a link."""
    (tmp_path / "way").symlink_to(checkout, target_is_directory=True)
    (tmp_path / "scratch").symlink_to(outside, target_is_directory=True)

    write_whole(tmp_path / "way" / "report" / "x", b"1")
    write_whole(tmp_path / "scratch" / "y", b"2")
    monkeypatch.chdir(tmp_path / "way")
    write_whole(Path("z"), b"3")
    monkeypatch.chdir("/")
    refuse_links(tmp_path / "way" / "report" / "x", root=tmp_path / "way")

    assert (checkout / "report" / "x").read_bytes() == b"1"
    assert (outside / "y").read_bytes() == b"2"
    assert (checkout / "z").read_bytes() == b"3"


def test_a_link_above_the_root_of_a_run_is_found_in_its_repository(
    checkout: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "sub").mkdir()
    (checkout / "report").symlink_to(outside, target_is_directory=True)
    monkeypatch.chdir("/")

    with pytest.raises(OSError, match="it is a link"):
        refuse_links(checkout / "sub" / ".." / "report" / "x", root=checkout / "sub")


def test_names_of_files_that_are_not_whole_cannot_be_guessed(checkout: Path, outside: Path) -> None:
    """What an attacker lays in their places stays; the file gets its name all the same."""
    for name in (".diff.md.writing", ".writing-", "diff.md.tmp", "diff.md.part"):
        (checkout / name).symlink_to(outside / "victim")

    write_whole(Path("diff.md"), b"good")

    assert Path("diff.md").read_bytes() == b"good"
    assert untouched(outside)


@pytest.mark.parametrize("made", ["report", "baselines", "obtained"])
def test_a_run_writes_through_no_link(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    outside: Path,
    made: str,
) -> None:
    write_suite()
    (pytester.path / made).symlink_to(outside, target_is_directory=True)
    mode = ("--quantgate-baselines=create",) if made == "baselines" else ()
    proposed = Store(outside).path("suites/tiny", "scenes/classification-acc1")
    if made == "obtained":  # what an earlier run proposed there would be deleted
        proposed.parent.mkdir(parents=True)
        proposed.write_text("victim")

    result = run_gates("-k", "regression or coverage", "--quantgate-report=report", *mode)

    text = result.stdout.str() + result.stderr.str()
    assert result.ret != pytest.ExitCode.OK
    assert "Traceback" not in text
    assert "nothing is written" in text
    if made == "obtained":
        assert proposed.read_text() == "victim"
        proposed.unlink()
    assert untouched(outside), text


@pytest.mark.parametrize(
    "option",
    ["--quantgate-report=a/link", "--quantgate-json=link/x.json", "--quantgate-markdown=x"],
)
def test_a_report_through_a_link_is_refused_before_the_run(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    outside: Path,
    option: str,
) -> None:
    write_suite()
    (pytester.path / "a").mkdir()
    for place in ("link", "a/link"):
        (pytester.path / place).symlink_to(outside, target_is_directory=True)
    (pytester.path / "x").symlink_to(outside / "victim")

    result = run_gates(option)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quantgate-*link*"])
    assert untouched(outside)


@pytest.mark.parametrize(
    "arguments",
    [
        ["diff", "a", "b", "--markdown", "out/x.md"],
        ["diff", "a", "b", "--html", "out/x.html"],
        ["diff", "a", "b", "--markdown", "file"],
        ["init", "--model=reference", "--data=scenes", "--output=out/x.quantgate.yaml"],
        ["init", "--model=reference", "--data=scenes", "--output=gone.quantgate.yaml"],
    ],
    ids=" ".join,
)
def test_commands_write_through_no_link(
    checkout: Path, outside: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "out").symlink_to(outside, target_is_directory=True)
    (checkout / "file").symlink_to(outside / "victim")
    (checkout / "gone.quantgate.yaml").symlink_to(outside / "gone")
    for name in ("a", "b"):
        (checkout / name).mkdir()
        init = ["init", "--model=reference", "--data=scenes", f"--output={name}/x.quantgate.yaml"]
        assert main(init) == 0
    capsys.readouterr()

    assert main(arguments) in (1, 2)

    assert len(capsys.readouterr().err.splitlines()) == 1
    assert untouched(outside)


@pytest.mark.parametrize("option", ["--markdown", "--html"])
def test_a_comparison_replaces_a_comparison_and_nothing_else(
    checkout: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (checkout / name).mkdir()
        init = ["init", "--model=reference", "--data=scenes", f"--output={name}/x.quantgate.yaml"]
        assert main(init) == 0
    Path("notes.md").write_text("# mine\n")

    assert main(["diff", "a", "b", option, "notes.md"]) == 2
    assert "was not written by pytest-quantgate and is left as it is" in capsys.readouterr().err
    assert Path("notes.md").read_text() == "# mine\n"

    for _ in range(2):
        assert main(["diff", "a", "b", option, "out"]) == 0
    assert MARKS["diff-markdown" if option == "--markdown" else "diff-html"] in Path(
        "out"
    ).read_text("utf-8")


def test_a_suite_that_was_drafted_is_read_from_a_folder_of_its_own(checkout: Path) -> None:
    """`init` checks its text below the system's temporary folder, whatever links lie here."""
    assert main(["init", "--model=reference", "--data=scenes", f"--output={SUITE}"]) == 0
    assert load_suite(checkout / SUITE).name
