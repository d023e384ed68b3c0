"""Tables of the study's result, for its README::

python benchmarks/reconciliation/tables.py study.json
python benchmarks/reconciliation/tables.py study.json --into benchmarks/reconciliation/README.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import common

Row = dict[str, Any]


def main() -> None:
    """Print the tables, or put them into a file."""
    parser = common.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path, help="result file of run.py")
    parser.add_argument("--into", type=Path, metavar="FILE", help="file that holds the two lines")
    options = parser.parse_args()
    rows = [r for r in json.loads(options.json.read_text())["results"] if r["kind"] == "cell"]
    text = "\n".join(tables(rows))
    if options.into is None:
        print(text)
        return
    common.put_into(options.into, text)


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """The tables' lines, with a heading for each."""
    repeated = [row for row in rows if row["gain"] is not None and row["weight"] > 0]
    repeated.sort(key=lambda row: -row["gain"]["mean"])
    yield "### Repeated on further seeds\n"
    yield from table(
        ("setting", "head", "form", "screened", "repeated", "seeds", "train loss", "cosine", "cap"),
        [
            (
                *(setting(row), row["head"], row["form"], signed(row["gain_when_screened"])),
                *(with_error(row["gain"]), str(row["gain"]["seeds"]), *agreement(row)),
            )
            for row in repeated
        ],
    )
    yield "\n### Without reconciliation\n"
    yield from table(
        ("setting", "head", "bp", "greedy", "train loss", "cosine", "cap"),
        [baseline(row, rows) for row in rows if row["objective"] == "greedy"],
    )
    screened = [
        row
        for row in rows
        if row["objective"] == "sgr" and row["weight"] > 0 and row["gain_when_screened"] is not None
    ]
    usual = [row for row in screened if (row["schedule"], row["where"]) == ("constant", "all")]
    for where in dict.fromkeys(setting(row) for row in usual):
        yield f"\n### Screened: {where}\n"
        yield from grid_of([row for row in usual if setting(row) == where])
    yield "\n### Other schedules, and the last stages only\n"
    other = [row for row in screened if row not in usual]
    yield from table(
        ("head", "form", "over greedy", "train loss", "cosine", "cap"),
        [
            (row["head"], row["form"], signed(row["gain_when_screened"]), *agreement(row))
            for row in sorted(other, key=lambda row: -row["gain_when_screened"])
        ],
    )


def grid_of(rows: Sequence[Row]) -> Iterator[str]:
    """Points over greedy by distance and weight, with the cosine in brackets."""
    columns = list(dict.fromkeys((row["head"], row["every"]) for row in rows))
    found = {(r["distance"], r["weight"], r["head"], r["every"]): r for r in rows}
    names = [
        f"{head}, {'every batch' if every == 1 else f'every {every}th'}" for head, every in columns
    ]

    def cell(row: Row | None) -> str:
        if row is None:
            return "-"
        cosine = "" if row["cosine"] is None else f" ({row['cosine']:.2f})"
        return f"{signed(row['gain_when_screened'])}{cosine}"

    kinds = sorted({(row["distance"], row["weight"]) for row in rows})
    yield from table(
        ("distance, weight", *names),
        [
            (f"{kind} {weight:g}", *(cell(found.get((kind, weight, *own))) for own in columns))
            for kind, weight in kinds
        ],
    )


def baseline(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """What a head reaches with greedy beside back-propagation, and how far its gradients agree."""

    def other(**wanted: Any) -> Row | None:
        same = {name: row[name] for name in ("model", "stages", "optimizer")} | wanted
        return next((r for r in rows if all(r[k] == v for k, v in same.items())), None)

    measured = other(head=row["head"], objective="sgr", weight=0.0)
    return (
        *(setting(row), row["head"], percent(other(objective="bp")), percent(row)),
        *agreement(row)[:1],
        *(agreement(measured)[1:] if measured is not None else ("-", "-")),
    )


def setting(row: Row) -> str:
    """The setting in words."""
    return f"{row['model']}, {row['stages']} stages, {row['optimizer']}"


def percent(row: Row | None) -> str:
    """Test accuracy, with the spread over the seeds."""
    if row is None or row["test_accuracy"] is None:
        return "-"
    found = row["test_accuracy"]
    sd = "" if found["sd"] is None else f" ± {found['sd']:.2f}"
    return f"{found['mean']:.2f}{sd}"


def agreement(row: Row) -> tuple[str, str, str]:
    """Training loss, cosine, and cap."""
    values = (row["train_loss"], row["cosine"], row["cap"])
    loss, cosine, cap = ("-" if value is None else f"{value:.3f}" for value in values)
    return loss, cosine, cap


def signed(value: float | None) -> str:
    """Points, with their sign."""
    return "-" if value is None else f"{value:+.2f}"


def with_error(gain: Row) -> str:
    """Points, with their standard error."""
    error = gain["standard_error"]
    return signed(gain["mean"]) + ("" if error is None else f" ± {error:.2f}")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table's lines."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    common.run_main(main)
