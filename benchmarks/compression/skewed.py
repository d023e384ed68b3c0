"""``pipelocal train`` on data that are dealt to the replicas of the first stage by label.

Used in place of pipelocal, with options of its own before the command::

    torchrun --standalone --nproc-per-node 4 benchmarks/compression/skewed.py \
        --data fashion-mnist --replicas 4 --batch-size 32 --samples 8192 --passes 8 --skew 1 \
        train --data-root DIR --model benchmarks/compression/model.py:groupnorm_cnn --stages 2 \
        --objective greedy --compress sign --out runs/sign
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.compression.data import Deal, entry
from pipelocal import DATASETS
from pipelocal.cli import main
from pipelocal.errors import UserError


def begin(arguments: list[str]) -> list[str]:
    """Register the data set; the command line of pipelocal."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", default="fashion-mnist", help="data set to deal")
    parser.add_argument("--replicas", type=int, default=4, help="of every stage")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, required=True, help="different ones to train on")
    parser.add_argument("--passes", type=int, required=True, help="over the samples")
    parser.add_argument("--skew", type=float, required=True, help="share dealt by label, 0 to 1")
    parser.add_argument("--held-out", type=int, help="evaluate on so many training samples")
    parser.add_argument("command", choices=["train"])
    own, rest = parser.parse_known_args(arguments)
    deal = Deal(
        replicas=own.replicas,
        batch_size=own.batch_size,
        samples=own.samples,
        passes=own.passes,
        skew=own.skew,
        held_out=own.held_out,
    )
    dealt = entry(own.data, deal)
    DATASETS.register(dealt.info.name)(dealt)
    same = ["--data", dealt.info.name, "--epochs", "1"]  # the passes are one epoch
    same += ["--replicas", str(deal.replicas), "--batch-size", str(deal.batch_size)]
    return ["train", *same, *rest]


if __name__ == "__main__":
    try:
        command = begin(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    main(command)
