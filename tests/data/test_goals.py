"""Goals in a trajectory stay in it and lie ahead; mixtures mix in their proportions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.goals import GoalMixture
from jepaplan.data.windows import Windows
from jepaplan.types import InputError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    mixture=st.sampled_from(
        [
            GoalMixture(uniform=1.0),
            GoalMixture(geometric=1.0, geometric_mean=3.0),
            GoalMixture(geometric=1.0, geometric_mean=1.0),
            GoalMixture(geometric=1.0, geometric_mean=1e12),
            GoalMixture(last=1.0, uniform=2.0, geometric=3.0),
        ]
    ),
)
def test_goals_of_the_trajectory_are_ahead_in_the_same_episode(small, steps, seed, mixture):
    index = Windows(small, steps).sample(16, seeded(seed))
    goals = mixture.sample(index, small, seeded(seed + 1))
    assert goals.shape == index.actions.shape
    assert (goals > index.frames[:, :-1]).all()
    assert (goals <= (small.starts + small.lengths)[index.episode][:, None]).all()


def test_last_is_the_end_of_the_window_and_batch_is_in_the_batch(small):
    index = Windows(small, 4).sample(500, seeded(0))
    last = GoalMixture(last=1.0).sample(index, small, seeded(1))
    assert torch.equal(last, index.frames[:, -1:].expand(-1, 4))
    batch = GoalMixture(batch=1.0).sample(index, small, seeded(1))
    assert torch.isin(batch, index.frames).all()
    assert len(batch.unique()) == len(index.frames.unique())


def test_laws_of_the_distance_ahead(small):
    # Windows of 12 actions are all of episode 2: 12 frames lie ahead of its first one.
    index = Windows(small, 12).sample(40_000, seeded(0))
    ahead = GoalMixture(uniform=1.0).sample(index, small, seeded(1))[:, 0] - index.frames[:, 0]
    counts = ahead.bincount(minlength=13)[1:]
    assert ((counts - 40_000 / 12).abs() < 5 * (40_000 / 12) ** 0.5).all()
    ahead = (
        GoalMixture(geometric=1.0, geometric_mean=4.0).sample(index, small, seeded(1))[:, 0]
        - index.frames[:, 0]
    )
    for k in range(1, 6):
        expected = 0.25 * 0.75 ** (k - 1)
        assert float((ahead == k).float().mean()) == pytest.approx(expected, abs=0.012)
    assert float((ahead == 12).float().mean()) == pytest.approx(0.75**11, abs=0.012)


def test_proportions_of_the_mixture(small):
    index = Windows(small, 12).sample(2000, seeded(0))
    goals = GoalMixture(last=3.0, geometric=1.0, geometric_mean=1.0).sample(index, small, seeded(1))
    is_last = goals[:, :-1] == index.frames[:, -1:]
    assert float(is_last.float().mean()) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    "wrong", [{}, {"last": -1.0, "batch": 2.0}, {"last": float("nan")}, {"last": 1.0, "geometric_mean": 0.5}]
)
def test_mixtures_of_nothing_are_refused(wrong):
    with pytest.raises(InputError):
        GoalMixture(**wrong)
