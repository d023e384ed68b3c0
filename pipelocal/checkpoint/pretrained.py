"""Opens pretrained weights: a state dict in a file, or an earlier run, read one tensor at a time.

Nothing is unpickled but tensors and plain values, and a tensor is read from the disk when it is asked for, so
that a rank reads those of its own stages only (a ``.pt`` file of torch's old format is read whole).
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelocal.checkpoint.pick_snapshot import Tell, run_of, verified_weights
from pipelocal.checkpoint.snapshot import load_stage
from pipelocal.errors import UserError
from pipelocal.models import Chain
from pipelocal.models.state import Versions, versions_of
from pipelocal.models.unit import Shape

ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
"""Usual names of the entry of a checkpoint that holds the model's state dict, the likeliest first."""

BLOCKS, BLOCK = 16, 1024
"""A fingerprint covers so many evenly spaced blocks of so many values of every tensor."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A state dict that is read one tensor at a time."""

    path: Path
    shapes: Mapping[str, Shape]
    """Shape of each tensor, by its name."""
    read: Callable[[str], Tensor]
    """Reads one tensor, to the CPU."""
    fingerprint: str
    """Digest of names, shapes, dtypes and evenly spaced values."""
    versions: Versions = field(default_factory=dict)
    """Versions of the modules, as torch saves them with a state dict; empty where the format has none."""
    found: str = ""
    """Says where in the file the state dict was found, if not at its top."""


def open_pretrained(path: Path, chain: Chain, tell: Tell) -> Pretrained:
    """Open a ``.safetensors`` file, a file of ``torch.save``, or a run.

    Args:
        path: the file; or the folder of a run, of one of its snapshots, or ``RUN/snapshots/best``.
        chain: the model, which knows the names of the classifier's parameters in a run.
        tell: takes a line for each snapshot of a run that cannot be used.

    Raises:
        UserError: it holds no state dict that can be read.
    """
    run = run_of(path)
    if (run / "config.toml").is_file():
        return _of_run(path, chain, tell)
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.safetensors"))
        more = f", such as {path / inside[0]}" if inside else ""
        raise UserError(
            f"--init {path} is a folder, but not that of a run: give a run's folder, or a .safetensors or "
            f".pt file{more}"
        )
    try:
        if path.suffix == ".safetensors":
            return _of_safetensors(path)
        return _of_torch(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--init {path} cannot be read ({reason}): give another file") from error


def _of_safetensors(path: Path) -> Pretrained:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UserError(
            f"--init {path} needs the package safetensors: pip install 'pipelocal[safetensors]'"
        ) from error
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
        names = sorted(file.keys())
    except SafetensorError as error:
        raise UserError(
            f"--init {path} is no .safetensors file ({error}): give one that is whole, or a .pt file"
        ) from error
    return Pretrained(
        path=path,
        shapes={name: tuple(file.get_slice(name).get_shape()) for name in names},
        read=file.get_tensor,
        fingerprint=_fingerprint((name, file.get_tensor(name)) for name in names),
    )


def _of_torch(path: Path) -> Pretrained:
    content, found = _load(path), ""
    state = content if _is_state(content) else None
    if state is None and isinstance(content, Mapping):
        inner = {str(key): value for key, value in content.items() if _is_state(value)}
        usual = [name for name in ENTRIES if name in inner] or list(inner)
        if len(usual) > 1 and usual[0] not in ENTRIES:
            raise UserError(
                f"--init {path} holds several state dicts ({', '.join(usual[:5])}): save the one to start "
                f"from by itself, with torch.save(checkpoint[{usual[0]!r}], ...)"
            )
        if usual:
            state, found = inner[usual[0]], f"its entry '{usual[0]}'"
    if state is None:
        raise UserError(
            f"--init {path} holds no state dict: give a file of torch.save(model.state_dict(), ...)"
        )
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return Pretrained(
        path=path,
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        read=tensors.__getitem__,
        fingerprint=_fingerprint(sorted(tensors.items())),
        versions=versions_of(state),
        found=found,
    )


def _load(path: Path) -> Any:
    """Load a file of ``torch.save``, whose tensors are read from the disk when they are used."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"--init {path} holds more than tensors and plain values, which could run code when it is "
            f"loaded: if you trust it, load it once with torch.load(..., weights_only=False), and save its "
            f"state dict by itself, with torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # a file of something else fails in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--init {path} is no file of torch.save ({reason}): give a .safetensors or .pt file that is "
            f"whole, or the folder of a run"
        ) from error


def _is_state(value: Any) -> bool:
    """Return whether something is a state dict: tensors by name, perhaps with modules' extra state."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    plain = [name for name, each in value.items() if not isinstance(each, Tensor)]
    return len(plain) < len(value) and all(name.endswith("_extra_state") for name in plain)


def _of_run(path: Path, chain: Chain, tell: Tell) -> Pretrained:
    chosen = verified_weights(path, tell)
    if chosen is None:
        raise UserError(
            f"--init {path} holds no weights: give the folder of a run that ended, or took snapshots"
        )
    files = chosen.manifest.files
    tensors: dict[str, Tensor] = {}
    versions: Versions = {}
    for file in files:
        state = load_stage(chosen.folder, file.stage, mmap=True)
        tensors |= state["body"]
        versions |= versions_of(state["body"])
        if file is files[-1]:  # whose head is the model's own classifier
            classifier = chain.classifier
            tensors |= {classifier.whole_name(n): value for n, value in state["head"].items()}
            versions |= classifier.whole_versions(versions_of(state["head"]))
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    total = hashlib.sha256("".join(file.sha256 for file in files).encode())
    return Pretrained(
        path=path,
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        read=tensors.__getitem__,
        fingerprint=total.hexdigest(),
        versions=versions,
        found=f"its weights after batch {chosen.manifest.step}",
    )


def _fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        if len(flat) > BLOCKS * BLOCK:
            starts = torch.linspace(0, len(flat) - BLOCK, BLOCKS, dtype=torch.float64).long()
            flat = torch.cat([flat[start : start + BLOCK] for start in starts.tolist()])
        total.update(flat.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
