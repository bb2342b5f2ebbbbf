"""A beam that is wide enough is exhaustive; a narrow one keeps what is promising and apart."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_quadratic import LinearQuadratic, planar

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import ActionEffort, GoalDistance, mean_square
from jepaplan.planners import stepwise
from jepaplan.planners.beam import BeamSearch, spread_out
from jepaplan.planners.stepwise import follow
from jepaplan.types import InputError, Plan

COMPASS = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)[:, None]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int, components: int) -> Plan:
    mean = torch.zeros(problems, horizon, components, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


def exhaustive(
    system: LinearQuadratic, bank: torch.Tensor, choices: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cheapest of all sequences of `choices` chunks, and what they all cost, sorted."""
    every = torch.tensor(list(itertools.product(range(len(bank)), repeat=choices)))
    paths = bank[every].flatten(1, 2).expand(len(system.latent), -1, -1, -1)
    costs = system(paths)
    return paths[torch.arange(len(paths)), costs.argmin(dim=-1)], costs.sort(dim=-1).values


@pytest.mark.parametrize("final_weight", [0.0, 2.0])
def test_wide_enough_it_equals_exhaustive_search_at_depth_3(final_weight: float):
    system = planar(final_weight=final_weight)
    best, costs = exhaustive(system, COMPASS, 3)
    planner = BeamSearch(width=64, branches=4, bank=COMPASS, keep_nominal=False)
    found = planner.plan(system, blank(3, 3, 2), seeded(0))
    torch.testing.assert_close(found.costs.sort(dim=-1).values, costs)
    torch.testing.assert_close(found.plan.mean, best)
    assert found.evaluations == 4 + 16 + 64


def test_recorded_chunks_are_taken_whole_and_cut_at_the_horizon():
    system = planar(final_weight=1.0)
    chunks = torch.randn(5, 2, 2, generator=seeded(1), dtype=torch.float64)
    best, costs = exhaustive(system, chunks, 2)
    planner = BeamSearch(width=25, branches=5, bank=chunks, keep_nominal=False)
    found = planner.plan(system, blank(3, 4, 2), seeded(0))
    torch.testing.assert_close(found.plan.mean, best)
    torch.testing.assert_close(found.costs.sort(dim=-1).values, costs)
    cut = planner.plan(system, blank(3, 3, 2), seeded(0))
    torch.testing.assert_close(system(cut.candidates), cut.costs)
    assert cut.evaluations == 5 * 2 + 25


def test_one_greedy_path_takes_the_best_step_every_time():
    system = planar()
    latents, expected = system.latent[:, None], []
    for _ in range(3):
        steps = [system.expand(latents, COMPASS[choice].expand(3, 1, 2), 1, 3) for choice in range(4)]
        choice = torch.cat([step.step_cost + step.to_go for step in steps], dim=1).argmin(dim=-1)
        latents = torch.stack([step.latents for step in steps], dim=1)[torch.arange(3), choice]
        expected.append(COMPASS[choice, 0])
    planner = BeamSearch(width=1, branches=4, bank=COMPASS, keep_nominal=False)
    found = planner.plan(system, blank(3, 3, 2), seeded(0))
    torch.testing.assert_close(found.plan.mean, torch.stack(expected, dim=1))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), apart=st.sampled_from([0.0, 0.3]))
def test_costs_are_those_of_the_paths_and_none_is_dearer_than_the_plan_it_began_with(seed: int, apart: float):
    system = planar(final_weight=1.0)
    warm = blank(3, 4, 2)
    warm.mean[:] = system.optimum(4)[1] if seed % 2 else 1.0
    found = BeamSearch(width=5, branches=3, apart=apart).plan(system, warm, seeded(seed))
    torch.testing.assert_close(system(found.candidates), found.costs)
    torch.testing.assert_close(follow(system, found.candidates).costs, found.costs)
    torch.testing.assert_close(found.candidates[:, 0], warm.mean)
    assert (found.costs.amin(dim=-1) <= found.costs[:, 0]).all()


def test_more_width_and_branches_come_nearer_to_the_optimum():
    system = planar(8)
    least, _ = system.optimum(5)
    excess = []
    for width, branches in ((2, 4), (16, 16), (64, 64)):
        found = BeamSearch(width=width, branches=branches).plan(system, blank(8, 5, 2), seeded(0))
        excess.append((found.costs.amin(dim=-1) - least).mean().item())
    assert excess[0] > 2 * excess[1] > 4 * excess[2]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), apart=st.floats(0.01, 2.0), count=st.integers(1, 12))
def test_what_is_kept_lies_apart_as_long_as_that_is_possible(seed: int, apart: float, count: int):
    """Against the rule written out one point after the other."""
    points = torch.randn(2, 12, 2, generator=seeded(seed))
    rank = torch.randn(2, 12, generator=seeded(seed + 1))
    kept = spread_out(rank, points, count, apart)
    for problem in range(2):
        order = rank[problem].argsort().tolist()
        expected: list[int] = []
        while len(expected) < count:
            left = [point for point in order if point not in expected]
            far = [
                point
                for point in left
                if all(
                    (points[problem, point] - points[problem, other]).norm() >= apart for other in expected
                )
            ]
            expected.append((far or left)[0])
        assert kept[problem].tolist() == expected


def test_the_real_cost_is_searched_and_its_costs_are_those_of_whole_sequences():
    class Units:
        def normalise(self, actions: torch.Tensor) -> torch.Tensor:
            return actions

        def inverse(self, actions: torch.Tensor) -> torch.Tensor:
            return actions

    class Saturating:
        action_dim, stride, action_units = 2, 1, Units()

        def encode(
            self, observation: torch.Tensor, proprioception: torch.Tensor | None = None
        ) -> torch.Tensor:
            return observation

        def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return torch.tanh(latent + 0.5 * action)

        def rollout(self, latent: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            paths = [latent[:, None].expand(-1, actions.shape[1], -1)]
            paths += [self.step(paths[-1], action) for action in actions.unbind(dim=2)]
            return torch.stack(paths, dim=2)

    terms = {
        "path": (1.0, GoalDistance(distance=mean_square)),
        "end": (2.0, GoalDistance(distance=mean_square, over="terminal")),
        "effort": (0.1, ActionEffort()),
    }
    latent, goal = torch.randn(2, 3, 2, generator=seeded(0))
    bound = WeightedSum(terms).bind(Saturating(), latent, goal)
    start = Plan(mean=torch.zeros(3, 4, 2), std=torch.ones(3, 4, 2))
    found = BeamSearch(width=8, branches=8).plan(bound, start, seeded(0))
    torch.testing.assert_close(bound(found.candidates), found.costs)
    assert (found.costs.amin(dim=-1) < bound(start.mean[:, None])[:, 0]).all()


def test_dead_ends_and_undefined_costs_are_refused():
    planner = BeamSearch(width=2, branches=3)
    with pytest.raises(InputError, match="every path of some problem costs infinity"):
        planner.plan(planar(offset=torch.inf), blank(3, 2, 2), seeded(0))
    with pytest.raises(InputError, match="to_go is NaN"):
        planner.plan(planar(offset=torch.nan), blank(3, 2, 2), seeded(0))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"branches": 1}, "branches must be at least 2"),
        ({"apart": -1.0}, "apart is a distance"),
        ({"bank": torch.zeros(0, 1, 2)}, "recorded chunks"),
        ({"bank_weights": torch.ones(3)}, "no bank"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        BeamSearch(**wrong)


@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_children_are_imagined_some_at_a_time_where_they_take_much_memory(
    apart: float, monkeypatch: pytest.MonkeyPatch
):
    problem = planar(3, final_weight=1.0)
    planner, start = BeamSearch(width=4, branches=5, apart=apart), blank(3, 4, 2)
    whole = planner.plan(problem, start, seeded(0))
    calls = len(problem.rows)
    monkeypatch.setattr(stepwise, "AT_ONCE", 3 * problem.latent.numel() * problem.latent.element_size())
    parts = planner.plan(problem, start, seeded(0))
    assert len(problem.rows) - calls > calls
    assert parts.evaluations == whole.evaluations
    torch.testing.assert_close(parts.candidates, whole.candidates)
    torch.testing.assert_close(parts.costs, whole.costs)
