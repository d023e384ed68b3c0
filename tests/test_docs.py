"""The worked examples of the documentation run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def test_a_new_partition_of_a_new_model_in_under_forty_lines(tmp_path: Path) -> None:
    (example,) = python_blocks("partitions.md")
    assert len(example.splitlines()) < 40
    (tmp_path / "my_partition.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "my_partition.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[['0', '1', '2'], ['3', '4'], ['5']]"
