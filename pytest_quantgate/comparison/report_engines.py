"""What two reports say of exported files and of the engines that were built of them."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_quantgate.comparison.changes import Change, compare_counts, compare_texts
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
        changes += compare_counts(
            _count_parts(old), _count_parts(facts), area="engine", within=name
        )
        changes += compare_counts(_list_bytes(old), _list_bytes(facts), area="sizes", within=name)
        files = [{"file": side.digest[:12]} for side in (old, facts)]
        changes += compare_texts(*files, area="engine", within=name)
    return changes


def _count_parts(facts: OnnxFacts) -> dict[str, int]:
    return {
        "Q/DQ pairs": facts.pairs,
        "undeclared pairs": facts.undeclared,
        "opset": facts.opset,
    }


def _list_bytes(facts: OnnxFacts) -> dict[str, int]:
    weights = {f"{kind} weight bytes": size for kind, size in facts.weights_bytes.items()}
    return {"file bytes": facts.file_bytes} | weights


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
        origins = [
            {"built from": _origin(engine, side.onnx)}
            for engine, side in ((old, before), (facts, after))
        ]
        changes += compare_texts(*origins, area="engine", within=name)
        changes += compare_counts(_precisions(old), _precisions(facts), area="engine", within=name)
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
        changes += compare_counts(_sizes(old), _sizes(facts), area="sizes", within=name)
        versions = [{side.library: side.library_version} for side in (old, facts)]
        changes += compare_texts(*versions, area="versions", within=name)
    return changes


def _origin(engine: EngineFacts, files: Iterable[OnnxFacts]) -> str:
    """Return whether an engine is of the ONNX file that was exported."""
    for file in files:
        if (file.variant, file.tower) == (engine.variant, engine.tower):
            if file.digest != engine.onnx_digest:
                return "another ONNX file than the one exported"
            break
    return "the exported ONNX file"


def _precisions(facts: EngineFacts) -> dict[str, int]:
    return {
        "linear in FP8": facts.fp8_gemm_nodes,
        "linear": facts.gemm_nodes,
        "attention fused in FP8": facts.attentions_fused_fp8,
        "attention": facts.attentions,
        **{f"nodes in {kind}": number for kind, number in facts.precisions.items()},
    }


def _sizes(facts: EngineFacts) -> dict[str, int]:
    return {
        "plan bytes": facts.plan_bytes,
        "weights bytes": facts.weights_bytes,
        "activation bytes": facts.activation_bytes,
    }
