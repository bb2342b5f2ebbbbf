"""The weights are a softmin, whatever the scale and the offset of the costs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import floats, integers

from jepaplan.planners.mppi import MPPI, path_integral_weights, standardised
from jepaplan.planners.proposals import NormBound
from jepaplan.types import InputError, Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(seed=integers(0, 999), offset=floats(-1e3, 1e3), temperature=floats(0.1, 10))
def test_weights_ignore_a_constant_added_to_every_cost(seed: int, offset: float, temperature: float):
    costs = torch.randn(2, 64, generator=seeded(seed), dtype=torch.float64)
    weights = path_integral_weights(costs, temperature)
    torch.testing.assert_close(path_integral_weights(costs + offset, temperature), weights)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, dtype=torch.float64))


@settings(deadline=None)
@given(seed=integers(0, 999))
def test_weights_follow_the_samples_when_they_are_reordered(seed: int):
    costs = torch.randn(2, 64, generator=seeded(seed), dtype=torch.float64)
    order = torch.randperm(64, generator=seeded(seed + 1))
    torch.testing.assert_close(
        path_integral_weights(costs[:, order], 0.5), path_integral_weights(costs, 0.5)[:, order]
    )


@settings(deadline=None)
@given(seed=integers(0, 99), temperature=st.sampled_from([0.005, 0.5, 5.0]))
def test_weights_equal_the_equation(seed: int, temperature: float):
    costs = torch.rand(1, 8, generator=seeded(seed), dtype=torch.float64)
    scores = [math.exp(-cost / temperature) for cost in costs[0].tolist()]
    expected = torch.tensor([[score / sum(scores) for score in scores]], dtype=torch.float64)
    torch.testing.assert_close(path_integral_weights(costs, temperature), expected)


def test_temperature_zero_limit_is_the_best_and_infinity_the_average():
    costs = torch.tensor([[3.0, 1.0, 2.0]])
    assert path_integral_weights(costs, 1e-4).tolist() == [[0, 1, 0]]
    torch.testing.assert_close(path_integral_weights(costs, 1e8), torch.full((1, 3), 1 / 3))


@settings(deadline=None)
@given(seed=integers(0, 999), factor=floats(1e-3, 1e3), offset=floats(-10, 10))
def test_standardised_costs_have_no_unit(seed: int, factor: float, offset: float):
    costs = torch.randn(3, 32, generator=seeded(seed), dtype=torch.float64)
    torch.testing.assert_close(
        standardised(factor * costs + offset), standardised(costs), rtol=1e-6, atol=1e-6
    )


def test_equal_costs_weigh_equally_and_forbidden_samples_not_at_all():
    assert path_integral_weights(standardised(torch.full((1, 4), 7.0)), 0.1).tolist() == [[0.25] * 4]
    forbidden = path_integral_weights(standardised(torch.tensor([[1.0, 1.0, math.inf]])), 0.1)
    assert forbidden.tolist() == [[0.5, 0.5, 0.0]]


def test_one_update_equals_a_literal_transcription_of_the_paper():
    """U <- U + sum_k w_k eps_k with the noise left after clipping; control cost lambda U^T Sigma^-1 eps."""
    temperature, std, radius = 0.3, 1.5, 1.0
    planner = MPPI(
        samples=6,
        horizon=3,
        temperature=temperature,
        std=std,
        bounds=NormBound(max_norm=radius),
        cost_scaling="none",
        keep_nominal=False,
        control_cost=True,
    )
    start = Plan(mean=torch.full((1, 3, 2), 0.3), std=torch.full((1, 3, 2), std))

    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - 1).square().sum(dim=(-2, -1))

    found = planner.plan(cost, start, seeded(0)).plan.mean[0]

    noise = torch.randn(1, 6, 3, 2, generator=seeded(0))[0] * std
    scores, effective = [], []
    for k in range(6):
        total, kept = 0.0, torch.zeros(3, 2)
        for t in range(3):
            action = start.mean[0, t] + noise[k, t]
            action = action * min(1.0, radius / action.norm().item())
            kept[t] = action - start.mean[0, t]
            total += (action - 1).square().sum().item()
            total += temperature * (start.mean[0, t] * kept[t] / std**2).sum().item()
        effective.append(kept)
        scores.append(math.exp(-total / temperature))
    update = sum(score / sum(scores) * kept for score, kept in zip(scores, effective, strict=True))
    torch.testing.assert_close(found, start.mean[0] + update)


def test_std_is_refitted_only_when_asked():
    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - 0.5).square().sum(dim=(-2, -1))

    constant = MPPI(samples=64, horizon=2, iterations=5)
    refitted = MPPI(samples=64, horizon=2, iterations=5, std_min=0.05)
    assert (constant.plan(cost, constant.initial(1, 2), seeded(0)).plan.std == 1).all()
    std = refitted.plan(cost, refitted.initial(1, 2), seeded(0)).plan.std
    assert ((std >= 0.05) & (std < 0.6)).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature divides the cost"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"std": -1.0}, "std is the standard deviation"),
        ({"correlation": 1.0}, "correlation of the noise"),
        ({"std_min": 2.0}, "std_min must lie in"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        MPPI(**wrong)


def test_elites_equal_a_literal_transcription_of_td_mpc2():
    """Weights exp(0.5 (value - best)) of the top k refit mean and deviation; a value is minus a cost."""
    planner = MPPI(
        samples=12, horizon=3, iterations=2, temperature=2.0, std_min=0.05, elites=4, cost_scaling="none"
    )

    def value(actions: torch.Tensor) -> torch.Tensor:
        return -(actions - 0.5).square().sum(dim=(-2, -1))

    found = planner.plan(lambda actions: -value(actions), planner.initial(1, 2), seeded(0)).plan

    mean, std, generator = torch.zeros(3, 2), torch.ones(3, 2), seeded(0)
    for _ in range(2):
        noise = torch.randn(1, 12, 3, 2, generator=generator)[0]
        samples = sorted([mean, *(mean + std * noise[1:])], key=lambda each: -value(each).item())[:4]
        scores = [math.exp(0.5 * (value(each) - value(samples[0])).item()) for each in samples]
        weights = [score / sum(scores) for score in scores]
        mean = sum((w * each for w, each in zip(weights, samples, strict=True)), torch.zeros(3, 2))
        variance = sum(
            (w * (each - mean).square() for w, each in zip(weights, samples, strict=True)), torch.zeros(3, 2)
        )
        std = variance.sqrt().clamp(min=0.05)
    torch.testing.assert_close(found.mean[0], mean)
    torch.testing.assert_close(found.std[0], std)


def test_all_as_elites_are_no_elites():
    def cost(actions: torch.Tensor) -> torch.Tensor:
        return (actions - 0.5).square().sum(dim=(-2, -1))

    few = MPPI(samples=30, horizon=3, elites=30)
    everyone = MPPI(samples=30, horizon=3)
    found, expected = (each.plan(cost, each.initial(2, 2), seeded(0)).plan for each in (few, everyone))
    assert torch.equal(found.mean, expected.mean)
    with pytest.raises(InputError, match="between 1 and samples=30"):
        MPPI(samples=30, elites=31)
