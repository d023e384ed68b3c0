"""The parts of a report: what became of a run, its curves, its cut, its configuration."""

from __future__ import annotations

from collections.abc import Sequence

from pipelocal.report.chart import MOST_NAMED, Curve, bar_chart, hues, legend, line_chart
from pipelocal.report.markup import Html, joined, table, tag
from pipelocal.report.options import options_shown
from pipelocal.report.record import Point, RunRecord
from pipelocal.run.summary import known
from pipelocal.telemetry.formats import (
    UNKNOWN,
    format_bytes,
    format_rate,
    format_seconds,
    or_unknown,
)

MOST_UNITS = 12
"""Units of a stage that are named; of more, the first and the last."""


def cards(run: RunRecord) -> Html:
    """Return the main figures."""
    summary, last = run.summary, run.evaluation(run.last_stage)
    found: list[tuple[str, str]] = []
    for name in run.metrics:
        found.append((f"{name}, last head", known(last.get(name))))
    if summary is not None:
        ensemble = summary.get("ensemble") or {}
        found += [(f"{name}, ensemble", known(value)) for name, value in ensemble.items()]
        peaks = [stage.final.get("peak_memory_bytes") for stage in run.stages]
        found += [
            ("samples/s", format_rate(summary["samples_per_second"])),
            (
                f"time since batch {began_at:,}"
                if (began_at := summary.get("began_at"))
                else "time",
                format_seconds(summary["seconds"]),
            ),
            (
                "memory, largest stage",
                or_unknown(format_bytes, max(filter(None, peaks), default=None)),
            ),
        ]
    batches = f"{run.steps:,}"
    if summary is None and run.total_steps:
        batches += f" of {run.total_steps:,}"
    found += [
        ("batches", batches),
        ("stages, on ranks", f"{len(run.stages)}, on {run.world_size}"),
    ]
    return tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in found), class_="cards")


def results(run: RunRecord) -> Html:
    """Return the last evaluation of every head."""
    names = ("loss", *run.metrics)
    trained = {name: run.series("train", name) for name in names}
    rows = []
    for stage in run.stages:
        evaluated = run.evaluation(stage.stage)
        in_training = [trained[name].get(stage.stage, []) for name in names]
        frozen = stage.final.get("frozen_at")
        rows.append(
            [
                str(stage.stage),
                *(known(points[-1][1]) if points else UNKNOWN for points in in_training),
                *(known(evaluated.get(name)) for name in names),
                UNKNOWN if frozen is None else f"after {frozen:,}",
            ]
        )
    head = ["stage", *(f"{n}, training" for n in names), *(f"{n}, evaluation" for n in names)]
    if all(row[-1] == UNKNOWN for row in rows):
        rows = [row[:-1] for row in rows]
    else:
        head.append("frozen")
    parts = [table("The last figures of every stage's own head", head, rows)]
    why = (run.summary or {}).get("no_ensemble")
    if why is not None:
        parts.append(tag("p", why, class_="soft"))
    return joined(parts)


def curves(run: RunRecord) -> Html:
    """Return the curves of every stage."""
    charts = [
        stage_chart(f"{name} in {where}", run.series(event, name), run, log=name == "loss")
        for name in ("loss", *run.metrics[:1])
        for event, where in (("train", "training"), ("evaluate", "evaluation"))
    ]
    charts.append(stage_chart("learning rate", run.series("train", "learning_rate"), run))
    return _grid(charts, run, ensemble=bool(run.ensemble()))


def agreement(run: RunRecord) -> Html | None:
    """Return the curves of what objectives that reconcile record; None if there are none."""
    said = {
        "cosine": "of the gradient that a stage would send back and the one before it trains with: 1 where "
        "they agree",
        "residual": "the length of their difference over that of the second: 0 where they agree",
        "cap": "what no cosine can exceed behind a pooled linear head",
    }
    charts: list[Html | None] = []
    notes: list[Html] = []
    for name, meaning in said.items():
        chart = stage_chart(name, run.series("train", name), run)
        if chart is not None:
            charts.append(chart)
            notes.append(tag("li", f"{name}: {meaning}"))
    gaps = run.series("bp_gap", "update_cosine")
    charts.append(stage_chart("cosine of the update and back-propagation's", gaps, run))
    if not any(charts):
        return None
    return joined([tag("ul", *notes, class_="soft"), _grid(charts, run, ensemble=False)])


def stage_chart(
    title: str, series: dict[int, list[Point]], run: RunRecord, *, log: bool = False
) -> Html | None:
    """Draw a figure of every stage; None if there is no value."""
    colours = dict(zip((s.stage for s in run.stages), hues(len(run.stages)), strict=True))
    found = [
        Curve(name=f"stage {stage}", short=str(stage), points=points, hue=colours[stage])
        for stage, points in series.items()
    ]
    if len({tuple(curve.points) for curve in found}) == 1 < len(found):
        found = [Curve(name="all stages", short="all", points=found[0].points, hue=None)]
    if run.metrics and title == f"{run.metrics[0]} in evaluation":
        found.append(
            Curve(name="ensemble", short="all", points=run.ensemble(), hue=None, dashed=True)
        )
    if not any(curve.points for curve in found):
        return None
    return line_chart(title, found, x="batches", y=title, log=log)


def _grid(charts: Sequence[Html | None], run: RunRecord, *, ensemble: bool) -> Html:
    stages = list(zip(run.stages, hues(len(run.stages)), strict=True))
    if len(stages) > MOST_NAMED:
        apart = (len(stages) - 1) / (MOST_NAMED - 1)
        stages = [stages[round(place * apart)] for place in range(MOST_NAMED)]
    named = [
        Curve(name=f"stage {stage.stage}", short="", points=(), hue=hue) for stage, hue in stages
    ]
    if ensemble:
        named.append(
            Curve(name="ensemble of all heads", short="", points=(), hue=None, dashed=True)
        )
    drawn = [chart for chart in charts if chart is not None]
    return joined([legend(named), tag("div", *drawn, class_="charts")])


def cut(run: RunRecord) -> Html:
    """Return what every stage is made of, and what its head costs."""
    rows = []
    for stage in run.stages:
        head = "the model's own" if stage.stage == run.last_stage else stage.head or UNKNOWN
        rows.append(
            [
                str(stage.stage),
                ", ".join(map(str, stage.ranks)) or UNKNOWN,
                _listed(stage.units),
                head,
                *(
                    UNKNOWN if count is None else f"{count:,}"
                    for count in (
                        stage.parameters,
                        stage.head_parameters,
                        stage.multiply_adds,
                        stage.head_multiply_adds,
                    )
                ),
                UNKNOWN if stage.head_share is None else f"{stage.head_share:.0%}",
            ]
        )
    columns = ["stage", "rank", "units", "head", "parameters", "of the head"]
    columns += ["multiply-adds", "of the head", "head's share"]
    shown = table("Multiply-adds are of one sample's forward pass", columns, rows, text_columns=4)
    counted = [s for s in run.stages if s.multiply_adds is not None]
    if not counted:
        note = "Multiply-adds are counted where --head auto chooses by them."
        return joined([shown, tag("p", note, class_="soft")])
    bars = [
        (
            f"stage {s.stage}",
            [("b-body", float(s.multiply_adds or 0)), ("b-head", float(s.head_multiply_adds or 0))],
            f"head {s.head_share:.0%}" if s.head_share is not None else "",
        )
        for s in counted
    ]
    said = "; ".join(f"{name}: {behind}" for name, _, behind in bars)
    chart = bar_chart("Multiply-adds of body and head", bars, said=said)
    marks = [tag("li", tag("span", "", class_=f"mark b-{kind}"), kind) for kind in ("body", "head")]
    key = tag("ul", *marks, class_="legend", aria_label="Colours of the bars")
    return joined([shown, tag("div", tag("div", chart, key), class_="charts")])


def _listed(units: Sequence[str]) -> str:
    if not units:
        return UNKNOWN
    if len(units) <= MOST_UNITS:
        return ", ".join(units)
    return f"{units[0]} to {units[-1]} ({len(units)} units)"


def configuration(run: RunRecord) -> Html:
    """Return the options, those first that differ from the defaults."""
    shown = options_shown(run)
    changed = [
        (tag("mark", name), value, default) for name, value, default, other in shown if other
    ]
    rest = [(name, value, default) for name, value, default, other in shown if not other]
    head = ("option", "value", "default")
    parts = [
        table("Options that differ from their defaults", head, changed, text_columns=3)
        if changed
        else tag("p", "All options are at their defaults.")
    ]
    if rest:
        inside = table(
            "Options at their defaults, and where the run is", head, rest, text_columns=3
        )
        parts.append(tag("details", tag("summary", f"{len(rest)} further options"), inside))
    return joined(parts)


def environment(run: RunRecord) -> Html:
    """Return what the options stood for: data, code and versions."""
    description = run.description
    if description is None:
        return tag("p", "run.json is missing, so what the options stood for is not known.")
    model, data = description.model, description.data
    found = {
        **{f"version of {name}": version for name, version in description.versions.items()},
        **{f"data: {name.replace('_', ' ')}": _value(value) for name, value in data.items()},
        "model: fingerprint of the units": model.units,
        "model: file": model.file,
        "model: digest of the code": model.code,
        "model: initial weights": model.init or model.first_weights,
    }
    for option, code in description.references.items():
        found[f"--{option.replace('_', '-')}: file"] = code.file
    if run.summary is not None:
        found["torch build"] = str(run.summary.get("torch"))
    rows = [(name, value) for name, value in found.items() if value is not None]
    return table("From run.json", ("what", "value"), rows, text_columns=2)


def _value(value: object) -> str:
    return UNKNOWN if value is None else str(value)
