"""Several processes find what one finds, to the last digit."""

import dataclasses

import pytest
import torch

from jepaplan.envs import wall
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes import shards
from jepaplan.recipes.run import load_run
from jepaplan.recipes.study import StudyOptions, study
from jepaplan.types import InputError


def test_two_processes_find_what_one_finds(tiny_run, monkeypatch):
    monkeypatch.setattr(shards, "BATCH", 2)
    run, instances = load_run(tiny_run), load_instances("WallBig-demo").subset(5)
    seen = []
    options = StudyOptions(
        seed=2, references=False, on_progress=lambda name, progress: seen.append((name, progress))
    )
    alone = study(run, instances, StudyOptions(seed=2, references=False, processes=1)).outcomes
    shared = study(run, instances, dataclasses.replace(options, processes=2)).outcomes
    assert list(shared) == list(alone)
    for name, one in alone.items():
        two = shared[name]
        for field in ("success", "steps_to_success", "final_distance", "paths", "goals"):
            assert torch.equal(getattr(one, field), getattr(two, field)), (name, field)
        assert (one.evaluations, one.problem_steps) == (two.evaluations, two.problem_steps)
        assert set(one.fans) == set(two.fans)
        for number, fans in one.fans.items():
            for fan, other in zip(fans, two.fans[number], strict=True):
                assert fan.step == other.step
                for field in ("state", "plan", "candidates", "costs", "tied"):
                    assert torch.equal(getattr(fan, field), getattr(other, field))
    name, last = seen[-1]
    assert last.running == 0
    assert last.solved == int(alone[name].success.sum())


def test_batches_are_one_batch_but_for_rounding(tiny_run, monkeypatch):
    """Random and exact methods have no matrix products: they agree to the last digit."""
    monkeypatch.setattr(shards, "BATCH", 2)
    monkeypatch.setitem(wall.CONFIGS, "WallBig", dataclasses.replace(wall.WALL_BIG, episode_steps=12))
    run, instances = load_run(tiny_run), load_instances("WallBig-demo").subset(3)
    whole, dealt = (study(run, instances, StudyOptions(processes=count)).outcomes for count in (None, 1))
    for name in ("random actions", "true dynamics, straight line", "true dynamics, geodesic"):
        assert torch.equal(whole[name].paths, dealt[name].paths), name
        assert whole[name].evaluations_per_step == dealt[name].evaluations_per_step
    for name, outcomes in whole.items():
        torch.testing.assert_close(outcomes.paths[:, 1], dealt[name].paths[:, 1], atol=1e-3, rtol=0)
        assert outcomes.problem_steps > 0


def test_nobody_cannot_evaluate():
    with pytest.raises(InputError, match="at least 1; got 0"):
        StudyOptions(processes=0)
