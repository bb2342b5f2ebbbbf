"""What gradient and tree planners owe: honest counts, allowed actions, and problems that do not mix."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_quadratic import LinearQuadratic, planar

from jepaplan.interfaces import Planner, SequenceCost, StepwiseCost
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import SGD, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.proposals import BoxBound, NormBound
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.types import Plan

BANK = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
SHORT = Descent(steps=2, gradient_clip=10.0)
SMALL = [
    GradientDescent(starts=3, descent=SHORT),
    GradientCEM(samples=8, elites=3, iterations=2, descent=SHORT),
    Collocation(starts=2, steps=4, synchronise_every=3, shooting=SHORT),
    Collocation(starts=2, steps=3, stop_gradient=True, shooting=None, optimiser=SGD(learning_rate=0.1)),
    BeamSearch(width=3, branches=4),
    BeamSearch(width=3, branches=4, bank=BANK, apart=0.2),
    TreeSearch(simulations=11, leaves=3, branches=4),
    TreeSearch(simulations=9, leaves=1, branches=4, bank=BANK, backup="least", unfinished="to_go"),
    TreeSearch(simulations=13, leaves=2, branches=5, rule=GumbelHalving(considered_actions=4)),
]
NAMES = [f"{type(planner).__name__}-{number}" for number, planner in enumerate(SMALL)]
every_planner = pytest.mark.parametrize("planner", SMALL, ids=NAMES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int) -> Plan:
    mean = torch.zeros(problems, horizon, 2, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


def system(problems: int = 3, **changes: float) -> LinearQuadratic:
    return planar(problems, final_weight=1.0, **changes)


def test_the_test_system_is_both_kinds_of_cost():
    assert isinstance(system(), SequenceCost)
    assert isinstance(system(), StepwiseCost)


@every_planner
def test_they_have_the_face_of_a_planner(planner: Planner):
    assert isinstance(planner, Planner)
    fresh = planner.initial(2, 3)
    assert fresh.mean.shape == (2, planner.horizon, 3)
    assert (fresh.mean == 0).all()
    assert (fresh.std == 1).all()


@every_planner
@pytest.mark.parametrize("horizon", [1, 5])
def test_evaluations_are_counted_exactly_at_every_look(planner: Planner, horizon: int):
    cost = system()
    for found in planner.refinements(cost, blank(3, horizon), seeded(0)):
        assert found.evaluations == sum(cost.rows)
        assert found.plan.mean.shape == (3, horizon, 2)
        assert found.candidates.shape[:2] == found.costs.shape
    last = planner.plan(cost, blank(3, horizon), seeded(0))
    assert torch.equal(last.plan.mean, found.plan.mean)
    assert 2 * last.evaluations == sum(cost.rows)


@every_planner
def test_the_seed_decides_everything_and_the_global_generator_is_left_alone(planner: Planner):
    before = torch.get_rng_state()
    once, again, other = (planner.plan(system(), blank(3, 4), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(once.candidates, again.candidates)
    assert torch.equal(once.costs, again.costs)
    assert not torch.equal(once.candidates, other.candidates)
    assert torch.equal(torch.get_rng_state(), before)


@every_planner
def test_a_problem_is_planned_alone_as_in_a_batch(planner: Planner):
    """With one generator per problem; the neighbours' costs, however large, change nothing."""
    cost = system(3)
    cost.goal[0] *= 1e4
    together = planner.plan(cost, blank(3, 4), [seeded(i) for i in range(3)])
    alone = planner.plan(cost.only(slice(2, 3)), blank(1, 4), [seeded(2)])
    torch.testing.assert_close(together.plan.mean[2:], alone.plan.mean)
    torch.testing.assert_close(together.candidates[2:], alone.candidates)
    torch.testing.assert_close(together.costs[2:], alone.costs)
    assert together.evaluations == alone.evaluations


@every_planner
def test_a_warm_start_ends_cheaper_than_a_search_from_nothing(planner: Planner):
    """One step on, the tail of the best plan is where the next search begins."""
    before = system(8)
    _, best = before.optimum(6)
    later = replace(before, latent=before.latent @ before.move.T + best[:, 0] @ before.push.T, rows=[])
    tail = torch.cat([best[:, 1:], torch.zeros_like(best[:, :1])], dim=1)
    generators = [[seeded(problem) for problem in range(8)] for _ in range(2)]
    warm, cold = (
        planner.plan(later, Plan(mean=mean, std=torch.full_like(mean, 0.3)), own).plan.mean
        for mean, own in zip((tail, torch.zeros_like(tail)), generators, strict=True)
    )
    assert later(warm[:, None]).sum() < later(cold[:, None]).sum()


@every_planner
def test_a_constant_added_to_every_cost_changes_nothing_but_the_costs(planner: Planner):
    plain, raised = (planner.plan(system(offset=offset), blank(3, 4), seeded(0)) for offset in (0.0, 50.0))
    torch.testing.assert_close(raised.plan.mean, plain.plan.mean)
    torch.testing.assert_close(raised.costs, plain.costs + 50.0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    which=st.integers(0, len(SMALL) - 1),
    radius=st.floats(0.05, 3.0),
    ball=st.booleans(),
)
def test_bounds_are_never_violated(seed: int, which: int, radius: float, ball: bool):
    """Neither by a candidate nor by the plan, nor by what the cost is asked."""
    bounds = NormBound(max_norm=radius) if ball else BoxBound(low=radius / 3, high=radius)
    asked: list[torch.Tensor] = []

    class Watching(LinearQuadratic):
        def __call__(self, actions: torch.Tensor) -> torch.Tensor:
            asked.append(actions.detach())
            return super().__call__(actions)

        def expand(self, latents, actions, depth, horizon):
            asked.append(actions.detach())
            return super().expand(latents, actions, depth, horizon)

    start = Plan(mean=blank(2, 3).mean + 4.0, std=blank(2, 3).std * 3)
    cost = Watching(**{**vars(system(2)), "rows": []})
    found = replace(SMALL[which], bounds=bounds).plan(cost, start, seeded(seed))
    for actions in (found.candidates, found.plan.mean, *asked):
        if ball:
            assert (actions.norm(dim=-1) <= radius * (1 + 1e-6)).all()
        else:
            assert ((actions >= radius / 3 - 1e-12) & (actions <= radius + 1e-12)).all()


@pytest.mark.parametrize("planner", SMALL[:-1], ids=NAMES[:-1])
def test_the_plan_is_the_cheapest_candidate_unless_gumbel_answers(planner: Planner):
    found = planner.plan(system(), blank(3, 4), seeded(0))
    best = found.costs.argmin(dim=-1)
    assert torch.equal(found.plan.mean, found.candidates[torch.arange(3), best])


@every_planner
def test_float32_stays_float32(planner: Planner):
    start = Plan(mean=blank(3, 4).mean.float(), std=blank(3, 4).std.float())
    found = planner.plan(planar(3, dtype=torch.float32), start, seeded(0))
    assert found.plan.mean.dtype == found.costs.dtype == torch.float32


@pytest.mark.parametrize(
    "planner, gap",
    [
        (BeamSearch(width=8, branches=16), 0.02),
        (TreeSearch(simulations=300), 0.002),
        (TreeSearch(simulations=300, backup="least"), 0.002),
        (TreeSearch(simulations=300, siblings=4), 0.002),
        (TreeSearch(simulations=600, rule=GumbelHalving(noise_scale=0.0)), 0.002),
    ],
    ids=["beam", "puct", "puct-least", "puct-siblings", "gumbel"],
)
def test_searches_that_sample_actions_end_at_the_riccati_optimum(
    planner: BeamSearch | TreeSearch, gap: float
):
    """Asked again around what they answered, with actions ever closer to it, on paths seen to their end."""
    problem, noise = planar(12), seeded(0)
    least, _ = problem.optimum(2)
    start = blank(12, 2)
    start = replace(start, std=3 * start.std)
    rounds: list[torch.Tensor] = []
    for _ in range(16):
        found = planner.plan(problem, start, noise)
        rounds.append(problem(found.plan.mean[:, None])[:, 0])
        start = Plan(found.plan.mean, 0.7 * start.std)
    assert (rounds[0] > 1.05 * least).any()
    assert ((rounds[-1] >= least * (1 - 1e-9)) & (rounds[-1] <= (1 + gap) * least)).all()
