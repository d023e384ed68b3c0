"""What cannot be traced is named by the place in the code, not by the outermost module alone."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models import Chain, build_chain


class _Inner(nn.Module):
    """As a language model of a library: decides by values between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x if bool(x.sum() > 0) else -x  # here
        return self.two(x)  # type: ignore[no-any-return]


class _Number(nn.Module):
    """Wants a number where there is none yet."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) * torch.ones(int(x.mean()))  # here, too
        return self.two(x)  # type: ignore[no-any-return]


class _Wrapper(nn.Module):
    """Takes the logits out of what a library returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"inner": inner})
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.model["inner"](x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("inner", "here"), [(_Inner, "# here\n"), (_Number, "# here, too\n")])
def test_the_wrapper_was_named_in_place_of_the_code(inner: type[nn.Module], here: str) -> None:
    """The message named the outermost class, of which the user saw no line that could be the reason."""
    lines, first = inspect.getsourcelines(inner.forward)
    line = first + next(i for i, text in enumerate(lines) if text.endswith(here))
    units = ["model.inner.one", "model.inner.two", "fc"]
    with pytest.raises(UserError) as caught:
        Chain.from_module(_Wrapper(inner()), units=units, input_shape=(4,), classes=3)
    assert f"{Path(__file__).name}:{line} in 'model.inner': put what" in str(caught.value)
    assert "\n" not in str(caught.value)


class _Named(NamedTuple):
    logits: Tensor
    auxiliary: Tensor


@dataclasses.dataclass
class _Data:
    logits: Tensor
    auxiliary: Tensor


class _Auxiliary(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.aux, self.fc = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        auxiliary = self.aux(x) if self.training else None
        x = self.fc(x)
        return x if auxiliary is None else self.kind(x, auxiliary)


@pytest.mark.parametrize("kind", [_Named, _Data, lambda *both: both])
def test_auxiliary_classifiers_passed_for_a_missing_dropout(kind: Any) -> None:
    """The first difference between training and evaluation was told, with a mend for another fault."""
    with pytest.raises(UserError, match=r"returns more than logits in training .*aux_logits=False"):
        Chain.from_module(_Auxiliary(kind), units=["a", "fc"], input_shape=(4,), classes=3)


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_grad_enabled(False)",
        "torch.set_default_dtype(torch.float64)",
        "torch.set_num_threads(3)",
        "torch.set_default_device('meta')",
    ],
)
@pytest.mark.parametrize("where", ["file", "function"])
def test_what_a_model_s_file_sets_for_all_of_torch_stayed(
    tmp_path: Path, setting: str, where: str
) -> None:
    """With gradients off, the first batch failed; with another dtype, data and model did not match."""
    file = tmp_path / "model.py"
    at_import, in_function = (setting, "pass") if where == "file" else ("", setting)
    file.write_text(
        f"import torch\n{at_import}\n"
        f"def net(shape, classes):\n"
        f"    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, classes))\n"
        f"    {in_function}\n"
        f"    return net\n"
    )
    before = _settings()
    chain = build_chain(f"{file}:net", input_shape=(4,), classes=3, seed=0)
    assert _settings() == before
    assert chain.shapes() == [(4,)]


def _settings() -> tuple[Any, ...]:
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    return grad, dtype, torch.get_default_device(), torch.get_num_threads(), str(torch.empty(0))


class _Counting(nn.Module):
    """Counts its calls in its own code, between its units."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)
        self.calls, self.keeps = 0, keeps

    def forward(self, x: Tensor) -> Tensor:
        self.calls = 1 if self.keeps else self.calls + 1
        return self.fc(self.a(x) * self.calls)  # type: ignore[no-any-return]


def test_a_counter_in_a_traced_forward_stood_still() -> None:
    """A graph holds the number that it had in the trace; one that is set to the same again may be there."""
    with pytest.raises(UserError, match=r"_Counting counts in 'calls', which tracing would fix"):
        Chain.from_module(_Counting(keeps=False), units=["a", "fc"], input_shape=(4,), classes=3)
    Chain.from_module(_Counting(keeps=True), units=["a", "fc"], input_shape=(4,), classes=3)
