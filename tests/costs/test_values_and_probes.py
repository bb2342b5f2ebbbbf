"""Ensembles, probes and regions as costs see them, and what is wrong with those that do not fit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_worlds import Bending, euclidean, problem, seeded

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.distances import ReachabilityGate, TokenMean, mean_square
from jepaplan.costs.ensemble import LatentDisagreement, ValueDisagreement
from jepaplan.costs.obstacles import BallsClearance, CollisionProbability, ObstacleClearance
from jepaplan.costs.probes import BallDistance, BoxDistance, StateDistance
from jepaplan.costs.regions import Ball, Box, outside_ball, outside_box
from jepaplan.costs.steps import Term
from jepaplan.costs.terms import GoalDistance
from jepaplan.costs.value import (
    ActionWithoutGoal,
    NotYetThere,
    NStepCost,
    RemainingActionCost,
    RemainingCost,
    WithoutGoal,
)
from jepaplan.models.value_heads import Reading, ReadValue, ValueHeadConfig, build_values
from jepaplan.planners.beam import BeamSearch
from jepaplan.types import InputError, Plan


def cost_of(term: Term, seed: int = 0, samples: int = 4, horizon: int = 3) -> torch.Tensor:
    latent, goal, actions = problem(seed, 2, samples, horizon)
    return WeightedSum({"term": (1.0, term)}).bind(Bending(), latent, goal)(actions)


@pytest.mark.parametrize("goal", [True, False])
@pytest.mark.parametrize("by", ["mean", "minimum", "lower_confidence"])
def test_an_ensemble_is_read_before_its_sign_is_turned(goal: bool, by: str):
    """Pessimism makes costs higher, never lower."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ensemble = build_values(ValueHeadConfig(goal=goal, hidden=8), 6, members=3).double()
    value = ReadValue(ensemble, Reading(by=by, caution=0.5))
    term = GoalDistance(distance=RemainingCost(value if goal else WithoutGoal(value)), over="terminal")
    latent, aim, actions = problem(1, 2, 4, 3)
    found = WeightedSum({"value": (1.0, term)}).bind(Bending(), latent, aim)(actions).detach()
    ends = Bending().rollout(latent, actions)[:, :, -1]
    for b in range(2):
        for s in range(4):
            given = (ends[b, s], aim[b]) if goal else (ends[b, s],)
            votes = [member(*given).item() for member in ensemble.members]
            mean = sum(votes) / 3
            spread = math.sqrt(sum((vote - mean) ** 2 for vote in votes) / 3)
            read = {"mean": mean, "minimum": min(votes), "lower_confidence": mean - 0.5 * spread}[by]
            assert float(found[b, s]) == pytest.approx(-read, abs=2e-6)  # its spread is rounded near zero
            assert float(found[b, s]) >= -mean - 1e-12


def test_members_that_agree_cost_nothing_and_have_a_gradient():
    def unanimous(latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return -euclidean(latent, goal)[..., None].expand(*latent.shape[:-1], 3)

    latent, goal, actions = problem(2, 2, 4, 3)
    bound = WeightedSum({"v": (1.0, ValueDisagreement(members=unanimous))}).bind(Bending(), latent, goal)
    costs = bound(actions.requires_grad_())
    assert (costs == 0).all()
    assert torch.autograd.grad(costs.sum(), actions)[0].isfinite().all()
    twins = latent[:, None].expand(-1, 3, -1)
    world = Bending(3, 6)
    world.turn, world.push = (of[:1].expand_as(of) for of in (world.turn, world.push))
    bound = WeightedSum({"z": (1.0, LatentDisagreement())}).bind(world, twins, twins)
    torch.testing.assert_close(bound(actions), torch.zeros(2, 4, dtype=torch.float64), atol=1e-20, rtol=0)


def test_disagreement_of_one_world_model_is_refused():
    with pytest.raises(InputError, match=r"ensemble world model.*ValueDisagreement"):
        cost_of(LatentDisagreement())


def test_tokens_are_averaged_whatever_the_distance():
    latent, goal, actions = problem(3, 2, 4, 2, (3, 4))
    world = Bending(3, 4)
    ends = world.rollout(latent, actions)[:, :, -1]
    terminal = GoalDistance(distance=TokenMean(mean_square), over="terminal")
    found = WeightedSum({"goal": (1.0, terminal)}).bind(world, latent, goal)(actions)
    torch.testing.assert_close(found, (ends - goal[:, None]).square().mean(dim=(-2, -1)))


def test_a_gate_without_strength_is_no_gate():
    gate = ReachabilityGate(distance=euclidean, reachability=lambda z, g: torch.ones(()), strength=0.0)
    torch.testing.assert_close(
        cost_of(GoalDistance(distance=gate)), cost_of(GoalDistance(distance=euclidean))
    )


class Line(Bending):
    """A step of the action's length."""

    action_dim = 1

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return latent + action


AWAY = NotYetThere(distance=euclidean, threshold=0.5)


def exact_action_value(latent: torch.Tensor, goal: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """On the line: 1 where the step begins away from the goal, and the steps from where it leads."""
    return -(euclidean(latent, goal) > 0.5).to(latent.dtype) - euclidean(latent + action, goal)


@pytest.mark.parametrize("remaining", [euclidean, RemainingActionCost(exact_action_value)])
def test_an_n_step_cost_of_an_exact_value_counts_the_steps(remaining: object):
    """On a line with steps of one, whatever the horizon."""
    steps_to_go = NStepCost(running=AWAY, remaining=remaining)
    start, goal = torch.zeros(1, 1), torch.tensor([[3.0]])
    for horizon in range(1, 7):
        # walk to the goal and stay; walk away from it
        walk = torch.tensor([1.0] * min(3, horizon) + [0.0] * max(0, horizon - 3))
        actions = torch.stack([walk, -torch.ones(horizon)])[None, :, :, None]
        costs = WeightedSum({"n": (1.0, steps_to_go)}).bind(Line(), start, goal)(actions)
        assert costs.tolist() == [[3.0, 3.0 + 2 * horizon]]


@pytest.mark.parametrize("offset", [0.0, 70.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda distance: NStepCost(running=AWAY, remaining=distance, discount=0.9),
        lambda distance: GoalDistance(distance=distance, over="terminal"),
        lambda distance: GoalDistance(distance=distance),
    ],
)
def test_a_value_of_actions_finds_the_known_way_by_sequences_and_step_by_step(make: object, offset: float):
    """Three steps to the right and one that stays, also where the value is off by a constant."""

    def moved(latent: torch.Tensor, goal: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return exact_action_value(latent, goal, action) + offset

    bank = torch.tensor([[[1.0]], [[-1.0]], [[0.0]]])
    cost = make(RemainingActionCost(moved)).named("q")
    bound = cost.bind(Line(), torch.zeros(1, 1), torch.tensor([[3.0]]))
    every = torch.cartesian_prod(*[bank.flatten()] * 4)[None, :, :, None]
    costs = bound(every)
    right = torch.tensor([1.0, 1, 1, 0])
    assert costs.min() == costs[0, (every[0, :, :, 0] == right).all(dim=-1)]
    torch.testing.assert_close(bound.breakdown(every)["q"], costs)
    blank = torch.zeros(1, 4, 1)
    planner = BeamSearch(width=81, branches=3, bank=bank, keep_nominal=False)
    found = planner.plan(bound, Plan(mean=blank, std=torch.ones_like(blank)), seeded(0))
    torch.testing.assert_close(found.costs.sort().values, costs.sort().values)
    torch.testing.assert_close(bound(found.plan.mean[:, None]), costs.min(dim=1, keepdim=True).values)


@pytest.mark.parametrize("goal", [True, False])
def test_heads_of_actions_are_read_at_the_step_that_is_taken(goal: bool):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ensemble = build_values(ValueHeadConfig(goal=goal, action=True, hidden=8), 6, 3, 2).double()
    value = ReadValue(ensemble, Reading(by="minimum"))
    assert value.takes_actions
    distance = RemainingActionCost(value if goal else ActionWithoutGoal(value))
    latent, aim, actions = problem(1, 2, 4, 3)
    bound = GoalDistance(distance=distance, over="terminal").named("q").bind(Bending(), latent, aim)
    before = Bending().rollout(latent, actions)[:, :, -2]
    votes = ensemble(before, aim[:, None] if goal else None, actions[:, :, -1])
    torch.testing.assert_close(bound(actions), -votes.amin(dim=-1))
    alone = RemainingCost(value if goal else WithoutGoal(value))
    with pytest.raises(InputError, match="built with action=True and was given no action"):
        cost_of(GoalDistance(distance=alone))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), width=st.integers(1, 3))
def test_distances_to_regions_are_those_of_the_nearest_point(seed: int, width: int):
    generator = seeded(seed)
    points, centre = (2 * torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (9, 1))
    half = torch.rand(1, width, generator=generator, dtype=torch.float64)
    nearest = torch.minimum(torch.maximum(points, centre - half), centre + half)
    boxed = outside_box(points, centre - half, centre + half)
    torch.testing.assert_close(boxed, (points - nearest).norm(dim=-1))
    radius = half[:, 0]
    away = (points - centre).norm(dim=-1, keepdim=True)
    nearest = centre + (points - centre) * (radius / away).clamp(max=1)
    balled = outside_ball(points, centre, radius)
    torch.testing.assert_close(balled, (points - nearest).norm(dim=-1))
    corner, rim = (x[0].tolist() for x in (centre, half))
    box = Box(
        tuple(c - h for c, h in zip(corner, rim, strict=True)),
        tuple(c + h for c, h in zip(corner, rim, strict=True)),
    )
    torch.testing.assert_close(box.outside(points), boxed)
    torch.testing.assert_close(Ball(tuple(corner), float(radius)).outside(points), balled)


def test_gradients_are_finite_inside_and_at_the_centre():
    points = torch.tensor([[0.0, 0.0], [0.5, -0.5]], requires_grad=True)
    outside = Box((-1.0, -1.0), (1.0, 1.0)).outside(points) + Ball((0.0, 0.0), 1.0).outside(points)
    assert torch.autograd.grad(outside.sum(), points)[0].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: Box((0.0, 1.0), (1.0, 0.0)), "low <= high"),
        (lambda: Ball((0.0,), -1.0), "radius"),
        (lambda: Box((0.0,), (1.0,)).outside(torch.zeros(3, 2)), "2 components, this region 1"),
        (lambda: cost_of(GoalDistance(distance=StateDistance(lambda z: z[..., :2]))), "GivenGoal"),
        (lambda: cost_of(GoalDistance(distance=BoxDistance(lambda z: z[..., :2]))), "box_goal"),
        (lambda: cost_of(GoalDistance(distance=BallDistance(lambda z: z[..., :2]))), "ball_goal"),
        (lambda: cost_of(ObstacleClearance(clearance=lambda z: z[..., :2])), "one number per latent"),
        (lambda: cost_of(CollisionProbability(probability=lambda z: z)), r"\(2, 12\); got \(2, 12, 6\)"),
        (lambda: NotYetThere(distance=euclidean, threshold=-1.0), "threshold"),
        (lambda: NStepCost(running=lambda s: s, remaining=euclidean, discount=1.1), r"\(0, 1\]"),
        (lambda: ReachabilityGate(distance=euclidean, reachability=euclidean, strength=2.0), "strength=2"),
        (lambda: GoalDistance(distance=euclidean, last=3), 'write over="last"'),
        (lambda: GoalDistance(distance=euclidean, over="last", last=0), "at least 1"),
    ],
)
def test_what_does_not_fit_is_explained(wrong: object, message: str):
    with pytest.raises(InputError, match=message):
        wrong()


def test_clearance_from_balls_is_that_of_the_nearest():
    clearance = BallsClearance(
        lambda z: z[..., :2], torch.tensor([[0.0, 0], [10, 0]]), torch.tensor([1.0, 3])
    )
    latents = torch.tensor([[[0.0, 0, 9], [5, 0, 9], [0, 4, 9], [9, 0, 9]]])
    torch.testing.assert_close(clearance(latents), torch.tensor([[-1.0, 2, 3, -2]]))
