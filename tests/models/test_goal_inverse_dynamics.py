"""Bounded deviations, and goals of which only what moves is read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.models.goal_inverse_dynamics import GoalInverseDynamics, GoalInverseDynamicsConfig
from jepaplan.types import InputError


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 1e4), norm=st.booleans())
def test_deviations_stay_between_their_bounds(seed: int, scale: float, norm: bool):
    torch.manual_seed(seed)
    config = GoalInverseDynamicsConfig(hidden=8, norm=norm, std_min=0.1, std_max=0.7)
    mean, log_std = GoalInverseDynamics(3, 2, config)(*(scale * torch.randn(2, 5, 4, 3)))
    assert mean.shape == log_std.shape == (5, 4, 2)
    assert (log_std.exp() >= 0.1 - 1e-6).all()
    assert (log_std.exp() <= 0.7 + 1e-6).all()


def test_one_goal_serves_many_latents():
    torch.manual_seed(0)
    model, latents, goal = GoalInverseDynamics(3, 2), torch.randn(4, 3), torch.randn(1, 3)
    torch.testing.assert_close(model(latents, goal), model(latents, goal.expand(4, 3)))


def test_the_map_of_a_goal_is_not_read():
    torch.manual_seed(0)
    model = GoalInverseDynamics(10, 2, GoalInverseDynamicsConfig(hidden=16), moves_from=6)
    latent, goal = torch.randn(2, 5, 10)
    elsewhere = torch.cat([torch.randn(5, 6), goal[:, 6:]], dim=1)
    assert torch.equal(model(latent, goal)[0], model(latent, elsewhere)[0])
    assert not torch.equal(model(latent, goal)[0], model(elsewhere, goal)[0])


def test_nonsense_is_refused():
    with pytest.raises(InputError, match=r"std_min=0.5, std_max=0.1. Write std_min=0.05"):
        GoalInverseDynamicsConfig(std_min=0.5, std_max=0.1)
    with pytest.raises(InputError, match="hidden=8, layers=0"):
        GoalInverseDynamicsConfig(hidden=8, layers=0)
