"""What all sampling planners owe: known optima, honest counts, allowed actions, problems that do not mix."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_quadratic import LinearQuadratic, double_integrator, planar

from jepaplan.interfaces import Planner
from jepaplan.planners.cem import CEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.noise import ColouredNoise, UniformNoise
from jepaplan.planners.proposals import BoxBound, GaussianNoise, NormBound, shift
from jepaplan.planners.proposals_bank import ActionPrior, Mixture, RecordedChunks
from jepaplan.planners.shooting import RandomShooting
from jepaplan.types import InputError, Plan

# The optimum is up to five from the start, so the noise must be wide: it shrinks before it gets there else.
REFINERS = [
    CEM(samples=400, elites=40, iterations=30, horizon=6, std=3.0, std_min=0.0),
    CEM(
        samples=400,
        elites=40,
        iterations=40,
        horizon=6,
        std=3.0,
        std_min=0.0,
        momentum=0.2,
        keep_nominal=False,
    ),
    CEM(samples=400, elites=40, iterations=30, horizon=6, std=3.0, std_min=0.01, returns="best"),
    # white, as the optimum begins with one sharp push; smooth noise shrinks before it has found that
    ICEM(samples=300, elites=30, iterations=30, horizon=6, std=3.0, exponent=0.0),
    MPPI(samples=400, iterations=80, horizon=6, std=3.0, temperature=0.25, std_min=1e-3),
    MPPI(samples=400, iterations=40, horizon=6, std=3.0, temperature=0.5, std_min=1e-3, elites=50),
]
BANK = RecordedChunks(chunks=torch.randn(30, 9, 2, generator=torch.Generator().manual_seed(8)))
SMALL = [
    CEM(samples=20, elites=4, iterations=3, horizon=5),
    CEM(samples=20, elites=4, iterations=3, horizon=5, returns="best", proposal=ColouredNoise()),
    ICEM(samples=20, elites=4, iterations=4, horizon=5),
    MPPI(samples=20, iterations=3, horizon=5),
    MPPI(samples=20, iterations=3, horizon=5, std_min=0.1, elites=6, returns="best"),
    MPPI(
        samples=20,
        iterations=2,
        horizon=5,
        correlation=0.7,
        std_min=0.1,
        cost_scaling="none",
        temperature=1.0,
    ),
    MPPI(
        samples=20,
        iterations=2,
        horizon=5,
        proposal=Mixture(parts=(BANK, GaussianNoise(correlation=0.5)), shares=(0.3, 0.7)),
    ),
    RandomShooting(samples=20, horizon=5),
    RandomShooting(samples=20, horizon=5, proposal=UniformNoise(bounds=NormBound(max_norm=2.0))),
]
BOUNDED: list[Callable[[NormBound | BoxBound], Any]] = [
    lambda bounds: CEM(samples=20, elites=4, iterations=3, bounds=bounds),
    lambda bounds: CEM(samples=20, elites=4, iterations=3, bounds=bounds, momentum=0.5, returns="best"),
    lambda bounds: ICEM(samples=20, elites=4, iterations=3, bounds=bounds),
    lambda bounds: MPPI(samples=20, iterations=3, bounds=bounds),
    lambda bounds: MPPI(samples=20, iterations=3, bounds=bounds, std_min=0.1, correlation=0.9, elites=3),
    lambda bounds: MPPI(samples=20, bounds=bounds, proposal=BANK),
    lambda bounds: CEM(
        samples=20,
        elites=4,
        bounds=bounds,
        proposal=ActionPrior(prior=lambda horizon: torch.full((2, horizon, 2), 9.0)),
    ),
    lambda bounds: RandomShooting(samples=20, bounds=bounds),
    lambda bounds: RandomShooting(samples=20, bounds=bounds, proposal=UniformNoise(bounds=bounds)),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def towards(target: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A quadratic whose bottom is `target` (B H A), one bottom per problem."""
    return lambda actions: (actions - target[:, None]).square().sum(dim=(-2, -1))


def fresh(planner: Planner, problem: LinearQuadratic) -> Plan:
    start = planner.initial(len(problem.latent), problem.push.shape[1])
    return Plan(mean=start.mean.double(), std=start.std.double())


@pytest.mark.parametrize("planner", REFINERS)
@pytest.mark.parametrize("system", [double_integrator, planar])
def test_refining_planners_reach_the_riccati_cost(planner: Planner, system: Callable[[], LinearQuadratic]):
    problem = system()
    found = planner.plan(problem, fresh(planner, problem), seeded(0))
    reached, least = problem(found.plan.mean[:, None])[:, 0], problem.optimum(6)[0]
    assert (reached >= least - 1e-9).all()
    torch.testing.assert_close(reached, least, rtol=0.02, atol=0.0)


def test_predictive_sampling_gets_cheaper_with_every_warm_start_until_little_is_left():
    planner = RandomShooting(samples=200, horizon=4, std=0.1)
    problem = planar()
    plan, reached = fresh(planner, problem), torch.full((3,), torch.inf, dtype=torch.float64)
    for seed in range(60):
        found = planner.plan(problem, plan, seeded(seed))
        cheaper = problem(found.plan.mean[:, None])[:, 0]
        assert (cheaper <= reached).all()
        plan, reached = found.plan, cheaper
    torch.testing.assert_close(reached, problem.optimum(4)[0], rtol=0.02, atol=0.0)


@pytest.mark.parametrize("planner", REFINERS)
def test_refining_planners_find_the_bottom_of_a_quadratic(planner: Planner):
    target = torch.linspace(-1.5, 1.5, 24).view(2, 6, 2)
    found = planner.plan(towards(target), planner.initial(2, 2), seeded(1))
    assert (found.plan.mean - target).abs().max() < 0.1


@pytest.mark.parametrize("planner", SMALL)
@pytest.mark.parametrize("horizon", [1, 5, 7])
def test_evaluations_are_counted_exactly_and_the_horizon_is_that_of_the_start(planner: Any, horizon: int):
    """Every answer on the way counts what was asked until then, and the last one is the plan."""
    seen = 0

    def counting(actions: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += actions.shape[1] * actions.shape[2]
        return actions.square().sum(dim=(-2, -1))

    start = Plan(mean=torch.zeros(3, horizon, 2), std=torch.ones(3, horizon, 2))
    answers = []
    for found in planner.refinements(counting, start, seeded(0)):
        assert found.evaluations == seen
        assert found.plan.mean.shape == start.mean.shape
        answers.append(found)
    assert len(answers) == planner.iterations
    again = planner.plan(counting, start, seeded(0))
    assert again.evaluations == answers[-1].evaluations
    assert torch.equal(again.plan.mean, answers[-1].plan.mean)
    assert torch.equal(again.plan.std, answers[-1].plan.std)


@pytest.mark.parametrize("planner", SMALL)
def test_a_smaller_budget_is_kept_to(planner: Any):
    small = planner.with_budget(7, 1)
    cost = towards(torch.zeros(2, 5, 2))
    found = small.plan(cost, small.initial(2, 2), seeded(0))
    assert found.evaluations == 7 * 5
    assert torch.isfinite(found.plan.std).all()


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
def test_no_gradients_are_kept_and_none_are_switched_off_in_between(planner: Any):
    weight = torch.ones((), requires_grad=True)

    def learned(actions: torch.Tensor) -> torch.Tensor:
        return weight * actions.square().sum(dim=(-2, -1))

    for found in planner.refinements(learned, planner.initial(1, 2), seeded(0)):
        assert not found.costs.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("planner", SMALL)
def test_problems_are_planned_alone_as_in_a_batch(planner: Planner):
    """With one generator per problem; the neighbours' costs, however large, change nothing."""
    target = torch.randn(3, 5, 2, generator=seeded(9))
    target[0] *= 1e3
    together = planner.plan(towards(target), planner.initial(3, 2), [seeded(i) for i in range(3)])
    for one in range(3):
        alone = planner.plan(towards(target[one : one + 1]), planner.initial(1, 2), [seeded(one)])
        assert torch.equal(together.plan.mean[one], alone.plan.mean[0])
        assert torch.equal(together.plan.std[one], alone.plan.std[0])
        assert torch.equal(together.costs[one], alone.costs[0])


@pytest.mark.parametrize("planner", SMALL)
def test_a_constant_added_to_every_cost_changes_nothing(planner: Planner):
    plain, raised = planar(), planar(offset=100.0)
    expected = planner.plan(plain, fresh(planner, plain), seeded(0))
    found = planner.plan(raised, fresh(planner, raised), seeded(0))
    torch.testing.assert_close(found.plan.mean, expected.plan.mean)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    make=st.sampled_from(BOUNDED),
    radius=st.floats(0.05, 3.0),
    ball=st.booleans(),
)
def test_bounds_are_never_violated(
    seed: int, make: Callable[[NormBound | BoxBound], Any], radius: float, ball: bool
):
    """Neither by a candidate nor by a plan, even when the start was outside and the optimum is far out."""
    bounds = NormBound(max_norm=radius) if ball else BoxBound(low=-radius, high=radius / 2)
    start = Plan(mean=torch.full((2, 5, 2), 4.0), std=torch.full((2, 5, 2), 3.0))
    cost = towards(torch.full((2, 5, 2), -50.0))
    for found in make(bounds).refinements(cost, start, seeded(seed)):
        for actions in (found.candidates, found.plan.mean):
            if ball:
                assert (actions.norm(dim=-1) <= radius * (1 + 1e-6)).all()
            else:
                low, high = torch.tensor([-radius, radius / 2])
                assert ((actions >= low) & (actions <= high)).all()


@pytest.mark.parametrize("planner", [each for each in SMALL if not isinstance(each, ICEM)])
def test_with_the_nominal_kept_the_best_candidate_is_no_worse_than_the_start(planner: Any):
    """iCEM shows its mean in the last iteration only."""
    target = torch.full((2, 5, 2), 0.1)
    start = Plan(mean=target.clone(), std=torch.ones(2, 5, 2))
    first = next(planner.refinements(towards(target), start, seeded(0)))
    assert (first.costs.amin(dim=-1) == 0).all()


@pytest.mark.parametrize("planner", [each for each in SMALL if getattr(each, "returns", "best") == "best"])
def test_best_means_the_cheapest_of_all_that_was_evaluated(planner: Any):
    target = torch.randn(2, 5, 2, generator=seeded(2))
    asked: list[torch.Tensor] = []

    def remembering(actions: torch.Tensor) -> torch.Tensor:
        asked.append(towards(target)(actions))
        return asked[-1]

    for found in planner.refinements(remembering, planner.initial(2, 2), seeded(0)):
        cheapest = torch.cat(asked, dim=1).amin(dim=1)
        torch.testing.assert_close(towards(target)(found.plan.mean[:, None])[:, 0], cheapest)


@pytest.mark.parametrize("planner", SMALL)
def test_a_warm_start_begins_where_the_last_plan_ends(planner: Any):
    """One step on, the shifted plan makes the next search end cheaper than a search from nothing."""
    problem = planar(problems=8)
    searcher = replace(planner, horizon=8, std=0.3)
    plan = CEM(samples=300, horizon=8, iterations=20).plan(problem, fresh(searcher, problem), seeded(0)).plan
    moved = problem.latent @ problem.move.T + plan.mean[:, 0] @ problem.push.T
    later = replace(problem, latent=moved)
    begin = shift(plan, 1, std=0.05)
    assert torch.equal(begin.mean[:, :-1], plan.mean[:, 1:])
    warm = searcher.plan(later, begin, [seeded(i) for i in range(8)]).plan.mean
    cold = searcher.plan(later, fresh(searcher, later), [seeded(i) for i in range(8)]).plan.mean
    assert later(warm[:, None]).sum() < later(cold[:, None]).sum()


@pytest.mark.parametrize("planner", SMALL)
def test_if_nothing_matters_the_plan_stays_near_its_start(planner: Any):
    start = Plan(mean=torch.full((4, 5, 2), 0.5), std=torch.full((4, 5, 2), 0.1))
    wide = replace(planner, std=max(planner.std, 0.1), proposal=None)
    found = wide.plan(lambda actions: torch.full(actions.shape[:2], 7.0), start, seeded(0))
    assert (found.plan.mean - 0.5).abs().max() < 0.5
    assert (found.plan.std > 0).all()
    assert 0.03 < found.plan.std.mean() < 0.3


def test_if_nothing_matters_shooting_keeps_the_nominal():
    start = Plan(mean=torch.full((4, 5, 2), 0.5), std=torch.ones(4, 5, 2))
    found = RandomShooting(samples=50).plan(lambda actions: torch.zeros(actions.shape[:2]), start, seeded(0))
    assert torch.equal(found.plan.mean, start.mean)


def test_a_bank_finds_what_noise_does_not():
    """A needle: only one recorded chunk of a thousand is cheap, and its neighbourhood is not."""
    chunks = torch.randn(1000, 6, 2, generator=seeded(4))
    needle = chunks[123]

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return 1 - ((actions - needle).abs().amax(dim=(-2, -1)) < 1e-3).float()

    plain = RandomShooting(samples=8000, horizon=6)
    banked = replace(plain, proposal=RecordedChunks(chunks=chunks, exact=1.0))
    assert plain.plan(cost, plain.initial(1, 2), seeded(0)).costs.amin() == 1
    assert torch.equal(banked.plan(cost, banked.initial(1, 2), seeded(0)).plan.mean[0], needle)


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


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="between 2 and samples=10"):
        CEM(samples=10, elites=20)
    with pytest.raises(InputError, match="momentum"):
        CEM(momentum=1.0)
    with pytest.raises(InputError, match=r"proposal=GaussianNoise\(correlation=0.5\)"):
        CEM(correlation=0.5, proposal=ColouredNoise())
