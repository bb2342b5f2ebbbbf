"""Descent ends at the Riccati optimum, from the real cost as well, and what it reports is what it saw."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_quadratic import LinearQuadratic, double_integrator, planar

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import ActionEffort, GoalDistance
from jepaplan.planners.descent import SGD, Adam, Descent, Moments, descended
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.proposals import BoxBound
from jepaplan.types import InputError, Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int, components: int) -> Plan:
    mean = torch.zeros(problems, horizon, components, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


def test_the_riccati_optimum_is_one():
    """Its cost is what the sequence costs, and no direction leads down."""
    for system in (double_integrator(final_weight=2.0, offset=3.0), planar()):
        least, actions = system.optimum(5)
        torch.testing.assert_close(system(actions[:, None])[:, 0], least)
        actions.requires_grad_(True)
        (gradient,) = torch.autograd.grad(system(actions[:, None]).sum(), actions)
        assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("system", [double_integrator(), planar(final_weight=3.0, offset=-2.0)])
@pytest.mark.parametrize("optimiser", [Adam(learning_rate=0.2), SGD(learning_rate=0.06)])
def test_descent_ends_at_the_riccati_optimum(system: LinearQuadratic, optimiser: Adam | SGD):
    least, actions = system.optimum(5)
    planner = GradientDescent(starts=3, descent=Descent(steps=200, optimiser=optimiser))
    found = planner.plan(system, blank(3, 5, actions.shape[-1]), seeded(0))
    torch.testing.assert_close(found.costs.amin(dim=-1), least, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(system(found.plan.mean[:, None])[:, 0], found.costs.amin(dim=-1))
    assert (found.plan.mean - actions).abs().max() < 0.05


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), decay=st.sampled_from([0.0, 0.3]))
def test_adam_is_the_published_one(seed: int, decay: float):
    """Against torch's implementation of the same equations."""
    goal, begin = torch.randn(2, 1, 2, 3, 2, generator=seeded(seed), dtype=torch.float64)
    reference = begin.clone().requires_grad_(True)
    theirs = torch.optim.AdamW([reference], lr=0.07, betas=(0.8, 0.95), weight_decay=decay)
    ours = Adam(learning_rate=0.07, betas=(0.8, 0.95), weight_decay=decay)
    values, moments = begin, Moments.none(begin)
    for _ in range(5):
        theirs.zero_grad()
        (reference - goal).square().sum().backward()
        theirs.step()
        values, moments = ours.step(values, 2 * (values - goal), moments)
    torch.testing.assert_close(values, reference.detach())


def test_parts_of_the_starts_at_a_time_give_the_same():
    system = planar()
    whole = GradientDescent(starts=7, descent=Descent(steps=5))
    parts = replace(whole, descent=Descent(steps=5, sequences_per_backward=3))
    one, other = (planner.plan(system, blank(3, 4, 2), seeded(1)) for planner in (whole, parts))
    torch.testing.assert_close(one.candidates, other.candidates)
    assert one.evaluations == other.evaluations


def test_what_is_returned_is_never_dearer_than_the_warm_start_even_if_every_step_leads_astray():
    system = planar()
    least, actions = system.optimum(4)
    warm = Plan(mean=actions, std=torch.ones_like(actions))
    planner = GradientDescent(starts=2, descent=Descent(steps=3, optimiser=SGD(learning_rate=1e3)))
    found = planner.plan(system, warm, seeded(0))
    torch.testing.assert_close(found.costs.amin(dim=-1), least)
    torch.testing.assert_close(found.plan.mean, actions)


def test_searches_get_cheaper_one_gradient_after_the_other():
    system = planar()
    planner = GradientDescent(starts=2, descent=Descent(steps=6))
    searches = list(planner.refinements(system, blank(3, 4, 2), seeded(0)))
    costs = torch.stack([search.costs.amin(dim=-1) for search in searches])
    assert (costs.diff(dim=0) <= 0).all()
    assert [search.evaluations for search in searches] == [24, 48, 72, 96, 120, 144, 152]


def test_a_clipped_gradient_has_its_direction_and_the_length_allowed():
    goal = torch.full((1, 2, 3), 100.0)
    still = torch.zeros(1, 1, 2, 3)
    for clip, moved in ((5.0, 0.5), (1e6, 0.1 * 2 * goal.norm().item())):
        descent = Descent(steps=1, optimiser=SGD(learning_rate=0.1), gradient_clip=clip)
        found = descended(
            lambda actions: (actions - goal[:, None]).square().sum((-2, -1)), still, descent, None
        )
        torch.testing.assert_close(found.actions.norm(), torch.tensor(moved))
        assert found.actions.unique().numel() == 1


def test_starts_of_infinite_cost_stay_where_they_are_and_the_others_go_on():
    def cost(actions: torch.Tensor) -> torch.Tensor:
        total = (actions - 0.5).square().sum(dim=(-2, -1))
        return (total / (actions[..., 0].amin(dim=-1) > -1)).where(total < 1e9, torch.inf)

    starts = torch.tensor([[-5.0], [0.0]])[None, :, None].expand(1, 2, 3, 1).clone()
    found = descended(cost, starts, Descent(steps=200), None)
    assert torch.equal(found.actions[0, 0], starts[0, 0])
    assert found.costs[0, 0].isinf()
    assert found.costs[0, 1] < 1e-3


def test_a_cost_without_gradient_is_refused():
    with pytest.raises(InputError, match="no gradient with respect to the actions"):
        GradientDescent(starts=2).plan(
            lambda actions: actions.detach().square().sum((-2, -1)), blank(1, 2, 1), seeded(0)
        )


class Units:
    def normalise(self, actions: torch.Tensor) -> torch.Tensor:
        return actions

    def inverse(self, actions: torch.Tensor) -> torch.Tensor:
        return actions


class LinearWorld:
    """The dynamics of a `LinearQuadratic`, with the face of a world model whose weights are being trained."""

    action_dim = 2
    stride = 1
    action_units = Units()

    def __init__(self, system: LinearQuadratic) -> None:
        self.move = system.move.clone().requires_grad_(True)
        self.push = system.push.clone().requires_grad_(True)

    def encode(self, observation: torch.Tensor, proprioception: torch.Tensor | None = None) -> torch.Tensor:
        return observation

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return latent @ self.move.T + action @ self.push.T

    def rollout(self, latent: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        paths = [latent[:, None].expand(-1, actions.shape[1], -1)]
        paths += [self.step(paths[-1], action) for action in actions.unbind(dim=2)]
        return torch.stack(paths, dim=2)


def squared(source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return (source - goal).square().sum(dim=-1)


@pytest.mark.parametrize("rows", [None, 5])
def test_the_real_cost_is_descended_to_its_riccati_optimum_streaming_in_chunks(rows: int | None):
    system = planar(final_weight=2.0, effort=1.0)
    terms = {
        "path": (1.0, GoalDistance(distance=squared)),
        "end": (2.0, GoalDistance(distance=squared, over="terminal")),
        "effort": (1.0, ActionEffort()),
    }
    world = LinearWorld(system)
    bound = WeightedSum(terms, chunk_rows=rows).bind(world, system.latent, system.goal)
    least, actions = system.optimum(4)
    descent = Descent(steps=60, optimiser=SGD(learning_rate=0.07))
    planner = GradientDescent(starts=4, descent=descent, bounds=BoxBound(low=-9.0, high=9.0))
    with torch.no_grad():
        found = planner.plan(bound, blank(3, 4, 2), seeded(0))
    torch.testing.assert_close(found.costs.amin(dim=-1), least, rtol=1e-3, atol=1e-3)
    assert (found.plan.mean - actions).abs().max() < 0.05
    assert world.move.grad is None


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps of descent"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"sequences_per_backward": 0}, "sequences_per_backward"),
    ],
)
def test_a_descent_that_cannot_be_is_refused(wrong: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        Descent(**wrong)
