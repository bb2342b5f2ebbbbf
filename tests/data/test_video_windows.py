"""Windows: which frames of a file, of any rate and length, make up a clip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.video_windows import ClipConfig, scaled_size, window_indices


def clock(frames, fps):
    return torch.arange(frames, dtype=torch.float64) / fps


@settings(deadline=None)
@given(
    frames=st.integers(1, 40),
    window=st.integers(1, 10),
    fps=st.floats(1, 60),
    wanted=st.floats(0.5, 60),
    position=st.floats(0, 1),
    resample=st.sampled_from(["step", "linspace", "timestamps"]),
)
def test_every_window_lies_in_the_file_and_goes_forward(frames, window, fps, wanted, position, resample):
    config = ClipConfig(frames=window, fps=wanted, resample=resample)
    indices = window_indices(clock(frames, fps), fps, config, position)
    assert len(indices) == window
    assert (indices >= 0).all()
    assert (indices < frames).all()
    assert (indices.diff() >= 0).all()


@pytest.mark.parametrize(
    "fps,wanted,step",
    [(30.0, 4.0, 7), (29.97, 4.0, 7), (25.0, 4.0, 6), (8.000001, 4.0, 2), (12.0, 5.0, 2), (3.0, 4.0, 1)],
)
def test_the_step_is_the_rounded_up_rate_over_the_wanted_one(fps, wanted, step):
    indices = window_indices(clock(200, fps), fps, ClipConfig(frames=5, fps=wanted), 0.5)
    assert (indices.diff() == step).all()


def test_positions_spread_windows_evenly_from_the_first_to_the_last():
    config = ClipConfig(frames=8, fps=4.0)
    starts = [int(window_indices(clock(20, 8), 8.0, config, k / 600)[0]) for k in range(600)]
    assert torch.tensor(starts).bincount().tolist() == [100] * 6
    assert window_indices(clock(20, 8), 8.0, config, 1.0).tolist() == [5, 7, 9, 11, 13, 15, 17, 19]


def test_short_films_repeat_their_last_frame():
    config = ClipConfig(frames=6, fps=4.0)
    assert window_indices(clock(5, 8), 8.0, config, 0.9).tolist() == [0, 2, 4, 4, 4, 4]
    assert window_indices(clock(1, 8), 8.0, config, 0.9).tolist() == [0] * 6


def test_their_rounding_by_hand():
    """16 frames over 8 windows: 0, 16/7, 32/7 ... rounded down, the last one kept inside."""
    config = ClipConfig(frames=8, fps=4.0, resample="linspace")
    assert window_indices(clock(40, 8), 8.0, config, 0.0).tolist() == [0, 2, 4, 6, 9, 11, 13, 15]
    assert window_indices(clock(10, 8), 8.0, config, 0.0).tolist() == [0, 2, 5, 7, 9, 9, 9, 9]


def test_films_of_varying_rate_show_what_was_on_at_each_tick():
    times = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.1, 2.0], dtype=torch.float64)
    config = ClipConfig(frames=4, fps=2.0, resample="timestamps")
    assert window_indices(times, 3.0, config, 0.0).tolist() == [0, 2, 3, 4]  # at 0, 0.5, 1.0 and 1.5 seconds
    assert window_indices(times, 3.0, config, 1.0).tolist() == [2, 3, 4, 5]  # at 0.5, 1.0, 1.5 and 2.0


def test_windows_keep_within_their_part():
    config = ClipConfig(frames=4, fps=None)
    for position in (0.0, 0.5, 1.0):
        indices = window_indices(clock(100, 10), 10.0, config, position, (2.0, 3.0))
        assert indices[0] >= 20
        assert indices[-1] <= 30
    assert window_indices(clock(100, 10), 10.0, config, 0.5, (2.31, 2.33)).tolist() == [24] * 4
    assert window_indices(clock(100, 10), 10.0, config, 0.5, (50.0, 60.0)).tolist() == [99] * 4


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), shorter=st.integers(1, 500))
def test_the_shorter_side_is_what_was_asked(height, width, shorter):
    scaled = scaled_size(height, width, shorter)
    assert min(scaled) == shorter
    assert scaled[0] / scaled[1] == pytest.approx(height / width, rel=0.5 / min(scaled) + 1e-6)
    assert scaled_size(height, width, None) == (height, width)
