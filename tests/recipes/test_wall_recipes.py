"""Names of recipes, and that they hold what their descriptions promise."""

import pytest

from jepaplan.evaluation.tasks import WORLDS, load_instances
from jepaplan.recipes.wall import RECIPES, find_recipe
from jepaplan.types import InputError


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_know_their_name_and_world(name):
    experiment = find_recipe(name)
    assert experiment.recipe == name
    assert load_instances(experiment.instances).world == experiment.recording.world
    assert experiment.recording.world in WORLDS
    assert experiment.learns_value == ("prediction_vcreg" not in name)


def test_both_worlds_have_every_method_at_both_sizes():
    for name in RECIPES:
        if name != "wall_big_demo":
            assert name.replace("small", "big") in RECIPES
            assert f"{name.removesuffix('_cpu')}_cpu" in RECIPES


def test_quasimetric_recipes_use_a_quasimetric():
    kinds = {name: find_recipe(name).distance.kind for name in RECIPES}
    assert all((kind == "iqe") == ("quasimetric" in name) for name, kind in kinds.items() if "value" in name)


def test_the_demo_holds_still_what_it_calls_the_scene():
    demo = find_recipe("wall_big_demo")
    assert demo.encoder.scene_width == demo.predictor.held == demo.stages[-1].imagination.scene_width


@pytest.mark.parametrize(
    "asked, meant",
    [("wall_big_dmo", "wall_big_demo"), ("wall_small_value_iqe", "wall_small_value_euclidean")],
)
def test_unknown_recipes_suggest_the_nearest(asked, meant):
    with pytest.raises(InputError, match=f"there is no recipe '{asked}'. Did you mean .*{meant}"):
        find_recipe(asked)
