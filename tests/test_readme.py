"""The README is run as it is written, against the wheel as it would be installed.

Its Python runs unchanged. Its `jepaplan` lines run with small sizes added at the end, one after the other, so
what one line writes the next one reads.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jepaplan.commands.train import read
from jepaplan.recipes.catalogue import find_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STAGES = 3  # of the recipe that the README trains
SMALL = {
    "collect": ["--trajectories", "12"],
    "train": [word for number in range(STAGES) for word in (f"--stages.{number}.fit.updates", "5")],
    "train video-nano": ["--generated.count", "40", "--phases.0.fit.updates", "2"],
    "probe": ["--epochs", "1"],
    "evaluate": ["--episodes", "2", "--samples", "32", "--horizon", "2", "--no-references", "--no-report"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.strip()]


def installed(wheel_folder: Path) -> dict[str, str]:
    """An environment in which the package is the wheel's, not the source's."""
    return {**os.environ, "PYTHONPATH": str(wheel_folder), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def run(command: list[str], wheel: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env=installed(wheel), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder with the package as the built wheel holds it."""
    made, folder = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (file,) = made.glob("*.whl")
    options = ["--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(file)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder


@pytest.mark.slow
def test_the_wheel_is_what_runs_and_is_complete(wheel, tmp_path):
    asked = "import jepaplan; print(jepaplan.__file__)"
    assert run([sys.executable, "-c", asked], wheel, tmp_path).stdout.startswith(str(wheel))
    source = ROOT / "src" / "jepaplan"
    due = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    have = {
        path.relative_to(wheel / "jepaplan") for path in (wheel / "jepaplan").rglob("*") if path.is_file()
    }
    assert {path for path in due - have if "__pycache__" not in path.parts} == set()


@pytest.mark.slow
def test_python_blocks(wheel, tmp_path):
    assert blocks("python")
    for number, block in enumerate(blocks("python")):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block)
        assert "/2)" in run([sys.executable, str(script)], wheel, tmp_path).stdout


@pytest.mark.slow
def test_shell_blocks(wheel, tmp_path):
    assert len(command_lines()) >= 6
    for words in command_lines():
        assert words[0] == "jepaplan"
        small = SMALL.get(" ".join(words[1:3]), SMALL.get(words[1], []))
        run([str(wheel / "bin" / "jepaplan"), *words[1:], *small], wheel, tmp_path)


def test_the_recipe_has_as_many_stages_as_are_shortened():
    recipe = find_recipe("wall_big_paths")
    _, small = read(recipe, ["--run", "there", *SMALL["train"]])
    assert [stage.fit.updates for stage in small.stages] == [5] * STAGES


def test_results_are_marked():
    assert README.index("<!-- results:begin -->") < README.index("<!-- results:end -->")
