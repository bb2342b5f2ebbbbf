"""Training and planning mix no devices: tried on one that is not there, and on a real one if any."""

import copy
import dataclasses
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch

from another_device import PLACE, Elsewhere, Mixed
from jepaplan.control.goals import Clip, GivenGoal, PictureGoal, Subgoals, ValueAlone
from jepaplan.costs.distances import mean_square
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes, true_states
from jepaplan.evaluation.tasks import load_instances
from jepaplan.models.value_heads import ValueHeadConfig
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.collocation import Collocation
from jepaplan.recipes import scenes
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.methods import methods_of
from jepaplan.recipes.planner_study import PLANNERS
from jepaplan.recipes.run import TrainOptions, load_run, train
from jepaplan.recipes.system import Interface, build_controller, build_system
from jepaplan.recipes.value_batches import ImaginedActions
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.training.stage import FitConfig
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


def rarely(*values):
    """Tried by `make test` only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


RECIPES = [
    "wall_small_prediction_ema_cpu",
    *rarely(
        "wall_big_paths",
        "wall_small_contrastive_cpu",
        "wall_small_regressive_cpu",
        "wall_small_prediction_vcreg_inverse_cpu",
        "wall_small_value_quasimetric_cpu",
        "wall_small_value_vcreg_joint_cpu",
        "wall_small_two_spaces_cpu",
    ),
]


@pytest.mark.parametrize("name", RECIPES)
def test_training_mixes_no_devices(name, tmp_path, monkeypatch):
    """And a run that was interrupted goes on there."""
    monkeypatch.setattr(scenes, "_one_thread_each", in_this_thread)
    experiment = tiny_experiment(name)
    with Elsewhere() as watch:
        train(experiment, tmp_path / "run", TrainOptions(device=str(PLACE)))
        assert watch.computed > 100
        train(experiment, tmp_path / "run", TrainOptions(device=str(PLACE)))


def small(planner):
    """The same search in a few steps."""
    sizes = {"horizon": 3, "samples": 12, "elites": 3, "starts": 2, "simulations": 8, "leaves": 4, "width": 3}
    names = {field.name for field in dataclasses.fields(planner)}
    planner = replace(planner, **{name: size for name, size in sizes.items() if name in names})
    if isinstance(planner, Collocation):
        return replace(planner, steps=2, synchronise_every=1)
    return replace(planner, branches=3) if isinstance(planner, BeamSearch) else planner


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load_run(tiny_run)


SEARCHES = [
    ("MPPI", "fp32"),
    ("MPPI", "bf16"),
    *rarely(*((name, "fp32") for name in PLANNERS if name != "MPPI")),
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_every_search_runs_where_the_model_is_with_the_same_noise(loaded, search):
    """Worlds and generators stay on the CPU, and so do the actions that come back."""
    planner, precision = search
    experiment = replace(loaded.experiment, planner=small(PLANNERS[planner]))
    experiment = replace(experiment, cost=CostConfig(effort=0.1, precision=precision))
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(3)
    actions = []
    for watch in (nullcontext(), Elsewhere()):
        system = copy.deepcopy(loaded.system)
        with watch:
            if isinstance(watch, Elsewhere):
                system.to(PLACE)
            guide = system.steps_to_go(experiment.cost)
            control = build_controller(experiment, system.world_model, guide, 64)
            control.reset(world.observe(instances.goals), torch.Generator().manual_seed(0))
            seen = world.observe(instances.starts)
            control.act(seen)
            taken = control.act(seen, torch.tensor([True, False, True]))
            assert taken.device.type == "cpu"
            if isinstance(watch, Elsewhere):
                assert control.last.costs.device == PLACE
                assert watch.computed > 20
            actions.append(taken)
    torch.testing.assert_close(actions[0], actions[1], atol=1e-3, rtol=1e-3)


def test_a_run_elsewhere_is_compared_with_references_on_the_cpu(loaded):
    """Success is the same, instance by instance."""
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(2)
    found = []
    for watch in (nullcontext(), Elsewhere()):
        run = replace(loaded, system=copy.deepcopy(loaded.system))
        options = EpisodeOptions(episode_steps=2, keep=(0, 1))
        with watch:
            if isinstance(watch, Elsewhere):
                run.system.to(PLACE)
            outcomes = []
            for method in methods_of(run, world, with_references=True):
                seen = true_states if method.sees_truth else None
                generator = torch.Generator().manual_seed(0)
                told = replace(options, observe=seen)
                outcomes.append(run_episodes(world, instances, method.controller, generator, told))
                assert outcomes[-1].paths.device.type == "cpu"
        found.append(outcomes)
    assert len(found[0]) == 6
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here.paths, there.paths, atol=1e-2, rtol=0)
        assert torch.equal(here.success, there.success)


@pytest.mark.parametrize("goal", ["states", "value alone", "clip", "subgoals"])
def test_goals_of_all_kinds_are_where_the_model_is(loaded, goal):
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(3)
    pictures = [world.observe(states) for states in (instances.starts, instances.goals)]
    with Elsewhere():
        system = copy.deepcopy(loaded.system).to(PLACE)
        width = system.world_model.encode(pictures[0].frames.to(PLACE)).shape[1]
        given = {
            "states": GivenGoal(torch.zeros(3, width)),
            "value alone": ValueAlone(3),
            "clip": Clip(observations=pictures, distance=mean_square),
            "subgoals": Subgoals(
                goals=[PictureGoal(seen) for seen in pictures], budgets=[1], distance=mean_square
            ),
        }[goal]
        control = build_controller(
            replace(loaded.experiment, planner=small(PLANNERS["MPPI"])), system.world_model, mean_square
        )
        control.reset(given, torch.Generator().manual_seed(0))
        for _ in range(3):
            assert control.act(pictures[0]).device.type == "cpu"
        assert control.last.costs.device == PLACE


def test_a_prior_is_asked_where_the_model_is():
    experiment = tiny_experiment("wall_big_paths_prior", planner=small(PLANNERS["MPPI"]))
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(3)
    actions = []
    for watch in (nullcontext(), Elsewhere()):
        encoder = experiment.encoder
        image = (encoder.image_channels, encoder.image_size, encoder.image_size)
        system = build_system(experiment, Interface(image=image, action_dim=2))
        with watch, torch.no_grad():
            if isinstance(watch, Elsewhere):
                system.to(PLACE)
            prior = system.action_prior(experiment.control)
            control = build_controller(experiment, system.world_model, mean_square, prior=prior)
            control.reset(world.observe(instances.goals), torch.Generator().manual_seed(0))
            actions.append(control.act(world.observe(instances.starts)))
    torch.testing.assert_close(actions[0], actions[1], atol=1e-3, rtol=1e-3)


HEADS = {
    "expectile": {},
    "imagined": {"latents": "both", "imagination": ImaginedActions(actions="other")},
    "three members": {"members": 3, "method": "td_lambda"},
    "actions": {"head": ValueHeadConfig(action=True)},
    "pairs": {"method": "pairs"},
    "distance": {"trains": "distance"},
}


@pytest.mark.parametrize("name", ["imagined", *rarely(*sorted(HEADS.keys() - {"imagined"}))])
def test_value_heads_mix_no_devices(name, tmp_path, tiny_data):
    fit = FitConfig(updates=2, batch=8, evaluate_every=1, health_every=1)
    demo = tiny_experiment(updates=1)
    stages = (demo.stages[0], ValueHeadStage(fit=fit, steps=3, **HEADS[name]))
    with Elsewhere() as watch:
        train(replace(demo, stages=stages), tmp_path / "run", TrainOptions(data=tiny_data, device=str(PLACE)))
    assert watch.computed > 100


@pytest.mark.parametrize("action", [False, *rarely(True)])
def test_heads_beside_an_encoder_mix_no_devices(action, tmp_path, tiny_data):
    demo = tiny_experiment("wall_big_heads_co_trained", updates=2)
    head = replace(demo.stages[0].co_trained, head=ValueHeadConfig(hidden=16, action=action))
    stages = (replace(demo.stages[0], co_trained=head),)
    with Elsewhere() as watch:
        train(replace(demo, stages=stages), tmp_path / "run", TrainOptions(data=tiny_data, device=str(PLACE)))
    assert watch.computed > 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_on_a_real_accelerator(tmp_path):
    """The numbers of a CPU, to within what sums in another order make of them."""
    path = tmp_path / "run"
    train(tiny_experiment(), path, TrainOptions(device="cuda"))
    world, instances = find_world("WallBig"), load_instances("WallBig-tuning").subset(4)
    paths = []
    for device in ("cpu", "cuda"):
        run = load_run(path)
        run.system.to(device)
        method = methods_of(run, world, with_references=False)[0]
        options = EpisodeOptions(episode_steps=3)
        generator = torch.Generator().manual_seed(0)
        paths.append(run_episodes(world, instances, method.controller, generator, options).paths)
    torch.testing.assert_close(paths[0], paths[1], atol=0.1, rtol=0)
