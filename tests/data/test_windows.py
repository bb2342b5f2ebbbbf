"""Windows hold what was recorded, stay in their episode, and are all equally likely."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.windows import Windows
from jepaplan.types import InputError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_windows_never_cross_episodes_and_hold_what_was_recorded(small, steps, seed):
    windows = Windows(small, steps)
    index = windows.sample(20, seeded(seed))
    batch = windows.gather(index)
    first, last = small.starts[index.episode], (small.starts + small.lengths)[index.episode]
    assert (index.frames >= first[:, None]).all()
    assert (index.frames <= last[:, None]).all()
    assert (index.frames.diff(dim=1) == 1).all()
    assert torch.equal(batch.observations[:, :, 0, 0, 0].long(), index.frames)
    assert torch.equal(batch.proprioception[:, :, 0].long(), index.frames)
    for row in range(20):
        episode = int(index.episode[row])
        for t in range(steps):
            offset = int(index.frames[row, t] - small.starts[episode])
            action = int(small.lengths[:episode].sum()) + offset
            assert torch.equal(batch.actions[row, t], small.actions[action])


def test_every_window_has_one_number(small):
    windows = Windows(small, 3)
    assert len(windows) == sum(max(0, length - 2) for length in (5, 1, 12, 3, 7, 5))
    index = windows.index(torch.arange(len(windows)))
    assert len(index.frames[:, 0].unique()) == len(windows)
    assert set(index.episode.tolist()) == {0, 2, 3, 4, 5}


def test_all_windows_are_equally_likely_and_follow_from_the_generator(small):
    windows = Windows(small, 3)
    index = windows.sample(50_000, seeded(0))
    _, counts = index.frames[:, 0].unique(return_counts=True)
    expected = 50_000 / len(windows)
    assert len(counts) == len(windows)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert torch.equal(windows.sample(9, seeded(4)).frames, windows.sample(9, seeded(4)).frames)


@pytest.mark.parametrize("steps", [0, 13])
def test_windows_that_fit_nowhere_are_refused(small, steps):
    with pytest.raises(InputError, match=r"the longest episode of .* has 12"):
        Windows(small, steps)
