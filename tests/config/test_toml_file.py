"""Files of options that earlier versions wrote."""

from pathlib import Path

import pytest

from pipelocal.checkpoint.run_folder import RunFolder
from pipelocal.config import TrainConfig, read_toml
from pipelocal.config.resolve import text_of
from pipelocal.config.saved import options_of
from pipelocal.errors import UserError
from pipelocal.run.earlier import TAKEN_AWAY
from pipelocal.system.toml import to_toml


@pytest.mark.parametrize("name", TAKEN_AWAY)
def test_a_run_folder_of_an_earlier_version_names_options_that_were_taken_away(
    tmp_path: Path, name: str
) -> None:
    """Its other options count; who writes such a name now is told."""
    config = TrainConfig(model="mlp", out=str(tmp_path))
    file = tmp_path / "config.toml"
    file.write_text(to_toml(text_of(config)) + f'{name} = "auto"\n')
    assert options_of(RunFolder.open(str(tmp_path))) == config
    with pytest.raises(UserError, match=f"--config {file}: there is no option '{name}' any more"):
        read_toml(str(file))


def test_a_run_folder_of_an_earlier_version_says_what_is_now_said_in_one(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'model = "mlp"\ncompress = "powersgd"\ncompress_share = 0.1\ncompress_rank = 4\n'
    )
    then = options_of(RunFolder.open(str(tmp_path)))
    assert then == TrainConfig(model="mlp", compress="powersgd=4")
