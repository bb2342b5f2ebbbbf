"""iCEM does what its algorithm says, line by line, and smooth noise helps where plans are smooth."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from jepaplan.planners.icem import ICEM
from jepaplan.planners.noise import ColouredNoise
from jepaplan.planners.proposals import GaussianNoise, NormBound
from jepaplan.types import InputError, Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_population_decays_to_two_per_elite_and_elites_that_stay_are_not_asked_again():
    planner = ICEM(samples=100, elites=10, iterations=12, horizon=3, decay=1.25, reused=0.3)
    asked: list[int] = []

    def cost(actions: torch.Tensor) -> torch.Tensor:
        asked.append(actions.shape[1])
        return actions.square().sum(dim=(-2, -1))

    found = list(planner.refinements(cost, planner.initial(1, 2), seeded(0)))
    assert asked == [100, 80, 64, 51, 40, 32, 26, 20, 20, 20, 20, 20]
    assert [each.candidates.shape[1] for each in found] == [100] + [count + 3 for count in asked[1:]]
    assert found[-1].evaluations == 3 * sum(asked)


def test_the_plan_equals_a_literal_transcription_of_the_algorithm():
    """Algorithm 1 of the paper for one problem, without elites from the environment step before."""
    planner = ICEM(samples=12, elites=4, iterations=4, horizon=5, momentum=0.1, decay=1.5, reused=0.5)
    target = torch.linspace(-1, 1, 10).view(5, 2)

    def price(actions: torch.Tensor) -> torch.Tensor:
        return (actions - target).square().sum(dim=(-2, -1))

    start = planner.initial(1, 2)
    found = planner.plan(price, start, seeded(0))

    generator, noise = seeded(0), ColouredNoise(exponent=2.0)
    mean, std, elites = start.mean[0], start.std[0], []
    everything = []
    for iteration in range(4):
        count = max(int(12 * 1.5**-iteration), 8)
        plan = Plan(mean=mean[None], std=std[None])
        samples = list(noise.sample(plan, count, generator)[0])
        if iteration == 3:
            samples[0] = mean
        samples += elites[:2]
        samples.sort(key=lambda actions: price(actions).item())
        everything += samples
        elites = samples[:4]
        mean = 0.9 * torch.stack(elites).mean(dim=0) + 0.1 * mean
        std = (0.9 * torch.stack(elites).std(dim=0) + 0.1 * std).clamp(min=0.05)
    best = min(everything, key=lambda actions: price(actions).item())
    torch.testing.assert_close(found.plan.mean[0], best)
    torch.testing.assert_close(found.plan.std[0], std)


def test_the_best_never_gets_worse():
    planner = ICEM(samples=30, elites=5, iterations=8, horizon=6)
    target = torch.randn(4, 6, 2, generator=seeded(1))

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - target[:, None]).square().sum(dim=(-2, -1))

    answers = [
        cost(found.plan.mean[:, None])[:, 0]
        for found in planner.refinements(cost, planner.initial(4, 2), seeded(0))
    ]
    for before, after in pairwise(answers):
        assert (after <= before).all()


def test_smooth_noise_walks_far_where_white_noise_trembles():
    """Steps of a bounded length must add up to a long way: the sum of white noise hardly ever does."""

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions.sum(dim=2) - 12.0).norm(dim=-1)

    planner = ICEM(samples=40, elites=6, iterations=2, horizon=24, std=0.5, bounds=NormBound(max_norm=1.0))
    smooth, white = (
        each.plan(cost, each.initial(8, 2), [seeded(i) for i in range(8)]).plan.mean
        for each in (planner, replace(planner, exponent=0.0))
    )
    assert (cost(smooth[:, None]) < 0.8 * cost(white[:, None])).all()


def test_another_proposal_takes_the_place_of_coloured_noise():
    planner = ICEM(samples=20, elites=4, iterations=2, horizon=5, exponent=0.0)
    white = replace(planner, exponent=3.0, proposal=GaussianNoise())

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - 1).square().sum(dim=(-2, -1))

    expected, found = (each.plan(cost, each.initial(1, 2), seeded(0)).plan for each in (planner, white))
    assert torch.equal(found.mean, expected.mean)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"decay": 0.5}, "decay divides the samples"),
        ({"reused": 1.5}, "share of the elites that stay"),
        ({"exponent": -1.0}, "0 or more"),
        ({"elites": 200}, "between 2 and samples=100"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        ICEM(**wrong)
