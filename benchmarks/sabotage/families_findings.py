"""What is known of the entries that the first run on other families did not name."""

from __future__ import annotations

from collections.abc import Mapping

#: By title: the code that is the true one in every family, where the reference's was asked for.
REVISED: Mapping[str, str] = {
    "calibration: calibrated on the test images": "calibration.overlap",
    "weights: last LayerNorm at its initial values": "fidelity.cosine",
}

OVERLAP = (
    "the bench was wrong: it asked for calibration.clipped, which the reference also has; the gate "
    "named the overlap"
)
TOO_WIDE = (
    "mended: a range 124 times too wide stood behind others that clip a little; the gate tells of "
    "the width first now"
)

#: By family and title.
FINDINGS: Mapping[str, Mapping[str, str]] = {
    "siglip": {},
    "open_clip": {},
    "dinov2": {},
    "text": {},
    "tower": {},
}
