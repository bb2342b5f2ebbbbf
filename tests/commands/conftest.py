"""One evaluation with a report, shared: it is the slowest thing that commands do."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, partialmethod

import pytest

from jepaplan.cli import main
from jepaplan.commands import evaluate
from jepaplan.envs import wall
from jepaplan.evaluation.position_probe import ProbeConfig
from jepaplan.recipes import story


@contextmanager
def small_parts():
    """The report's parts at the size of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "_PROBE_FRAMES", 240)
        patch.setattr(story, "ProbeConfig", partial(ProbeConfig, updates=20, batch=64))
        patch.setattr(story, "rank_correlations", partial(story.rank_correlations, layouts=10))
        patch.setattr(story.Storyteller, "maps", partialmethod(story.Storyteller.maps, 1))
        patch.setattr(evaluate, "tell", partial(evaluate.tell, blamed=1))
        patch.setattr(story, "_GREEDY_TASKS", 2)
        patch.setitem(wall.CONFIGS, "WallBig", replace(wall.WALL_BIG, episode_steps=12))
        yield


@pytest.fixture
def small_report():
    """Reports are small while this test runs."""
    with small_parts():
        yield


@pytest.fixture(scope="session")
def evaluated(tiny_run, tmp_path_factory):
    """The folder of a run that was evaluated with a report, and what lay beside it."""
    home = tmp_path_factory.mktemp("evaluated")
    run = shutil.copytree(tiny_run, home / "run")
    with small_parts(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["evaluate", str(run), "--episodes", "4", "--no-references", "--threads", "1"]) == 0
    return run
