"""Options that exclude each other: one clear line each, before anything is started."""

from __future__ import annotations

import torch

from pipelocal.config.option_name import option_name
from pipelocal.config.train import TrainConfig
from pipelocal.errors import UserError


def check_combinations(config: TrainConfig) -> None:
    """Refuse what cannot go together.

    Raises:
        UserError: says what, and what to leave out.
    """
    _check_bp_free(config)
    _check_compile(config)
    _check_autocast(config)
    _check_memory_savers(config)
    _check_accumulate(config)
    _check_replicas(config)


def _check_compile(config: TrainConfig) -> None:
    if config.compile is None:
        return
    if config.compile not in torch.compiler.list_backends(exclude_tags=()):
        usual = ", ".join([*torch.compiler.list_backends(), "aot_eager", "eager"])
        raise UserError(f"--compile {config.compile}: choose one of {usual}")
    if config.bp_free:
        raise UserError(
            "--compile is for stages that run as modules: leave out --bp-free or --compile"
        )
    exact = config.objective == "sgr" and config.reconcile == "exact"
    if exact and config.compile != "eager":
        raise UserError(
            f"--compile {config.compile}: compiled code cannot be differentiated twice, which "
            f"--reconcile exact needs: choose --reconcile first-order, or leave --compile out"
        )


def _check_autocast(config: TrainConfig) -> None:
    if config.autocast is None:
        return
    if config.bp_free:
        raise UserError(
            "--autocast is for stages that run as modules: leave out --bp-free or --autocast"
        )
    if config.objective == "sgr" and config.reconcile == "exact":
        raise UserError(
            "--autocast rounds away what --reconcile exact adds to a gradient: choose --reconcile "
            "first-order, or leave --autocast out"
        )


def _check_memory_savers(config: TrainConfig) -> None:
    for name in ("checkpoint_activations", "step_early"):
        if config.bp_free and getattr(config, name):
            option = option_name(name)
            raise UserError(
                f"{option} is about backward passes, of which --bp-free has none: leave out {option}"
            )
    if config.step_early and config.measure_bp_gap is not None:
        raise UserError(
            "--measure-bp-gap looks at gradients that --step-early has let go: leave one of them out"
        )
    if config.checkpoint_activations is None:
        return
    if config.objective == "sgr" and config.reconcile == "exact":
        raise UserError(
            "--reconcile exact differentiates twice, through what --checkpoint-activations has let go: "
            "choose --reconcile first-order, or leave --checkpoint-activations out"
        )
    if config.compile is not None:
        raise UserError(
            "--checkpoint-activations runs a body in parts, and --compile compiles it whole: leave "
            "one of them out"
        )


def _check_replicas(config: TrainConfig) -> None:
    if config.replicas != "1" and config.objective == "bp":
        raise UserError(
            "--replicas is for stages, and --objective bp has none: leave one of them out"
        )
    if config.compress is not None and config.replicate != "ddp":
        raise UserError(
            f"--compress {config.compress} is for --replicate ddp: leave one of them out"
        )
    if config.replicate == "fsdp" and config.ema is not None:
        raise UserError(
            "--ema averages whole weights, which --replicate fsdp shares out: leave one of them out"
        )
    if not config.sync_batchnorm:
        return
    for name in ("bp_free", "compile", "checkpoint_activations"):
        if getattr(config, name):
            option = option_name(name)
            raise UserError(
                f"--sync-batchnorm is for passes that run as they stand, and {option} changes them: leave "
                f"one of them out"
            )


def _check_accumulate(config: TrainConfig) -> None:
    if config.batches_an_update == 1:
        return
    if config.objective == "sgr" and config.reconcile != "exact" and config.reconcile_fraction == 1:
        raise UserError(
            "--reconcile-fraction 1 forms a difference with the batch's own gradient, which "
            "--accumulate and --replicas add to others: choose a smaller fraction, or leave them out"
        )
    for name in ("step_early", "measure_bp_gap"):
        if getattr(config, name):
            option = option_name(name)
            raise UserError(
                f"{option} is for updates after every batch: leave it out, or choose --accumulate 1 and no "
                f"--replicas"
            )


def _check_bp_free(config: TrainConfig) -> None:
    if not config.bp_free:
        return
    if config.channels_last:
        raise UserError("--channels-last: the formulas of --bp-free do not know it: leave it out")
    if config.objective not in ("greedy", "sgr"):
        raise UserError(
            f"--objective {config.objective}: --bp-free trains stages without back-propagation, by "
            f"--objective greedy or sgr"
        )
    if config.objective == "sgr" and config.reconcile == "exact":
        raise UserError(
            "--reconcile exact differentiates twice by autograd: with --bp-free choose "
            "--reconcile first-order"
        )
