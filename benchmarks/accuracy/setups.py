"""The networks, data and heads that the study compares."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of, recipe_of

Options = Mapping[str, Any]
"""Options of :class:`~pipelocal.config.TrainConfig`, by name."""

BP = "bp"
LINEAR = "linear"


def head(name: str, **further: Any) -> Options:
    """Greedy training behind a head."""
    return {"objective": "greedy", "head": name, **further}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That an arm is better than another, or not much worse."""

    arm: str
    beside: str
    least: float
    """Points of test accuracy that the first has over the second, at least."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The learning rates that each arm tries before its runs."""

    rates: tuple[float, ...]
    options: Options = field(default_factory=dict)
    """Of the runs that try them, in place of the set-up's own: such as fewer epochs."""


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """What all arms have in common, and the arms."""

    title: str
    options: Options
    """Of every run."""
    cut: Options
    """Of the runs that are cut into stages."""
    arms: Mapping[str, Options]
    """By name; the first two are back-propagation and the linear head."""
    seeds: tuple[int, ...] = (0,)
    further_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Seeds of the main arms beyond :attr:`seeds`."""
    claims: Sequence[Claim] = ()
    """What arms are to keep."""
    search: Search | None = None
    """How the learning rate of each arm is found; None for that of the options."""

    def config(
        self,
        arm: str,
        options: argparse.Namespace,
        *,
        seed: int = 0,
        device: str = "cpu",
        **further: Any,
    ) -> TrainConfig:
        """The options of a run.

        Args:
            arm: its name.
            options: of the command line: data_root, tokenizer, and epochs if they are not the set-up's own.
            seed: of the run.
            device: as ``--device`` takes it.
            further: options in place of those.
        """
        own: dict[str, Any] = {**self.options, **self.arms[arm]}
        if own["objective"] != "bp":
            own |= self.cut
        if options.epochs is not None:
            own["epochs"] = options.epochs
        if "tokenizer" in own:
            own["tokenizer"] = options.tokenizer
        own |= {"data_root": options.data_root, "seed": seed, "device": device, "threads": 1}
        config = TrainConfig(**{**own, **further})
        # Other objectives may refuse the head by its name, and share no arm with another study.
        known = config.head == "auto" and config.objective == "greedy"
        return by_its_name(config) if known else config


IMAGES: Options = {"batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}
FAST: Options = {"autocast": "bf16", "channels_last": True}
TRANSFORMER: Options = {
    "optimizer": "adamw",
    "lr": 0.001,
    "weight_decay": 0.05,
    "warmup_steps": 100,
    "autocast": "bf16",
}
BASE: dict[str, Options] = {BP: {"objective": "bp"}, LINEAR: head("linear")}
CNN_HEADS: dict[str, Options] = (
    BASE
    | {
        name: head(name)
        for name in ("mlp", "conv", "dgl", "downstream", "twin", "twin=2", "twin=3", "twin=4")
    }
    | {name: head(name) for name in ("downstream=3", "downstream=4")}
    | {
        "downstream, smoothing 0.1": head("downstream", head_smoothing=0.1),
        "downstream, reconstruction": {**head("downstream"), "objective": "infopro"},
        "auto": head("auto"),
    }
)
TOKEN_HEADS: dict[str, Options] = (
    BASE
    | {"mlp": head("mlp")}
    | {f"{name}={n}": head(f"{name}={n}") for n in (0, 1, 2) for name in ("downstream", "twin")}
    | {"auto": head("auto")}
)
MAIN = (BP, LINEAR, "conv", "downstream", "auto")
RESNET20: Options = {"model": "resnet20", "data": "cifar10", "epochs": 10, **IMAGES, **FAST}
FASHION: Options = {"model": "resnet8", "data": "fashion-mnist", **IMAGES, **FAST}
FASHION_ARMS = {
    name: CNN_HEADS[name] for name in (BP, LINEAR, "conv", "dgl", "downstream", "twin", "auto")
}
GPT: Options = {"model": "gpt", "data": "text", "batch_size": 32, "epochs": 2, **TRANSFORMER}

SETUPS: dict[str, SetUp] = {
    "resnet20-4": SetUp(
        title="ResNet-20, CIFAR-10, 4 stages",
        options=RESNET20,
        cut={"stages": 4},
        arms=CNN_HEADS,
        further_seeds=dict.fromkeys(MAIN, (1,)),
    ),
    "resnet20-9": SetUp(
        title="ResNet-20, CIFAR-10, 9 stages: the stem with the first block, then a block each",
        options=RESNET20,
        cut={"stages": 9},
        arms=CNN_HEADS,
        further_seeds=dict.fromkeys(MAIN, (1,)),
    ),
    "fashion-1": SetUp(
        title="ResNet-8, Fashion-MNIST, 4 stages, one epoch",
        options={**FASHION, "epochs": 1},
        cut={"stages": 4},
        arms=FASHION_ARMS,
        seeds=(0, 1, 2, 3, 4),
    ),
    "fashion-5": SetUp(
        title="ResNet-8, Fashion-MNIST, 4 stages, five epochs",
        options={**FASHION, "epochs": 5},
        cut={"stages": 4},
        arms=FASHION_ARMS,
        seeds=(0, 1, 2, 3, 4),
    ),
    "vit": SetUp(
        title="vit_small, CIFAR-10, 4 stages",
        options={
            "model": "vit_small",
            "data": "cifar10",
            "epochs": 2,
            "batch_size": 128,
            **TRANSFORMER,
        },
        cut={"stages": 4},
        arms=TOKEN_HEADS,
    ),
    "gpt-bytes": SetUp(
        title="gpt, bytes of a text, 3 stages", options=GPT, cut={"stages": 3}, arms=TOKEN_HEADS
    ),
    "gpt-2048": SetUp(
        title="gpt, 2,048 tokens of a text, 3 stages",
        options={**GPT, "tokenizer": None},
        cut={"stages": 3},
        arms=TOKEN_HEADS,
    ),
    "quick": SetUp(
        title="ResNet-8, digits, 4 stages",
        options={"model": "resnet8", "data": "digits", "epochs": 6, "batch_size": 64},
        cut={"stages": 4},
        arms={name: CNN_HEADS[name] for name in (BP, LINEAR, "conv", "downstream")},
        seeds=(0, 1),
    ),
}


def by_its_name(config: TrainConfig) -> TrainConfig:
    """The same training, if ``auto`` takes one head for all stages, by that name: so two arms are one run."""
    if recipe_of(config).uncut:
        return config
    blueprint = blueprint_of(config)
    names = [str(blueprint.head_name(number)) for number in range(1, blueprint.stages)]
    deepest = max(names, key=lambda name: (len(name), name))
    named = replace(config, head=deepest)
    other = blueprint_of(named)
    forms = (
        [repr(each.heads.build(cut.stop)) for cut in each.cuts[:-1]] for each in (blueprint, other)
    )
    return named if len({tuple(form) for form in forms}) == 1 else config
