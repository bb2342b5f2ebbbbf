"""Names of recipes, and that they hold what their descriptions promise."""

import pytest

from jepaplan.recipes.catalogue import RECIPES, find_recipe
from jepaplan.recipes.maze import MAZE_RECIPES
from jepaplan.recipes.wall import WALL_RECIPES
from jepaplan.types import InputError


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_know_their_name_and_world(name):
    experiment = find_recipe(name)
    world = experiment.recording.world
    assert experiment.recipe == name
    assert name.replace("_", "").startswith(world.lower())
    assert experiment.instances.startswith(f"{world}-")


def test_all_worlds_have_every_method_at_both_sizes():
    for name in {**WALL_RECIPES, **MAZE_RECIPES}:
        if not name.startswith("wall_big_paths"):
            assert name.replace("small", "big") in RECIPES
            assert name.replace("wall_small", "maze").replace("wall_big", "maze") in MAZE_RECIPES
            assert f"{name.removesuffix('_cpu')}_cpu" in RECIPES


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
