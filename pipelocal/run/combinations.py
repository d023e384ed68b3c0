"""Refuses mutually exclusive options before anything is started, with one clear line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipelocal.errors import UserError
from pipelocal.heads import HEADS
from pipelocal.heads.guided import guided_every
from pipelocal.heads.names import ends_in_classifier
from pipelocal.objective import (
    ANP,
    BWBPF,
    LGFG,
    SGR,
    BackPropagation,
    DeepSupervision,
    Greedy,
    way_back_of,
)
from pipelocal.options import SCALE, option_name
from pipelocal.run.options import RunOptions
from pipelocal.stage.recipe import Recipe
from pipelocal.tasks import Classification, NextToken, SupCon


def check_combinations(options: RunOptions, recipe: Recipe) -> None:
    """Refuse options that cannot be combined.

    Args:
        options: the run's options.
        recipe: how to build its stages.

    Raises:
        UserError: options conflict; says which, and which to leave out.
    """
    _check_formulas(options, recipe)
    _check_further_head(recipe)
    _check_transport_penalty(options, recipe)
    _check_without_backward(options, recipe)
    _check_compile(options, recipe)
    _check_cuda_graphs(options, recipe)
    _check_autocast(options, recipe)
    _check_memory_savers(options, recipe)
    _check_accumulate(options, recipe)
    _check_replicas(options, recipe)
    _check_way_back(options, recipe)


def check_stages(recipe: Recipe, stages: int) -> None:
    """Refuse options that would do nothing in so few stages.

    Args:
        recipe: how to build the stages.
        stages: number of stages; of an uncut model, of what would be stages.

    Raises:
        UserError: says which option does nothing, and what to give instead.
    """
    check: Callable[[int], None] | None = getattr(recipe.objective, "check_stages", None)
    if check is not None:
        check(stages)
    if recipe.head_task is None:
        return
    contrast = isinstance(recipe.head_task, SupCon)
    what = "--head-loss supcon" if contrast else "--head-smoothing (head_task=)"
    objective, mend = recipe.objective, "leave it out"
    if isinstance(objective, BackPropagation):
        headless = "the uncut model"
    elif stages == 1 and not (isinstance(objective, BWBPF) and objective.strict):
        headless, mend = "a single stage", f"{mend}, or give --stages 2 or more"
    else:
        return
    raise UserError(f"{what} is for auxiliary heads, and {headless} has none: {mend}")


def _check_transport_penalty(options: RunOptions, recipe: Recipe) -> None:
    if not recipe.transport_penalty:
        return
    given = f"--transport-penalty {recipe.transport_penalty:g}"
    if not 0 < recipe.transport_penalty <= SCALE:
        raise UserError(f"{given}: give a number of at least 0, at most {SCALE:g}")
    if recipe.uncut:
        raise UserError(f"{given} is for stages, of which there are none here: leave it out")
    changing = _by_formulas(options, recipe) or (options.compile and "--compile")
    if changing:
        raise UserError(
            f"{given} looks into units, which {changing} changes: leave one of them out"
        )


def _check_further_head(recipe: Recipe) -> None:
    name = HEADS.name_of(recipe.head)
    if isinstance(recipe.objective, BWBPF) and recipe.objective.strict and ends_in_classifier(name):
        raise UserError(
            f"--head {name} ends in a copy of the classifier, and BWBPF wants another behind the last "
            f"stage's body: choose auto, conv, dgl, mlp or linear, or strict=false"
        )


def _check_compile(options: RunOptions, recipe: Recipe) -> None:
    if options.compile is None:
        return
    if options.compile not in torch.compiler.list_backends(exclude_tags=()):
        usual = ", ".join(
            sorted({*torch.compiler.list_backends(), "aot_eager", "eager"} - {"cudagraphs"})
        )
        raise UserError(f"--compile {options.compile}: choose one of {usual}")
    if options.compile == "cudagraphs":
        raise UserError(
            "--compile cudagraphs: the next batch overwrites a graph's outputs on their way to "
            "the next stage: choose inductor"
        )
    _refuse_formulas(options, recipe, "--compile")
    if isinstance(recipe.objective, DeepSupervision):
        raise UserError(
            "--compile changes how units run, and --objective deep-supervision looks into them: leave one of "
            "them out"
        )
    if exact(recipe) and options.compile != "eager":
        raise UserError(
            f"--compile {options.compile}: compiled code cannot be differentiated twice, which "
            f"--reconcile exact needs: choose --reconcile first-order, or leave --compile out"
        )


def _check_cuda_graphs(options: RunOptions, recipe: Recipe) -> None:
    if not options.cuda_graphs:
        return
    _refuse_formulas(options, recipe, "--cuda-graphs")
    if exact(recipe):
        raise UserError(
            "--reconcile exact differentiates twice, and a CUDA graph holds one backward pass: choose "
            "--reconcile first-order, or leave --cuda-graphs out"
        )
    if recipe.transport_penalty:
        raise UserError(
            f"--transport-penalty {recipe.transport_penalty:g} looks into units, which --cuda-graphs runs as "
            f"one: leave one of them out"
        )
    if options.replicate == "fsdp":
        raise UserError(
            "--replicate fsdp moves weights on every batch, and a CUDA graph reads them where they were: "
            "choose ddp, or leave --cuda-graphs out"
        )
    why = "changes how a stage's passes run, which --cuda-graphs captures: leave one of them out"
    _refuse(options, ("compile", "checkpoint_activations", "step_early", "sync_batchnorm"), why)


def _check_autocast(options: RunOptions, recipe: Recipe) -> None:
    if options.autocast is None:
        return
    _refuse_formulas(options, recipe, "--autocast")
    if exact(recipe):
        raise UserError(
            "--autocast rounds away what --reconcile exact adds to a gradient: choose --reconcile "
            "first-order, or leave --autocast out"
        )


def _check_memory_savers(options: RunOptions, recipe: Recipe) -> None:
    formulas = _by_formulas(options, recipe)
    for name in ("checkpoint_activations", "step_early"):
        if formulas and getattr(options, name):
            option = option_name(name)
            raise UserError(
                f"{option} is about backward passes, of which {formulas} has none: leave out {option}"
            )
    if options.step_early and options.measure_bp_gap is not None:
        raise UserError(
            "--measure-bp-gap looks at gradients that --step-early has let go: leave one of them out"
        )
    if options.step_early and recipe.clip is not None:
        raise UserError(
            f"--clip-norm {recipe.clip:g} wants all gradients at once, and --step-early lets each go: "
            f"leave one of them out"
        )
    if options.checkpoint_activations is None:
        return
    if exact(recipe):
        raise UserError(
            "--reconcile exact differentiates twice, through what --checkpoint-activations has let go: "
            "choose --reconcile first-order, or leave --checkpoint-activations out"
        )
    if options.compile is not None:
        raise UserError(
            "--checkpoint-activations runs a body in parts, and --compile compiles it whole: leave "
            "one of them out"
        )


def _check_replicas(options: RunOptions, recipe: Recipe) -> None:
    if options.replicas != "1" and recipe.uncut:
        raise UserError(
            "--replicas is for stages, and an uncut model has none: leave it out, or choose greedy or sgr"
        )
    objective = recipe.objective
    if options.together > 1 and isinstance(objective, ANP) and objective.decorrelate:
        # Replicas change D by the mean of what each learns, which is several times slower than one process.
        raise UserError(
            f"ANP: decorrelate={objective.decorrelate:g} learns batch by batch, which --replicas does not: "
            f"leave one of them out"
        )
    _ = options.compress_numbers  # a Pipeline's are looked at here only
    if options.compress is not None and options.replicate != "ddp":
        raise UserError(
            f"--compress {options.compress} is for --replicate ddp: leave one of them out"
        )
    if options.replicate == "fsdp" and recipe.ema is not None:
        raise UserError(
            "--ema averages whole weights, which --replicate fsdp shares out: leave one of them out"
        )
    if not options.sync_batchnorm:
        return
    for name in ("bp_free", "compile", "checkpoint_activations"):
        if getattr(options, name):
            option = option_name(name)
            raise UserError(
                f"--sync-batchnorm is for passes that run as they stand, and {option} changes them: leave "
                f"one of them out"
            )


def _check_accumulate(options: RunOptions, recipe: Recipe) -> None:
    if options.batches_an_update == 1:
        return
    objective = recipe.objective
    if isinstance(objective, SGR) and not objective.exact and objective.fraction == 1:
        raise UserError(
            "--reconcile-fraction 1 forms a difference with the batch's own gradient, which "
            "--accumulate and --replicas add to others: choose a smaller fraction, or leave them out"
        )
    why = (
        "is for updates after every batch: leave it out, or choose --accumulate 1 and no --replicas"
    )
    _refuse(options, ("step_early", "measure_bp_gap"), why)


def _refuse_formulas(options: RunOptions, recipe: Recipe, option: str) -> None:
    """Refuse an option that is for stages that run as modules, where formulas take their place."""
    if formulas := _by_formulas(options, recipe):
        raise UserError(
            f"{option} is for stages that run as modules: leave out {formulas} or {option}"
        )


def _refuse(options: RunOptions, names: Sequence[str], why: str) -> None:
    """Refuse each of these options that is given, with the reason that follows its name."""
    for name in names:
        if getattr(options, name):
            raise UserError(f"{option_name(name)} {why}")


def _by_formulas(options: RunOptions, recipe: Recipe) -> str | None:
    """Return the option by which stages run without autograd; None if they run with it."""
    if options.bp_free:
        return "--bp-free"
    return "--objective lg-fg" if isinstance(recipe.objective, LGFG) else None


def _check_formulas(options: RunOptions, recipe: Recipe) -> None:
    formulas = _by_formulas(options, recipe)
    if formulas is None:
        return
    if options.channels_last:
        raise UserError(f"--channels-last: the formulas of {formulas} do not know it: leave it out")
    if options.bp_free and type(recipe.objective) not in (Greedy, SGR):
        known = isinstance(recipe.objective, BackPropagation)
        name = "bp" if known else type(recipe.objective).__name__
        raise UserError(
            f"--objective {name}: --bp-free trains stages without back-propagation, by "
            f"--objective greedy or sgr"
        )
    plain = isinstance(recipe.task, Classification | NextToken) and recipe.task.plain
    if not plain or recipe.head_task is not None:
        raise UserError(
            f"{formulas}: its formulas are of the plain cross entropy: choose the task Classification or "
            f"NextToken without further arguments, --head-loss or --head-smoothing, or leave out {formulas}"
        )
    if exact(recipe):
        raise UserError(
            "--reconcile exact differentiates twice by autograd: with --bp-free choose "
            "--reconcile first-order"
        )


def _check_without_backward(options: RunOptions, recipe: Recipe) -> None:
    if not getattr(recipe.objective, "without_backward", False):
        return
    name = type(recipe.objective).__name__
    backward = ("autocast", "compile", "cuda_graphs", "checkpoint_activations", "step_early")
    why = f"is for stages with a backward pass, and {name} has none: leave it out"
    _refuse(options, backward, why)
    if isinstance(recipe.head_task, SupCon):
        raise UserError(
            f"--head-loss supcon trains a projection by a backward pass, and {name} has none: leave it out"
        )
    if recipe.transport_penalty:
        raise UserError(
            f"--transport-penalty {recipe.transport_penalty:g} is trained by a backward pass, and {name} has "
            f"none: leave it out"
        )
    if options.replicate == "fsdp":
        raise UserError(
            f"--replicate fsdp shares weights out for a backward pass, and {name} has none: choose ddp"
        )


def _check_way_back(options: RunOptions, recipe: Recipe) -> None:
    """Refuse what ends a batch before something comes back for it, or changes its gradients twice."""
    if guided_every(recipe.head) is not None:
        _check_guided(options, recipe)
    way = way_back_of(recipe.objective)
    if way is None:
        return
    if way.weights:
        raise UserError(
            "objective: its way_back has weights, which only --head guided sends: leave them out"
        )
    name = type(recipe.objective).__name__
    refused = (
        "step_early",
        "compile",
        "cuda_graphs",
        "checkpoint_activations",
        "measure_bp_gap",
    )
    why = (
        f"is for stages to which nothing comes back, and {name} sends something back: leave it out"
    )
    _refuse(options, refused, why)
    if options.sync_batchnorm and options.together > 1 and way.every > 1:
        raise UserError(
            f"--sync-batchnorm is for replicas that run the same passes, and {name} guides one batch in "
            f"{way.every}, which one replica has: leave it out, or choose --guide-every 1"
        )
    if recipe.transport_penalty:
        raise UserError(
            f"--transport-penalty {recipe.transport_penalty:g} is for stages to which nothing comes back, "
            f"and {name} sends something back: leave it out"
        )


def _check_guided(options: RunOptions, recipe: Recipe) -> None:
    """Refuse guided heads where there are no twins to guide, or where something else flows back."""
    name = type(recipe.objective).__name__
    mend = "choose --head twin, or --objective greedy"
    if recipe.uncut:
        raise UserError(f"--head guided is for stages, and {name} trains the uncut model: {mend}")
    if way_back_of(recipe.objective) is not None:
        raise UserError(f"--head guided sends weights back, and {name} gradients: {mend}")
    formulas = _by_formulas(options, recipe)
    if formulas or getattr(recipe.objective, "without_backward", False):
        raise UserError(
            f"--head guided is for stages with a backward pass, and {formulas or name} has none: {mend}"
        )
    if options.replicate == "fsdp":
        raise UserError(
            "--replicate fsdp shares weights out, and --head guided sends them back: choose ddp, or twin"
        )


def exact(recipe: Recipe) -> bool:
    """Return whether stages differentiate twice."""
    return isinstance(recipe.objective, SGR) and recipe.objective.exact
