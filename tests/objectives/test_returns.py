import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_returns import lambda_return_literally, seeded, segments

from jepaplan.objectives.returns import (
    balanced_pairs,
    lambda_returns,
    returns_to_go,
    steps_of_value,
    value_of_steps,
)
from jepaplan.types import InputError


@given(st.integers(0, 999), st.floats(0.1, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_recursion_is_the_mean_of_all_n_step_returns(seed, gamma, lam):
    rewards, terminal, following = segments(seed)
    found = lambda_returns(rewards, terminal, following, discount=gamma, trace_decay=lam)
    for item in range(3):
        for member in range(2):
            expected = lambda_return_literally(
                rewards[item].tolist(),
                terminal[item].tolist(),
                following[item, :, member].tolist(),
                gamma,
                lam,
            )
            assert found[item, :, member].tolist() == pytest.approx(expected)


def test_lambda_0_is_one_step_and_lambda_1_is_monte_carlo():
    rewards, terminal, following = segments(0)
    one_step = lambda_returns(rewards, terminal, following, discount=0.9, trace_decay=0.0)
    torch.testing.assert_close(one_step, rewards[..., None] + 0.9 * (~terminal)[..., None] * following)
    tail = 1.5
    unseen = torch.full_like(following, tail)
    unseen[:, :-1] = 1e9  # no value but the last may matter
    whole = lambda_returns(rewards, terminal, unseen[..., 0], discount=0.9, trace_decay=1.0)
    lengths = torch.full((3,), 5)
    returns = returns_to_go(rewards.flatten(), terminal.flatten(), lengths, discount=0.9, tail=tail)
    torch.testing.assert_close(whole.flatten(), returns)


def test_returns_of_episodes_of_all_lengths():
    lengths = torch.tensor([3, 1, 4])
    rewards = torch.randn(8, generator=seeded(1))
    terminal = torch.tensor([0, 1, 0, 0, 0, 0, 0, 1]).bool()
    found, start = [], 0
    for length in lengths.tolist():
        for t in range(start, start + length):
            total, weight = 0.0, 1.0
            for k in range(t, start + length):
                total += weight * rewards[k].item()
                weight *= 0.0 if terminal[k] else 0.8
            found.append(total + weight * -5.0)
        start += length
    returns = returns_to_go(rewards, terminal, lengths, discount=0.8, tail=-5.0)
    assert returns.tolist() == pytest.approx(found, rel=1e-5)
    with pytest.raises(InputError, match="need as many rewards; got 7"):
        returns_to_go(rewards[1:], terminal[1:], lengths, discount=0.8)


@given(st.floats(0.5, 1), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_steps_and_values_say_the_same(discount, steps):
    value = value_of_steps(torch.tensor([steps], dtype=torch.float64), discount)
    assert value.item() == pytest.approx(-sum(discount**k for k in range(steps)), rel=1e-9)
    if discount**steps > 1e-9:
        assert steps_of_value(value, discount).item() == pytest.approx(steps, abs=1e-4)


def test_pairs_are_of_one_episode_and_all_distances_are_equally_likely():
    lengths = torch.tensor([16, 3, 16, 9])
    earlier, later = balanced_pairs(lengths, 32_000, seeded(0))
    counts = torch.bincount(later - earlier, minlength=17)[1:]
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()
    ends = (lengths + 1).cumsum(0)
    assert torch.equal(*(torch.searchsorted(ends, frames, right=True) for frames in (earlier, later)))
    assert set(earlier[later - earlier == 16].tolist()) == {0, 21}
    assert set(earlier[later - earlier == 3].tolist()) == {*range(14), 17, *range(21, 35), *range(38, 45)}
    near, far = balanced_pairs(lengths, 1000, seeded(1), longest=2)
    assert set((far - near).tolist()) == {1, 2}
    with pytest.raises(InputError, match="longest=0"):
        balanced_pairs(lengths, 5, seeded(0), longest=0)
