"""What a state dict holds beside tensors under the names of parameters comes through everything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import pipelocal
from pipelocal.config import EvaluateConfig, ExportConfig, TrainConfig
from pipelocal.config.training import train
from pipelocal.errors import UserError
from pipelocal.models.state import versions_of, with_versions
from pipelocal.ranks.world import World
from pipelocal.results.evaluate import evaluate
from pipelocal.results.export import export
from tests.bugs import stateful_models

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(out: Path, model: str, **options: object) -> str:
    """The folder of a short run."""
    settings = {"stages": 2, "max_steps": 2, "objective": "greedy", "plain": True} | options
    config = TrainConfig(model=f"{stateful_models.__name__}:{model}", out=str(out), **settings)  # type: ignore[arg-type]
    train(config, World.alone(), stream=io.StringIO())
    return str(out)


def exported(run: str, to: Path) -> Path:
    """The file that a run was exported to."""
    export(ExportConfig(run=run, to=str(to)))
    return to


@pytest.mark.parametrize(
    "kind",
    [
        *("versioned", "tied", "extra_tensor", "renames", "complex", "spectral_norm"),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("extra_number", "weight_norm", "orthogonal")
        ),
    ],
)
def test_what_was_exported_loads_into_the_author_s_own_class(tmp_path: Path, kind: str) -> None:
    """Versions of modules were lost between the stages' files and the export."""
    run = trained(tmp_path / "run", kind, ema=0.9)
    for averaged in (False, True):
        evaluate(EvaluateConfig(run=run, averaged=averaged))
        pipelocal.load(run, averaged=averaged)
    loaded = pipelocal.load(run)
    own = stateful_models.Net(kind).eval()
    file = exported(run, tmp_path / "m.pt")
    own.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(own(X), loaded(X))
    if kind != "complex":  # which torch.export takes or not, by its version
        program = torch.export.load(exported(run, tmp_path / "m.pt2"))
        torch.testing.assert_close(program.module()(X), loaded(X))


@pytest.mark.parametrize("kind", ["versioned", "tied", "extra_number"])
def test_a_row_of_such_units_loads(tmp_path: Path, kind: str) -> None:
    run = trained(tmp_path / "run", f"{kind}__row")
    loaded = pipelocal.load(run)
    model = getattr(stateful_models, f"{kind}__row")((1, 8, 8), 10)
    assert isinstance(model, nn.Sequential)
    state = torch.load(exported(run, tmp_path / "m.pt"), weights_only=True)
    model.eval().load_state_dict(state)
    torch.testing.assert_close(model(X), loaded(X))


def test_tied_weights_export_as_safetensors_under_both_names(tmp_path: Path) -> None:
    """The format refuses tensors that share memory; its own words were passed on."""
    from safetensors.torch import load_file

    run = trained(tmp_path / "run", "tied")
    state = load_file(exported(run, tmp_path / "m.safetensors"))
    own = stateful_models.Net("tied").eval()
    # A file of this format holds no versions, so the author's class is told.
    own.load_state_dict(with_versions(state, versions_of(own.state_dict())))
    torch.testing.assert_close(own(X), pipelocal.load(run)(X))


def test_extra_state_that_no_file_can_hold_is_refused_in_one_line(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "extra_number")
    with pytest.raises(UserError, match=r"'b._extra_state' is no tensor but a int.*choose .pt"):
        export(ExportConfig(run=run, to=str(tmp_path / "m.safetensors")))
    with pytest.raises(UserError, match=r"unit 'b' keeps a frozenset as extra state"):
        trained(tmp_path / "other", "extra_object", head="linear")


def test_a_unit_that_must_see_values_could_not_be_described(tmp_path: Path) -> None:
    """Its trial runs it for real; what the model holds was then asked of it once more, on meta."""
    run = trained(tmp_path / "run", "by_values")
    evaluate(EvaluateConfig(run=run))
    assert pipelocal.load(run)(X).shape == (3, 10)
