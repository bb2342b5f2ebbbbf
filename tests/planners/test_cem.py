"""The cross-entropy method does what its equations say."""

import pytest
import torch

from jepaplan.planners.cem import CEM
from jepaplan.planners.noise import ColouredNoise
from jepaplan.planners.proposals import BoxBound
from jepaplan.types import Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cost(actions: torch.Tensor) -> torch.Tensor:
    return (actions - torch.linspace(-1, 1, 8).view(4, 2)).square().sum(dim=(-2, -1))


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_the_plan_equals_a_literal_transcription(momentum: float):
    planner = CEM(
        samples=15,
        elites=4,
        iterations=3,
        horizon=4,
        momentum=momentum,
        std_min=0.1,
        bounds=BoxBound(),
        proposal=ColouredNoise(exponent=1.0),
    )
    start = planner.initial(1, 2)
    found = planner.plan(cost, start, seeded(0)).plan

    mean, std, generator = start.mean[0], start.std[0], seeded(0)
    for _ in range(3):
        drawn = ColouredNoise(exponent=1.0).sample(Plan(mean=mean[None], std=std[None]), 15, generator)
        samples = [mean, *drawn[0, 1:]]
        samples = sorted((actions.clamp(-1, 1) for actions in samples), key=lambda each: cost(each).item())
        elites = torch.stack(samples[:4])
        mean = ((1 - momentum) * elites.mean(dim=0) + momentum * mean).clamp(-1, 1)
        std = ((1 - momentum) * elites.std(dim=0) + momentum * std).clamp(min=0.1)
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.std[0], std)


def test_returning_the_best_changes_the_answer_and_nothing_of_the_search():
    mean = CEM(samples=20, elites=5, iterations=4, horizon=4)
    best = CEM(samples=20, elites=5, iterations=4, horizon=4, returns="best")
    expected, found = (planner.plan(cost, planner.initial(3, 2), seeded(0)) for planner in (mean, best))
    assert torch.equal(found.candidates, expected.candidates)
    assert torch.equal(found.plan.std, expected.plan.std)
    assert (cost(found.plan.mean[:, None])[:, 0] <= found.costs.amin(dim=1) + 1e-6).all()


def test_a_smaller_budget_has_the_same_share_of_elites():
    planner = CEM(samples=300, elites=30)
    assert planner.with_budget(100, 2) == CEM(samples=100, elites=10, iterations=2)
    assert planner.with_budget(4, 1).elites == 2
