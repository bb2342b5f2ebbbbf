"""Terms add up over a path as their definitions say, read literally."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_worlds import euclidean, seeded

from jepaplan.costs.terms import ActionEffort, GoalDistance, ImaginedStep, mean_square
from jepaplan.costs.value import RemainingCost
from jepaplan.types import InputError


def fold(term: GoalDistance | ActionEffort, latents: torch.Tensor, actions: torch.Tensor, goal: torch.Tensor):
    """What `term` makes of latents B S H D (the predicted ones) and actions B S H A."""
    total, horizon = None, latents.shape[2]
    for t in range(horizon):
        total = term.accumulate(
            total,
            ImaginedStep(
                index=t + 1,
                horizon=horizon,
                before=latents[:, :, t - 1] if t else torch.zeros_like(latents[:, :, 0]),
                action=actions[:, :, t],
                latent=latents[:, :, t],
                goal=goal[:, None],
            ),
        )
    return total


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), horizon=st.integers(1, 6), discount=st.floats(0.5, 1.0))
def test_every_way_to_add_up_equals_a_literal_loop(seed: int, horizon: int, discount: float):
    latents = torch.randn(2, 3, horizon, 4, generator=seeded(seed), dtype=torch.float64)
    actions = torch.randn(2, 3, horizon, 2, generator=seeded(seed + 1), dtype=torch.float64)
    goal = torch.randn(2, 4, generator=seeded(seed + 2), dtype=torch.float64)
    expected = {
        name: torch.zeros(2, 3, dtype=torch.float64) for name in ("sum", "terminal", "minimum", "discounted")
    }
    effort = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        for s in range(3):
            steps = [sum((x - g) ** 2 for x, g in zip(z, goal[b], strict=True)) ** 0.5 for z in latents[b, s]]
            expected["sum"][b, s] = sum(steps)
            expected["terminal"][b, s] = steps[-1]
            expected["minimum"][b, s] = min(steps)
            expected["discounted"][b, s] = sum(discount ** (k + 1) * d for k, d in enumerate(steps))
            effort[b, s] = sum(component**2 for action in actions[b, s] for component in action)
    for over, numbers in expected.items():
        term = GoalDistance(distance=euclidean, over=over, discount=discount if over == "discounted" else 1.0)
        torch.testing.assert_close(fold(term, latents, actions, goal), numbers)
    torch.testing.assert_close(fold(ActionEffort(), latents, actions, goal), effort)


def test_terminal_distances_are_computed_once():
    calls = 0

    def counted(source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return euclidean(source, goal)

    fold(
        GoalDistance(distance=counted, over="terminal"),
        torch.rand(1, 2, 9, 4),
        torch.rand(1, 2, 9, 2),
        torch.rand(1, 4),
    )
    assert calls == 1


@settings(deadline=None)
@given(seed=st.integers(0, 999))
def test_mean_square_equals_its_equation(seed: int):
    source = torch.randn(5, 7, 3, generator=seeded(seed), dtype=torch.float64)
    goal = torch.randn(5, 1, 3, generator=seeded(seed + 1), dtype=torch.float64)
    torch.testing.assert_close(mean_square(source, goal), (source - goal).square().mean(dim=-1))
    assert (mean_square(source, source) == 0).all()


def test_a_value_goes_in_with_its_sign_turned():
    """The state of higher value is the cheaper one."""
    latents, goal = torch.tensor([[[[0.0]], [[2.0]]]]), torch.tensor([[3.0]])
    distance = RemainingCost(lambda latent, goal: -euclidean(latent, goal))
    cost = fold(GoalDistance(distance=distance, over="terminal"), latents, torch.zeros(1, 2, 1, 1), goal)
    assert cost.tolist() == [[3.0, 1.0]]


def test_a_discount_that_would_be_ignored_is_refused():
    with pytest.raises(InputError, match="has no effect"):
        GoalDistance(distance=euclidean, over="sum", discount=0.9)
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        GoalDistance(distance=euclidean, over="discounted", discount=1.5)
