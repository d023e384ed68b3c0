"""The options of the launch command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """List recipes that start a training on one node, on several, by SLURM or Kubernetes; or print one."""

    recipe: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RECIPE")] = None
    """Its name, such as slurm.sh; without one all are listed."""
