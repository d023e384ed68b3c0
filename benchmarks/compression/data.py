"""Training data whose labels differ from replica to replica.

The whole training is one epoch, of several passes over the samples: training batch t is event t, and goes
to replica ``t mod R``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelocal.data import ArrayDataset, DataInfo, DatasetEntry, data_info, load_dataset
from pipelocal.errors import UserError
from pipelocal.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Deal:
    """How the samples are dealt to the replicas.

    Attributes:
        replicas: of the first stage.
        batch_size: of the run.
        samples: different ones, a multiple of the samples of one batch for each replica.
        passes: over the samples.
        skew: share of the samples that go to a replica by their label, 0 to 1.
        held_out: evaluate on so many of the training samples that are not trained on, the last ones, in
            place of the test part; None for the test part.
    """

    replicas: int
    batch_size: int
    samples: int
    passes: int
    skew: float
    held_out: int | None = None

    def __post_init__(self) -> None:
        together = self.replicas * self.batch_size
        if self.samples < 1 or self.samples % together:
            raise UserError(
                f"{self.samples} samples for {self.replicas} replicas and batches of {self.batch_size}: "
                f"give a multiple of {together}"
            )
        if self.passes < 1:
            raise UserError(f"{self.passes} passes over the samples: give 1 or more")
        if not 0 <= self.skew <= 1:
            raise UserError(f"a skew of {self.skew:g}: give 0 (none) to 1 (by label alone)")


@dataclass(frozen=True, kw_only=True, eq=False)
class DealtDataset(ArrayDataset):
    """The samples as often as there are passes, in an order that keeps each one on its replica.

    Attributes:
        deal: with how many samples and passes the training part was made.
        shares: ``[replicas, samples / replicas]``, int64, indices of the samples of each replica.
    """

    deal: Deal
    shares: Tensor

    def training_order(self, samples: int, generator: torch.Generator) -> Tensor:
        """Pass by pass; in each the replicas take turns, batch by batch, each with its own in a new order."""
        batch_size, passes = self.deal.batch_size, self.deal.passes
        assert samples == self.shares.numel() * passes, "--train-samples would part the passes"
        orders = []
        for i in range(passes):
            own = [share[torch.randperm(len(share), generator=generator)] for share in self.shares]
            in_turn = torch.stack(own).view(len(own), -1, batch_size).transpose(0, 1)
            orders.append(in_turn.reshape(-1) + i * self.shares.numel())
        return torch.cat(orders)


def dealt_by_label(
    labels: Tensor, replicas: int, skew: float, generator: torch.Generator
) -> Tensor:
    """Indices ``[replicas, N / replicas]`` of labels ``[N]``, each once; N is a multiple of the replicas.

    A share of ``skew`` is sorted by label and cut into as many equal pieces, so that a class may lie in
    two neighbouring ones; the rest is dealt at random.
    """
    mixed = torch.randperm(len(labels), generator=generator)
    by_label = round(skew * len(labels) / replicas) * replicas
    first, rest = mixed[:by_label], mixed[by_label:]
    first = first[labels[first].argsort(stable=True)]
    return torch.cat((first.view(replicas, -1), rest.view(replicas, -1)), dim=1)


def dealt(dataset: ArrayDataset, deal: Deal, seed: int) -> DealtDataset:
    """The first samples of a data set, dealt; which ones go where depends on ``seed`` and the labels.

    Raises:
        UserError: there are too few.
    """
    wanted = deal.samples + (deal.held_out or 0)
    if wanted > len(dataset.train_x):
        raise UserError(
            f"data set '{dataset.info.name}' has {len(dataset.train_x)} training samples, and {wanted} "
            f"are asked for: give fewer"
        )
    x, y = dataset.train_x[: deal.samples], dataset.train_y[: deal.samples]
    generator = torch.Generator().manual_seed(derive_seed(seed, "deal"))
    held_out = slice(-deal.held_out, None) if deal.held_out else None
    return DealtDataset(
        info=_renamed(dataset.info),
        train_x=torch.cat([x] * deal.passes),
        train_y=torch.cat([y] * deal.passes),
        test_x=dataset.test_x if held_out is None else dataset.train_x[held_out],
        test_y=dataset.test_y if held_out is None else dataset.train_y[held_out],
        mean=dataset.mean,
        std=dataset.std,
        augment=dataset.augment,
        deal=deal,
        shares=dealt_by_label(y, deal.replicas, deal.skew, generator),
    )


def entry(name: str, deal: Deal) -> DatasetEntry:
    """A data set of the registry, dealt, as an entry of its own."""

    def load(root: Path | None, seed: int) -> ArrayDataset:
        return dealt(load_dataset(name, root=root, seed=seed), deal, seed)

    return DatasetEntry(_renamed(data_info(name)), load)


def _renamed(info: DataInfo) -> DataInfo:
    return replace(info, name=f"{info.name}-dealt")
