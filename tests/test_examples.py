"""The examples run, in their order, at the smallest scale."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
def test_examples_run_one_after_the_other(tmp_path):
    assert [path.name[:3] for path in EXAMPLES] == ["01_", "02_", "03_", "04_"]
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
    assert "CEM, way around the wall: ends" in said[3]
    picture = tmp_path / "runs" / "examples" / "planners" / "cem.png"
    assert 0 < picture.stat().st_size < 60_000


def test_the_page_on_planners_shows_pictures_that_exist_and_are_small():
    docs = Path(__file__).parents[1] / "docs"
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (docs / "choosing_a_planner.md").read_text())
    assert len(shown) == 10
    assert {Path(name).name for name in shown} == {path.name for path in (docs / "pictures").glob("*.png")}
    assert all((docs / name).stat().st_size < 60_000 for name in shown)


def test_the_page_on_planners_shows_code_that_runs():
    page = (Path(__file__).parents[1] / "docs" / "choosing_a_planner.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    # as a user runs it, without the checks of annotations
    done = subprocess.run(
        [sys.executable, "-c", blocks[0]], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) evaluations in \d+ ms", done.stdout.strip())
    assert said is not None
    # one iteration of the least number of samples, or more of them
    assert int(said[1]) >= 16 * 16
