"""What an experiment refuses, in words."""

from dataclasses import replace

import pytest

from jepaplan.models.value_heads import ValueHeadConfig
from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.experiment import ImaginedValueStage, RecordingConfig
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError


def with_stage(experiment, number, **changes):
    stages = list(experiment.stages)
    stages[number] = replace(stages[number], **changes)
    return replace(experiment, stages=tuple(stages))


def test_a_seed_of_one_stage_alone_is_refused():
    demo = find_recipe("wall_big_paths")
    with pytest.raises(
        InputError, match=r"'predictor' asks for seed 3, the experiment for 0.*Write --seed 3"
    ):
        with_stage(demo, 1, fit=replace(demo.stages[1].fit, seed=3))
    assert replace(demo, seed=3).seed == 3
    with_stage(replace(demo, seed=3), 1, fit=replace(demo.stages[1].fit, seed=3))  # the same number twice


def test_imagined_values_need_inverse_dynamics_trained_before():
    demo = find_recipe("wall_big_paths")
    untrained = replace(demo.stages[0].weights, inverse_dynamics=0.0)
    with pytest.raises(InputError, match=r"'imagined_value' reads from the inverse dynamics"):
        with_stage(demo, 0, weights=untrained)
    with pytest.raises(InputError, match=r"no stage before it trains them"):
        replace(demo, stages=demo.stages[2:])
    with pytest.raises(InputError, match=r"no stage before it trains them"):
        replace(demo, stages=(demo.stages[2], *demo.stages[:2]))
    euclidean = find_recipe("wall_big_value_euclidean")
    imagined = ImaginedValueStage(fit=FitConfig(updates=1))
    with pytest.raises(InputError, match=r"--stages.0.weights.inverse-dynamics 4"):
        replace(euclidean, stages=(*euclidean.stages, imagined))


def test_planning_pays_by_a_head_that_is_there_and_counts_steps_to_a_goal():
    demo, heads = find_recipe("wall_big_paths"), find_recipe("wall_big_heads")
    with pytest.raises(InputError, match=r"no value head 'pairs' to plan with; this experiment has none"):
        replace(demo, cost=CostConfig(value="pairs"))
    with pytest.raises(InputError, match=r"no value head 'pears'.* pairs, expectile, paths\..*--value none"):
        replace(heads, cost=CostConfig(value="pears"))
    acting = replace(heads.stages[2].head, action=True)
    # a value of actions pays as well
    assert replace(with_stage(heads, 2, head=acting), cost=CostConfig(value="pairs")).learns_value
    with pytest.raises(InputError, match=r"cost.reading='minimum' .*no head is named; write cost.value too"):
        CostConfig(reading="minimum")
    with pytest.raises(InputError, match=r"caution counts standard deviations .*at least 0; got -1"):
        CostConfig(value="pairs", reading="lower_confidence", caution=-1.0)


def test_a_distance_that_no_stage_teaches_is_no_value():
    heads = find_recipe("wall_big_heads")
    assert heads.learns_value
    assert not replace(heads, cost=CostConfig()).learns_value
    taught = with_stage(replace(heads, cost=CostConfig()), 2, trains="distance")
    assert taught.learns_value


@pytest.mark.parametrize("head", [ValueHeadConfig(goal=False), ValueHeadConfig(action=True)])
def test_imagined_ways_lead_from_a_state_to_a_goal(head):
    stage = ImaginedValueStage(fit=FitConfig(updates=1), head=head)  # the distance does not read it
    with pytest.raises(InputError, match=r"a head needs head.goal=True, head.action=False"):
        replace(stage, trains="head")


def test_a_distance_without_parameters_cannot_learn_alone():
    two = find_recipe("wall_small_two_spaces")
    with pytest.raises(InputError, match=r"nothing to learn; write --distance.kind euclidean_head"):
        replace(two, distance=replace(two.distance, kind="euclidean"))


@pytest.mark.parametrize(
    ("recipe", "named"), [("wall_big_ways", "LocalPredictorConfig"), ("wall_big_value_euclidean", "gelu")]
)
def test_integers_are_refused_before_anything_is_trained(recipe, named):
    made = find_recipe(recipe)
    if named == "gelu":
        made = replace(made, predictor=replace(made.predictor, activation="gelu"))
    with pytest.raises(InputError, match=rf"one network with relu; this one is .*{named}.*Take bf16 or fp32"):
        replace(made, cost=replace(made.cost, precision="int8"))


@pytest.mark.parametrize(
    "asked, meant", [("WallBgi", "WallBig"), ("wallsmall", "WallSmall"), ("maze", "Maze")]
)
def test_unknown_worlds_suggest_the_nearest(asked, meant):
    with pytest.raises(InputError, match=f"there is no world '{asked}'. Did you mean .*{meant}"):
        RecordingConfig(world=asked)
