"""What can go wrong outside a verdict: bad input, a missing part, a damaged file.

Every message says what is wrong, where, the numbers, and the command or edit that mends it.
The plugin and the command line show the message alone, never a traceback.
"""

from __future__ import annotations


class QuantGateError(Exception):
    """Base of all errors that a user can cause and mend; `str(error)` is the whole message.

    `code` is that of the verdict which the error becomes (see `Verdict.code`); where it is empty
    that is `<gate>.<finding>`, by the kind of error; its `cause` is as general as the kind is.
    """

    finding = "input-unusable"
    cause = "what the run was given cannot be used as it is"

    def __init__(self, *arguments: object, code: str = "") -> None:
        super().__init__(*arguments)
        self.code = code


class SuiteError(QuantGateError):
    """A suite file that cannot be accepted; the message starts with `file:line:`."""

    finding = "suite-unusable"
    cause = "the suite asks for what cannot be"


class BaselineError(QuantGateError):
    """A baseline file that is damaged, of another version, or may not be written."""

    finding = "baseline-unusable"
    cause = "the file was edited, merged by hand, or is of another release"


class WriteError(QuantGateError):
    """A place that cannot be written: a full or read-only disk, or a limit on sizes of files."""

    finding = "unwritable"
    cause = "the disk is full or read-only, or a limit on file sizes is in force"


class CacheError(WriteError):
    """A cache that cannot be written (a damaged entry is no error: it is rebuilt)."""


class ReportError(QuantGateError):
    """A report that cannot be written, or whose place is taken by a file of somebody else."""


class StoredValueError(QuantGateError, ValueError):
    """A stored measurement that is whole as a file and is not what this release reads.

    `place` grows while it passes out of nested data (`.machine.cores`).
    """

    place = ""


class ModelError(QuantGateError):
    """A checkpoint, a recipe or a model that cannot be used."""

    finding = "model-unusable"
    cause = "the checkpoint, the recipe or the model is not what the suite takes it for"


class UnsupportedModel(ModelError):
    """A model of a known kind that cannot be done yet; the message says what to do instead."""


class ArtifactError(QuantGateError):
    """A checkpoint, ONNX file or engine of others that cannot be read, or is none."""


class GivenFileError(QuantGateError):
    """A file that a suite was handed and that cannot be judged: damaged, or of something else."""

    finding = "given-file-unusable"


class DataError(QuantGateError):
    """A data set that is empty, damaged or not what the task needs."""

    finding = "data-unusable"
    cause = "the data set is empty, damaged, or not of the kind that the task needs"


class Incomparable(QuantGateError):
    """Two things were to be compared that are not of one model: no number would mean anything."""

    finding = "base-differs"
    brief = "the checkpoint was made from another model"
    cause = "the quantized variant was made from other weights than those of `model:`"


class Untied(Incomparable):
    """A report that is not proved to be of the engine and the ONNX file that it stands beside."""

    finding = "report-untied"
    brief = "the report is not proved to be of these files"
    cause = "the report and the files that it is given with come from different builds"


class NotMeasured(QuantGateError):
    """A part is absent (a package, a device, weights, data): the verdict is NOT_MEASURED."""


class MissingPackage(NotMeasured):
    """An optional package is absent; the message holds its install line."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"pip install 'pytest-quantgate[{extra}]'"
        )
        self.package = package
        self.extra = extra
