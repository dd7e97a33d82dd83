"""Which layers cost what, as terminal text, YAML to paste, and an SVG plot. Pure: text out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from xml.sax.saxutils import escape

from pytest_quantgate.evidence.sensitivity import (
    Exclusion,
    GateCheck,
    GroupEffect,
    QuantizerGroup,
    Sensitivity,
)
from pytest_quantgate.gates.suspects import describe_outliers, explained_by_outliers
from pytest_quantgate.run.sensitivity import SUSPECTS, rank_suspects

#: SQNR from which on noise no longer shows in a plot.
QUIET_DB = 60.0

BAR_WIDTH = 20


def to_sqnr_db(noise: float) -> float:
    """Return a ratio of noise to signal in dB of SQNR: +inf for none, -inf for NaN or Inf."""
    if not math.isfinite(noise):
        return -math.inf
    return math.inf if noise == 0 else -10 * math.log10(noise)


def render_sensitivity(found: Sensitivity, *, top: int) -> Iterator[str]:
    """Yield the lines of the ranked table: at most `top` groups, worst first."""
    texts = f"{found.texts} texts" if found.texts != 1 else "1 text"
    yield f"{_plural(len(found.effects), 'group')} of quantizers on {found.samples} images and " + (
        f"{texts} of {found.data}"
    )
    for tower in found.towers:
        yield f"  {tower.tower} embeddings: SQNR {_db(tower.noise_all)} with every quantizer on"
        if to_sqnr_db(tower.noise_off) < QUIET_DB:
            yield (
                f"  {tower.tower} embeddings: SQNR {_db(tower.noise_off)} with every quantizer "
                f"off: the weights are not FP16's, which no exclusion mends"
            )
    if found.metric_off is not None and found.metric_all is not None:
        yield (
            f"  {found.task} {found.metric} on these samples: {found.metric_off * 100:.2f} % with "
            f"every quantizer off, {found.metric_all * 100:.2f} % with every one on"
        )
    yield ""
    shown = found.effects[:top]
    width = max(len("group"), *(len(effect.group.label) for effect in shown))
    metric = found.metric_off is not None
    name = f"  {found.metric:>9.9}" if metric else ""
    alone = f"{'SQNR':>9}  {'noise':<{BAR_WIDTH}}{name}"
    left_out = f"{'SQNR':>9}{name}  weights"
    heads = f"{'quantized alone':^{len(alone)}}  {'left out':^{len(left_out)}}"
    yield f"  {'':<{width}}  {heads}".rstrip()
    yield f"  {'group':<{width}}  {alone}  {left_out}"
    for effect in shown:
        yield f"  {effect.group.label:<{width}}  {_row(effect, found)}"
    if len(found.effects) > top:
        yield f"  ... and {_plural(len(found.effects) - top, 'group')} more (--top)"
    yield from _outlier_lines(shown, found)


def _outlier_lines(effects: Sequence[GroupEffect], found: Sensitivity) -> Iterator[str]:
    """Yield the outlier channels that explain the noise of a group, as a red gate names them."""
    ranked = rank_suspects(replace(found, effects=tuple(effects)), most=len(effects))
    explained = [suspect for suspect in ranked if explained_by_outliers(suspect)]
    if not explained:
        return
    yield ""
    yield f"outlier channels explain most of the noise of {_plural(len(explained), 'group')}"
    for suspect in explained[:SUSPECTS]:
        yield f"  {suspect.label}: {describe_outliers(suspect)}"
        yield f"    quantized apart from the others: SQNR {suspect.sqnr_apart_db:.1f} dB"
    if len(explained) > SUSPECTS:
        yield f"  ... and {_plural(len(explained) - SUSPECTS, 'group')} more"


def render_exclusion(
    found: Exclusion, *, suite: str, weights_bytes: int, exclude: Sequence[str]
) -> Iterator[str]:
    """Yield what the exclusion is, what it gives and costs, and the YAML to paste."""
    if not found.checks:
        yield f"{suite} has no accuracy and no fidelity gate: no limit says what to leave out"
        return
    if found.outcome == "none needed":
        yield f"{suite}: nothing needs excluding, {_plural(len(found.checks), 'gate')} passed"
        yield from (
            f"  {check.before}  {check.gate}  {check.brief_before}" for check in found.checks
        )
        return
    if found.outcome == "impossible":
        yield f"{suite}: no exclusion meets the limits: {found.reason}"
        return
    if found.outcome == "not found":
        yield (
            f"{suite}: no exclusion meets the limits in {found.verifications} verified tries, "
            f"short of leaving out every group"
        )
        yield from (
            f"  {check.before}  {check.gate}  {check.brief_before}" for check in found.checks
        )
        return
    growth = found.extra_bytes / weights_bytes if weights_bytes else 0.0
    yield (
        f"{suite}: leaving out {_plural(len(found.groups), 'group')} meets every limit (verified, "
        f"{_plural(found.verifications, 'evaluation')} spent)"
    )
    yield from (line for check in found.checks for line in _check_lines(check))
    yield (
        f"  weights: {_bytes(found.extra_bytes)} more, {_bytes(weights_bytes)} -> "
        f"{_bytes(weights_bytes + found.extra_bytes)} (+{growth * 100:.1f} %)"
    )
    if found.coverage:
        yield f"  then red: {found.coverage}"
        yield "            waive these modules there, with a reason and a day"
    yield ""
    yield from render_yaml(found.groups, exclude=exclude)


def render_yaml(groups: Sequence[QuantizerGroup], *, exclude: Sequence[str]) -> Iterator[str]:
    """Yield `quantize.exclude` with the patterns that a suite has and those of `groups`."""
    yield "quantize:"
    yield "  exclude:"
    yield from (f"    - {json.dumps(pattern, ensure_ascii=False)}" for pattern in exclude)
    known = set(exclude)
    for group in groups:
        for pattern in group.patterns:
            if pattern not in known:
                known.add(pattern)
                yield f"    - {json.dumps(pattern, ensure_ascii=False)}  # {group.label}"


def render_svg(found: Sensitivity, *, top: int) -> str:
    """Return a bar for the noise of each group alone, worst first, as one SVG document.

    Colours follow the reader's light or dark scheme, and every bar has its figures as a title.
    """
    shown = found.effects[:top]
    left, right, row, head = 260, 110, 22, 34
    plot = 420
    width, height = left + plot + right, head + row * len(shown) + 8
    best = max([1.0, *(q for e in shown if math.isfinite(q := to_sqnr_db(e.noise_only)))])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'aria-label="Noise that each group of quantizers adds alone">',
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.bar{fill:#0969da}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bar{fill:#4493f8}}</style>",
        f'<text x="{left}" y="18">SQNR of the embeddings with one group alone quantized: '
        f"a longer bar is more noise</text>",
    ]
    for index, effect in enumerate(shown):
        db = to_sqnr_db(effect.noise_only)
        y = head + index * row
        length = 0.0 if db == math.inf else plot * (best + 6 - max(db, 0.0)) / (best + 6)
        label = escape(effect.group.label)
        parts.append(
            f"<g><title>{label}: SQNR {escape(_db(effect.noise_only))}</title>"
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{label}</text>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{max(length, 1):.1f}" height="14"/>'
            f'<text x="{left + max(length, 1) + 6:.1f}" y="{y + 13}">'
            f"{escape(_db(effect.noise_only))}</text></g>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _row(effect: GroupEffect, found: Sensitivity) -> str:
    if not effect.towers:
        return f"{'never ran':>9}"
    db = to_sqnr_db(effect.noise_only)
    share = 0.0 if db == math.inf else min(1.0, max(0.0, 1 - db / QUIET_DB))
    bar = "#" * max(1 if db < QUIET_DB else 0, round(BAR_WIDTH * share))
    everything = max(t.noise_all for t in found.towers if t.tower in effect.towers)
    alone = left_out = ""
    if effect.metric_only is not None and effect.metric_without is not None:
        assert found.metric_off is not None
        assert found.metric_all is not None
        alone = f"  {_points(effect.metric_only - found.metric_off):>9}"
        left_out = f"  {_points(effect.metric_without - found.metric_all):>9}"
    weights = f"+{_bytes(effect.group.extra_bytes)}" if effect.group.extra_bytes else ""
    return (
        f"{_db(effect.noise_only):>9}  {bar:<{BAR_WIDTH}}{alone}  "
        f"{_gain_db(everything, effect.noise_without):>9}{left_out}  {weights}"
    ).rstrip()


def _check_lines(check: GateCheck) -> Iterator[str]:
    if check.predicted is None:
        yield f"  {check.after}  {check.gate}  {check.brief_after} (before: {check.brief_before})"
        return
    yield f"  {check.after}  {check.gate}  {check.brief_after}"
    before, after = _percent(check.value_before), _percent(check.value_after)
    yield (
        f"        FP16 {_percent(check.fp16_value)}, before {before} ({check.before}), predicted "
        f"{_percent(check.predicted)}, verified {after}"
    )


def _gain_db(before: float, after: float) -> str:
    """Return the change of SQNR: `+1.3 dB`."""
    if math.isnan(after):
        return ""
    gain = to_sqnr_db(after) - to_sqnr_db(before)
    if math.isnan(gain):  # both are infinite: nothing changed
        return "+0.0 dB"
    return f"{gain:+.1f} dB" if math.isfinite(gain) else ("all" if gain > 0 else "NaN")


def _db(noise: float) -> str:
    db = to_sqnr_db(noise)
    if db == math.inf:
        return "no noise"
    return f"{db:.1f} dB" if math.isfinite(db) else "NaN"


def _points(share: float) -> str:
    return f"{share * 100:+.2f} pp"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share * 100:.2f} %"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
