"""Names of recipes, and that they hold what their descriptions promise."""

from dataclasses import replace

import pytest
import torch

from jepaplan.data.episodes import open_episodes
from jepaplan.recipes.catalogue import RECIPES, find_recipe
from jepaplan.recipes.maze import MAZE_RECIPES
from jepaplan.recipes.run import interface_of
from jepaplan.recipes.stages import Workshop
from jepaplan.recipes.system import build_system
from jepaplan.recipes.wall import WALL_RECIPES
from jepaplan.types import InputError
from tiny_runs import tiny_experiment


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_know_their_name_and_world(name):
    experiment = find_recipe(name)
    world = experiment.recording.world
    assert experiment.recipe == name
    assert name.replace("_", "").startswith(world.lower())
    assert experiment.instances.startswith(f"{world}-")


def test_all_worlds_have_every_method_at_both_sizes():
    for name in {**WALL_RECIPES, **MAZE_RECIPES}:
        if not name.startswith(("wall_big_paths", "wall_big_heads")):
            assert name.replace("small", "big") in RECIPES
            assert name.replace("wall_small", "maze").replace("wall_big", "maze") in MAZE_RECIPES
            assert f"{name.removesuffix('_cpu')}_cpu" in RECIPES


def test_heads_read_the_latents_of_imagined_paths():
    paths, heads = find_recipe("wall_big_paths"), find_recipe("wall_big_heads")
    assert heads.stages[:2] == paths.stages[:2]
    shared = ("seed", "recording", "encoder", "predictor", "planner", "control", "held_out", "mirrors")
    assert all(getattr(heads, name) == getattr(paths, name) for name in shared)
    beside = find_recipe("wall_big_heads_co_trained")
    assert (replace(beside.stages[0], co_trained=None), beside.stages[1]) == paths.stages[:2]
    assert all(getattr(beside, name) == getattr(paths, name) for name in shared)


def test_each_head_learns_alone_and_all_its_members_do(tiny_data):
    experiment, episodes = tiny_experiment("wall_big_heads"), open_episodes(tiny_data)
    system = build_system(experiment, interface_of(episodes))
    workshop, generator = Workshop(experiment, system, episodes), torch.Generator().manual_seed(0)
    for config in experiment.stages[2:]:
        before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
        stage = workshop.build(config)
        loss, _ = stage.objective(stage.load(stage.sample(generator, 8)))
        loss.backward()
        torch.optim.SGD([one for one in system.parameters() if one.requires_grad], lr=0.1).step()
        moved = {
            name for name, tensor in system.state_dict().items() if not torch.equal(tensor, before[name])
        }
        members = [f"values.{config.name}.ensemble.members.{number}." for number in range(config.members)]
        assert all(name.startswith(tuple(members)) for name in moved), moved
        assert all(any(name.startswith(member) for name in moved) for member in members)


def test_imagined_paths_hold_still_what_it_calls_the_scene():
    demo = find_recipe("wall_big_paths")
    assert demo.encoder.scene_width == demo.predictor.held == demo.stages[-1].imagination.scene_width


@pytest.mark.parametrize(
    "asked, meant",
    [
        ("wall_big_dmo", "wall_big_paths"),
        ("wall_small_value_iqe", "wall_small_value_euclidean"),
        ("maze_regresive", "maze_regressive"),
        ("wall_small_value_euclidean_discount_0.97", "wall_small_value_euclidean_discount_0.9"),
    ],
)
def test_unknown_recipes_suggest_the_nearest(asked, meant):
    with pytest.raises(InputError, match=f"there is no recipe '{asked}'. Did you mean .*{meant}"):
        find_recipe(asked)
