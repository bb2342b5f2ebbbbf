"""Priors of actions: learned by the loop where the answer is known, kept by a run, and planned with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from jepaplan.commands.evaluate import Options
from jepaplan.commands.search_options import changed
from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.data.episodes import Episodes
from jepaplan.data.goals import GoalMixture
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes
from jepaplan.evaluation.tasks import load_instances
from jepaplan.models.goal_inverse_dynamics import GoalInverseDynamicsConfig
from jepaplan.planners.tree import TreeSearch
from jepaplan.recipes.experiment import ControlConfig
from jepaplan.recipes.methods import methods_of
from jepaplan.recipes.prior_stages import ActionPriorStage, action_prior_stage, build_action_priors
from jepaplan.recipes.run import TrainOptions, load_run, train
from jepaplan.recipes.study import with_planner
from jepaplan.recipes.system import build_controller
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, open_run
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError
from point_bench import Bench, Drift
from tiny_runs import tensor_hashes, tiny_experiment

ORIGIN = Origin(recipe="test", configuration={}, data="none", seed=0)
FIT = FitConfig(updates=400, batch=128, learning_rate=1e-2, log_every=999, evaluate_every=999, save_every=999)
STAGE = ActionPriorStage(fit=FIT, model=GoalInverseDynamicsConfig(hidden=32))


class Points(nn.Module):
    """A system: what `Workshop.system` is."""

    def __init__(self, stages):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.world_model = Drift(0.25)
            self.priors = build_action_priors(stages, latent_width=2, action_dim=2)


def bench(stages=(STAGE,)):
    """200 walks of 12 steps, each straight on in a direction of its own, with actions of length 1."""
    generator = torch.Generator().manual_seed(1)
    angles = 2 * torch.pi * torch.rand(200, generator=generator)
    actions = torch.stack([angles.cos(), angles.sin()], dim=1)[:, None].expand(200, 12, 2)
    firsts = torch.randn(200, 1, 2, generator=generator)
    points = torch.cat([firsts, 0.25 * actions], dim=1).cumsum(1).flatten(0, 1)
    episodes = Episodes(
        path=Path("points.h5"),
        manifest={},
        content_hash="",
        observations=torch.zeros(len(points), 1, 1, 1, dtype=torch.uint8),
        actions=actions.flatten(0, 1),
        states=None,
        proprioception=None,
        starts=13 * torch.arange(200),
        lengths=torch.full((200,), 12),
    )
    return Bench(Points(stages), episodes, points, trained_episodes=180)


def test_straight_walks_teach_the_straight_way_however_far_the_goal(tmp_path):
    """The optimal action is known: one step long, towards the goal, and there is no doubt about it."""
    workshop = bench()
    before = {name: tensor.clone() for name, tensor in workshop.system.state_dict().items()}
    with open_run(tmp_path, ORIGIN) as run:
        result = fit(action_prior_stage(STAGE, workshop), run, FIT)
    generator = torch.Generator().manual_seed(3)
    latent, gap = torch.randn(2, 200, 2, generator=generator)
    gap = gap / gap.norm(dim=-1, keepdim=True)
    far = 0.25 + 2 * torch.rand(200, 1, generator=generator)
    with torch.no_grad():
        mean, log_std = workshop.system.priors["action_prior"](latent, latent + far * gap)
    assert ((mean - gap).norm(dim=-1) < 0.3).float().mean() > 0.9
    assert (mean - gap).norm(dim=-1).median() < 0.15
    assert log_std.exp().median() < 0.2
    assert result.metrics["held_out/squared_error"] < 0.05
    assert result.metrics["held_out/loss"] < 0
    moved = {n for n, tensor in workshop.system.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved
    assert all(name.startswith("priors.action_prior.") for name in moved)


def test_goals_are_later_frames_of_the_same_recording():
    workshop = bench()
    stage = action_prior_stage(STAGE, workshop)
    batch = stage.load(stage.sample(torch.Generator().manual_seed(0), 500))
    gap = batch.goals - batch.latents
    along = (gap * batch.actions).sum(-1)
    torch.testing.assert_close(gap, along[:, None] * batch.actions, atol=1e-4, rtol=0)
    steps = along / 0.25
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert steps.min() > 0.9
    assert steps.max() > 8


def test_what_no_prior_can_learn_from_is_refused():
    with pytest.raises(InputError, match=r"write goals.batch=0; got goals.batch=0.5"):
        replace(STAGE, goals=GoalMixture(geometric=0.5, batch=0.5))
    with pytest.raises(InputError, match=r"no action prior 'action_prior', only \['other'\]"):
        action_prior_stage(STAGE, bench([replace(STAGE, name="other")]))


@pytest.fixture(scope="module")
def prior_run(tmp_path_factory, tiny_data):
    path = tmp_path_factory.mktemp("runs") / "prior"
    train(tiny_experiment("wall_big_paths_prior"), path, TrainOptions(data=tiny_data))
    return path


def first_plans(run):
    """What all methods of a run that plan do plan first, for three tasks."""
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(3)
    found = []
    for method in methods_of(run, world, with_references=True):
        if not isinstance(method.controller, RecedingHorizon):
            continue
        seen = (lambda states: states) if method.sees_truth else world.observe
        method.controller.reset(seen(instances.goals), torch.Generator().manual_seed(0))
        method.controller.act(seen(instances.starts))
        found.append(method.controller.last)
    return found


def test_a_run_with_a_prior_plans_with_it_from_the_first_step(prior_run):
    """Learned models are led, one more imagined path each; references are as they would be without."""
    led = load_run(prior_run)
    blind = changed(led, Options(run=prior_run, prior="none"))
    assert blind.experiment.control.prior is None
    horizon = led.experiment.planner.horizon
    for number, (ours, theirs) in enumerate(zip(first_plans(led), first_plans(blind), strict=True)):
        if number < 2:
            assert ours.evaluations == theirs.evaluations + horizon
            assert not torch.equal(ours.plan.mean, theirs.plan.mean)
        else:
            assert torch.equal(ours.plan.mean, theirs.plan.mean)


def test_closed_loop_runs_alike_alone_and_among_others(prior_run):
    run = load_run(prior_run)
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(3)
    paths = []
    for some in (instances, instances.subset(1)):
        control = methods_of(run, world, with_references=False)[0].controller
        generator = torch.Generator().manual_seed(0)
        paths.append(run_episodes(world, some, control, generator, EpisodeOptions(episode_steps=3)).paths)
    torch.testing.assert_close(paths[0][:1], paths[1], atol=1e-3, rtol=0)


def test_a_prior_that_is_interrupted_ends_with_the_same_tensors(prior_run, tiny_data, tmp_path):
    def interrupt(progress):
        if (progress.stage, progress.update) == ("action_prior", 2):
            raise KeyboardInterrupt

    experiment, path = tiny_experiment("wall_big_paths_prior"), tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        train(experiment, path, TrainOptions(data=tiny_data, on_progress=interrupt))
    with pytest.raises(InputError, match="stage 'action_prior' is still to be trained"):
        load_run(path)
    train(experiment, path, TrainOptions(data=tiny_data))
    assert tensor_hashes(path) == tensor_hashes(prior_run)


def test_the_other_stages_are_trained_as_without_it(prior_run, tiny_data, tmp_path):
    train(tiny_experiment(), tmp_path / "without", TrainOptions(data=tiny_data))
    plain, led = tensor_hashes(tmp_path / "without"), tensor_hashes(prior_run)
    assert plain.items() <= led.items()
    assert {name.split(".")[0] for name in led.keys() - plain.keys()} == {"priors"}


def test_planning_with_a_prior_that_is_not_there_is_refused(tiny_run, prior_run):
    plain, led = load_run(tiny_run), load_run(prior_run)
    with pytest.raises(
        InputError, match=r"'action_prior' names no stage .* has none. Leave it out, or train"
    ):
        changed(plain, Options(run=tiny_run, prior="action_prior"))
    with pytest.raises(InputError, match=r"'policy' names no stage .* this experiment has action_prior"):
        changed(led, Options(run=prior_run, prior="policy"))
    with pytest.raises(InputError, match=r"there is no action prior 'action_prior'; this run has none"):
        plain.system.action_prior(ControlConfig(prior="action_prior"))
    with pytest.raises(InputError, match=r"--prior-share 0.1 belongs to a search that a prior leads"):
        changed(plain, Options(run=tiny_run, prior_share=0.1))
    with pytest.raises(InputError, match=r"TreeSearch takes no candidates from a prior.*--prior none"):
        changed(led, Options(run=prior_run, planner="tree"))
    with pytest.raises(InputError, match=r"lies in \(0, 1\]; got 1.5"):
        changed(led, Options(run=prior_run, prior_share=1.5))
    with pytest.raises(InputError, match=r"prior=system.action_prior\(experiment.control\)"):
        build_controller(led.experiment, led.system.world_model, led.system.distance)
    freed = with_planner(led, planner=TreeSearch(horizon=4), control=ControlConfig())
    assert build_controller(freed.experiment, led.system.world_model, led.system.distance).prior is None
