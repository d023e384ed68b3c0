"""All ranks compare what they were started with, before anything is trained.

Rank 0 publishes, every other rank compares and, where something differs, says what and both values. That
becomes every rank's reason to end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelocal.checkpoint.description import PACKAGES, CodeDescription, ModelDescription, versions
from pipelocal.errors import UserError
from pipelocal.options import option_name
from pipelocal.ranks.control import ControlPlane


def check_same_options(
    text: Mapping[str, Any], control: ControlPlane, *, own: frozenset[str]
) -> None:
    """Refuse ranks that were started with other options or versions than rank 0.

    Args:
        text: the options by name; references without the place of their files.
        control: the control plane.
        own: names of those in which ranks may differ: where a rank computes, where its files lie (what is
            in them is compared), what it shows.

    Raises:
        UserError: names the options, or the packages, and both values.
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
    """Refuse ranks whose model is not that of rank 0, such as those with another copy of its file.

    Raises:
        UserError: says what of the model differs.
    """
    parts = {"its parameters": model.units[:12], "its code": (model.code or "pipelocal's")[:12]}
    mend = "copy the same file to every node"
    if model.first_weights is not None:
        parts["its first weights"] = model.first_weights
        mend = "make the same on every rank, with torch.manual_seed(...) before it"
    _compare(control, "model", parts, what="another model than on rank 0", mend=mend)


def check_same_code(code: Mapping[str, CodeDescription], control: ControlPlane) -> None:
    """Refuse ranks that have other code of the user's own than rank 0; one may lack what it does not need.

    Args:
        code: of what options name by reference, by option.
        control: the control plane.

    Raises:
        UserError: names the options.
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


def check_same_data(fingerprint: str, own: str) -> None:
    """Refuse a replica of the first stage that reads other data than rank 0.

    Raises:
        UserError: they differ.
    """
    if fingerprint != own:
        raise UserError(
            "other data below --data-root than on rank 0 (the content differs): copy the same to every node "
            "that holds a replica of the first stage"
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
    # As text: JSON has one for every value, and a NaN equals itself.
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
