"""Quantizers grouped by where they sit: one group a transformer block and kind.

The names alone decide, and the audit's own tower, block and slot: no model is known here. A block
is a numbered member of `layers`, `blocks`, `resblocks` or `h`, the outermost where they nest.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence

from pytest_quantgate.evidence.audit import Audit, Quantizer
from pytest_quantgate.evidence.sensitivity import QuantizerGroup
from pytest_quantgate.quantization.quantizers import whole_name

_BLOCK_PREFIX = re.compile(r"^(?:.*?\.)??(?:layers?|blocks?|resblocks|h)\.\d+(?=\.|$)")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_PROJECTIONS = re.compile(r"^(?:in_proj.*|(?:to_)?(?:[qkv]|qk|kv|qkv)(?:_?proj)?|query|key|value)$")

_MATMUL_SLOTS = ("q", "k", "v", "softmax", "attention_output")

#: Kinds of a block's attention; another layer of a block is called by its own name (`mlp`).
QKV, ATTENTION_OUTPUT, MATMULS = "attention qkv", "attention output", "attention matmuls"


def block_prefix(name: str) -> str | None:
    """Return the name of the outermost transformer block that a module is in, or None."""
    found = _BLOCK_PREFIX.match(name)
    return found.group(0) if found else None


def group_quantizers(audit: Audit) -> tuple[QuantizerGroup, ...]:
    """Return the enabled quantizers of an audit in groups, in the model's own order.

    Each group has the exclude patterns that match its quantizers and no other enabled one;
    `extra_bytes` is 0, because an audit knows no sizes.
    """
    attentions = {m.name for m in audit.modules if m.kind in ("attention", "mha")}
    members: dict[tuple[str, str], list[Quantizer]] = {}
    for quantizer in audit.quantizers:
        if quantizer.enabled:
            place = block_prefix(quantizer.module) or ""
            kind = _kind_of(quantizer, place=place, attentions=attentions)
            members.setdefault((place, kind), []).append(quantizer)
    labels = {key: _label(key[1], found[0]) for key, found in members.items()}
    enabled = [q.name for found in members.values() for q in found]
    groups = []
    for key, found in members.items():
        label, names = labels[key], tuple(q.name for q in found)
        if sum(other == label for other in labels.values()) > 1:
            label = f"{label} ({key[0] or found[0].module})"
        groups.append(
            QuantizerGroup(
                label=label,
                tower=found[0].tower,
                block=found[0].block,
                kind=key[1],
                quantizers=names,
                patterns=exclude_patterns(names, among=enabled),
            )
        )
    return tuple(groups)


def exclude_patterns(names: Sequence[str], *, among: Collection[str]) -> tuple[str, ...]:
    """Return the fewest patterns found that match `names` and no other of `among`.

    They are ModelOpt's patterns: `fnmatch` on the whole name of a quantizer.
    """
    wanted = {whole_name(name) for name in names}
    unwanted = {whole_name(name) for name in among} - wanted
    patterns: list[str] = []
    left = dict.fromkeys(whole_name(name) for name in names)
    while left:
        first = next(iter(left))
        fitting = [c for c in _candidates(first, wanted=left) if not fnmatch.filter(unwanted, c)]
        best = max(fitting, key=lambda pattern: len(fnmatch.filter(left, pattern)))
        patterns.append(best)
        for name in fnmatch.filter(left, best):
            del left[name]
    return tuple(patterns)


def _kind_of(quantizer: Quantizer, *, place: str, attentions: Collection[str]) -> str:
    if quantizer.slot in _MATMUL_SLOTS:
        return MATMULS if place else f"{quantizer.module.rpartition('.')[2]} matmuls"
    if not place:
        return quantizer.module
    parts = quantizer.module[len(place) :].strip(".").split(".")
    path, in_attention = place, False
    for part in parts:
        path = f"{path}.{part}"
        in_attention |= path in attentions or bool(_ATTENTION.search(part))
    if not in_attention:
        return parts[0] or "block"
    return QKV if _PROJECTIONS.match(parts[-1]) else ATTENTION_OUTPUT


def _label(kind: str, quantizer: Quantizer) -> str:
    tower = "" if quantizer.tower == "other" else f"{quantizer.tower} "
    if quantizer.block is None:
        return f"{tower}{kind.rpartition('.')[2]}"
    return f"{tower}block {quantizer.block} {kind}"


def _candidates(name: str, *, wanted: Iterable[str]) -> list[str]:
    """Return patterns that match a name, the ones that people would write first."""
    owner, _, leaf = name.rpartition(".")
    parents = owner.split(".")
    found = [f"*{parents[-1]}*"] if block_prefix(name) is None and owner else []
    found += [".".join(parents[:end]) + ".*" for end in range(len(parents), 0, -1) if owner]
    if "bmm" in leaf:
        found.append(f"{owner}.*bmm*")
    found.append(name)
    # Names that differ from this one in one letter share a set of letters: `[kqv]_proj.*`.
    for end in range(len(parents), 0, -1):
        others = {".".join(other.split(".")[:end]) for other in wanted}
        found += _one_letter_apart(".".join(parents[:end]), others, tail=".*")
    return found + _one_letter_apart(name, wanted, tail="")


def _one_letter_apart(base: str, others: Iterable[str], *, tail: str) -> list[str]:
    letters: dict[int, set[str]] = {}
    for other in others:
        if len(other) == len(base):
            places = [i for i, (a, b) in enumerate(zip(base, other, strict=True)) if a != b]
            if len(places) == 1 and other[places[0]].isalnum() and base[places[0]].isalnum():
                letters.setdefault(places[0], {base[places[0]]}).add(other[places[0]])
    return [
        f"{base[:place]}[{''.join(sorted(found))}]{base[place + 1 :]}{tail}"
        for place, found in letters.items()
    ]
