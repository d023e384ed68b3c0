"""The pretrained weights that a run starts from: ``--init``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelocal.checkpoint.pick_snapshot import BEST, run_of
from pipelocal.checkpoint.pretrained import Pretrained, open_pretrained
from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.models.start_from import Fit, fit, starting_from
from pipelocal.ranks.world import World
from pipelocal.system.paths import check_path
from pipelocal.system.streams import tell


@dataclass(frozen=True, kw_only=True)
class Initial:
    """Pretrained weights that fit the model."""

    weights: Pretrained
    fitted: Fit

    def describe(self) -> str:
        """Return what the run starts from, in one line."""
        where = f" ({self.weights.found})" if self.weights.found else ""
        return f"starting from {self.weights.path}{where}: {self.fitted.describe()}"

    def begun(self, chain: Chain) -> Chain:
        """Return the chain with units that start from these weights."""
        return starting_from(chain, self.fitted, self.weights.read, self.weights.versions)


def find_initial(path: str | None, chain: Chain, world: World) -> Initial | None:
    """Open the weights that ``--init`` names; None without it, or where there are none any more.

    A run that goes on does not need them, so that they may be gone by then.

    Args:
        path: of a file or a run's folder.
        chain: the model; a chain returned by :meth:`~pipelocal.models.chain.Chain.tried`.
        world: the ranks, of which the first one says what it found.

    Raises:
        UserError: they cannot be read, or do not fit the model.
    """
    if path is None:
        return None
    check_path("--init", path)
    place = Path(path)
    if not place.exists() and not (place.name == BEST and run_of(place).exists()):
        return None
    weights = open_pretrained(place, chain, tell if world.rank == 0 else _tell_nobody)
    return Initial(weights=weights, fitted=fit(chain, weights.shapes, f"--init {path}"))


def require_initial(path: str | None, found: Initial | None) -> None:
    """Refuse to begin a run whose pretrained weights are not there.

    Raises:
        UserError: there are none.
    """
    if path is not None and found is None:
        raise UserError(
            f"--init {path}: there is no such file: give a .safetensors or .pt file, or the folder of a run"
        )


def _tell_nobody(_line: str) -> None:
    pass
