"""Models of transformers and timm, where these are installed: their units in a row are the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelocal.models import Chain
from tests.models.test_several_tensors import assert_is_the_model

LENGTH = 24


def tokens() -> dict[str, Tensor]:
    torch.manual_seed(0)
    mask = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [3]])).long()
    return {"input_ids": torch.randint(1, 50, (3, LENGTH)), "attention_mask": mask}


def bert() -> tuple[nn.Module, list[str]]:
    t = pytest.importorskip("transformers")
    config = t.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )
    layers = [f"bert.encoder.layer.{n}" for n in range(3)]
    return t.BertForSequenceClassification(config), [
        "bert.embeddings",
        *layers,
        "bert.pooler",
        "classifier",
    ]


def distilbert() -> tuple[nn.Module, list[str]]:
    t = pytest.importorskip("transformers")
    config = t.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32, max_position_embeddings=LENGTH
    )
    layers = [f"distilbert.transformer.layer.{n}" for n in range(3)]
    return t.DistilBertForSequenceClassification(config), [
        "distilbert.embeddings",
        *layers,
        "classifier",
    ]


def gpt2() -> tuple[Any, list[str]]:
    t = pytest.importorskip("transformers")
    config = t.GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=LENGTH,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    blocks = [f"transformer.h.{n}" for n in range(3)]
    return t.GPT2LMHeadModel(config), ["transformer.wte", *blocks, "lm_head"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [bert, distilbert])
def test_an_encoder_with_its_attention_mask(make: Any) -> None:
    torch.manual_seed(0)
    model, units = make()
    chain = Chain.from_module(model, units=units, inputs=tokens())
    crossing = chain.tried()[0].crossing
    assert crossing[1][1].name.startswith("attention_mask.")  # packed into a byte a token
    assert crossing[1][1].bytes_per_row == LENGTH
    assert len(crossing[-1]) == 1
    assert_is_the_model(model, chain, tuple(tokens().values()))


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_a_gpt2_with_untied_weights(padded: bool) -> None:
    torch.manual_seed(0)
    model, units = gpt2()
    batch = tokens() if padded else {"input_ids": tokens()["input_ids"]}
    chain = Chain.from_module(model, units=units, inputs=batch, untie=True)
    assert len(chain.describe([])) == 1
    untied = chain.build_whole(seed=0)
    assert_is_the_model(untied, chain, tuple(batch.values()) if padded else batch["input_ids"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("resnet18", ["maxpool", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ("vit_tiny_patch16_224", ["patch_embed", "blocks.0", "blocks.5", "blocks.11", "head"]),
        ("convnext_atto", ["stem", *(f"stages.{n}" for n in range(4)), "head"]),
        (
            "swin_tiny_patch4_window7_224",
            ["patch_embed", *(f"layers.{n}" for n in range(4)), "head"],
        ),
        ("efficientnet_b0", ["bn1", *(f"blocks.{n}" for n in range(7)), "classifier"]),
        (
            "densenet121",
            ["features.pool0", "features.transition1", "features.transition2", "classifier"],
        ),
        ("mobilenetv3_small_100", ["bn1", *(f"blocks.{n}" for n in range(6)), "classifier"]),
    ],
)
def test_timm(name: str, units: list[str]) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = 64 if "224" not in name else 224
    model = timm.create_model(name, num_classes=4)
    chain = Chain.from_module(model, units=units, input_shape=(3, size, size))
    assert {len(kinds) for kinds in chain.tried()[0].crossing} == {1}
    assert_is_the_model(model, chain, torch.randn(2, 3, size, size))
