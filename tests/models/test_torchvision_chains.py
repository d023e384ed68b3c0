"""torchvision's models as chains: names, shapes, and the way to torchvision and back."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.heads.build import HEADS
from pipelocal.models import MODELS, Chain, build_chain
from pipelocal.models.torchvision_chains import VIT_SMALL
from pipelocal.objective.probe import check_double_backward
from pipelocal.partition import by_count
from pipelocal.system.torchvision import import_torchvision

UNITS = {
    "resnet18": 9,
    "resnet50": 17,
    "resnet101": 34,
    "resnet152": 51,
    "vgg11_bn": 8,
    "vgg16_bn": 13,
    "vit_b_16": 13,
    "vit_small": 8,
    "convnext_tiny": 22,
    "swin_t": 16,
}
QUICK = ["resnet18", "vit_small", "convnext_tiny", "swin_t"]
BIG = ["resnet50", "resnet101", "resnet152", "vgg16_bn", "vit_b_16"]
"""Of families that smaller models stand for."""
WEIGHTED = [pytest.param(n, marks=pytest.mark.slow) if n in BIG else n for n in UNITS]
CLASSES = 5


def chain_of(name: str, input_shape: tuple[int, ...] = (3, 32, 32)) -> Chain:
    return build_chain(name, input_shape=input_shape, classes=CLASSES, seed=0)


def plain(name: str, side: int = 32) -> Any:
    """torchvision's own model, as a user of torchvision would make it."""
    models = import_torchvision().models
    if name == "vit_small":
        size = {"image_size": side, "patch_size": 4 if side >= 16 else 2}
        return models.VisionTransformer(**size, **VIT_SMALL, num_classes=CLASSES)
    size = {"image_size": side} if name == "vit_b_16" else {}
    return getattr(models, name)(num_classes=CLASSES, **size)


def empty_plain(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = plain(name)
    return model.to_empty(device="cpu")


def empty_body(chain: Chain) -> nn.Sequential:
    """All units and the classifier in a row, without values."""
    with torch.device("meta"):
        pieces = [*chain.build(0, len(chain.units), seed=0), chain.build_classifier(seed=0)]
    return nn.Sequential(*pieces).to_empty(device="cpu")


def logits_of(model: nn.Module, side: int = 32) -> Tensor:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)  # type: ignore[no-any-return]


# What the units are.


def test_registry_holds_them() -> None:
    assert set(UNITS) <= set(MODELS)


def test_names_of_the_units() -> None:
    assert [unit.name for unit in chain_of("resnet18").units] == [
        *("stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1"),
        *("layer3.0", "layer3.1", "layer4.0", "layer4.1"),
    ]
    assert [unit.name for unit in chain_of("vgg11_bn").units] == [
        f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)
    ]
    assert [unit.name for unit in chain_of("vit_small").units] == [
        "tokens",
        *[f"encoder.layers.encoder_layer_{i}" for i in range(7)],
    ]
    depths = {"convnext_tiny": (3, 3, 9, 3), "swin_t": (2, 2, 6, 2)}
    for name, (one, two, three, four) in depths.items():
        assert [unit.name for unit in chain_of(name).units] == [
            "features.0",
            *[f"features.1.{i}" for i in range(one)],
            "features.2",
            *[f"features.3.{i}" for i in range(two)],
            "features.4",
            *[f"features.5.{i}" for i in range(three)],
            "features.6",
            *[f"features.7.{i}" for i in range(four)],
        ]


@pytest.mark.parametrize("name", UNITS)
def test_units_and_names_in_the_state_dict(name: str) -> None:
    """Every parameter and buffer of torchvision's model is in one unit, by its name and in order."""
    chain = chain_of(name)
    assert len(chain.units) == UNITS[name]
    with torch.device("meta"):
        pieces = [*chain.build(0, len(chain.units), seed=0), chain.build_classifier(seed=0)]
        theirs = plain(name).state_dict()
    ours = chain.whole_state(nn.Sequential(*pieces), 0, len(pieces))
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


LAST: dict[str, tuple[int, ...]] = {"vit_b_16": (197, 768), "vit_small": (3137, 256)}
LAST |= dict.fromkeys(("resnet50", "resnet101", "resnet152"), (2048, 7, 7))
LAST |= dict.fromkeys(("resnet18", "vgg11_bn", "vgg16_bn"), (512, 7, 7))
LAST |= dict.fromkeys(("convnext_tiny", "swin_t"), (768, 7, 7))


@pytest.mark.parametrize("name", UNITS)
def test_shapes_at_full_size(name: str) -> None:
    assert chain_of(name, (3, 224, 224)).shapes()[-1] == LAST[name]


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [
        *[(name, (3, 32, 32)) for name in QUICK],
        ("resnet18", (3, 8, 8)),
        ("resnet18", (1, 28, 20)),
        ("vit_small", (3, 8, 8)),
        ("vit_small", (1, 28, 28)),
        ("convnext_tiny", (1, 32, 48)),
        ("swin_t", (3, 8, 8)),
        ("swin_t", (1, 28, 36)),
    ],
)
def test_shapes_on_meta_are_those_of_a_real_forward(
    name: str, input_shape: tuple[int, ...]
) -> None:
    """Also for images of another number of channels than torchvision's three."""
    chain = chain_of(name, input_shape)
    x = torch.randn(2, *input_shape)
    shapes = []
    for unit in chain.build(0, len(chain.units), seed=0):
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
        assert len(shapes[-1]) == (2 if name == "vit_small" else 3)
    assert shapes == chain.shapes()
    assert chain.build_classifier(seed=0)(x).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
def test_channels_come_first_for_the_heads(name: str) -> None:
    """The pooled head takes the mean over space of what torchvision's module makes."""
    chain = chain_of(name)
    whole = chain.build_whole(seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = chain.build(0, 2, seed=0).eval()(x)
        theirs = whole.features[1][0](whole.features[0](x))  # type: ignore[index, operator]
        theirs = theirs.permute(0, 3, 1, 2) if name == "swin_t" else theirs
        head = HEADS.get("linear")(tuple(ours.shape[1:]), CLASSES)
        assert torch.equal(ours, theirs)
        assert torch.equal(head(ours.contiguous()), head(theirs.contiguous()))


# To torchvision and back.


@pytest.mark.parametrize("name", WEIGHTED)
def test_export_loads_into_torchvision_and_gives_equal_logits(name: str) -> None:
    chain = chain_of(name)
    body, classifier = chain.build(0, len(chain.units), seed=0), chain.build_classifier(seed=0)
    pieces = nn.Sequential(*body, classifier)
    theirs = empty_plain(name)
    theirs.load_state_dict(chain.whole_state(pieces, 0, len(pieces)), strict=True)
    assert torch.equal(logits_of(theirs), logits_of(pieces))


@pytest.mark.parametrize("name", WEIGHTED)
def test_torchvision_state_loads_into_the_units(name: str) -> None:
    """As a pretrained one would; BatchNorm's statistics as after some training."""
    torch.manual_seed(1)
    theirs = plain(name)
    for key, value in theirs.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        if key.endswith(("head.weight", "layer_scale")):  # zeros and 1e-6 would hide the rest
            value.normal_(std=0.1)
    chain = chain_of(name)
    body = empty_body(chain)
    chain.load_whole_state(body, 0, len(body), theirs.state_dict())
    logits = logits_of(body)
    assert torch.equal(logits, logits_of(theirs))
    assert logits.isfinite().all()
    assert logits[0].ne(logits[1]).all()


@pytest.mark.parametrize("name", QUICK)
def test_whole_model_is_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    chain = chain_of(name)
    chain.shapes()
    whole = chain.build_whole(seed=0)
    assert type(whole) is type(empty_plain(name))
    assert torch.equal(torch.get_rng_state(), before)
    pieces = [*chain.build(0, len(chain.units), seed=0), chain.build_classifier(seed=0)]
    assert torch.equal(logits_of(whole), logits_of(nn.Sequential(*pieces)))
    whole.load_state_dict(plain(name).state_dict(), strict=True)


def test_state_of_another_model_is_refused() -> None:
    chain = chain_of("resnet18")
    with torch.device("meta"):
        state = plain("vit_small").state_dict()
    with pytest.raises(UserError, match=r"^unit 'stem' cannot be loaded: [^\n]*conv1\.weight"):
        chain.load_whole_state(chain.build(0, 1, seed=0), 0, 1, state)


# Wherever it is cut.


@pytest.mark.parametrize("name", QUICK)
def test_units_are_the_same_wherever_the_model_is_cut(name: str) -> None:
    chain = chain_of(name)
    whole = chain.build_whole(seed=3).state_dict()
    for stages in (2, len(chain.units)):
        union: dict[str, Tensor] = {}
        for cut in by_count(chain, stages):
            body = chain.build(cut.start, cut.stop, seed=3)
            union |= chain.whole_state(body, cut.start, cut.stop)
        classifier = chain.build_classifier(seed=3).state_dict()
        union |= {chain.classifier.whole_name(key): value for key, value in classifier.items()}
        assert union.keys() == whole.keys()
        assert all(torch.equal(union[key], whole[key]) for key in whole)
    # Nothing that is drawn is drawn twice, by no other unit and from no other seed.
    other = chain.whole_state(chain.build(0, 2, seed=4), 0, 2)
    drawn = {k: v for k, v in whole.items() if v.dim() > 1 and v.min() < v.max()}
    for (first, a), (second, b) in itertools.combinations(drawn.items(), 2):
        assert a.shape != b.shape or not torch.equal(a, b), (first, second)
    assert not any(torch.equal(drawn[key], other[key]) for key in drawn.keys() & other.keys())


def test_attention_of_vit_is_refused_for_exact_reconciliation() -> None:
    """Its fused kernel has no double backward; Swin's attention is made of ordinary operations."""
    for name, units in (("vit_small", (1, 2)), ("swin_t", (1, 3))):
        chain = chain_of(name)
        shapes = chain.shapes()
        body = chain.build(*units, seed=0)
        head = HEADS.get("linear")(shapes[units[1] - 1], CLASSES)
        x_shape = shapes[units[0] - 1]
        if name == "swin_t":
            check_double_backward(body, head, x_shape, stage=2)
        else:
            with pytest.raises(UserError, match=r"cannot be differentiated twice .* first-order"):
                check_double_backward(body, head, x_shape, stage=2)


# What does not fit.


@pytest.mark.parametrize(
    ("name", "input_shape", "reason"),
    [
        ("vgg11_bn", (3, 31, 64), "wants images of 32x32 at least, but the data's are 31x64"),
        ("convnext_tiny", (1, 28, 28), "wants images of 32x32 at least, but the data's are 28x28"),
        ("swin_t", (3, 3, 8), "wants images of 4x4 at least, but the data's are 3x8"),
        ("vit_b_16", (3, 40, 40), "whose side is a multiple of 16, but the data's are 40x40"),
        ("vit_small", (3, 32, 16), "square images .* multiple of 4, but the data's are 32x16"),
        ("vit_small", (3, 7, 7), "multiple of 2, but the data's are 7x7"),
        *[(name, (17,), r"wants images \[C, H, W\]") for name in (*QUICK, "vgg16_bn")],
    ],
)
def test_size_that_does_not_fit(name: str, input_shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UserError, match=f"model '{name}' .*{reason}") as caught:
        chain_of(name, input_shape)
    assert "\n" not in str(caught.value)
