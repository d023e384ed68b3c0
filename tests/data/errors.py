"""What every message for the user must be."""

from pathlib import Path

import pytest

from pipelocal.data import load_dataset
from pipelocal.errors import DataError


def data_error(name: str, root: Path | None) -> str:
    """The one line that loading ``name`` from ``root`` fails with."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=root, seed=0)
    text = str(caught.value)
    assert "\n" not in text
    assert f"'{name}'" in text
    return text
