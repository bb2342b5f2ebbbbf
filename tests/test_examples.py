"""The examples run, in their order, at the smallest scale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
def test_examples_run_one_after_the_other(tmp_path):
    assert [path.name[:3] for path in EXAMPLES] == ["01_", "02_", "03_"]
    environment = {**os.environ, "JEPAPLAN_EXAMPLE_SCALE": "tiny", "OMP_NUM_THREADS": "1"}
    said = []
    for path in EXAMPLES:
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "value-guided:" in said[2]
    assert "prediction only:" in said[2]
