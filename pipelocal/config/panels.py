"""The options of ``pipelocal train`` in panels, as ``--help`` shows them; flat on the command line."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import asdict, field, fields, make_dataclass
from functools import cache
from operator import getitem
from typing import Annotated, Any, get_type_hints

import tyro

from pipelocal.checkpoint.options import SnapshotOptions
from pipelocal.config.named import described_objectives
from pipelocal.config.train import (
    CutOptions,
    FolderOptions,
    ModelOptions,
    ObjectiveOptions,
    OptimizerOptions,
    TrainConfig,
)
from pipelocal.data.options import DataOptions
from pipelocal.pipeline.options import LengthOptions
from pipelocal.replicas.options import ReplicaOptions
from pipelocal.stage.options import ComputeOptions
from pipelocal.telemetry.options import SeeingOptions
from pipelocal.transport.options import TransportOptions

PANELS: dict[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "length": LengthOptions,
    "heads and objective": ObjectiveOptions,
    "optimizer": OptimizerOptions,
    "cut": CutOptions,
    "replicas": ReplicaOptions,
    "speed and memory": ComputeOptions,
    "transport": TransportOptions,
    "snapshots": SnapshotOptions,
    "seeing": SeeingOptions,
    "folder": FolderOptions,
}
"""Option groups by title, in the order in which they are shown."""

ALIASES = {"log": ["--loggers"]}
"""Other names of options. torchrun takes ``--log`` for ``--log-dir`` or ``--logs-specs`` and refuses it, even
behind the name of the program, where Python's argparse is older than that of 3.12.8 and 3.13.1."""


@cache
def panels(*, everything: bool) -> Any:
    """Make the class that the command line is parsed into, with one option group per panel.

    Args:
        everything: whether to also show rarely needed options.
    """
    groups: list[tuple[str, Any, Any]] = []
    for title, group in PANELS.items():
        shown = _shown(group, everything=everything)
        kind: Any = Annotated[shown, tyro.conf.OmitArgPrefixes]
        groups.append((title.replace(" ", "_"), kind, field(default_factory=shown)))
    made = make_dataclass("TrainPanels", groups, frozen=True, kw_only=True)
    made.__doc__ = (TrainConfig.__doc__ or "") + (
        "" if everything else " Options that few need are shown by --help-all."
    )
    return made


def in_panels(config: TrainConfig, *, everything: bool = False) -> Any:
    """Convert a training's options to panels."""
    flat, made = asdict(config), panels(everything=everything)
    values = {}
    for each in fields(made):
        group: Any = each.default_factory
        values[each.name] = group(**{one.name: flat[one.name] for one in fields(group)})
    return made(**values)


def out_of_panels(parsed: Any) -> TrainConfig:
    """Convert panels back to a training's options."""
    return TrainConfig(**{k: v for group in asdict(parsed).values() for k, v in group.items()})


def _shown(group: type, *, everything: bool) -> type:
    """Make a class with a group's options and their help, one paragraph each."""
    hints, texts = get_type_hints(group), _help_of(group)
    if "objective_options" in texts:
        texts["objective_options"] += described_objectives()
    options: list[tuple[str, Any, Any]] = []
    for each in fields(group):
        marks: list[Any] = [tyro.conf.arg(help=texts[each.name], aliases=ALIASES.get(each.name))]
        if each.metadata.get("seldom") and not everything:
            marks.append(tyro.conf.Suppress)
        kind: Any = getitem(Annotated, (hints[each.name], *marks))
        options.append((each.name, kind, field(default=each.default)))
    made = make_dataclass(group.__name__, options, frozen=True, kw_only=True)
    made.__doc__ = group.__doc__
    return made


def _help_of(group: type) -> dict[str, str]:
    """Return the text under each field, by field name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for here, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(here, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(here.target, ast.Name)
            assert isinstance(below.value, ast.Constant)
            found[here.target.id] = " ".join(str(below.value.value).split())
    return found
