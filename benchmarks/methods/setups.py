"""The networks, data and methods that the comparison trains."""

from __future__ import annotations

from benchmarks.accuracy.setups import (
    BASE,
    BP,
    FASHION,
    RESNET20,
    Claim,
    Options,
    SetUp,
    head,
)


def method(objective: str, *options: str, head: str = "conv") -> Options:
    """Training by a method behind a head."""
    return {"objective": objective, "head": head, "objective_options": options}


CONTEXT: dict[str, Options] = {
    "ContSup E": method("contsup", "context=E"),
    "ContSup R1": method("contsup", "context=R1"),
    "ContSup R1E": method("contsup", "context=R1E"),
    "ContSup control": method("contsup", "context=R1E", "control=true"),
}
WEIGHTS = ("reconstruction=6", "last_reconstruction=1", "task=0", "last_task=2")
PAPER = (*WEIGHTS, "decoder=full", "error=bce")
METHODS: dict[str, Options] = (
    BASE
    | {"conv": head("conv")}
    | {
        "InfoPro": method("infopro"),
        "InfoPro, own input": method("infopro", "target=input"),
        "InfoPro, the paper's": method("infopro", *PAPER),
        "transport 1": head("conv", transport_penalty=1.0),
        "SupCon": head("conv", head_loss="supcon"),
        "BWBPF": method("bwbpf"),
        "deep supervision": method("deep-supervision"),
        "SGR": method("sgr"),
    }
    | CONTEXT
    | {
        "auto": head("auto"),
        "auto, InfoPro": method("infopro", head="auto"),
        "auto, transport 1": head("auto", transport_penalty=1.0),
        "auto, SGR": method("sgr", head="auto"),
    }
)
"""All behind one cheap head, and what may help behind the default one."""

CLAIMS = (
    *(
        Claim(arm=arm, beside="conv", least=0.0)
        for arm in ("InfoPro", "transport 1", "SupCon", "ContSup E")
    ),
    Claim(arm="BWBPF", beside="conv", least=-0.5),
    Claim(arm="deep supervision", beside=BP, least=-1.0),
    Claim(arm="ContSup R1E", beside="ContSup control", least=0.0),
)
"""What each method is for; of ContSup that the context helps, and not the parameters alone."""

SETUPS: dict[str, SetUp] = {
    "fashion": SetUp(
        title="ResNet-8, Fashion-MNIST, 4 stages, one epoch",
        options={**FASHION, "epochs": 1},
        cut={"stages": 4},
        arms=METHODS,
        seeds=(0, 1, 2, 3, 4),
        claims=CLAIMS,
    ),
    "resnet20-4": SetUp(
        title="ResNet-20, CIFAR-10, 4 stages",
        options=RESNET20,
        cut={"stages": 4},
        arms=METHODS,
        claims=CLAIMS,
    ),
    "resnet20-10": SetUp(
        title="ResNet-20, CIFAR-10, 10 stages: the stem, then a block each",
        options=RESNET20,
        cut={"stages": 10},
        arms=METHODS,
        claims=CLAIMS,
    ),
    "quick": SetUp(
        title="ResNet-8, digits, 4 stages",
        options={"model": "resnet8", "data": "digits", "epochs": 6, "batch_size": 64},
        cut={"stages": 4},
        arms=METHODS,
        claims=CLAIMS,
    ),
}
