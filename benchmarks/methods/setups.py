"""The networks, data and methods that the comparison trains."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.setups import (
    BASE,
    BP,
    FASHION,
    RESNET20,
    Claim,
    Options,
    Search,
    SetUp,
    head,
)


def method(objective: str = "greedy", *options: str, **further: Any) -> Options:
    """Training by a method, behind a head that is still to be said."""
    return {"objective": objective, "objective_options": options, **further}


def behind(name: str, methods: dict[str, Options]) -> dict[str, Options]:
    """The methods behind a head, by names that say so."""
    return {f"{name}, {each}": {**options, "head": name} for each, options in methods.items()}


def infopro(first: int, last: int, task: int, last_task: int) -> tuple[str, ...]:
    """InfoPro's options in its paper, with these weights of reconstruction and task."""
    reconstruction = (f"reconstruction={first}", f"last_reconstruction={last}")
    return (*reconstruction, f"task={task}", f"last_task={last_task}", "decoder=full", "error=bce")


FOUR, EIGHT = infopro(6, 1, 0, 2), infopro(5, 0, 0, 2)
"""For ResNet-32 in 4 and in 8 stages."""

BEHIND_BOTH: dict[str, Options] = {
    "InfoPro": method("infopro"),
    "InfoPro of inputs": method("infopro", "target=input"),
    "transport": method(transport_penalty=1.0),
    "BWBPF": method("bwbpf"),
    "deep supervision": method("deep-supervision"),
    "SGR": method("sgr"),
    "ContSup": method("contsup", "context=R1E"),
    "ContSup control": method("contsup", "context=R1E", "control=true"),
    "LoCo": method("loco"),
}
GUIDED: dict[str, Options] = {
    f"PGL, every {every}": method("pgl", guide_every=every) for every in (2, 4, 8, 16, 64)
}
"""In every batch it is bp, in none it is greedy."""
BEHIND_CONV: dict[str, Options] = {
    **BEHIND_BOTH,
    **GUIDED,
    "SupCon": method(head_loss="supcon"),
    "ContSup E": method("contsup", "context=E"),
    "ContSup R1": method("contsup", "context=R1"),
}
"""SupCon has no other head of the same kind, and the default one means this."""
BEHIND_AUTO: dict[str, Options] = {
    **BEHIND_BOTH,
    "InfoPro, transport": method("infopro", transport_penalty=1.0),
    "SGR, transport": method("sgr", transport_penalty=1.0),
    "PGL, every 16": GUIDED["PGL, every 16"],
}
"""With what may add up."""


def arms(own: tuple[str, ...], *, depth: int) -> dict[str, Options]:
    """All arms; a head's name alone is greedy training behind it.

    Args:
        own: InfoPro's options in its paper, for this number of stages.
        depth: units of the twins that ``auto`` means, or all that follow.
    """
    papers = {
        "InfoPro, its weights": method("infopro", *own),
        "InfoPro, its weights, SupCon": method("infopro", *own, head_loss="supcon"),
    }
    return (
        BASE
        | behind("linear", {"BWBPF": BEHIND_BOTH["BWBPF"]})
        | {"conv": head("conv")}
        | behind("conv", BEHIND_CONV | papers)
        | {"auto": head("auto")}
        | behind("auto", BEHIND_AUTO)
        | {"auto, guided": head(f"guided={depth}")}
    )


CLAIMS = (
    *(
        Claim(arm=f"conv, {name}", beside="conv", least=0.0)
        for name in ("InfoPro", "transport", "SupCon", "SGR", "ContSup E", "LoCo")
    ),
    Claim(arm="conv, BWBPF", beside="conv", least=-0.5),
    Claim(arm="conv, deep supervision", beside=BP, least=-1.0),
    Claim(arm="conv, ContSup", beside="conv, ContSup control", least=0.0),
    Claim(arm="conv, PGL, every 4", beside=BP, least=-1.0),
)
"""What each method is for; of ContSup that the context helps, and not the parameters alone."""
QUICK = {*BASE, "conv", "auto", *(arm for claim in CLAIMS for arm in (claim.arm, claim.beside))}

RATES = (0.1, 0.3, 1.0)
"""Around that of the set-ups."""
CIFAR = Search(rates=RATES, options={"epochs": 2})

SETUPS: dict[str, SetUp] = {
    "fashion": SetUp(
        title="ResNet-8, Fashion-MNIST, 4 stages, one epoch",
        options={**FASHION, "epochs": 1},
        cut={"stages": 4},
        arms=arms(FOUR, depth=2),
        seeds=(0, 1, 2, 3, 4),
        claims=CLAIMS,
        search=Search(rates=RATES, options={"train_samples": 18_000}),
    ),
    "resnet20-4": SetUp(
        title="ResNet-20, CIFAR-10, 4 stages",
        options=RESNET20,
        cut={"stages": 4},
        arms=arms(FOUR, depth=3),
        claims=CLAIMS,
        search=CIFAR,
    ),
    "resnet20-10": SetUp(
        title="ResNet-20, CIFAR-10, 10 stages: the stem, then a block each",
        options=RESNET20,
        cut={"stages": 10},
        arms=arms(EIGHT, depth=3),
        claims=CLAIMS,
        search=CIFAR,
    ),
    "quick": SetUp(
        title="ResNet-8, digits, 4 stages",
        options={"model": "resnet8", "data": "digits", "epochs": 4, "batch_size": 64},
        cut={"stages": 4},
        arms={name: each for name, each in arms(FOUR, depth=2).items() if name in QUICK},
        claims=CLAIMS,
    ),
}
