"""What a stage's training changes of the buffers that no state dict in a snapshot holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models.unsaved import mark, set_unsaved, unsaved_buffers
from pipelocal.stage.finite import HEAD, OBJECTIVE

LOSS = "loss/"
"""Prefix of the names of buffers of a loss."""
BESIDE = (HEAD, OBJECTIVE, LOSS)
"""Prefixes of all that is no body's."""


class Unsaved:
    """Looks at buffers with ``persistent=False``, and all of the loss, as a stage is built and later.

    Constants, such as masks, are not saved, so that a run goes on with those of the model given. Names in
    the body do not depend on the cut; those of other parts begin with ``head/``, ``objective/`` or ``loss/``.

    Args:
        body: the units, each under its own name.
        head: of the stage.
        objective: if it has parameters or buffers.
        loss: if it is a module.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        objective: nn.Module | None = None,
        loss: nn.Module | None = None,
    ) -> None:
        parts = {"": body, HEAD: head, OBJECTIVE: objective, LOSS: loss}
        self._parts = {prefix: part for prefix, part in parts.items() if part is not None}
        self._built = {name: mark(buffer) for name, buffer in self.buffers().items()}

    def buffers(self) -> dict[str, Tensor]:
        """Return all of them."""
        return {
            prefix + name: buffer
            for prefix, module in self._parts.items()
            for name, buffer in (
                dict(module.named_buffers()) if prefix == LOSS else unsaved_buffers(module)
            ).items()
        }

    def of_built_shapes(self, *, head: bool) -> dict[str, Tensor]:
        """Return those of the body, for ranks that know only what was built.

        Args:
            head: whether those of the head as well.

        Raises:
            UserError: one has another shape now.
        """
        others = tuple(prefix for prefix in BESIDE if not (head and prefix == HEAD))
        found = {n: b for n, b in self.buffers().items() if not n.startswith(others)}
        for name, buffer in found.items():
            if name not in self._built or self._built[name][0] != tuple(buffer.shape):
                raise UserError(
                    f"'{name}' is a buffer whose shape {tuple(buffer.shape)} came in training, which "
                    f"other ranks cannot know: write the run to a folder and load that"
                )
        return found

    def changed(self) -> dict[str, Tensor]:
        """Return those that are not as they were built."""
        return {n: b for n, b in self.buffers().items() if mark(b) != self._built.get(n)}

    def load(self, changed: Mapping[str, Tensor]) -> None:
        """Set what :meth:`changed` returned, here or in a stage of another cut."""
        for prefix, module in self._parts.items():
            own = {
                name.removeprefix(prefix): buffer
                for name, buffer in changed.items()
                if (name.startswith(prefix) if prefix else not name.startswith(BESIDE))
            }
            set_unsaved(module, own)
