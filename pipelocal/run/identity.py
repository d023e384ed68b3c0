"""Whether two runs are one and the same: by their options, and by what these stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelocal.checkpoint.description import Description, changed_code, data_differences
from pipelocal.errors import UserError
from pipelocal.options import option_name
from pipelocal.references import plain_name
from pipelocal.run.earlier import as_of_now
from pipelocal.run.options import batches_of_a_round
from pipelocal.run.spec import Spec

FITTING = {"model", "optimizer", "head", "head_budget", "head_loss", "bp_free"}
"""Options without which the weights of another run, or what its optimizer knows, cannot be taken over."""

PLACE = ("data", "train_samples", "test_split", "batch_size", "drop_last", "seed")
"""Options that say which samples are in which batch."""

Tell = Callable[[str], None]


def identity(spec: Spec, text: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options on which the bits of a run depend.

    Args:
        spec: the run.
        text: those of another run, as its folder has them; None for this one's.
    """
    known = {**spec.defaults, **spec.text}
    options = known if text is None else {**spec.defaults, **as_of_now(text)}
    options = {name: options.get(name) for name in known}  # an older run may have had others
    found = {name: value for name, value in options.items() if name not in spec.anywhere}
    # Replicas count by how many batches make an update (the same up to rounding), and a round.
    together = batches_of_a_round(options["replicas"])
    found["accumulate"] = options["accumulate"] * together
    # Wherever their files lie; their code is looked at apart.
    for name in spec.named & found.keys():
        found[name] = None if found[name] is None else plain_name(found[name])
    if found.get("init") is not None:
        found["init"] = Path(found["init"]).name
    rounds_matter = spec.recipe.objective.reconcile_every is not None or options["sync_batchnorm"]
    found["replicas"] = together if rounds_matter else 1
    # Through JSON, as a manifest's went: a tuple is a list in a file.
    through: dict[str, Any] = json.loads(json.dumps(found))
    return through


def check_same_run(theirs: dict[str, Any], spec: Spec, run: Path) -> None:
    """Refuse to go on with another run than the options ask for.

    Args:
        theirs: what :func:`identity` gave of that run's options.
        spec: the run now.
        run: that run's folder.

    Raises:
        UserError: names the options that differ.
    """
    differing = differences(theirs, spec)
    if differing:
        raise UserError(
            f"--out {run} holds an unfinished run with other options: {_listed(differing)}: give the "
            f"same to go on with it, or another --out"
        )


def check_fitting(theirs: dict[str, Any], spec: Spec, snapshot: Path, tell: Tell) -> None:
    """Refuse to begin from a snapshot that does not fit; tell what else differs.

    Args:
        theirs: what :func:`identity` gave of the other run's options.
        spec: the run now.
        snapshot: where it is.
        tell: takes a line.

    Raises:
        UserError: names the options that must be the same.
    """
    differing = differences(theirs, spec)
    wrong = {name: text for name, text in differing.items() if name in FITTING}
    if wrong:
        raise UserError(
            f"--resume {snapshot} is of a run with which these options do not go together: "
            f"{_listed(wrong)}: give the same"
        )
    differing.pop("init", None)  # the snapshot's weights take its place
    if differing:
        tell(f"options that differ from those of that run: {_listed(differing)}")


def check_unchanged(
    then: Description,
    now: Description,
    spec: Spec,
    run: Path,
    tell: Tell,
    *,
    same_data: bool,
) -> None:
    """Refuse to go on with a run whose model or data are not what they were, unless told to go ahead.

    Args:
        then: what the run was made of.
        now: what its options name now.
        spec: the run now.
        run: that run's folder.
        tell: takes a line.
        same_data: whether the options name the same data as then.

    Raises:
        UserError: names what changed.
    """
    changed = [f"the model ({what})" for what in then.model.differences(now.model)]
    if same_data:
        changed += [f"the data ({what})" for what in data_differences(then.data, now.data)]
    changed += [f"{option} (its code)" for option in changed_code(then.references, now.references)]
    if changed and not spec.options.accept_changes:
        raise UserError(
            f"since {run} began, these have changed: {'; '.join(changed)}: give --accept-changes to go on "
            f"all the same, or begin another run"
        )
    if changed:
        tell(f"changed since {run} began, and accepted: {'; '.join(changed)}")
    others = [
        f"{package} ({version} then, {now.versions.get(package)} now)"
        for package, version in then.versions.items()
        if version != now.versions.get(package)
    ]
    if others:
        tell(f"other versions than when {run} began: {', '.join(others)}: the bits may differ")


def differences(theirs: dict[str, Any], spec: Spec) -> dict[str, str]:
    """The options on which the bits depend that differ, by name: what they are, there and here."""
    before, now = as_of_now(theirs), identity(spec)
    return {
        name: f"{option_name(name)} ({before.get(name)} there, {now.get(name)} here)"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def _listed(differing: dict[str, str]) -> str:
    return "; ".join(differing.values())
