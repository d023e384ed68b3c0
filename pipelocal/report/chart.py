"""Draws curves and bars as SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelocal.report.axis import Axis, shown
from pipelocal.report.markup import Html, joined, tag
from pipelocal.report.record import Point

WIDTH, HEIGHT = 420, 250
"""Of a chart, in its own units: about pixels where three stand side by side, or one on a phone."""
LEFT, RIGHT, TOP, BOTTOM = 50, 30, 14, 40
MOST_POINTS = 240
"""Points of a curve; where there are more, neighbours are averaged."""
MOST_NAMED = 9
"""Curves that are named at their end; of more, the first and the last."""
NAME_HEIGHT = 13
DOTS_UP_TO = 40


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A named curve."""

    name: str
    short: str
    """Stands at its end, in a few letters."""
    points: Sequence[Point]
    hue: int | None
    """Of its colour, in degrees; None for the colour of text."""
    dashed: bool = False


def hues(number: int) -> list[int]:
    """Return hues for so many curves, from blue to red in order."""
    return [round(225 - 235 * place / max(1, number - 1)) % 360 for place in range(number)]


def line_chart(title: str, curves: Sequence[Curve], *, x: str, y: str, log: bool = False) -> Html:
    """Draw curves in one chart, with a title above it.

    Args:
        title: what is shown.
        curves: at least one with a point.
        x: what the horizontal axis is.
        y: what the vertical axis is, for the description.
        log: whether the vertical axis may be logarithmic.
    """
    drawn = [(curve, thinned(curve.points)) for curve in curves if curve.points]
    every = [point for _, points in drawn for point in points]
    across = Axis.of([0.0, *(at for at, _ in every)], LEFT, WIDTH - RIGHT, ticks=5)
    up = Axis.of([value for _, value in every], HEIGHT - BOTTOM, TOP, ticks=5, log=log)
    parts = [*_grid(across, up), *(_line(curve, points, across, up) for curve, points in drawn)]
    parts += _names([(c, across.at(points[-1][0]), up.at(points[-1][1])) for c, points in drawn])
    parts.append(tag("text", x, x=WIDTH - RIGHT, y=HEIGHT - 6, text_anchor="end", class_="of"))
    said = f"{y} over {x}. " + "; ".join(_told(curve) for curve, _ in drawn[:12])
    scale = " (log scale)" if up.log else ""
    return _figure(title + scale, said, parts, WIDTH, HEIGHT)


def bar_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]],
    *,
    said: str,
    whole: float | None = None,
) -> Html:
    """Draw a bar of one or more parts for every row.

    Args:
        title: what is shown.
        rows: name, parts as pairs of a class of the style and a value, and what stands behind the bar.
        said: the description.
        whole: value of a full bar; by default the longest one's.
    """
    left, right, high = 92, 96, 24
    longest = whole or max((sum(v for _, v in parts) for _, parts, _ in rows), default=0.0) or 1.0
    drawn = []
    for row, (name, parts, behind) in enumerate(rows):
        y, start = TOP + row * high, float(left)
        drawn.append(tag("text", name, x=left - 8, y=y + 15, text_anchor="end"))
        for kind, value in parts:
            width = min(1.0, value / longest) * (WIDTH - left - right)
            drawn.append(_rectangle(start, y + 3, width, high - 8, kind))
            start += width
        drawn.append(tag("text", behind, x=f"{start + 6:.1f}", y=y + 15, class_="of"))
    return _figure(title, said, drawn, WIDTH, 2 * TOP + high * len(rows))


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return points with neighbours averaged, at most :data:`MOST_POINTS`."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> Html:
    return tag("rect", x=f"{x:.1f}", y=f"{y:.1f}", width=f"{width:.2f}", height=height, class_=kind)


def _figure(title: str, said: str, parts: Sequence[str], width: int, height: int) -> Html:
    name = re.sub(r"\W+", "-", title.lower())
    names = [tag("title", title, id=f"title-{name}"), tag("desc", said, id=f"desc-{name}")]
    labelled = f"title-{name} desc-{name}"
    svg = tag(
        "svg",
        *names,
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_labelledby=labelled,
    )
    return tag("figure", tag("figcaption", title), svg)


def _grid(across: Axis, up: Axis) -> list[Html]:
    parts = []
    for value in up.ticks:
        y = f"{up.at(value):.1f}"
        parts.append(tag("path", d=f"M{LEFT} {y}H{WIDTH - RIGHT}", class_="grid"))
        label = tag("text", up.label(value), x=LEFT - 6, y=f"{up.at(value) + 4:.1f}")
        parts.append(tag("g", label, text_anchor="end"))
    for value in across.ticks:
        place: dict[str, str | float] = {"x": f"{across.at(value):.1f}", "y": HEIGHT - BOTTOM + 16}
        parts.append(tag("text", across.label(value), text_anchor="middle", **place))
    return parts


def _line(curve: Curve, points: Sequence[Point], across: Axis, up: Axis) -> Html:
    places = [f"{across.at(at):.1f} {up.at(value):.1f}" for at, value in points]
    kind = "line dashed" if curve.dashed else "line"
    parts = [tag("title", curve.name), tag("path", d="M" + "L".join(places), class_=kind)]
    if len(places) <= DOTS_UP_TO:
        for place in places:
            x, _, y = place.partition(" ")
            parts.append(tag("circle", cx=x, cy=y, r=2 if len(places) > 1 else 4, class_="dot"))
    return tag("g", *parts, **_coloured(curve))


def _coloured(curve: Curve) -> dict[str, str]:
    kind = "curve" if curve.hue is not None else "curve plain"
    return {"class_": kind, **({} if curve.hue is None else {"style": f"--h:{curve.hue}"})}


def _names(ends: Sequence[tuple[Curve, float, float]]) -> list[Html]:
    """Name curves at their end, one above the other where the ends are close."""
    if len(ends) > MOST_NAMED:
        ends = [ends[0], ends[-1]]
    ends = sorted(ends, key=lambda end: end[2])
    places: list[float] = []
    for _, _, y in ends:
        places.append(max(y, places[-1] + NAME_HEIGHT) if places else y)
    limit = float(HEIGHT - BOTTOM)
    for place in reversed(range(len(places))):  # back up, where the last lie below the axis
        places[place] = min(places[place], limit)
        limit = places[place] - NAME_HEIGHT
    return [
        tag("g", tag("text", c.short, x=f"{x + 6:.1f}", y=f"{y + 4:.1f}"), **_coloured(c))
        for (c, x, _), y in zip(ends, places, strict=True)
    ]


def _told(curve: Curve) -> str:
    values = [value for _, value in curve.points]
    return f"{curve.name} from {shown(values[0])} to {shown(values[-1])}"


def legend(curves: Sequence[Curve]) -> Html:
    """Name the colours of curves."""
    items = []
    for curve in curves:
        mark = tag("span", "", class_="mark dashed" if curve.dashed else "mark")
        items.append(tag("li", joined([mark, curve.name]), **_coloured(curve)))
    return tag("ul", *items, class_="legend", aria_label="Colours of the curves")
