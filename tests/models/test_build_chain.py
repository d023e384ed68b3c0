"""Models of the user's own: ``package.module:function`` and ``file.py:function``."""

from pathlib import Path

import pytest
import torch

from pipelocal.errors import UserError
from pipelocal.models import MODELS, Chain, build_chain

HERE = "tests.models.user_models"


def _build(name: str, seed: int = 0) -> Chain:
    return build_chain(name, input_shape=(1, 8, 8), classes=5, seed=seed)


def _refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        _build(name)
    text = str(caught.value)
    assert "\n" not in text
    assert name in text
    return text


@pytest.mark.parametrize(
    ("function", "units", "shapes"),
    [
        ("sequential", ["first", "second"], [(16,), (16,)]),
        ("chain", ["flat", "wide"], [(64,), (8,)]),
    ],
)
def test_function_of_a_module(
    function: str, units: list[str], shapes: list[tuple[int, ...]]
) -> None:
    chain = _build(f"{HERE}:{function}")
    assert [unit.name for unit in chain.units] == units
    assert chain.shapes() == shapes
    assert chain.classes == 5


def test_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my.model-1.py"
    file.write_text(Path(__file__).with_name("user_models.py").read_text())
    chain = _build(f"{file}:sequential")
    assert chain.shapes() == [(16,), (16,)]


def test_ready_made_module_is_drawn_from_the_run_s_seed() -> None:
    """Every rank calls the function for itself, at whatever state its generator is."""

    def drawn(seed: int) -> torch.Tensor:
        torch.rand(1)
        whole = _build(f"{HERE}:sequential", seed=seed).build_whole(seed=seed)
        weight: torch.Tensor = whole.state_dict()["second.weight"]
        return weight

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    _build(f"{HERE}:sequential")
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_module_function_or_file(tmp_path: Path) -> None:
    hint = "give package.module:function or file.py:function"
    text = _refusal("no_such_package.models:net")
    assert "there is no module 'no_such_package'" in text
    assert hint in text
    text = _refusal(f"{HERE}:absent")
    assert f"there is no 'absent' in {HERE}" in text
    text = _refusal(f"{tmp_path}/absent.py:net")
    assert f"no Python file at {tmp_path}/absent.py" in text
    assert hint in text


def test_file_that_fails_to_import(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise KeyError('width')\n")
    assert f"cannot be imported: KeyError: 'width' ({file}, line 1)" in _refusal(f"{file}:net")


def test_what_is_named_is_no_function() -> None:
    assert "is no function but a int" in _refusal(f"{HERE}:NUMBER")


def test_function_that_raises() -> None:
    assert "ZeroDivisionError: no such width" in _refusal(f"{HERE}:fails")


@pytest.mark.parametrize(("function", "kind"), [("nothing", "NoneType"), ("linear", "Linear")])
def test_function_that_returns_something_else(function: str, kind: str) -> None:
    text = _refusal(f"{HERE}:{function}")
    assert f"returned {kind}: return an nn.Sequential, or a pipelocal Chain" in text


def test_check_of_the_name_reads_no_file() -> None:
    MODELS.check("/no/such/file.py:net")
    MODELS.check("resnet8")
