"""Coloured noise has the spectrum that it claims and the plan's deviation; uniform noise fills the bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.noise import ColouredNoise, UniformNoise, coloured
from jepaplan.planners.proposals import BoxBound, GaussianNoise, NormBound
from jepaplan.types import InputError, Plan


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plan_of(horizon: int, mean: float = 0.0, std: float = 1.0, components: int = 2) -> Plan:
    return Plan(
        mean=torch.full((1, horizon, components), mean), std=torch.full((1, horizon, components), std)
    )


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("horizon", [64, 65])
def test_power_falls_with_frequency_as_the_exponent_says(exponent: float, horizon: int):
    noise = ColouredNoise(exponent=exponent).sample(plan_of(horizon), 4000, seeded(0))[0].double()
    power = torch.fft.rfft(noise, dim=1).abs().square().mean(dim=(0, 2))
    inside = slice(1, (horizon - 1) // 2 + 1)  # the mean and Nyquist's frequency are real, so they differ
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64)
    slope, _ = np.polyfit(frequency[inside].log().numpy(), power[inside].log().numpy(), 1)
    assert slope == pytest.approx(-exponent, abs=0.03)


@settings(max_examples=20, deadline=None)
@given(exponent=st.floats(0, 4), horizon=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_step_deviates_as_the_plan_says(exponent: float, horizon: int, seed: int):
    drawn = ColouredNoise(exponent=exponent).sample(plan_of(horizon, mean=3.0, std=0.5), 8000, seeded(seed))[
        0
    ]
    assert (drawn.std(dim=0) - 0.5).abs().max() < 0.03
    assert (drawn.mean(dim=0) - 3.0).abs().max() < 0.05


def test_white_is_gaussian_noise_to_the_bit_and_one_step_has_no_colour():
    for horizon, exponent in ((9, 0.0), (1, 2.0)):
        white = GaussianNoise().sample(plan_of(horizon), 50, seeded(3))
        again = ColouredNoise(exponent=exponent).sample(plan_of(horizon), 50, seeded(3))
        torch.testing.assert_close(again, white, rtol=0, atol=0 if exponent == 0 else 1e-6)


def test_the_filter_equals_a_sum_of_waves():
    """The same written out: each frequency of the white noise, damped by f^-1, added up wave by wave."""
    horizon, exponent = 6, 2.0
    white = torch.randn(1, 1, horizon, 1, generator=seeded(0), dtype=torch.float64)
    n, t = white[0, 0, :, 0].numpy(), np.arange(horizon)
    damping = [max(min(k, horizon - k) / horizon, 1 / horizon) ** (-exponent / 2) for k in range(horizon)]
    scale = np.sqrt(np.mean(np.square(damping)))
    expected = np.zeros(horizon)
    for k in range(horizon):
        amplitude = np.sum(n * np.exp(-2j * np.pi * k * t / horizon)) / horizon
        expected += np.real(damping[k] / scale * amplitude * np.exp(2j * np.pi * k * t / horizon))
    np.testing.assert_allclose(coloured(white, exponent)[0, 0, :, 0].numpy(), expected, atol=1e-12)


def test_half_precision_stays_half_precision():
    plan = Plan(mean=torch.zeros(1, 8, 2).bfloat16(), std=torch.ones(1, 8, 2).bfloat16())
    assert ColouredNoise().sample(plan, 4, seeded(0)).dtype == torch.bfloat16


def test_uniform_noise_fills_a_box_evenly():
    box = BoxBound(low=(-1.0, 0.0), high=(3.0, 1.0))
    drawn = UniformNoise(bounds=box).sample(plan_of(4, mean=50.0), 5000, seeded(0))[0].flatten(0, 1)
    for component, (low, high) in enumerate(((-1.0, 3.0), (0.0, 1.0))):
        quarters = torch.histc(drawn[:, component], bins=4, min=low, max=high) / len(drawn)
        torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.02)


@pytest.mark.parametrize("components", [1, 2, 4])
def test_uniform_noise_fills_a_ball_evenly(components: int):
    """The share within half the radius is that of the volume, and no direction is preferred."""
    ball = NormBound(max_norm=2.0)
    drawn = UniformNoise(bounds=ball).sample(plan_of(4, components=components), 5000, seeded(0))[0]
    norm = drawn.flatten(0, 1).norm(dim=-1)
    assert norm.max() <= 2 * (1 + 1e-6)
    assert (norm < 1).float().mean().item() == pytest.approx(0.5**components, abs=0.01)
    assert drawn.mean(dim=(0, 1)).abs().max() < 0.05


def test_blue_noise_is_refused():
    with pytest.raises(InputError, match="0 or more; got -1"):
        ColouredNoise(exponent=-1.0)
