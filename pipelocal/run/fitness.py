"""Checks before training that a stage supports what the run asks of it."""

from __future__ import annotations

from torch import nn

from pipelocal.errors import UserError
from pipelocal.objective import ExactReconciliation, FirstOrderReconciliation, Objective
from pipelocal.objective.probe import check_double_backward, check_one_row, random_input
from pipelocal.run.blueprint import Blueprint
from pipelocal.run.spec import Spec
from pipelocal.stage.purity import Demands, check_extra_state, check_purity
from pipelocal.stage.stage import Stage
from pipelocal.tasks.trial import check_loss


def check_losses(blueprint: Blueprint) -> None:
    """Try out the losses of a run, which all its stages have in common.

    Raises:
        UserError: one keeps something that other stages and snapshots do not have.
    """
    recipe, target = blueprint.recipe, blueprint.info.target
    for task in (recipe.task, recipe.head_task):
        if task is not None:
            check_loss(task, blueprint.model_output, target.shape, target.dtype)


def check_stage_fits(
    stage: Stage, blueprint: Blueprint, spec: Spec, *, replicas: int, smallest_batch: int
) -> None:
    """Try out copies of a stage's parts.

    Args:
        stage: the stage in its initial state.
        blueprint: the model.
        spec: the run.
        replicas: number of replicas of the stage.
        smallest_batch: number of rows in the smallest training batch.

    Raises:
        UserError: the stage does not support the run; names the unit and the remedy.
    """
    _check_sparse(stage, spec, replicas=replicas)
    number, kinds = stage.number, blueprint.passed_on(stage.number - 1)
    if smallest_batch == 1 and number > 1:
        check_one_row(stage.body, stage.head, kinds, stage=number)
    if isinstance(stage.objective, ExactReconciliation):
        main, *beside = kinds
        check_double_backward(stage.body, stage.head, main.shape, stage=number, beside=beside)
    check_extra_state(stage.body, stage.head, replicas=replicas, stage=number)
    demands = _demands(spec, stage.objective, replicas)
    x = random_input(stage.body, stage.head, 2, kinds)
    check_purity(stage.body, stage.head, x, demands, stage=number)


def _check_sparse(stage: Stage, spec: Spec, *, replicas: int) -> None:
    """Refuse embeddings with sparse gradients where gradients are averaged, measured or counted."""
    reasons = {
        "--replicas": replicas > 1,
        "--clip-norm": spec.recipe.clip is not None,
        "--step-early": spec.options.step_early,
    }
    why = next((option for option, there in reasons.items() if there), None)
    if why is None:
        return
    for part in stage.modules:
        for name, module in part.named_modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
                raise UserError(
                    f"stage {stage.number}: '{name}' has sparse gradients, which do not go with {why}: build "
                    f"it with sparse=False, or leave {why} out"
                )


def _demands(spec: Spec, objective: Objective, replicas: int) -> Demands:
    """Return what a run asks of a stage with this objective and number of replicas."""
    options = spec.options
    reasons = {
        f"--objective {spec.text['objective']}": isinstance(objective, FirstOrderReconciliation),
        "--checkpoint-activations": options.checkpoint_activations is not None,
        "--measure-bp-gap": options.measure_bp_gap is not None,
    }
    again = next((option for option, there in reasons.items() if there), None)
    return Demands(again=again, saved=spec.takes_snapshots, replicas=replicas > 1)
