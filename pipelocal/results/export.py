"""``pipelocal export``: a finished run as a file that other programs read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelocal.config import ExportConfig
from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.models.payload import pack
from pipelocal.results.early_exit import HeadedNetwork, early_network
from pipelocal.results.saved_run import FinishedRun
from pipelocal.system.files import write_atomically
from pipelocal.system.paths import check_path
from pipelocal.system.streams import tell


def export(config: ExportConfig) -> str:
    """Write a run's trained model, in the format given by the file's extension.

    Returns:
        A description of what was written, for the user.

    Raises:
        UserError: there is no finished run, the extension is unknown, torch.export fails on the model,
            or the file cannot be written.
    """
    to = Path(config.to)
    write = WRITERS.get(to.suffix)
    if write is None:
        raise UserError(f"--to {to}: choose one of the endings {', '.join(WRITERS)}")
    check_path("--to", to)
    if not to.parent.is_dir():
        raise UserError(f"--to {to} cannot be written: there is no folder {to.parent}")
    run = FinishedRun(config.run, averaged=config.averaged)
    if config.stage is not None:
        if config.heads:
            raise UserError(
                f"--stage {config.stage} is for one head, and --heads for all: leave one of them out"
            )
        run.check_stage(config.stage)
    content, what = write(run, heads=config.heads, stage=config.stage or run.blueprint.stages)
    write_atomically(to, content)
    return f"{to}: {what} of {config.run}"


def _state(run: FinishedRun, *, heads: bool, stage: int) -> tuple[dict[str, Tensor], str]:
    if stage < run.blueprint.stages:
        state = run.state_up_to(stage)
        return state, f"{len(state)} tensors of the network up to the head of stage {stage}"
    state = run.plain_state()
    what = f"{len(state)} tensors of the uncut model"
    if lost := run.changed_buffers():
        tell(
            f"training has changed {len(lost)} buffer(s) with persistent=False, such as {lost[0]}, which no "
            f"state dict holds: for a model that has them export a program (.pt2), or use pipelocal.load"
        )
    if run.blueprint.network is not run.blueprint.chain:
        what += " with what the objective put into it, which fit the module of pipelocal.load"
    if not heads:
        return state, what
    more = run.auxiliary_heads()
    state.update(more)  # which keeps the module versions in its metadata
    return state, f"{what} and {len(more)} of auxiliary heads"


def _write_pt(run: FinishedRun, *, heads: bool, stage: int) -> tuple[bytes, str]:
    state, what = _state(run, heads=heads, stage=stage)
    # Via a buffer: torch.save would store the file's name in the file.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue(), what


def _write_safetensors(run: FinishedRun, *, heads: bool, stage: int) -> tuple[bytes, str]:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(
            "--to: .safetensors needs the package safetensors: pip install 'pipelocal[safetensors]'"
        ) from error
    state, what = _state(run, heads=heads, stage=stage)
    return save(_apart(state)), what


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors separate memory, as the format requires.

    Tied weights are written under each of their names, so that the file loads into the model as it is, tied
    or not.

    Raises:
        UserError: an entry is not a tensor.
    """
    seen: set[int] = set()
    apart = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"--to: '{name}' is no tensor but a {type(value).__name__}, which .safetensors cannot "
                f"hold: choose .pt"
            )
        whole = value.contiguous()
        place = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return apart


class _AllHeads(nn.Module):
    """Returns the logits of every head, in a form that an exported program can return."""

    def __init__(self, network: HeadedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.all_logits(*inputs))


class _Logits(nn.Module):
    """Takes a model's inputs in order, and returns its logits alone."""

    def __init__(self, chain: Chain, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._chain = [chain]  # no module

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._chain[0].logits(self.model, pack(inputs[0], inputs[1:]))


def _write_program(run: FinishedRun, *, heads: bool, stage: int) -> tuple[bytes, str]:
    chain = run.blueprint.network
    module = whole = run.whole()
    examples = _examples(chain)
    rows = {0: torch.export.Dim("batch", min=1)}
    dynamic: tuple[object, ...] = (rows,)
    if heads:
        module = _AllHeads(HeadedNetwork.of(run))
    elif stage < run.blueprint.stages:
        module = early_network(run, stage)
    elif len(examples) > 1 or not isinstance(whole.eval()(*examples), Tensor):
        module = _Logits(chain, whole)
    if module is not whole:  # whose forward takes any number
        dynamic = ((rows,) * len(examples),)
    try:
        program = torch.export.export(module.eval(), examples, dynamic_shapes=dynamic)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--to: torch.export cannot go through this model ({reason}): choose .pt or .safetensors"
        ) from error
    logits = f"logits of {run.blueprint.stages} heads" if heads else "logits"
    if stage < run.blueprint.stages:
        logits = f"logits of the head of stage {stage}"
    takes = " and ".join(
        f"{kind.dtype} [batch, {', '.join(map(str, kind.shape))}]" for kind in chain.inputs
    )
    return buffer.getvalue(), f"a torch.export program from {takes} to {logits},"


def _examples(chain: Chain) -> tuple[Tensor, ...]:
    """Make two samples: a batch of one would be treated as a fixed size. A mask of zeros would be odd."""
    main, *beside = (torch.zeros((2, *kind.shape), dtype=kind.dtype) for kind in chain.inputs)
    return (main, *map(torch.ones_like, beside))


WRITERS: dict[str, Callable[..., tuple[bytes, str]]] = {
    ".pt": _write_pt,
    ".safetensors": _write_safetensors,
    ".pt2": _write_program,
}
"""Functions that make the content of a file, by its extension."""
