"""Normalisers undo themselves, travel with the weights and refuse what they were not made for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser, ProprioceptionNormaliser
from jepaplan.types import InputError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_normalised_actions_are_z_scores_and_come_back(seed, scale):
    actions = scale * (torch.randn(200, 3, generator=seeded(seed)) * torch.tensor([1.0, 5, 0.1]) + 2)
    units = ActionNormaliser.fit(actions)
    normal = units.normalise(actions)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(units.inverse(normal), actions, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(units.normalise(actions.view(4, 50, 3)), normal.view(4, 50, 3))


def test_an_axis_that_never_moves_keeps_its_scale():
    units = ActionNormaliser.fit(torch.tensor([[1.0, 7], [2, 7], [3, 7]]))
    assert units.normalise(torch.tensor([[2.0, 8]])).tolist() == [[0, 1]]


@pytest.mark.parametrize("shape", [(4, 3), (3,), ()])
def test_actions_of_another_width_are_refused(shape):
    units = ActionNormaliser.identity(2)
    for translate in (units.normalise, units.inverse):
        with pytest.raises(InputError, match="fitted to actions of 2 components"):
            translate(torch.zeros(shape))


def test_actions_that_are_not_numbers_are_refused():
    bad = torch.tensor([[1.0, float("nan")], [0, 1]])
    with pytest.raises(InputError, match="1 of 4 action components are not finite"):
        ActionNormaliser.fit(bad)
    with pytest.raises(InputError, match="not finite"):
        ActionNormaliser.identity(2).normalise(bad)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_what_is_felt_becomes_z_scores(seed, scale):
    felt = scale * (torch.randn(200, 3, generator=seeded(seed)) * torch.tensor([1.0, 5, 0]) + 2)
    units = ProprioceptionNormaliser.fit(felt)
    normal = units(felt)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std(0)[:2], torch.ones(2), atol=1e-3, rtol=0)
    assert torch.equal(units(felt.view(4, 50, 3)), normal.view(4, 50, 3))
    assert torch.equal(ProprioceptionNormaliser.identity(3)(felt), felt)


def test_other_proprioception_than_was_fitted_is_refused():
    with pytest.raises(InputError, match=r"shape \(5, 3\).* 2 numbers per frame"):
        ProprioceptionNormaliser.identity(2)(torch.zeros(5, 3))
    with pytest.raises(InputError, match="1 of 2 proprioceptive numbers are not finite"):
        ProprioceptionNormaliser.identity(2)(torch.tensor([1.0, float("inf")]))
    with pytest.raises(InputError, match="two recorded ones"):
        ProprioceptionNormaliser.fit(torch.zeros(1, 2))


def test_pixels_have_zero_mean_and_unit_deviation_per_channel():
    frames = torch.randint(0, 256, (300, 2, 8, 9), generator=seeded(0), dtype=torch.uint8)
    frames[:, 1] //= 4
    pixels = PixelNormaliser.fit(frames, block=64)
    normal = pixels(frames)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)
    literal = (frames.double() / 255 - pixels.mean[:, None, None]) / pixels.std[:, None, None]
    torch.testing.assert_close(normal.double(), literal, atol=1e-5, rtol=1e-5)
    assert torch.equal(pixels(frames.view(30, 10, 2, 8, 9)), normal.view(30, 10, 2, 8, 9))


def test_statistics_travel_with_the_weights_and_precision_follows_them():
    frames = torch.randint(0, 256, (20, 2, 8, 9), generator=seeded(0), dtype=torch.uint8)
    fitted = PixelNormaliser.fit(frames)
    empty = PixelNormaliser.identity((2, 8, 9))
    empty.load_state_dict(fitted.state_dict())
    assert torch.equal(empty(frames), fitted(frames))
    assert fitted.to(torch.bfloat16)(frames).dtype == torch.bfloat16
    units = ActionNormaliser.identity(2)
    units.load_state_dict(ActionNormaliser.fit(torch.randn(9, 2, generator=seeded(1)) + 3).state_dict())
    assert float(units.mean.mean()) > 1


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.zeros(4, 8, 9, 2, dtype=torch.uint8), r"\(4, 8, 9, 2\).*\(2, 8, 9\).*movedim"),
        (torch.zeros(4, 2, 9, 9, dtype=torch.uint8), r"\(4, 2, 9, 9\).*\(2, 8, 9\); resize"),
        (torch.zeros(4, 3, 8, 9, dtype=torch.uint8), r"\(4, 3, 8, 9\).*\(2, 8, 9\)"),
        (torch.zeros(8, 9, dtype=torch.uint8), r"\(8, 9\).*\(2, 8, 9\)"),
        (torch.zeros(4, 2, 8, 9), r"\(4, 2, 8, 9\) are torch.float32, expected uint8.*\(255 \* pixels\)"),
    ],
)
def test_other_images_are_refused_with_both_shapes(pixels, message):
    with pytest.raises(InputError, match=message):
        PixelNormaliser.identity((2, 8, 9))(pixels)
