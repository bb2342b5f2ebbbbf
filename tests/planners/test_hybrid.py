"""Elites refined by gradients reach the optimum, and sooner than elites alone."""

import torch
from linear_quadratic import double_integrator, planar

from jepaplan.planners.cem import CEM
from jepaplan.planners.descent import Adam, Descent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.types import Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int, components: int) -> Plan:
    mean = torch.zeros(problems, horizon, components, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


def test_it_reaches_the_riccati_optimum():
    for system in (double_integrator(), planar(final_weight=2.0)):
        least, actions = system.optimum(5)
        planner = GradientCEM(samples=100, elites=10, iterations=25, std_min=0.0)
        found = planner.plan(system, blank(3, 5, actions.shape[-1]), seeded(0))
        torch.testing.assert_close(found.costs.amin(dim=-1), least, rtol=3e-3, atol=1e-3)
        torch.testing.assert_close(system(found.plan.mean[:, None])[:, 0], found.costs.amin(dim=-1))


def test_with_the_same_evaluations_it_ends_cheaper_than_cem_on_a_smooth_cost():
    system = planar(16)
    least, _ = system.optimum(8)
    hybrid = GradientCEM(
        samples=64, elites=8, iterations=4, descent=Descent(steps=5, optimiser=Adam(learning_rate=0.1))
    )
    found = hybrid.plan(system, blank(16, 8, 2), seeded(0))
    alone = CEM(samples=found.evaluations // (8 * 4), elites=8, iterations=4, returns="best")
    other = alone.plan(system, blank(16, 8, 2), seeded(0))
    assert other.evaluations <= found.evaluations
    excess = system(found.plan.mean[:, None])[:, 0] - least
    assert (excess < system(other.plan.mean[:, None])[:, 0] - least).all()


def test_it_finds_the_valley_from_which_gradients_alone_do_not_escape():
    """Two valleys; the plan stands in the dear one, and its samples reach the other."""

    def cost(actions: torch.Tensor) -> torch.Tensor:
        place = actions.sum(dim=(-2, -1))
        return torch.minimum((place + 1).square() + 1, 4 * (place - 3).square())

    start = Plan(mean=torch.full((2, 2, 1), -0.5), std=torch.full((2, 2, 1), 2.0))
    found = GradientCEM(samples=64, elites=6, iterations=6).plan(cost, start, seeded(0))
    assert (found.costs.amin(dim=-1) < 1e-3).all()
    assert (found.plan.mean.sum(dim=(-2, -1)) - 3).abs().max() < 0.05


def test_each_iteration_knows_at_least_as_much_as_the_one_before():
    planner = GradientCEM(samples=10, elites=3, iterations=6)
    searches = list(planner.refinements(planar(), blank(3, 4, 2), seeded(0)))
    costs = torch.stack([search.costs.amin(dim=-1) for search in searches])
    assert (costs.diff(dim=0) <= 0).all()
    # 10 samples x 4 steps, and 3 elites x 4 steps x (3 gradients of 3 + 1 last look)
    assert [search.evaluations for search in searches] == [160 * count for count in range(1, 7)]
