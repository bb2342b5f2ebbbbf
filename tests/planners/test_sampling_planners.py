"""What all planners owe: known optima, honest counts, allowed actions, and problems that do not mix."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.interfaces import Planner
from jepaplan.planners.cem import CEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import BoxBound, NormBound
from jepaplan.planners.shooting import RandomShooting
from jepaplan.types import InputError, Plan

REFINERS = [
    CEM(samples=400, elites=40, iterations=30, horizon=6, std_min=0.0),
    CEM(samples=400, elites=40, iterations=40, horizon=6, std_min=0.0, momentum=0.2, keep_nominal=False),
    MPPI(samples=400, iterations=80, horizon=6, temperature=0.25, std_min=1e-3),
]
SMALL = [
    CEM(samples=20, elites=4, iterations=3, horizon=5),
    MPPI(samples=20, iterations=3, horizon=5),
    MPPI(
        samples=20,
        iterations=2,
        horizon=5,
        correlation=0.7,
        std_min=0.1,
        cost_scaling="none",
        temperature=1.0,
    ),
    RandomShooting(samples=20, horizon=5),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def towards(target: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A quadratic whose bottom is `target` (B H A), one bottom per problem."""
    return lambda actions: (actions - target[:, None]).square().sum(dim=(-2, -1))


def lqr(actions: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Double integrator: position and speed, one force; stage cost x'x + 0.1 u^2, paid for x_1..x_H."""
    position, speed = (start[:, None, i].expand(actions.shape[:2]) for i in range(2))
    total = torch.zeros(actions.shape[:2])
    for force in actions[..., 0].unbind(dim=2):
        position, speed = position + 0.5 * speed, speed + 0.5 * force
        total = total + position.square() + speed.square() + 0.1 * force.square()
    return total


def riccati_cost(start: torch.Tensor, horizon: int) -> torch.Tensor:
    """The least cost of `lqr`, by dynamic programming from the last step back to the first."""
    move = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    push = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    identity, effort = torch.eye(2, dtype=torch.float64), 0.1
    ahead = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(horizon):
        worth = identity + ahead
        gain = torch.linalg.solve(effort + push.T @ worth @ push, push.T @ worth @ move)
        ahead = move.T @ worth @ move - move.T @ worth @ push @ gain
    start = start.double()
    return torch.einsum("bi,ij,bj->b", start, ahead, start).float()


@pytest.mark.parametrize("planner", REFINERS)
def test_refining_planners_reach_the_riccati_cost(planner: Planner):
    start = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.3, -0.5]])
    found = planner.plan(lambda actions: lqr(actions, start), planner.initial(3, 1), seeded(0))
    reached, least = lqr(found.plan.mean[:, None], start)[:, 0], riccati_cost(start, 6)
    assert (reached >= least - 1e-4).all()
    torch.testing.assert_close(reached, least, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("planner", REFINERS)
def test_refining_planners_find_the_bottom_of_a_quadratic(planner: Planner):
    target = torch.linspace(-1.5, 1.5, 24).view(2, 6, 2)
    found = planner.plan(towards(target), planner.initial(2, 2), seeded(1))
    assert (found.plan.mean - target).abs().max() < 0.1


@pytest.mark.parametrize("planner", SMALL)
@pytest.mark.parametrize("horizon", [1, 5, 7])
def test_evaluations_are_counted_exactly_and_the_horizon_is_that_of_the_start(planner: Planner, horizon: int):
    seen = 0

    def counting(actions: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += actions.shape[1] * actions.shape[2]
        return actions.square().sum(dim=(-2, -1))

    start = Plan(mean=torch.zeros(3, horizon, 2), std=torch.ones(3, horizon, 2))
    found = planner.plan(counting, start, seeded(0))
    assert found.evaluations == seen
    assert found.plan.mean.shape == start.mean.shape


@pytest.mark.parametrize("planner", SMALL)
def test_the_seed_decides_everything(planner: Planner):
    cost = towards(torch.full((2, 5, 2), 1.5))
    once, again, other = (planner.plan(cost, planner.initial(2, 2), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(once.plan.mean, again.plan.mean)
    assert torch.equal(once.costs, again.costs)
    assert not torch.equal(once.plan.mean, other.plan.mean)


@pytest.mark.parametrize("planner", SMALL)
def test_the_global_generator_is_left_alone(planner: Planner):
    before = torch.get_rng_state()
    planner.plan(towards(torch.zeros(1, 5, 2)), planner.initial(1, 2), seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("planner", SMALL)
def test_a_problem_is_planned_alone_as_in_a_batch(planner: Planner):
    """With one generator per problem; the neighbours' costs, however large, change nothing."""
    target = torch.randn(3, 5, 2, generator=seeded(9))
    target[0] *= 1e3
    together = planner.plan(towards(target), planner.initial(3, 2), [seeded(i) for i in range(3)])
    alone = planner.plan(towards(target[2:]), planner.initial(1, 2), [seeded(2)])
    assert torch.equal(together.plan.mean[2:], alone.plan.mean)
    assert torch.equal(together.costs[2:], alone.costs)


@pytest.mark.parametrize("planner", SMALL)
def test_a_constant_added_to_every_cost_changes_nothing(planner: Planner):
    target = torch.randn(2, 5, 2, generator=seeded(9), dtype=torch.float64)
    start = Plan(mean=torch.zeros_like(target), std=torch.ones_like(target))
    plain = planner.plan(towards(target), start, seeded(0))
    raised = planner.plan(lambda actions: towards(target)(actions) + 100.0, start, seeded(0))
    torch.testing.assert_close(raised.plan.mean, plain.plan.mean)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), which=st.integers(0, 3), radius=st.floats(0.05, 3.0), ball=st.booleans())
def test_bounds_are_never_violated(seed: int, which: int, radius: float, ball: bool):
    """Neither by a candidate nor by the plan, even when the start was outside and the optimum is far out."""
    bounds = NormBound(max_norm=radius) if ball else BoxBound(low=-radius, high=radius / 2)
    planner = [
        CEM(samples=20, elites=4, iterations=3, bounds=bounds),
        MPPI(samples=20, iterations=3, bounds=bounds),
        MPPI(samples=20, iterations=3, bounds=bounds, std_min=0.1, correlation=0.9),
        RandomShooting(samples=20, bounds=bounds),
    ][which]
    start = Plan(mean=torch.full((2, 5, 2), 4.0), std=torch.full((2, 5, 2), 3.0))
    found = planner.plan(towards(torch.full((2, 5, 2), -50.0)), start, seeded(seed))
    for actions in (found.candidates, found.plan.mean):
        if ball:
            assert (actions.norm(dim=-1) <= radius * (1 + 1e-6)).all()
        else:
            assert ((actions >= -radius) & (actions <= radius / 2)).all()


@pytest.mark.parametrize("planner", SMALL)
def test_with_the_nominal_kept_the_best_candidate_is_no_worse_than_the_start(planner: Planner):
    target = torch.full((2, 5, 2), 0.1)
    start = Plan(mean=target.clone(), std=torch.ones(2, 5, 2))
    first = type(planner)(**{**vars(planner), "iterations": 1}) if hasattr(planner, "iterations") else planner
    found = first.plan(towards(target), start, seeded(0))
    assert (found.costs.amin(dim=-1) == 0).all()


def test_shooting_returns_its_cheapest_candidate():
    planner = RandomShooting(samples=50, horizon=4)
    found = planner.plan(towards(torch.ones(2, 4, 2)), planner.initial(2, 2), seeded(0))
    assert torch.equal(towards(torch.ones(2, 4, 2))(found.plan.mean[:, None])[:, 0], found.costs.amin(dim=-1))


def test_a_warm_start_ends_cheaper_than_a_cold_one():
    planner = MPPI(samples=30, horizon=6, temperature=0.05, std=0.3)
    cost = towards(torch.full((4, 6, 2), 2.0))
    cold = planner.plan(cost, planner.initial(4, 2), seeded(0)).plan
    warm = planner.plan(cost, cold, seeded(1)).plan
    assert (cost(warm.mean[:, None]) < cost(cold.mean[:, None])).all()


@pytest.mark.parametrize("planner", SMALL)
def test_costs_that_cannot_be_ranked_are_refused(planner: Planner):
    def undefined(actions: torch.Tensor) -> torch.Tensor:
        return actions.sum(dim=(-2, -1)).sqrt()

    def endless(actions: torch.Tensor) -> torch.Tensor:
        return torch.full(actions.shape[:2], torch.inf)

    def per_step(actions: torch.Tensor) -> torch.Tensor:
        return actions.square().sum(dim=-1)

    for cost, message in (
        (undefined, "NaN"),
        (endless, "infinity"),
        (per_step, "one number per problem and sample"),
    ):
        with pytest.raises(InputError, match=message):
            planner.plan(cost, planner.initial(2, 2), seeded(0))


def test_cem_refuses_more_elites_than_samples():
    with pytest.raises(InputError, match="between 2 and samples=10"):
        CEM(samples=10, elites=20)
    with pytest.raises(InputError, match="momentum"):
        CEM(momentum=1.0)
