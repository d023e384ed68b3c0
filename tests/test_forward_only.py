"""Nothing flows back that is not declared: every transfer is recorded where torch.distributed makes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.launching import launch

POINT_TO_POINT = {"send": "to", "recv": "from"}
"""Methods of a process group, by which every transfer from one rank to another goes."""

STARTS = ("all_", "barrier", "batch_isend", "broadcast", "gather", "monitored", "reduce", "scatter")
OTHERS = [
    name
    for name in dir(dist)
    if callable(getattr(dist, name)) and (name.startswith(STARTS) or name.endswith("_object_list"))
]
"""Whatever else could move a tensor or an object between ranks."""


def record_transfers(rank: int, folder: Path) -> None:
    """Wrap what moves tensors in this process; the real transfers still happen.

    A peer is noted by its global rank, and the bytes are those that a send sends and a receive has room for.
    """
    log = (folder / f"transfers-{rank}.jsonl").open("w", buffering=1)

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            entry: dict[str, Any] = {"function": name}
            if name in POINT_TO_POINT:
                group, (tensor,), peer, _tag = args
                entry["peer"] = dist.get_global_rank(group, peer)
                entry["bytes"] = tensor.nbytes
            log.write(json.dumps(entry) + "\n")
            return function(*args, **kwargs)

        return recorded

    for name in POINT_TO_POINT:
        setattr(dist.ProcessGroup, name, wrap(name, getattr(dist.ProcessGroup, name)))
    for name in OTHERS:
        setattr(dist, name, wrap(name, getattr(dist, name)))


BATCH = 64
"""Rows of a batch by default."""
LAST, LAST_TEST, CLASSES = 1442 % BATCH, 355 % BATCH, 10
"""Rows of the last batch of an epoch of the digits, and of an evaluation; their classes."""
WORDS = 4 + 1
"""Bytes of the first message on an edge, and of the last."""
CLASSIFIER = 64 * CLASSES + CLASSES
"""Its weights."""
SIZES = (16 * 8 * 8, 16 * 8 * 8, 32 * 4 * 4)
"""Numbers in a row of what crosses each edge of a ResNet-8 in four stages."""


def padding(size: int) -> int:
    return -size % 64


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("infopro", "bwbpf", "contsup")]
BACK = {"pgl": {6, 13, 20}, "loco": set(range(25)), "guided": {6, 13, 20}}
"""Batches of a run that carry something back, by objective; with guided heads, of the last stage."""


@pytest.mark.parametrize(
    "objective",
    ["greedy", "sgr", *SLOW, "loco"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("pgl", "guided")],
)
def test_what_moves_backward_is_what_is_declared(tmp_path: Path, objective: str) -> None:
    out, size = tmp_path / "run", 4
    arguments = ["train", "--max-steps", "25", "--objective", objective, "--out", str(out)]
    if objective == "guided":
        arguments += ["--objective", "greedy", "--head", "guided"]
    if objective in ("pgl", "guided"):
        arguments += ["--guide-every", "7"]
    ranks = launch(tmp_path / "log", arguments, size, lambda rank: record_transfers(rank, tmp_path))
    assert ranks.wait() == [0] * size, ranks.output()

    summary = json.loads((out / "summary.json").read_text())
    # One is taken behind an evaluation, where that costs next to nothing of the time.
    snapshots = (out / "metrics.jsonl").read_text().count('"snapshot"') // size
    for rank in range(size):
        lines = (tmp_path / f"transfers-{rank}.jsonl").read_text().splitlines()
        transfers = [json.loads(line) for line in lines]
        assert {t["function"] for t in transfers} <= set(POINT_TO_POINT), "only point to point"
        sent = [t for t in transfers if POINT_TO_POINT[t["function"]] == "to"]
        received = [t for t in transfers if POINT_TO_POINT[t["function"]] == "from"]
        returns = BACK.get(objective)
        before, after = {rank - 1} - {-1}, {rank + 1} - {size}
        assert {t["peer"] for t in sent} == (after if returns is None else after | before)
        assert {t["peer"] for t in received} == (before if returns is None else after | before)
        # What the recorder saw is what the run reports, beside a first word and a last, the headers, and
        # what pads labels and ids to 64 bytes.
        events = 25 + 2 * 6 + 2 * 2 + 1 + snapshots
        beside = 64 * events + 2 * padding(8 * LAST) + 2 * padding(8 * LAST_TEST) + WORDS
        if rank == size - 2:  # an output so small that the votes of the heads ride with it
            beside += 2 * padding(4 * CLASSES * LAST_TEST)
        own = summary["stages"][rank]
        carried = [
            4 * SIZES[rank - 1] * (LAST if step % 23 == 22 else BATCH) for step in returns or ()
        ]
        beside_back = (len(carried) + 1) * 64 + WORDS  # headers, of the end too
        if objective == "guided":
            carried = (len(carried) - (size - 1 - rank)) * [4 * CLASSIFIER]
            beside_back = sum(64 + padding(size) for size in carried) + 64 + WORDS
        assert own["backward_bytes"] == (rank > 0) * sum(carried)
        for peer, key, more in (
            (rank + 1, "sent_bytes", beside),
            (rank - 1, "backward_bytes", beside_back),
        ):
            found = sum(t["bytes"] for t in sent if t["peer"] == peer)
            if peer in range(size) and (returns is not None or key != "backward_bytes"):
                assert found == own[key] + more, key
        if rank > 0:
            assert own["received_bytes"] == summary["stages"][rank - 1]["sent_bytes"]
            assert sum(t["bytes"] for t in received) >= own["received_bytes"]


def test_delta_travels_only_where_it_is_wanted(tmp_path: Path) -> None:
    """Greedy stages get x alone; with sgr an edge carries delta, of the same size, in training."""
    sent = {}
    for objective, more in (("greedy", []), ("sgr", ["--reconcile-every", "2"])):
        out = tmp_path / objective
        arguments = [
            "train",
            "--max-steps",
            "5",
            "--objective",
            objective,
            *more,
            "--out",
            str(out),
        ]
        ranks = launch(tmp_path / "log", [*arguments, "--evaluate-every", "9"], 2)
        assert ranks.wait() == [0, 0], ranks.output()
        summary = json.loads((out / "summary.json").read_text())
        sent[objective] = summary["stages"][1]["sent_bytes"]
    reconciled_rows = 3 * 64  # batches 0, 2 and 4
    assert sent["sgr"] - sent["greedy"] == reconciled_rows * 16 * 8 * 8 * 4
