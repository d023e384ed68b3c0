"""``--ema``: an exponential moving average of a stage's weights, kept alongside the trained ones.

Every stage averages its own weights after each update, with
:func:`torch.optim.swa_utils.get_ema_multi_avg_fn`; nothing about it crosses an edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Averages parameters and floating-point buffers; other buffers are copied.

    A module's extra state is not averaged.

    The first update copies, so that the random initial weights do not contribute.

    Args:
        modules: the modules to average.
        decay: weight of the previous average relative to the newest weights, between 0 and 1.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.updates = 0
        self._modules = modules
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._kept = [tensor.clone() for tensor in self._live()]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        pairs = list(zip(self._kept, self._live(), strict=True))
        blended = [(kept, live) for kept, live in pairs if _averaged(kept)]
        if self.updates > 0 and blended:
            kept_ones, live_ones = map(list, zip(*blended, strict=True))
            self._blend(kept_ones, live_ones, self.updates)
        for kept, live in pairs:
            if self.updates == 0 or not _averaged(kept):
                kept.copy_(live)
        self.updates += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the current weights, which something else has set."""
        self.updates = 0
        for kept, live in zip(self._kept, self._live(), strict=True):
            kept.copy_(live)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the modules within a block; weights loaded there become the average."""
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
        """Return each tensor once, whatever its number of names."""
        found: dict[int, Tensor] = {}
        for module in self._modules:
            for name, value in module.state_dict(keep_vars=True).items():
                if not name.endswith("_extra_state"):  # which may be created anew at each call
                    found[id(value)] = value
        return [value.detach() for value in found.values()]


def _averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
