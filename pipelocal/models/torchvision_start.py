"""Draws the initial parameters of torchvision's models, one part at a time.

torchvision's constructor makes a model on the meta device, without memory. Here a part of it gets memory and
is initialised by the constructors' rules, in their order: each module by its own rule, then all convolutions
and linear layers by their family's. The tests compare the outcome with torchvision's constructors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from pipelocal.models.patch_tokens import PatchTokens, Positions
from pipelocal.system.torchvision import import_torchvision

Rule = Callable[[str, nn.Module], None]
"""Called with a module's name in the part, and the module; redraws its parameters or leaves them."""


def resnet(_name: str, module: nn.Module) -> None:
    """Apply the rule of ResNets."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def vgg(_name: str, module: nn.Module) -> None:
    """Apply the rule of VGGs."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        _zero(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        _zero(module.bias)


def convnext(_name: str, module: nn.Module) -> None:
    """Apply the rule of ConvNeXts."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        _zero(module.bias)


def swin(_name: str, module: nn.Module) -> None:
    """Apply the rule of Swin transformers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        _zero(module.bias)


def vit(name: str, module: nn.Module) -> None:
    """Apply the rule of vision transformers."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        _zero(module.bias)
    elif isinstance(module, nn.Linear) and name == "heads.head":
        _zero(module.weight)
        _zero(module.bias)


def drawn(part: nn.Module, rule: Rule) -> nn.Module:
    """Return a copy of ``part`` with its own parameters and buffers, drawn from torch's generator.

    The copy is on torch's default device, as with any constructor; on meta nothing is drawn.

    Args:
        part: a module on the meta device.
        rule: the rule of its family.

    Raises:
        RuntimeError: it has a tensor that the rules do not cover.
    """
    made = copy.deepcopy(part)
    device = torch.get_default_device()
    if device.type == "meta":
        return made
    made.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
        made.apply(_draw)  # children before their parent, as constructors do
        for name, module in made.named_modules():
            rule(name, module)
        for name, tensor in made.state_dict().items():
            least = tensor.min().item()  # NaN if there is any
            if math.isnan(least) if tensor.is_floating_point() else least < 0:
                raise RuntimeError(f"how torchvision's constructor sets '{name}' is not known")
    return made


def _draw(module: nn.Module) -> None:
    """Draw what a module's own constructor draws, after its children are drawn."""
    torchvision = import_torchvision()
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.xavier_uniform_(module.in_proj_weight)
        _zero(module.in_proj_bias)
        _zero(module.out_proj.bias)
    elif isinstance(module, torchvision.ops.MLP):
        for linear in module.modules():
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)
    elif isinstance(module, torchvision.models.convnext.CNBlock):
        nn.init.constant_(module.layer_scale, 1e-6)
    elif isinstance(module, torchvision.models.swin_transformer.ShiftedWindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        module.define_relative_position_index()
    elif isinstance(module, Positions):
        nn.init.normal_(module.pos_embedding, std=0.02)
    elif isinstance(module, PatchTokens):
        _zero(module.class_token)


def _zero(tensor: torch.Tensor | None) -> None:
    if tensor is not None:
        nn.init.zeros_(tensor)
