"""One evaluation with a report, shared: it is the slowest thing that commands do."""

import shutil
from functools import partial, partialmethod

import pytest

from jepaplan.cli import main
from jepaplan.commands import evaluate
from jepaplan.evaluation.position_probe import ProbeConfig
from jepaplan.recipes import story


@pytest.fixture(scope="session")
def evaluated(tiny_run, tmp_path_factory):
    """The folder of a run that was evaluated with a report, and what lay beside it."""
    home = tmp_path_factory.mktemp("evaluated")
    run = shutil.copytree(tiny_run, home / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        # The report's parts at the size of a test.
        patch.setattr(story, "_PROBE_FRAMES", 240)
        patch.setattr(story, "ProbeConfig", partial(ProbeConfig, updates=20, batch=64))
        patch.setattr(story.Storyteller, "maps", partialmethod(story.Storyteller.maps, 1))
        patch.setattr(evaluate, "tell", partial(evaluate.tell, blamed=1))
        patch.setattr(story, "_GREEDY_DOORS", 2)
        assert main(["evaluate", str(run), "--episodes", "4", "--no-references", "--threads", "1"]) == 0
    return run
