"""Nothing flows back that is not declared: every transfer is recorded where torch.distributed makes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from tests.launching import launch

POINT_TO_POINT = {"isend": "to", "send": "to", "irecv": "from", "recv": "from"}

STARTS = ("all_", "barrier", "batch_isend", "broadcast", "gather", "monitored", "reduce", "scatter")
OTHERS = [
    name
    for name in dir(dist)
    if callable(getattr(dist, name)) and (name.startswith(STARTS) or name.endswith("_object_list"))
]
"""Whatever else could move a tensor or an object between ranks."""


def record_transfers(rank: int, folder: Path) -> None:
    """Wrap torch.distributed's functions in this process; the real transfers still happen."""
    log = (folder / f"transfers-{rank}.jsonl").open("w", buffering=1)

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            tensor = args[0] if args and isinstance(args[0], Tensor) else None
            entry = {
                "function": name,
                "peer": args[1] if len(args) > 1 and isinstance(args[1], int) else None,
                "bytes": tensor.numel() * tensor.element_size() if tensor is not None else None,
            }
            log.write(json.dumps(entry) + "\n")
            return function(*args, **kwargs)

        return recorded

    for name in [*POINT_TO_POINT, *OTHERS]:
        setattr(dist, name, wrap(name, getattr(dist, name)))


SAMPLES, TEST_SAMPLES, BATCH = 1442, 355, 64
"""Of the digits, and of a run by default."""
SIZES = (16 * 8 * 8, 16 * 8 * 8, 32 * 4 * 4)
"""Numbers in a row of what crosses each edge of a ResNet-8 in four stages."""


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("infopro", "bwbpf", "contsup")]
BACK = {"pgl": {6, 13, 20}, "loco": set(range(25))}
"""Batches of a run that carry something back, by objective."""


@pytest.mark.parametrize(
    "objective",
    ["greedy", "sgr", *SLOW, "loco", pytest.param("pgl", marks=pytest.mark.slow)],
)
def test_what_moves_backward_is_what_is_declared(tmp_path: Path, objective: str) -> None:
    out, size = tmp_path / "run", 4
    arguments = ["train", "--max-steps", "25", "--objective", objective, "--out", str(out)]
    if objective == "pgl":
        arguments += ["--guide-every", "7"]
    ranks = launch(tmp_path / "log", arguments, size, lambda rank: record_transfers(rank, tmp_path))
    assert ranks.wait() == [0] * size, ranks.output()

    summary = json.loads((out / "summary.json").read_text())
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
        # What the recorder saw is what the run reports, beside one first word, the headers, and the
        # room for labels and ids that a frame has when its batch is smaller or has none.
        events = 25 + 2 * 6 + 2 * 2 + 1
        labels_and_ids = 8 * (2 * (SAMPLES + 2 * BATCH) + 2 * TEST_SAMPLES)
        beside = events * (56 + 8 * 2 * BATCH) - labels_and_ids + 4
        own = summary["stages"][rank]
        assert own["backward_bytes"] == (rank > 0) * sum(
            4 * SIZES[rank - 1] * (SAMPLES % BATCH if step % 23 == 22 else BATCH)
            for step in returns or ()
        )
        beside_back = (len(returns or ()) + 1) * 56 + 4  # headers, of the end too
        for transfers_of, peer, key, more in (
            (sent, rank + 1, "sent_bytes", beside),
            (received, rank - 1, "received_bytes", beside),
            (sent, rank - 1, "backward_bytes", beside_back),
        ):
            found = sum(t["bytes"] for t in transfers_of if t["peer"] == peer)
            if peer in range(size) and (returns is not None or key != "backward_bytes"):
                assert found == own[key] + more, key


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
