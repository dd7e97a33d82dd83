"""Which of several recipes no other beats, and which one is proposed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_quantgate.evidence.sweep import Candidate, Loss, Sweep
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report.svg import draw_alone
from pytest_quantgate.report.sweep import draw_sweep, render_sweep


def candidate(
    recipe: str, size: int | None, drop: float | None, *, status: Status = Status.PASS
) -> Candidate:
    losses = ()
    if drop is not None:
        losses = (Loss(gate="accuracy", drop_points=drop, low_points=drop - 1, high_points=9.0),)  # type: ignore[assignment]
    red = () if status is Status.PASS else (("fidelity", "too far"),)
    return Candidate(
        recipe=recipe,
        status=status,
        sentence="may ship: 3 gates passed" if status is Status.PASS else "do not ship: fidelity",
        red=red,
        losses=losses,
        weights_bytes=None if size is None else size * 10**6,
    )


def make(*candidates: Candidate) -> Sweep:
    return Sweep(suite="clip", candidates=candidates, fp16_bytes=10**8, left_out=("latency",))


SAME = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
CANDIDATES = st.lists(
    st.tuples(
        st.none() | st.integers(1, 5),
        st.none() | st.integers(-2, 2).map(float),
        st.sampled_from([Status.PASS, Status.FAIL]),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: make(
        *(candidate(f"r{n}", size, drop, status=s) for n, (size, drop, s) in enumerate(rows))
    )
)


@SAME
@given(CANDIDATES)
def test_whoever_is_not_on_the_front_is_beaten_by_one_that_is(found: Sweep) -> None:
    known = [c for c in found.candidates if c.weights_bytes is not None and c.worst is not None]
    assert set(found.front) <= set(known)
    assert bool(found.front) == bool(known)
    for one in known:
        beaten = any(
            (other.weights_bytes or 0) <= (one.weights_bytes or 0)
            and other.losses[0].drop_points <= one.losses[0].drop_points
            and (other.weights_bytes, other.losses[0].drop_points)
            != (one.weights_bytes, one.losses[0].drop_points)
            for other in found.front
        )
        assert beaten != (one in found.front)


@SAME
@given(CANDIDATES)
def test_only_what_may_ship_is_proposed_and_nothing_smaller_may(found: Sweep) -> None:
    good = [c for c in found.candidates if c.status is Status.PASS]
    choice = found.choice
    assert (choice is None) == (not good)
    if choice is not None:
        assert choice in good
        sizes = [c.weights_bytes for c in good if c.weights_bytes is not None]
        assert choice.weights_bytes == min(sizes, default=None)


def test_a_row_says_what_did_not_pass_below_it() -> None:
    found = make(
        candidate("fp8", 51, 0.25),
        candidate("int8", 51, 5.8, status=Status.FAIL),
        candidate("nvfp4", None, None, status=Status.NOT_MEASURED),
    )

    assert list(render_sweep(found)) == [
        "clip: 3 recipes",
        "    recipe  verdict      weights        largest drop (pp)",
        "  * fp8     may ship     0.51x 51.0 MB  0.25 [-0.75, 9.00]",
        "    int8    do not ship  0.51x 51.0 MB  5.80 [4.80, 9.00]",
        "        fidelity: too far",
        "    nvfp4   do not ship  -              -",
        "        fidelity: too far",
        "",
        "  * no other recipe is as small and loses as little",
        "  not judged in a sweep: latency (a baseline, or times)",
        "  smallest that may ship: fp8; next: set quantize.recipe to it and run the suite on "
        "samples that were not seen here: the best of 3 passes more easily than one",
    ]


def test_without_one_that_may_ship_the_next_step_is_another() -> None:
    found = make(candidate("int8", 51, 5.8, status=Status.FAIL))

    lines = list(render_sweep(found))

    assert lines[-1].startswith("  none may ship; next: quantgate sensitivity ")


def test_a_point_is_filled_where_the_recipe_may_ship() -> None:
    """What may be unmeasured keeps a recipe from nothing, though its gate did not pass."""
    allowed = replace(candidate("fp8", 51, 0.25), red=(("engine", "no TensorRT"),))
    red = candidate("int8", 40, 5.8, status=Status.FAIL)

    shapes = [mark.shape for mark in draw_sweep(make(allowed, red)).marks if not mark.label]
    assert shapes == ["circle", "ring"]


@SAME
@given(CANDIDATES)
def test_every_plot_is_xml(found: Sweep) -> None:
    from xml.etree import ElementTree

    root = ElementTree.fromstring(draw_alone(draw_sweep(found)))
    dots = list(root.iter("{http://www.w3.org/2000/svg}use"))
    assert len(dots) == sum(
        c.weights_bytes is not None and c.worst is not None for c in found.candidates
    )
