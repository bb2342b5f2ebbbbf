"""Likelihoods are those of Gaussians, and the best of them is found where it is known."""

import math

import pytest
import torch

from jepaplan.models.goal_inverse_dynamics import GoalInverseDynamics, GoalInverseDynamicsConfig
from jepaplan.objectives.action_likelihood import ActionLikelihoodObjective, gaussian_nll
from jepaplan.objectives.td import ReturnBatch
from jepaplan.types import InputError


def test_the_loss_is_minus_the_log_density():
    mean, log_std, actions = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions)
    torch.testing.assert_close(gaussian_nll(mean, log_std, actions), -density.sum(-1).mean())


def random_walks(steps, count, generator):
    """Beginnings, ends and first actions of walks through z' = z + B a."""
    moves = torch.tensor([[0.5, 0.2], [0.0, 0.3]])  # B
    actions = torch.randn(count, steps, 2, generator=generator)
    latents = torch.randn(count, 2, generator=generator)
    goals = latents + actions.sum(1) @ moves.T
    batch = ReturnBatch(
        latents=latents, returns=torch.zeros(count), goals=goals, actions=actions[:, 0].clone()
    )
    return batch, torch.linalg.solve(moves, (goals - latents).T).T / steps


@pytest.mark.parametrize("steps", [1, 4])
def test_steps_of_a_random_walk_are_an_equal_part_of_the_way_each(steps):
    """E[a_1 | a_1 + ... + a_k] = the sum / k, with variance 1 - 1 / k: the regression that is known."""
    torch.manual_seed(0)
    config = GoalInverseDynamicsConfig(hidden=32, norm=False, std_min=0.02)
    objective = ActionLikelihoodObjective(GoalInverseDynamics(2, 2, config))
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.01)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        loss, _ = objective(random_walks(steps, 512, generator)[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    batch, known = random_walks(steps, 2000, generator)
    with torch.no_grad():
        mean, log_std = objective.prior(batch.latents, batch.goals)
        _, metrics = objective(batch)
    assert (mean - known).square().mean().sqrt() < 0.2 * known.std()
    expected = max(math.sqrt(1 - 1 / steps), 0.02)
    assert log_std.exp().mean().item() == pytest.approx(expected, rel=0.1, abs=0.06)
    assert metrics["squared_error"].item() == pytest.approx(1 - 1 / steps, abs=0.05)


def test_batches_without_goals_or_actions_are_refused():
    objective = ActionLikelihoodObjective(GoalInverseDynamics(2, 2))
    with pytest.raises(InputError, match="goals=none, actions=some"):
        objective(ReturnBatch(latents=torch.zeros(3, 2), returns=torch.zeros(3), actions=torch.zeros(3, 2)))
