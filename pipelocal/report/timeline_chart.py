"""Draws the last batches of a trace as SVG."""

from __future__ import annotations

from pipelocal.report.axis import Axis, shown
from pipelocal.report.markup import Html, tag
from pipelocal.telemetry.timeline import Event, Timeline
from pipelocal.telemetry.timeline_view import COLOURS, lane_name, shown_events

WIDTH, LEFT, HIGH = 1000, 150, 20


def timeline_chart(timeline: Timeline) -> Html:
    """Draw a row for every stage and tensor over the last training batches."""
    events, lanes = shown_events(timeline)
    start = min(event["ts"] for event in events)
    ends = [(event["ts"] + event["dur"] - start) / 1000 for event in events]
    bottom = 8 + HIGH * len(lanes)
    across = Axis.of([0.0, *ends], LEFT, WIDTH - 14, ticks=10)
    parts = [
        tag("text", name, x=LEFT - 8, y=8 + HIGH * row + 14, text_anchor="end")
        for row, name in enumerate(map(lane_name, lanes))
    ]
    for tick in across.ticks:
        x = f"{across.at(tick):.1f}"
        parts.append(tag("path", d=f"M{x} 4V{bottom}", class_="grid"))
        parts.append(tag("text", shown(tick), x=x, y=bottom + 16, text_anchor="middle"))
    parts.append(tag("text", "milliseconds", x=WIDTH - 14, y=bottom + 32, text_anchor="end"))
    for row, own in enumerate(lanes.values()):
        parts += [_bar(event, 8 + HIGH * row, start, across) for event in own]
    names = [
        tag("title", "Timeline of the last training batches", id="timeline-title"),
        tag("desc", timeline.verdict(), id="timeline-desc"),
    ]
    svg = tag(
        "svg",
        *names,
        *parts,
        viewBox=f"0 0 {WIDTH} {bottom + 38}",
        role="img",
        aria_labelledby="timeline-title timeline-desc",
        class_="long",
    )
    used = [name for name in COLOURS if any(event["name"] == name for event in events)]
    marks = [(f"a-{name}", name) for name in used]
    if any(event["cat"] == "transfer" for event in events):
        marks.append(("a-transfer", "on its way"))
    items = [tag("li", tag("span", "", class_=f"mark {kind}"), name) for kind, name in marks]
    key = tag("ul", *items, class_="legend", aria_label="Colours of the timeline")
    caption = tag("figcaption", "Timeline of the last training batches")
    region = tag("div", svg, class_="wide", tabindex=0, role="region", aria_label="Timeline")
    return tag("figure", caption, region, key)


def _bar(event: Event, y: int, start: float, across: Axis) -> Html:
    begin, long = (event["ts"] - start) / 1000, event["dur"] / 1000
    left, right = across.at(begin), across.at(begin + long)
    kind = "transfer" if event["cat"] == "transfer" else event["name"]
    said = f"{event['name']}, batch {event['args']['batch']}, {long:.2f} ms"
    place: dict[str, str | float] = {
        "x": f"{left:.1f}",
        "width": f"{max(right - left, 0.4):.1f}",
        "y": y + 2,
    }
    return tag("rect", tag("title", said), height=HIGH - 4, class_=f"a-{kind}", **place)
