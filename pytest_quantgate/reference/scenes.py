"""Coloured shapes in cluttered scenes, drawn bit for bit the same on every machine.

Ten shapes times ten colours make the 100 classes. A *single* scene shows one target, the largest
object by far, among fragments, lines, small distractors and noise; a *relation* scene shows two
targets, one left of, right of, above or below the other. Geometry, anti-aliasing and compositing
are integer arithmetic, and random numbers come from ``numpy.random.RandomState``, whose stream
NumPy has frozen, so a scene is named by its split, kind and index alone.

Lengths inside this module are in 1/256 pixel unless a name says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "calibration", "test"]
Kind = Literal["single", "relation", "mixed"]
Detail = Literal["full", "terse"]
IntArray = NDArray[np.int32]

IMAGE_SIZE_PX = 48

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
    "heart",
    "hexagon",
    "arrow",
)
COLOURS: tuple[str, ...] = (
    "red",
    "orange",
    "yellow",
    "green",
    "cyan",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
)
SIZES: tuple[str, ...] = ("small", "medium", "large")
TEXTURES: tuple[str, ...] = ("solid", "striped", "dotted", "checkered", "outlined")
POSITIONS: tuple[str, ...] = (
    "at the top left",
    "at the top",
    "at the top right",
    "at the left",
    "in the center",
    "at the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")

#: "red circle", "orange circle", ...: the name of label ``shape * 10 + colour``.
CLASS_NAMES: tuple[str, ...] = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

#: Zero-shot templates. "the" rather than "a", so that every colour fits grammatically.
TEMPLATES: tuple[str, ...] = (
    "the {c}",
    "a photo of the {c}",
    "a picture of the {c}",
    "an image of the {c}",
    "a drawing of the {c}",
)

_PALETTE: tuple[tuple[int, int, int], ...] = (
    (214, 39, 40),
    (250, 135, 10),
    (240, 215, 45),
    (40, 160, 60),
    (60, 210, 220),
    (40, 70, 210),
    (130, 50, 170),
    (250, 130, 180),
    (130, 80, 40),
    (240, 240, 240),
)
_ANGLES = 256
_SINE_ONE = 1 << 14
# Rounding to 2**-14 hides the last-bit differences between C libraries.
_SINE: tuple[int, ...] = tuple(
    round(math.sin(2 * math.pi * k / _ANGLES) * _SINE_ONE) for k in range(_ANGLES)
)
_PX = 256
_BLOCK = 64
_WORDS_PER_SCENE = 256
_SPLIT_SEED: dict[str, int] = {"train": 101, "calibration": 202, "test": 303}
_KIND_SEED: dict[str, int] = {"single": 1, "relation": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneAttributes:
    """What is in each scene: int64 arrays of shape [N]; -1 where a scene has no such attribute.

    ``shape``, ``colour``, ``size``, ``texture``, ``position``, ``relation`` index the tuples of
    this module. A single scene has no ``relation`` and no ``other_*``; a relation scene has no
    ``size`` and no ``position``.
    """

    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    size: NDArray[np.int64]
    texture: NDArray[np.int64]
    position: NDArray[np.int64]
    relation: NDArray[np.int64]
    other_shape: NDArray[np.int64]
    other_colour: NDArray[np.int64]
    other_texture: NDArray[np.int64]

    def take(self, indices: NDArray[np.int64]) -> SceneAttributes:
        """Returns the attributes of the scenes at ``indices``, in that order."""
        return SceneAttributes(**{name: getattr(self, name)[indices] for name in _ATTRIBUTES})


_ATTRIBUTES: tuple[str, ...] = tuple(SceneAttributes.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """Rendered scenes: images uint8 [N, 48, 48, 3] RGB, labels int64 [N] = shape * 10 + colour.

    ``captions`` are the full descriptions, ``ids`` are stable names such as
    ``scenes/test/single/000017``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    captions: tuple[str, ...]
    ids: tuple[str, ...]
    attributes: SceneAttributes


def render_scenes(
    *,
    split: Split,
    count: int,
    kind: Kind = "single",
    detail: Detail = "full",
    distinct_captions: bool = False,
    start: int = 0,
) -> Scenes:
    """Returns ``count`` scenes of a split, from index ``start`` on.

    A scene depends on split, kind and index only, so a shorter rendering is a prefix of a longer
    one. ``mixed`` alternates single and relation scenes. ``terse`` captions name colours, shapes
    and relation only. ``distinct_captions`` leaves out every scene that an earlier one's caption
    describes too (either way round for relations); it needs ``start=0``. Raises ValueError for an
    unknown split, kind or detail, a negative count or start, or more distinct captions than
    there are.
    """
    for value, allowed, what in (
        (split, tuple(_SPLIT_SEED), "split"),
        (kind, (*_KIND_SEED, "mixed"), "kind"),
        (detail, ("full", "terse"), "detail"),
    ):
        if value not in allowed:
            raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {value!r}")
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative, got {count} and {start}")
    if not distinct_captions:
        return _render_range(split=split, kind=kind, detail=detail, start=start, stop=start + count)
    if start:
        raise ValueError("distinct_captions needs start=0: earlier scenes decide what is kept")
    most = len(CLASS_NAMES) if (kind, detail) == ("single", "terse") else 10_000
    if count > most:
        raise ValueError(
            f"at most {most} {kind} scenes with distinct {detail} captions, got {count}"
        )
    asked = count + count // 8 + _BLOCK
    while True:
        scenes = _render_range(split=split, kind=kind, detail=detail, start=0, stop=asked)
        kept = _first_of_each_description(scenes.attributes, detail=detail)
        if len(kept) >= count:
            return _take(scenes, kept[:count])
        asked *= 2


def render_retrieval(*, split: Split, count: int) -> Scenes:
    """Returns scenes for retrieval: two objects each, no caption fits two of them.

    The captions are terse, e.g. ``a red circle left of a blue square``: with everything that is
    in a picture said, a thousand of them are too easy to tell apart. Raises as `render_scenes`.
    """
    return render_scenes(
        split=split, count=count, kind="relation", detail="terse", distinct_captions=True
    )


def describe(attributes: SceneAttributes, *, detail: Detail = "full") -> tuple[str, ...]:
    """Returns each scene's caption, e.g. ``a small dotted red ring at the top left``."""
    full = detail == "full"
    return tuple(
        describe_one(attributes, index, size=full, texture=full, position=full)
        for index in range(len(attributes.shape))
    )


def describe_one(
    attributes: SceneAttributes,
    index: int,
    *,
    size: bool = True,
    texture: bool = True,
    position: bool = True,
    other: bool = True,
) -> str:
    """Returns one scene's caption, leaving out the parts that are switched off."""
    a = attributes
    words = [COLOURS[a.colour[index]], SHAPES[a.shape[index]]]
    if texture:
        words.insert(0, TEXTURES[a.texture[index]])
    if size and a.size[index] >= 0:
        words.insert(0, SIZES[a.size[index]])
    caption = _with_article(words)
    if position and a.position[index] >= 0:
        caption = f"{caption} {POSITIONS[a.position[index]]}"
    if other and a.relation[index] >= 0:
        others = [COLOURS[a.other_colour[index]], SHAPES[a.other_shape[index]]]
        if texture:
            others.insert(0, TEXTURES[a.other_texture[index]])
        caption = f"{caption} {RELATIONS[a.relation[index]]} {_with_article(others)}"
    return caption


def _with_article(words: list[str]) -> str:
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _first_of_each_description(a: SceneAttributes, *, detail: Detail) -> NDArray[np.int64]:
    seen: set[tuple[int, ...]] = set()
    kept: list[int] = []
    for index in range(len(a.shape)):
        first = (int(a.shape[index]), int(a.colour[index]), int(a.texture[index]))
        second = (
            int(a.other_shape[index]),
            int(a.other_colour[index]),
            int(a.other_texture[index]),
        )
        relation = int(a.relation[index])
        place = (int(a.size[index]), int(a.position[index]))
        if detail == "terse":
            first, second, place = (*first[:2], -1), (*second[:2], -1), (-1, -1)
        if relation >= 0:
            # "x right of y" says the same as "y left of x".
            if relation % 2:
                first, second = second, first
            relation //= 2
        key = (relation, *first, *second, *place)
        if key not in seen:
            seen.add(key)
            kept.append(index)
    return np.array(kept, dtype=np.int64)


def _take(scenes: Scenes, indices: NDArray[np.int64]) -> Scenes:
    return Scenes(
        images=scenes.images[indices],
        labels=scenes.labels[indices],
        captions=tuple(scenes.captions[i] for i in indices),
        ids=tuple(scenes.ids[i] for i in indices),
        attributes=scenes.attributes.take(indices),
    )


def _render_range(*, split: str, kind: Kind, detail: Detail, start: int, stop: int) -> Scenes:
    if kind == "mixed":
        # Index 2i is single scene i, index 2i + 1 is relation scene i.
        singles = _render_range(
            split=split, kind="single", detail=detail, start=(start + 1) // 2, stop=(stop + 1) // 2
        )
        relations = _render_range(
            split=split, kind="relation", detail=detail, start=start // 2, stop=stop // 2
        )
        order = np.array(
            [
                (i // 2 - start // 2 + len(singles.ids)) if i % 2 else (i // 2 - (start + 1) // 2)
                for i in range(start, stop)
            ],
            dtype=np.int64,
        )
        both = Scenes(
            images=np.concatenate([singles.images, relations.images]),
            labels=np.concatenate([singles.labels, relations.labels]),
            captions=singles.captions + relations.captions,
            ids=singles.ids + relations.ids,
            attributes=SceneAttributes(
                **{
                    name: np.concatenate(
                        [getattr(singles.attributes, name), getattr(relations.attributes, name)]
                    )
                    for name in _ATTRIBUTES
                }
            ),
        )
        return _take(both, order)
    images = np.empty((stop - start, IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
    columns: dict[str, NDArray[np.int64]] = {
        name: np.empty(stop - start, dtype=np.int64) for name in _ATTRIBUTES
    }
    for block in range(start // _BLOCK, (stop + _BLOCK - 1) // _BLOCK):
        block_images, block_columns = _render_block(split=split, kind=kind, block=block)
        low, high = max(start, block * _BLOCK), min(stop, (block + 1) * _BLOCK)
        source = slice(low - block * _BLOCK, high - block * _BLOCK)
        target = slice(low - start, high - start)
        images[target] = block_images[source]
        for name, column in columns.items():
            column[target] = block_columns[name][source]
    attributes = SceneAttributes(**columns)
    return Scenes(
        images=images,
        labels=attributes.shape * len(COLOURS) + attributes.colour,
        captions=describe(attributes, detail=detail),
        ids=tuple(f"scenes/{split}/{kind}/{index:06d}" for index in range(start, stop)),
        attributes=attributes,
    )


class _Draws:
    """Uniform 16-bit draws for a block of scenes, handed out a column at a time."""

    def __init__(self, stream: np.random.RandomState) -> None:
        raw = np.frombuffer(stream.bytes(_BLOCK * _WORDS_PER_SCENE * 2), dtype="<u2")
        self._words = raw.reshape(_BLOCK, _WORDS_PER_SCENE).astype(np.int64)
        self._used = 0

    def take(self, low: int, high: int) -> IntArray:
        """Returns int32 [block], uniform in low..high - 1."""
        column = self._words[:, self._used]
        self._used += 1
        return (low + ((column * (high - low)) >> 16)).astype(np.int32)


def _render_block(
    *, split: str, kind: str, block: int
) -> tuple[NDArray[np.uint8], dict[str, IntArray]]:
    stream = np.random.RandomState([_SPLIT_SEED[split], _KIND_SEED[kind], block])
    draws = _Draws(stream)
    size_px = IMAGE_SIZE_PX
    none = np.full(_BLOCK, -1, dtype=np.int32)

    canvas = _background(draws)
    shape, colour, texture = draws.take(0, 10), draws.take(0, 10), draws.take(0, 5)
    for _ in range(4):
        _draw_fragment(
            canvas, draws, half_length=(2 * _PX, 5 * _PX), half_width=(_PX, 5 * _PX // 2)
        )
    for _ in range(2):
        centre_x, centre_y = draws.take(0, size_px * _PX), draws.take(0, size_px * _PX)
        radius = draws.take(5 * _PX // 2, 4 * _PX)
        _draw_shape(
            canvas,
            draws,
            shape=draws.take(0, 10),
            rgb=_jittered(draws, draws.take(0, 10)),
            texture=np.zeros(_BLOCK, dtype=np.int32),
            centre=(centre_x, centre_y),
            radius=radius,
        )
    columns: dict[str, IntArray]
    middle = size_px * _PX // 2
    if kind == "single":
        size, position = draws.take(0, 3), draws.take(0, 9)
        # small 7.5 to 9 px, medium 10.5 to 12.5 px, large 14 to 16.5 px
        lowest = np.array([1920, 2688, 3584], dtype=np.int32)[size]
        spread = np.array([384, 512, 640], dtype=np.int32)[size]
        radius = lowest + ((spread * draws.take(0, 256)) >> 8)
        reach = middle - radius - _PX
        centre_x = middle + (position % 3 - 1) * reach + draws.take(-_PX, _PX)
        centre_y = middle + (position // 3 - 1) * reach + draws.take(-_PX, _PX)
        _draw_shape(
            canvas,
            draws,
            shape=shape,
            rgb=_jittered(draws, colour),
            texture=texture,
            centre=(centre_x, centre_y),
            radius=radius,
        )
        columns = {
            "shape": shape,
            "colour": colour,
            "size": size,
            "texture": texture,
            "position": position,
            "relation": none,
            "other_shape": none,
            "other_colour": none,
            "other_texture": none,
        }
    else:
        relation = draws.take(0, 4)
        other_shape, other_colour = draws.take(0, 10), draws.take(0, 10)
        other_texture = draws.take(0, 5)
        # The first object sits on the side that the relation names, the other one opposite.
        towards = np.where(relation % 2 == 0, -1, 1).astype(np.int32)
        horizontal = relation < 2
        for side, (a_shape, a_colour, a_texture) in (
            (towards, (shape, colour, texture)),
            (-towards, (other_shape, other_colour, other_texture)),
        ):
            along = middle + side * draws.take(10 * _PX, 13 * _PX)
            across = middle + draws.take(-6 * _PX, 6 * _PX)
            _draw_shape(
                canvas,
                draws,
                shape=a_shape,
                rgb=_jittered(draws, a_colour),
                texture=a_texture,
                centre=(np.where(horizontal, along, across), np.where(horizontal, across, along)),
                radius=draws.take(8 * _PX, 10 * _PX),
            )
        columns = {
            "shape": shape,
            "colour": colour,
            "size": none,
            "texture": texture,
            "position": none,
            "relation": relation,
            "other_shape": other_shape,
            "other_colour": other_colour,
            "other_texture": other_texture,
        }
    for _ in range(2):
        _draw_fragment(
            canvas, draws, half_length=(6 * _PX, 16 * _PX), half_width=(_PX // 4, _PX * 5 // 8)
        )
    return _expose(canvas, draws, stream), columns


def _background(draws: _Draws) -> IntArray:
    """Returns int32 [block, 3, 48, 48]: a dull gradient with a weave of two triangle waves."""
    x = np.arange(IMAGE_SIZE_PX, dtype=np.int32)
    grey, spread = draws.take(40, 190), 28
    start = np.stack([grey + draws.take(-spread, spread) for _ in range(3)], axis=1)
    change = np.stack([draws.take(-50, 50) for _ in range(3)], axis=1)
    angle = draws.take(0, _ANGLES)
    sine, cosine = _sine(angle), _sine(angle + _ANGLES // 4)
    along = (
        cosine[:, None, None] * (x - 24)[None, None, :]
        + sine[:, None, None] * (x - 24)[None, :, None]
    )
    along = along >> 14  # -34..34 px
    canvas: IntArray = start[:, :, None, None] + ((change[:, :, None, None] * along[:, None]) >> 5)
    for _ in range(2):
        step_x, step_y = draws.take(-40, 40), draws.take(-40, 40)
        phase, height = draws.take(0, 256), draws.take(0, 20)
        wave = (
            step_x[:, None, None] * x[None, None, :]
            + step_y[:, None, None] * x[None, :, None]
            + phase[:, None, None]
        ) & 255
        triangle = np.abs(wave - 128) - 64
        canvas += ((triangle * height[:, None, None]) >> 6)[:, None]
    return canvas


def _jittered(draws: _Draws, colour: IntArray) -> IntArray:
    """Returns int32 [block, 3]: palette colours, each channel moved by up to 26."""
    palette = np.array(_PALETTE, dtype=np.int32)
    moved = palette[colour] + np.stack([draws.take(-26, 27) for _ in range(3)], axis=1)
    return np.clip(moved, 0, 255)


def _sine(angle: IntArray) -> IntArray:
    sine: IntArray = np.array(_SINE, dtype=np.int32)[angle & (_ANGLES - 1)]
    return sine


def _local(centre: tuple[IntArray, IntArray], angle: IntArray) -> tuple[IntArray, IntArray]:
    """Returns (u, v), int32 [block, 48, 48]: pixel centres seen from the turned object."""
    pixel = np.arange(IMAGE_SIZE_PX, dtype=np.int32) * _PX + _PX // 2
    dx = (pixel[None, :] - centre[0][:, None])[:, None, :]
    dy = (pixel[None, :] - centre[1][:, None])[:, :, None]
    sine = _sine(angle)[:, None, None]
    cosine = _sine(angle + _ANGLES // 4)[:, None, None]
    return (cosine * dx + sine * dy) >> 14, (cosine * dy - sine * dx) >> 14


def _composite(canvas: IntArray, rgb: IntArray, alpha: IntArray) -> None:
    """Blends one colour a scene into the canvas; alpha int32 [block, 48, 48] in 0..256."""
    canvas += ((rgb[:, :, None, None] - canvas) * alpha[:, None]) >> 8


def _coverage(distance: IntArray) -> IntArray:
    """Returns 0..256: how much of a pixel lies inside, from its centre's distance to the edge."""
    return np.clip(_PX // 2 - distance, 0, _PX)


def _draw_fragment(
    canvas: IntArray, draws: _Draws, *, half_length: tuple[int, int], half_width: tuple[int, int]
) -> None:
    centre = (draws.take(0, IMAGE_SIZE_PX * _PX), draws.take(0, IMAGE_SIZE_PX * _PX))
    u, v = _local(centre, draws.take(0, _ANGLES))
    length, width = draws.take(*half_length), draws.take(*half_width)
    rgb = np.stack([draws.take(0, 256) for _ in range(3)], axis=1)
    # Half of the fragments are dull, the other half as bright as a target.
    grey = rgb.sum(axis=1, keepdims=True, dtype=np.int32) // 3
    rgb = np.where((draws.take(0, 2) == 0)[:, None], (rgb + 3 * grey) >> 2, rgb)
    present = draws.take(0, 4) > 0
    distance = np.maximum(np.abs(u) - length[:, None, None], np.abs(v) - width[:, None, None])
    _composite(canvas, rgb, _coverage(distance) * present[:, None, None])


def _draw_shape(
    canvas: IntArray,
    draws: _Draws,
    *,
    shape: IntArray,
    rgb: IntArray,
    texture: IntArray,
    centre: tuple[IntArray, IntArray],
    radius: IntArray,
) -> None:
    # Turned by at most 31 degrees either way.
    u, v = _local(centre, draws.take(-22, 23))
    r = radius[:, None, None]
    distance = np.empty_like(u)
    for index in range(len(SHAPES)):
        chosen = np.flatnonzero(shape == index)
        if len(chosen):
            distance[chosen] = _distance(index, u[chosen], v[chosen], r[chosen])
    mark = _texture(texture, u, v, distance)
    # Marks are a darker tint of the same colour, so that the colour stays unambiguous.
    strength = draws.take(110, 190)[:, None, None]
    alpha = _coverage(distance)
    _composite(canvas, rgb, alpha)
    _composite(canvas, np.zeros_like(rgb), (((alpha * mark) >> 8) * strength) >> 8)


def _texture(texture: IntArray, u: IntArray, v: IntArray, distance: IntArray) -> IntArray:
    """Returns 0..256: where the texture darkens the shape."""
    mark = np.zeros_like(u)
    period = 5 * _PX
    for index in range(1, len(TEXTURES)):
        chosen = np.flatnonzero(texture == index)
        if not len(chosen):
            continue
        cell_u = np.abs((u[chosen] + 64 * period) % period - period // 2)
        cell_v = np.abs((v[chosen] + 64 * period) % period - period // 2)
        if index == 1:
            edge = cell_u - period // 4
        elif index == 2:
            near = 3 * _PX // 2
            edge = (cell_u * cell_u + cell_v * cell_v - near * near) // (2 * near)
        elif index == 3:
            # Inside one of two diagonal cells of the checkerboard: exactly one is negative.
            a, b = cell_u - period // 4, cell_v - period // 4
            edge = np.maximum(np.minimum(a, b), -np.maximum(a, b))
        else:
            edge = distance[chosen] + 2 * _PX
        mark[chosen] = _coverage(edge)
    return mark


def _distance(shape: int, u: IntArray, v: IntArray, r: IntArray) -> IntArray:
    """Returns the signed distance to a shape's edge, negative inside; r is its outer radius."""
    distance: IntArray
    if shape == 0:
        return _disc(u, v, (9 * r) // 10)
    if shape == 1:
        return np.maximum(np.abs(u), np.abs(v)) - (4 * r) // 5
    if shape == 2:
        distance = np.maximum.reduce([_facing(u, v, step, 3) for step in range(3)]) - r // 2
        return distance
    if shape == 3:
        # A pentagram is where at most one of its five lines is crossed.
        first = _facing(u, v, 0, 5)
        second = np.full_like(first, -(1 << 24))
        for step in range(1, 5):
            side = _facing(u, v, step, 5)
            second = np.maximum(second, np.minimum(first, side))
            first = np.maximum(first, side)
        return second - (35 * r) // 100
    if shape == 4:
        long, short = (95 * r) // 100, (3 * r) // 10
        return np.minimum(
            np.maximum(np.abs(u) - long, np.abs(v) - short),
            np.maximum(np.abs(u) - short, np.abs(v) - long),
        )
    if shape == 5:
        return np.maximum(_disc(u, v, (95 * r) // 100), -_disc(u, v, (11 * r) // 20))
    if shape == 6:
        bite = _disc(u - (45 * r) // 100, v, (3 * r) // 4)
        return np.maximum(_disc(u, v, r), -bite)
    if shape == 7:
        half = (58 * r) // 100
        lobe = (half * 181) >> 8
        top = v - r // 5
        diamond = (((np.abs(u) + np.abs(top)) * 181) >> 8) - half
        lobes = _disc(np.abs(u) - lobe, top + lobe, half)
        distance = np.minimum(diamond, lobes)
        return distance
    if shape == 8:
        sides = [np.abs(_facing(u, v, step, 6)) for step in range(3)]
        distance = np.maximum.reduce(sides) - (82 * r) // 100
        return distance
    head = np.maximum(-u, ((u * 181 + np.abs(v) * 181) >> 8) - (64 * r) // 100)
    shaft = np.maximum(np.abs(u + (45 * r) // 100) - r // 2, np.abs(v) - r // 4)
    distance = np.minimum(head, shaft)
    return distance


def _disc(u: IntArray, v: IntArray, r: IntArray) -> IntArray:
    # First-order distance: exact at the edge, which is the only place where it is seen.
    distance: IntArray = (u * u + v * v - r * r) // (2 * r)
    return distance


def _facing(u: IntArray, v: IntArray, step: int, of: int) -> IntArray:
    """Returns how far a point lies along the step-th of ``of`` evenly turned directions."""
    angle = 2 * math.pi * step / of
    along_u, along_v = round(math.sin(angle) * 4096), round(math.cos(angle) * 4096)
    return (u * along_u + v * along_v) >> 12


def _expose(canvas: IntArray, draws: _Draws, stream: np.random.RandomState) -> NDArray[np.uint8]:
    """Returns uint8 [block, 48, 48, 3]: the canvas in dim or warm or cool light, with noise."""
    light = draws.take(190, 282)
    tint = np.stack([light + draws.take(-16, 17) for _ in range(3)], axis=1)
    raw = stream.bytes(2 * canvas.size)
    noise = np.frombuffer(raw, dtype=np.uint8).reshape(2, *canvas.shape).astype(np.int32)
    height = draws.take(10, 70)[:, None, None, None]
    lit = ((canvas * tint[:, :, None, None]) >> 8) + (((noise[0] + noise[1] - 255) * height) >> 8)
    image: NDArray[np.uint8] = np.clip(lit, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1))
