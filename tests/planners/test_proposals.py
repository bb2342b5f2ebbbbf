"""Bounds hold, noise deviates and correlates as it claims, and a warm start is the tail of the plan."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.proposals import (
    BoxBound,
    NormBound,
    draw,
    keep,
    shift,
    std_from_variance,
    unit_noise,
)
from jepaplan.types import InputError, Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat_plan(problems: int, horizon: int, std: float = 1.0) -> Plan:
    mean = torch.zeros(problems, horizon, 2)
    return Plan(mean=mean, std=torch.full_like(mean, std))


@settings(deadline=None)
@given(seed=st.integers(0, 999), radius=st.floats(1e-3, 1e3), scale=st.floats(1e-3, 1e4))
def test_norm_bound_is_the_nearest_point_of_the_ball(seed: int, radius: float, scale: float):
    actions = scale * torch.randn(64, 3, generator=seeded(seed), dtype=torch.float64)
    projected = NormBound(max_norm=radius).project(actions)
    assert (projected.norm(dim=-1) <= radius * (1 + 1e-12)).all()
    inside = actions.norm(dim=-1) <= radius
    torch.testing.assert_close(projected[inside], actions[inside])
    torch.testing.assert_close(
        projected / projected.norm(dim=-1, keepdim=True), actions / actions.norm(dim=-1, keepdim=True)
    )
    torch.testing.assert_close(NormBound(max_norm=radius).project(projected), projected)


@settings(deadline=None)
@given(seed=st.integers(0, 999), low=st.floats(-5, 0), width=st.floats(0.1, 5))
def test_box_bound_holds_and_leaves_the_inside_alone(seed: int, low: float, width: float):
    actions = 5 * torch.randn(64, 2, generator=seeded(seed), dtype=torch.float64)
    bound = BoxBound(low=(low, low - 1), high=low + width)
    projected = bound.project(actions)
    assert (projected >= torch.tensor([low, low - 1], dtype=torch.float64)).all()
    assert (projected <= low + width).all()
    torch.testing.assert_close(bound.project(projected), projected)


def test_zero_actions_survive_the_norm_bound():
    assert (NormBound(max_norm=1.0).project(torch.zeros(3, 2)) == 0).all()


def test_a_box_for_another_action_space_is_refused():
    with pytest.raises(InputError, match="actions have 2 components and low has 3"):
        BoxBound(low=(0.0, 0.0, 0.0), high=1.0).project(torch.zeros(4, 2))


def test_empty_boxes_and_balls_are_refused():
    with pytest.raises(InputError, match="low < high"):
        BoxBound(low=(0.0, 1.0), high=(1.0, 1.0))
    with pytest.raises(InputError, match="low < high"):
        BoxBound(low=(0.0, 2.0), high=1.0)
    with pytest.raises(InputError, match="max_norm"):
        NormBound(max_norm=0.0)


@settings(max_examples=10, deadline=None)
@given(correlation=st.sampled_from([0.0, 0.5, 0.9]), seed=st.integers(0, 99))
def test_correlated_noise_keeps_the_deviation_of_every_step(correlation: float, seed: int):
    noise = unit_noise(flat_plan(1, 6), 20000, correlation, seeded(seed))[0]
    assert noise.std(dim=0).sub(1).abs().max() < 0.05
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean(dim=0)
    assert neighbours.sub(correlation).abs().max() < 0.05


def test_correlated_noise_reaches_further():
    plan = flat_plan(1, 96)
    reach = {c: unit_noise(plan, 4000, c, seeded(0)).sum(dim=2).std().item() for c in (0.0, 0.9)}
    assert reach[0.0] == pytest.approx(math.sqrt(96), rel=0.05)
    assert reach[0.9] > 3.5 * reach[0.0]


def test_a_variance_is_not_a_deviation():
    candidates = draw(flat_plan(1, 4, std_from_variance(12.0)), 20000, seeded(0), bounds=None)
    assert candidates.var().item() == pytest.approx(12.0, rel=0.05)


def test_the_first_candidate_is_the_projected_mean():
    plan = Plan(mean=torch.full((2, 3, 2), 5.0), std=torch.ones(2, 3, 2))
    candidates = draw(plan, 7, seeded(0), bounds=BoxBound())
    assert (candidates[:, 0] == 1).all()
    assert not (draw(plan, 7, seeded(0), bounds=None, keep_nominal=False)[:, 0] == plan.mean).any()


def test_with_its_own_generator_a_problem_is_dealt_the_same_noise_in_any_batch():
    together = unit_noise(flat_plan(3, 5), 11, 0.5, [seeded(1), seeded(2), seeded(3)])
    alone = unit_noise(flat_plan(1, 5), 11, 0.5, [seeded(3)])
    assert torch.equal(together[2], alone[0])
    with pytest.raises(InputError, match="2 generators for 3 problems"):
        unit_noise(flat_plan(3, 5), 11, 0.5, [seeded(1), seeded(2)])


def test_shift_drops_what_was_executed_and_pads_with_zeros():
    plan = Plan(mean=torch.arange(1.0, 9).view(2, 4, 1), std=torch.full((2, 4, 1), 0.1))
    moved = shift(plan, 1, std=2.0)
    assert moved.mean[:, :, 0].tolist() == [[2, 3, 4, 0], [6, 7, 8, 0]]
    assert (moved.std == 2).all()
    each = shift(plan, torch.tensor([0, 3]), std=2.0)
    assert each.mean[:, :, 0].tolist() == [[1, 2, 3, 4], [8, 0, 0, 0]]
    assert (shift(plan, 4, std=2.0).mean == 0).all()


def test_keep_moves_nothing_but_the_deviation():
    plan = Plan(mean=torch.arange(1.0, 9).view(2, 4, 1), std=torch.full((2, 4, 1), 0.1))
    again = keep(plan, std=3.0)
    assert torch.equal(again.mean, plan.mean)
    assert (again.std == 3).all()
