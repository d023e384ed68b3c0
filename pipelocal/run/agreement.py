"""Checks before training that all ranks were started with the same options, model, code and data.

Rank 0 publishes its values; every other rank compares and reports any difference with both values. That
error ends every rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelocal.checkpoint.description import PACKAGES, CodeDescription, ModelDescription, versions
from pipelocal.data.batches import Batches
from pipelocal.errors import UserError
from pipelocal.options import option_name
from pipelocal.ranks.control import ControlPlane


def check_same_options(
    text: Mapping[str, Any], control: ControlPlane, *, own: frozenset[str]
) -> None:
    """Refuse ranks that were started with other options or versions than rank 0.

    Args:
        text: the options by name; references without their files' paths.
        control: the control plane.
        own: names of options in which ranks may differ: where a rank computes, where its files are (their
            contents are compared), what it shows.

    Raises:
        UserError: options or package versions differ; names them and both values.
    """
    options = {k: v for k, v in text.items() if k not in own}
    _compare(
        control,
        "options",
        options,
        name=option_name,
        what="started with other options than rank 0",
        mend="give every rank the same",
    )
    _compare(
        control,
        "versions",
        {package: version for package, version in versions().items() if package in PACKAGES},
        what="other versions than on rank 0",
        mend="install the same on every node",
    )


def check_same_model(model: ModelDescription, control: ControlPlane) -> None:
    """Refuse ranks whose model differs from rank 0's, for example because their copy of its file does.

    Raises:
        UserError: the models differ; says in what.
    """
    parts = {"its parameters": model.units[:12], "its code": (model.code or "pipelocal's")[:12]}
    mend = "copy the same file to every node"
    if model.first_weights is not None:
        parts["its first weights"] = model.first_weights
        mend = "make the same on every rank, with torch.manual_seed(...) before it"
    _compare(control, "model", parts, what="another model than on rank 0", mend=mend)


def check_same_initial(fingerprint: str | None, control: ControlPlane) -> None:
    """Refuse ranks whose ``--init`` is of other weights than rank 0's.

    Args:
        fingerprint: of this rank's; None where there is none, as a run that goes on need not have it.
        control: the control plane.

    Raises:
        UserError: they differ.
    """
    _compare(
        control,
        "init",
        {} if fingerprint is None else {"--init": fingerprint[:12]},
        what="other weights to start from than on rank 0",
        mend="copy the same file to every node",
        where_both_have=True,
    )


def check_same_code(code: Mapping[str, CodeDescription], control: ControlPlane) -> None:
    """Refuse ranks whose user code differs from rank 0's; a rank may lack code that it does not need.

    Args:
        code: description of the code that each option refers to, by option.
        control: the control plane.

    Raises:
        UserError: the code differs; names the options.
    """
    _compare(
        control,
        "code",
        {option: (each.code or "")[:12] for option, each in code.items()},
        name=lambda option: f"that of {option_name(option)}",
        what="other code than on rank 0",
        mend="copy the same files to every node",
        where_both_have=True,
    )


def check_same_data(batches: Batches, control: ControlPlane) -> None:
    """Refuse a replica of the first stage whose data differs from rank 0's, in content or in length.

    Args:
        batches: of this rank, which is rank 0 or holds a replica of the first stage.
        control: the control plane.

    Raises:
        UserError: the data differ; says in what.
    """
    described = batches.describe()
    _compare(
        control,
        "data",
        {
            "the content": described["fingerprint"][:12],
            "training samples": described.get("train_samples"),
            "test samples": described.get("test_samples"),
            "batches of an epoch": batches.steps_per_epoch,
            "samples in a batch": batches.batch_size,
        },
        what="other data than on rank 0",
        mend="give the same to every node that holds a replica of the first stage",
    )


def _compare(
    control: ControlPlane,
    about: str,
    own: Mapping[str, Any],
    *,
    what: str,
    mend: str,
    name: Callable[[str], str] = str,
    where_both_have: bool = False,
) -> None:
    world = control.world
    if world.size == 1:
        return
    # Compare as JSON text, in which NaN equals itself.
    ours = {key: json.dumps(value) for key, value in own.items()}
    if world.rank == 0:
        control.put(f"alike/{about}", ours)
        return
    theirs = control.wait_for(f"alike/{about}", timeout_s=world.start_timeout_s)
    keys = theirs.keys() & ours.keys() if where_both_have else theirs.keys() | ours.keys()
    differing = [
        f"{name(key)} ({theirs.get(key, 'none')} on rank 0, {ours.get(key, 'none')} on rank {world.rank})"
        for key in sorted(keys)
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise UserError(f"{what}: {', '.join(differing)}: {mend}")
