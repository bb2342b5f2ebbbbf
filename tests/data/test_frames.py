"""Frames as pictures and back: the same bits, and words for every picture that is not a frame."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jepaplan.data.frames import frame_to_picture, picture_to_frame
from jepaplan.types import InputError


@given(channels=st.sampled_from([1, 2, 3]), size=st.integers(1, 20), seed=st.integers(0, 99))
def test_there_and_back_is_the_identity(tmp_path_factory, channels, size, seed):
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randint(256, (channels, size, size), generator=generator, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("frames") / "frame.png"
    frame_to_picture(frame).save(path)
    assert torch.equal(picture_to_frame(path, channels, size), frame)


def test_red_is_channel_0_and_green_is_channel_1():
    frame = torch.zeros(2, 2, 3, dtype=torch.uint8)
    frame[0, 0, 1], frame[1, 1, 2] = 200, 100
    picture = np.asarray(frame_to_picture(frame))
    assert picture.shape == (2, 3, 3)
    assert picture[0, 1].tolist() == [200, 0, 0]
    assert picture[1, 2].tolist() == [0, 100, 0]


def refusal(path, channels=2, size=8):
    with pytest.raises(InputError) as told:
        picture_to_frame(path, channels, size)
    words = str(told.value)
    assert str(path) in words
    return words


def test_wrong_pictures_are_refused_by_what_came_and_what_was_expected(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 8)).save(path)
    assert "has 9 x 8 pixels; expected 8 x 8" in refusal(path)
    for mode in ("RGBA", "L", "P", "1", "I;16"):
        Image.new(mode, (8, 8)).save(path)
        assert "; expected RGB" in refusal(path)
    Image.new("RGB", (8, 8)).save(path)
    assert "is a picture of kind RGB; expected L" in refusal(path, channels=1)
    Image.new("RGB", (8, 8), (0, 0, 7)).save(path)
    assert "the blue channel is not empty" in refusal(path)


def test_no_picture_at_all(tmp_path):
    path = tmp_path / "a.png"
    assert "there is no such file" in refusal(path)
    assert "there is no such file" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "cannot be read as a PNG" in refusal(path)
    path.write_bytes(b"not a picture")
    assert "cannot be read as a PNG" in refusal(path)
    Image.new("RGB", (8, 8)).save(path, format="JPEG")
    assert "cannot be read as a PNG" in refusal(path)


def test_a_png_that_was_cut_or_flipped_never_gives_a_frame(tmp_path):
    path = tmp_path / "a.png"
    levels = torch.randint(256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frame_to_picture(levels).save(path)
    whole = path.read_bytes()
    for kept in (10, 40, len(whole) - 30):
        path.write_bytes(whole[:kept])
        assert "cannot be read as a PNG" in refusal(path, channels=3)
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    assert "cannot be read as a PNG" in refusal(path, channels=3)


@pytest.mark.parametrize("channels", [0, 4])
def test_other_channels_have_no_picture(tmp_path, channels):
    with pytest.raises(InputError, match="1, 2 or 3 channels"):
        frame_to_picture(torch.zeros(channels, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="1, 2 or 3 channels"):
        picture_to_frame(tmp_path / "a.png", channels, 4)
