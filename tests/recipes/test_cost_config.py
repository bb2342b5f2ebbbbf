"""The cost that a run names, as numbers on a line; and what cannot be paid, refused in words."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from jepaplan.costs.value import RemainingCost, WithoutGoal
from jepaplan.models.quasimetric import Euclidean
from jepaplan.models.value_heads import ReadValue, ValueEnsemble, ValueHeadConfig
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.tree import TreeSearch
from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.costs import CostConfig, build_cost
from jepaplan.recipes.serialise import experiment_from_json, experiment_to_json
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError


class Units:
    def normalise(self, actions):
        return actions

    def inverse(self, actions):
        return actions


class Line:
    """A step of the action's length; the latent is where one is."""

    action_dim = 1
    stride = 1
    action_units = Units()

    def encode(self, observation, proprioception=None):
        return observation

    def step(self, latent, action):
        return latent + action

    def rollout(self, latent, actions):
        return torch.cat([latent[:, None, None], latent[:, None, None] + actions.cumsum(2)], dim=2)


class Head(nn.Module):
    """Minus so many times the way to the goal, or to 3 where there is none."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, latent, goal=None, action=None):
        return -self.times * (latent - (3.0 if goal is None else goal)).abs()[..., 0]


def paid(cost, distance, *plans):
    """Costs of plans from 0 towards 3."""
    bound = build_cost(cost, distance).bind(Line(), torch.zeros(1, 1), torch.tensor([[3.0]]))
    return bound(torch.tensor(plans)[None, :, :, None])[0].tolist()


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_an_n_step_cost_counts_steps_and_what_remains(discount):
    """Three steps there; there and further; staying away: by hand."""
    cost = CostConfig(over="n_step", discount=discount, reached=0.5)
    found = paid(cost, Euclidean(), [1.0, 1.0, 1.0, 0.0], [1.5, 1.5, 1.5, 0.0], [0.0, 0.0, 0.0, 0.0])
    d = discount
    due = [1 + d + d**2, 1 + d + d**3 + 1.5 * d**4, 1 + d + d**2 + d**3 + 3 * d**4]
    assert found == pytest.approx(due, abs=1e-5)


def test_what_is_reached_is_in_units_of_the_distance():
    near = paid(CostConfig(over="n_step", discount=1.0, reached=1.0), Euclidean(), [1.0, 1.0, 0.0])
    # the third step begins one away from the goal, which counts as there
    assert near == pytest.approx([2.0 + 1.0])
    far = paid(CostConfig(over="n_step", discount=1.0, reached=0.9), Euclidean(), [1.0, 1.0, 0.0])
    assert far == pytest.approx([3.0 + 1.0])


class Imagining(Euclidean):
    """Finds out about a goal in five calls."""

    def prepare(self, goal):
        return 5 * len(goal)


def test_ways_are_imagined_before_steps_are_counted():
    goals = torch.zeros(2, 1)
    assert build_cost(CostConfig(over="n_step"), Imagining()).prepare(goals) == 10
    assert build_cost(CostConfig(over="n_step"), Euclidean()).prepare(goals) == 0


def test_smooth_plans_are_cheaper_by_their_weight():
    plans = [1.0, 1.0, 1.0], [3.0, -1.0, 1.0]
    plain, weighed = (
        paid(CostConfig(over="terminal", smoothness=weight), Euclidean(), *plans) for weight in (0.0, 0.5)
    )
    assert plain == pytest.approx([0.0, 0.0], abs=1e-5)
    assert weighed == pytest.approx([0.0, 0.5 * (16 + 4)], abs=1e-5)


@pytest.mark.parametrize("goal", [True, False])
def test_disagreement_is_paid_at_every_step_by_its_weight(goal):
    """Heads that say once and three times the way differ by one way from their mean."""
    value = ReadValue(ValueEnsemble([Head(1.0), Head(3.0)]))
    distance = RemainingCost(value if goal else WithoutGoal(value))
    cost = CostConfig(over="terminal", value="head", disagreement=0.25)
    plans = [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]
    assert paid(replace(cost, disagreement=0.0), distance, *plans) == [0.0, 2 * 2.0]
    assert paid(cost, distance, *plans) == [0.25 * (2 + 1), 4.0 + 0.25 * (3 + 3 + 2)]


def test_a_breakdown_names_every_term():
    value = ReadValue(ValueEnsemble([Head(1.0), Head(3.0)]))
    cost = CostConfig(over="n_step", effort=0.1, smoothness=0.1, disagreement=0.1, value="head")
    assert list(build_cost(cost, RemainingCost(value)).terms) == [
        "n-step cost",
        "effort",
        "smoothness",
        "value disagreement",
    ]


def test_who_knows_no_value_ranks_plans_by_their_ends():
    cost = CostConfig(over="n_step", disagreement=0.1, effort=0.2, value="head", reading="minimum")
    assert cost.without_value() == CostConfig(over="terminal", effort=0.2)
    assert CostConfig(over="minimum", smoothness=1.0).without_value() == CostConfig(
        over="minimum", smoothness=1.0
    )


def test_a_distance_without_members_has_none_to_disagree():
    with pytest.raises(InputError, match=r"a Euclidean, which has none; pass system.steps_to_go\(cost\)"):
        build_cost(CostConfig(value="head", disagreement=1.0), Euclidean())


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"disagreement": 0.1}, r"cost.disagreement=0.1 .*no head is named; write cost.value too"),
        ({"smoothness": float("nan")}, r"cost.smoothness is a weight, a finite number; got nan"),
        ({"over": "n_step", "reached": -1.0}, r"cost.reached is a distance, .*got -1"),
        ({"over": "n_step", "discount": 1.5}, r"discount lies in \(0, 1\]; got 1.5"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(asked, said):
    with pytest.raises(InputError, match=said):
        CostConfig(**asked)


@pytest.mark.parametrize("planner", [TreeSearch(), BeamSearch(), Collocation()])
def test_planners_that_pay_step_by_step_are_not_asked_to_be_smooth(planner):
    smooth = replace(find_recipe("wall_big_paths").cost, smoothness=0.1)
    with pytest.raises(InputError, match=rf"{type(planner).__name__} pays for every step by itself"):
        replace(find_recipe("wall_big_paths"), cost=smooth, planner=planner)
    replace(find_recipe("wall_big_paths"), cost=smooth, planner=GradientDescent())
    replace(find_recipe("wall_big_paths"), cost=replace(smooth, smoothness=0.0, effort=0.1), planner=planner)


def head(**changes):
    stage = ValueHeadStage(name="head", fit=FitConfig(updates=1))
    heads = find_recipe("wall_big_heads")
    return replace(heads, stages=(*heads.stages, replace(stage, **changes)))


def test_only_heads_of_several_members_disagree():
    asked = CostConfig(value="head", disagreement=0.1)
    assert replace(head(), cost=asked).cost == asked
    with pytest.raises(InputError, match="'head' has one member, with nobody to differ"):
        replace(head(members=1), cost=asked)
    with pytest.raises(InputError, match="'head' values actions, not places"):
        replace(head(head=ValueHeadConfig(action=True)), cost=asked)


def test_steps_are_counted_where_something_learns_to_count_them():
    asked = CostConfig(over="n_step")
    for taught in ("wall_big_paths", "wall_big_ways"):
        assert replace(find_recipe(taught), cost=asked).cost == asked
    with pytest.raises(InputError, match="a distance of latents counts none"):
        replace(find_recipe("wall_big_prediction_vcreg_cpu"), cost=asked)
    named = replace(asked, value="head")
    with pytest.raises(InputError, match="says nothing about a latent alone"):
        replace(head(head=ValueHeadConfig(action=True)), cost=named)
    alone = ValueHeadConfig(goal=False)
    assert replace(head(head=alone, reward="success"), cost=named).cost == named
    with pytest.raises(InputError, match="'head' learned recorded rewards"):
        replace(head(head=alone, reward="recorded"), cost=named)


def test_what_is_asked_survives_json():
    asked = CostConfig(
        over="n_step", reached=2.0, smoothness=0.1, disagreement=0.2, value="pairs", discount=0.98
    )
    experiment = replace(find_recipe("wall_big_heads"), cost=asked)
    assert experiment_from_json(experiment_to_json(experiment)) == experiment
