"""What a serving runtime's own loader made of a folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How the tensors of a folder lie in a runtime after its own loader has read them.

    `folder` is the name of what was read, `origin` says in words where that is from, `is_tied`
    whether it is known to be what the suite judges. `reads_as` is
    the runtime's class for the folder's quantization, empty where it sees none. `error` is what the
    loader said that refused it, at the stage `refused_at` (`config` or `load`). Of the `tensors` in
    the folder, `codes` are numbers of one byte; `changed` are those that lie at their place with
    other values, or no longer as codes, `lost` those that lie nowhere; `unused` lie nowhere too,
    and are of no embedding (`logit_scale`). `unfilled` are parameters of
    the runtime's model that nothing was loaded into. `unprepared` is why its weights could not be
    made ready for its kernels, empty where they were.
    """

    runtime: str
    version: str
    folder: str
    origin: str
    is_tied: bool = True
    reads_as: str = ""
    refused_at: str = ""
    error: str = ""
    tensors: int = 0
    codes: int = 0
    parameters: int = 0
    changed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unfilled: tuple[str, ...] = ()
    unprepared: str = ""
