"""One quantizer as a file keeps it, whichever tool wrote the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class StoredQuantizer:
    """One quantizer as a checkpoint keeps it.

    `amax` are the stored ranges, flat and in their own order, None where there is none.
    `pre_scale` is what SmoothQuant scales a value by before it is quantized, None without.
    `settings` are all further settings that change what it computes, as text.
    `ranges_digest` stands for all ranges where `amax` are the smallest and the largest alone.
    `off_because` says why it is off where that is more than a switch.
    `calls` is how often it ran when it was audited, None where no audit lies beside.
    """

    name: str
    enabled: bool
    format: str
    granularity: str
    dynamic: bool
    amax: tuple[float, ...] | None
    pre_scale: tuple[float, ...] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    ranges_digest: str = ""
    off_because: str = ""
    calls: int | None = None
