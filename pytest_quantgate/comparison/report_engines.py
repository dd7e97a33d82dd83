"""What two reports say of exported files and of the engines that were built of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_quantgate.comparison.changes import Area, Change, compare_texts
from pytest_quantgate.report.model import EngineFacts, OnnxFacts, SuiteReport
from pytest_quantgate.text.words import count, listed


def compare_onnx_facts(
    before: Iterable[OnnxFacts], after: Iterable[OnnxFacts], *, suite: str
) -> list[Change]:
    """Return what differs between the exported files of one variant and tower."""
    changes: list[Change] = []
    olds = {(facts.variant, facts.tower): facts for facts in before}
    for facts in after:
        old = olds.get((facts.variant, facts.tower))
        if old is None:
            continue
        name = f"{suite}: ONNX {facts.variant} {facts.tower}"
        lost, found = set(facts.lost) - set(old.lost), set(old.lost) - set(facts.lost)
        for kind, names in (("removed", lost), ("added", found)):
            if names:
                word = "lost in the export now" if kind == "removed" else "in the export again"
                changes.append(
                    Change(
                        area="quantizers",
                        kind=kind,
                        subjects=tuple(sorted(names)),
                        text=f"{name}: {count(len(names), 'quantizer')} {word}: "
                        f"{listed(sorted(names))}",
                    )
                )
        changes += _compare_counts(_counts(old, name), _counts(facts, name), area="engine")
        changes += _compare_counts(_by_type(old, name), _by_type(facts, name), area="sizes")
        changes += compare_texts(
            {f"{name}: file": old.digest[:12]}, {f"{name}: file": facts.digest[:12]}, area="engine"
        )
    return changes


def _counts(facts: OnnxFacts, name: str) -> dict[str, int]:
    return {
        f"{name}: Q/DQ pairs": facts.pairs,
        f"{name}: undeclared pairs": facts.undeclared,
        f"{name}: opset": facts.opset,
    }


def _by_type(facts: OnnxFacts, name: str) -> dict[str, int]:
    found = {f"{name}: file bytes": facts.file_bytes}
    sizes = facts.weights_bytes.items()
    return found | {f"{name}: {kind} weight bytes": size for kind, size in sizes}


def compare_engines(before: SuiteReport, after: SuiteReport) -> list[Change]:
    """Return what differs between the engines of one variant, tower, target, batch and library."""
    suite = after.name
    changes: list[Change] = []

    def key(facts: EngineFacts) -> tuple[str, str, str, int, str]:
        return (facts.variant, facts.tower, facts.target, facts.batch, facts.library)

    olds = {key(facts): facts for facts in before.engines}
    for facts in after.engines:
        old = olds.get(key(facts))
        if old is None:
            continue
        name = f"{suite}: engine {facts.target} {facts.variant} {facts.tower} batch {facts.batch}"
        changes += compare_texts(
            {f"{name}: built from": _origin(old, before.onnx)},
            {f"{name}: built from": _origin(facts, after.onnx)},
            area="engine",
        )
        changes += _compare_counts(_precisions(old, name), _precisions(facts, name), area="engine")
        moved: dict[tuple[str, str], list[str]] = {}
        for layer in [*old.layers, *(n for n in facts.layers if n not in old.layers)]:
            pair = (old.layers.get(layer, "absent"), facts.layers.get(layer, "absent"))
            if pair[0] != pair[1]:
                moved.setdefault(pair, []).append(layer)
        changes += [
            Change(
                area="engine",
                kind="precision changed",
                subjects=tuple(layers),
                text=f"{name}: {count(len(layers), 'layer')} {was} -> {now}: {listed(layers)}",
                before=was,
                after=now,
                figures={"layers": len(layers)},
            )
            for (was, now), layers in moved.items()
        ]
        changes += _compare_counts(_sizes(old, name), _sizes(facts, name), area="sizes")
        changes += compare_texts(
            {f"{name}: {old.library}": old.library_version},
            {f"{name}: {facts.library}": facts.library_version},
            area="versions",
        )
    return changes


def _origin(engine: EngineFacts, files: Iterable[OnnxFacts]) -> str:
    """Return whether an engine is of the ONNX file that was exported."""
    for file in files:
        if (file.variant, file.tower) == (engine.variant, engine.tower):
            if file.digest != engine.onnx_digest:
                return "another ONNX file than the one exported"
            break
    return "the exported ONNX file"


def _precisions(facts: EngineFacts, name: str) -> dict[str, int]:
    return {
        f"{name}: linear in FP8": facts.fp8_gemm_nodes,
        f"{name}: linear": facts.gemm_nodes,
        f"{name}: attention fused in FP8": facts.attentions_fused_fp8,
        f"{name}: attention": facts.attentions,
        **{f"{name}: nodes in {kind}": number for kind, number in facts.precisions.items()},
    }


def _sizes(facts: EngineFacts, name: str) -> dict[str, int]:
    return {
        f"{name}: plan bytes": facts.plan_bytes,
        f"{name}: weights bytes": facts.weights_bytes,
        f"{name}: activation bytes": facts.activation_bytes,
    }


def _compare_counts(
    before: Mapping[str, int], after: Mapping[str, int], *, area: Area
) -> list[Change]:
    changes = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name, 0), after.get(name, 0)
        if old != new:
            ratio = f" ({new / old:.3f}x)" if old and area == "sizes" else ""
            changes.append(
                Change(
                    area=area,
                    kind="changed",
                    subjects=(name,),
                    text=f"{name}: {old} -> {new}{ratio}",
                    before=str(old),
                    after=str(new),
                    figures={"before": old, "after": new},
                )
            )
    return changes
