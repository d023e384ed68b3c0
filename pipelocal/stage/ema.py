"""``--ema``: an exponential moving average of a stage's weights, beside those that are trained.

Every stage averages its own, after each of its updates, by
:func:`torch.optim.swa_utils.get_ema_multi_avg_fn`; nothing about it crosses an edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Averages what state dicts hold: parameters and buffers of fractions; other buffers are copied.

    What a module keeps as extra state is no part of it.

    The first update copies, so that the first weights, which are random, have no part in it.

    Args:
        modules: what is averaged.
        decay: weight of the average so far against the newest weights, between 0 and 1.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.updates = 0
        self._modules = modules
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._kept = [tensor.clone() for tensor in self._live()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        pairs = list(zip(self._kept, self._live(), strict=True))
        blended = [(kept, live) for kept, live in pairs if _averaged(kept)]
        if self.updates > 0 and blended:
            kept_ones, live_ones = map(list, zip(*blended, strict=True))
            self._blend(kept_ones, live_ones, self.updates)
        for kept, live in pairs:
            if self.updates == 0 or not _averaged(kept):
                kept.copy_(live)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this block the modules hold the average; what is loaded there becomes the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for kept, live in zip(self._kept, self._live(), strict=True):
            trained = live.clone()
            live.copy_(kept)
            kept.copy_(trained)

    def _live(self) -> list[Tensor]:
        return [
            value
            for module in self._modules
            for name, value in module.state_dict().items()
            if not name.endswith("_extra_state")  # by get_extra_state(), which may make it anew
        ]


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
