"""Training and evaluation on an accelerator mix no devices: tried on one that is not there, and on a real one."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from another_device import PLACE, Elsewhere, Mixed
from jepaplan.control.devices import home_of
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes import scenes
from jepaplan.recipes.methods import EvaluationPlan, evaluate_method, methods_of
from jepaplan.recipes.run import TrainOptions, load_run, train
from tiny_runs import tiny_experiment


def test_the_other_device_is_one():
    with Elsewhere() as watch:
        here, there = torch.ones(2), torch.ones(2, device=PLACE)
        assert (here.device.type, there.device) == ("cpu", PLACE)
        assert (there * 2 + torch.tensor(1.0))[0].device == PLACE
        assert there.cpu().device.type == "cpu"
        assert here.to(there).device == PLACE
        assert torch.nn.Linear(2, 2).to(PLACE)(there).device == PLACE
        assert there[torch.tensor([1])].device == PLACE
        for mixed in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here[there.long()],
            lambda: torch.nn.Linear(2, 2)(there),
            lambda: there.__setitem__(here.bool(), here),
            lambda: there.normal_(generator=torch.Generator()),
            lambda: there.numpy(),
        ):
            with pytest.raises(Mixed):
                mixed()
    assert watch.computed > 3


class Scenes:
    """Worker threads are not watched: let there be none."""

    map = staticmethod(map)


@contextmanager
def in_this_thread():
    yield Scenes


RECIPES = (
    "wall_big_demo",
    "wall_small_prediction_ema_cpu",
    "wall_small_prediction_vcreg_inverse_cpu",
    "wall_small_value_quasimetric_cpu",
    "wall_small_value_vcreg_joint_cpu",
    "wall_small_two_spaces_cpu",
    "wall_small_contrastive_cpu",
    "wall_small_regressive_cpu",
)


@pytest.mark.parametrize("name", RECIPES)
def test_training_mixes_no_devices(name, tmp_path, monkeypatch):
    """And a run that was interrupted goes on there."""
    monkeypatch.setattr(scenes, "_one_thread_each", in_this_thread)
    experiment = tiny_experiment(name)
    with Elsewhere() as watch:
        train(experiment, tmp_path / "run", TrainOptions(device=str(PLACE)))
        assert watch.computed > 100
        train(experiment, tmp_path / "run", TrainOptions(device=str(PLACE)))
