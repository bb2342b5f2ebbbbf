"""The target encoder: where it moves, what it never touches, and that prediction aims at it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jepaplan.objectives.ema import MovingAverage, decay_after
from jepaplan.objectives.total import RegulariserConfig
from jepaplan.types import InputError


def network(seed):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made[1].running_mean.normal_()
    return made


def tensors(module):
    return [tensor.clone() for tensor in module.parameters()]


@given(st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_one_step_is_the_published_one(decay, seed):
    source = network(seed)
    average = MovingAverage(source)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
        source[1].running_mean.normal_()
    before = tensors(average.average)
    average.follow(decay)
    for kept, old, new in zip(average.average.parameters(), before, source.parameters(), strict=True):
        torch.testing.assert_close(kept, decay * old + (1 - decay) * new)
    assert torch.equal(average.average[1].running_mean, source[1].running_mean)


def test_a_decay_of_zero_copies_and_of_one_freezes_to_the_bit():
    for decay in (0.0, 1.0):
        source = network(0)
        average = MovingAverage(source)
        frozen = tensors(average.average)
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.mul_(1e3).add_(0.1)
        average.follow(decay)
        expected = frozen if decay == 1 else list(source.parameters())
        kept = list(average.average.parameters())
        assert all(torch.equal(one, other) for one, other in zip(kept, expected, strict=True))


def test_the_average_never_learns_and_is_saved_once():
    source = network(0)
    average = MovingAverage(source)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())
    assert all(name.startswith("average.") for name in average.state_dict())
    inputs = torch.randn(5, 3)
    (source(inputs) - average.average(inputs)).square().sum().backward()
    assert all(parameter.grad is None for parameter in average.parameters())


def test_decays_go_along_a_line():
    assert decay_after(0, 100, (0.996, 1.0)) == 0.996
    assert decay_after(50, 100, (0.996, 1.0)) == pytest.approx(0.998)
    assert decay_after(100, 100, (0.996, 1.0)) == 1.0
    assert decay_after(7, 100, (0.99, 0.99)) == 0.99


@pytest.mark.parametrize("decays", [(-0.1, 1.0), (0.9, 1.1)])
def test_impossible_decays_are_refused(decays):
    with pytest.raises(InputError, match=r"a decay lies in \[0, 1\]"):
        RegulariserConfig(target_decay=decays)
