"""Writing where a disk may be full, read-only or limited: whole files, and one error that says so.

Libraries say in many ways that a file could not be written: safetensors with an exception of its
own, torch with a RuntimeError about positions, NumPy with an OSError without a number, protobuf
with 'serialization failed'. Here they become the OSError that they are.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_quantgate.errors import QuantGateError, WriteError

#: What an operating system answers where a place takes no files, or no more of them.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
CODES = (*FULL, *CLOSED)

#: What libraries say of a file of which they could not write all, without saying why.
_INCOMPLETE = re.compile(
    r"inline_container\.cc|PytorchStreamWriter|iostream error"  # torch.save
    r"|\d+ requested and \d+ written"  # numpy.save
    r"|Protobuf serialization failed"  # ONNX Runtime
)

#: How the name of a file begins that is not whole yet.
WRITING = ".writing-"

#: Small beside any file of ours, and more than what a full disk keeps back.
_PROBE_BYTES = 1 << 20


def find_write_error(error: BaseException, *, folder: Path) -> OSError | None:
    """Return the reason why nothing could be written in `folder` where that is what `error` means.

    Looks at the whole chain of causes. Where a library does not say why, the folder is asked: it
    is written to once more. None for an error of another kind, or about a file elsewhere.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in CODES:
            return each if _is_in(folder, each.filename) else None
        for code in FULL:
            if f"(os error {code})" in str(each):  # Rust; whoever reads gets none of these
                return OSError(code, os.strerror(code))
    if isinstance(error, QuantGateError):
        return None
    failure = probe(folder)
    if failure is None and any(_INCOMPLETE.search(str(each)) for each in _chain(error)):
        # What took the space is deleted again by whoever could not write all of it.
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return failure


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_in(folder: Path, name: object) -> bool:
    """Return whether a file of an error may be in `folder`: an error of `write` names none."""
    if not isinstance(name, (str, os.PathLike)):
        return True
    return Path(name).absolute().is_relative_to(folder.absolute())


def probe(folder: Path) -> OSError | None:
    """Return why `folder` takes no file of a megabyte, or None."""
    try:
        with tempfile.TemporaryFile(dir=folder) as out:
            out.write(bytes(_PROBE_BYTES))
            out.flush()
    except OSError as error:
        return error
    return None


def describe_write_error(error: OSError, *, folder: Path) -> str:
    """Return the reason in words, with the numbers that tell what there is room for.

    What could not be written as a whole is deleted by then.
    """
    reason = error.strerror or str(error)
    limit = _size_limit() if error.errno == errno.EFBIG else None
    if limit is not None:
        return f"{reason} (files may have {limit} bytes here)"
    if error.errno in FULL:
        with suppress(OSError):
            place = next(path for path in (folder, *folder.parents) if path.exists())
            usage = shutil.disk_usage(place)
            return (
                f"{reason} (free without it: {_megabytes(usage.free)} of {_megabytes(usage.total)})"
            )
    return reason


def mend_write_error(error: OSError, *, option: str) -> str:
    """Return what to do; `option` chooses another folder."""
    if error.errno in CLOSED:
        return f"it is read-only or another user's: choose a folder of your own with {option}"
    if error.errno == errno.EFBIG and _size_limit() is not None:
        return "raise the limit: ulimit -f unlimited"
    return f"free space there or choose another folder with {option}"


def _size_limit() -> int | None:
    """Return how many bytes a file may have in this process; None: as many as the disk holds."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def refuse_links(path: Path, *, root: Path | None = None) -> None:
    """Raise OSError where a part of `path` is a link that came with a checkout.

    Looked at are the parts inside the working folder, inside `root` (where a run has one), and
    inside the repositories that these are in. Links that lead to a checkout, and those elsewhere
    on the machine, belong to its user.
    """
    whole = Path(os.path.normpath(Path.cwd() / path))
    parts = (whole, *whole.parents)
    here = Path.cwd()
    for folder in {here, *((root, root.resolve()) if root is not None else ())}:
        above = (folder, *folder.parents)
        top = next((place for place in above if os.path.lexists(place / ".git")), None)
        if top is None and folder == here != root and Path.home().is_relative_to(here):
            continue  # no checkout: the whole machine, or all that is its user's
        top = top or folder
        for part in parts:
            if part != top and part.is_relative_to(top) and part.is_symlink():
                raise OSError(
                    errno.ELOOP, "it is a link, and nothing is written through one", str(part)
                )


@contextmanager
def temporary_folder(prefix: str = "quantgate-") -> Iterator[Path]:
    """Give a folder that is deleted after the block; raises WriteError where it takes no files."""
    try:
        root = Path(tempfile.gettempdir())
    except OSError as error:  # it names all places that it tried
        raise WriteError(
            f"{error.strerror}: free space in one of them, or set TMPDIR=DIR"
        ) from error
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=root)
    except OSError as error:
        raise _refuse_temporary(error, folder=root) from error
    found: OSError | None = None
    try:
        with made as name:
            try:
                yield Path(name)
            except Exception as error:
                found = find_write_error(error, folder=Path(name))
                raise
    except WriteError:
        raise
    except Exception as error:
        if found is None:
            raise
        raise _refuse_temporary(found, folder=root) from error


def _refuse_temporary(error: OSError, *, folder: Path) -> WriteError:
    reason = describe_write_error(error, folder=folder)
    mend = mend_write_error(error, option="TMPDIR=DIR")
    return WriteError(f"cannot write temporary files under {folder}: {reason}; {mend}")


def write_whole(
    path: Path, data: bytes, *, durable: bool = False, root: Path | None = None
) -> None:
    """Replace a file as a whole; raises OSError, and then leaves what was there and nothing else.

    `durable` makes sure that the data is on the disk before the file has its name. Nothing is
    written through a link, as `refuse_links` has it, nor over one.
    """
    refuse_links(path, root=root)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=WRITING, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private; these files are there to be read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
