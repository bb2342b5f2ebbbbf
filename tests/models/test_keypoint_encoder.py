"""Points read to a fraction of a pixel, and which part of the latent sees what."""

import pytest
import torch
from torch import nn

from jepaplan.models.keypoint_encoder import KeypointConfig, KeypointEncoder
from jepaplan.types import InputError

SMALL = KeypointConfig(
    image_channels=1,
    image_size=32,
    scene_width=2,
    state_width=2,
    channels=1,
    keypoints=1,
    scene_channels=1,
    hidden=4,
)


def dot(x, y, size=32, std=2.0):
    """A bright dot at (x, y), in pixels from the centre of the first one."""
    line = torch.arange(size, dtype=torch.float32)
    return torch.exp(-((line[None] - x) ** 2 + (line[:, None] - y) ** 2) / (2 * std**2))[None, None]


def transparent(encoder):
    """Hand-set weights: the map is the mean brightness of its patch; the state is the point itself."""
    with torch.no_grad():
        for convolution in (encoder.body[0], encoder.body[2], encoder.maps):
            convolution.weight.zero_()
            convolution.bias.zero_()
        encoder.body[0].weight.fill_(1 / 64)
        encoder.body[2].weight[..., 1, 1] = 1
        encoder.maps.weight.fill_(1)
        encoder.log_sharpness.fill_(2.5)
    encoder.state = nn.Identity()
    return encoder


def point(encoder, image):
    return encoder(image)[0, encoder.config.scene_width :][:2] / 2.0  # in [-1, 1], before the scale


@pytest.mark.parametrize("x, y", [(15.5, 15.5), (9.5, 21.5), (20.0, 12.0), (17.3, 11.1)])
def test_the_point_of_a_bright_dot_is_where_it_is(x, y):
    encoder = transparent(KeypointEncoder(SMALL))
    found = point(encoder, 3 * dot(x, y))
    # Patches have their centres at 1.5, 5.5, ... 29.5 pixels: the first is -1, the last is 1.
    expected = torch.tensor([(x - 15.5) / 14, (y - 15.5) / 14])
    torch.testing.assert_close(found, expected, atol=1 / 14, rtol=0)  # one pixel


def test_a_quarter_of_a_pixel_moves_the_point_by_a_quarter_of_a_pixel():
    encoder = transparent(KeypointEncoder(SMALL))
    places = torch.arange(12.0, 20.0, 0.25)
    found = torch.stack([point(encoder, 3 * dot(float(x), 15.5)) for x in places]).detach()
    steps = found[1:, 0] - found[:-1, 0]
    assert (steps > 0).all()
    assert float(found[-1, 0] - found[0, 0]) == pytest.approx(float(places[-1] - places[0]) / 14, rel=0.15)
    assert found[:, 1].abs().max() < 1e-3


def test_any_encoder_sees_a_fraction_of_a_pixel():
    torch.manual_seed(0)
    encoder = KeypointEncoder(KeypointConfig(image_channels=1, image_size=32))
    here, there = encoder(dot(15.5, 15.5)), encoder(dot(15.75, 15.5))
    assert (here - there).abs().max() > 1e-5


def test_the_state_reads_points_and_not_the_map():
    """What changes the flattened map alone changes the scene alone."""
    torch.manual_seed(0)
    encoder = KeypointEncoder(KeypointConfig(image_channels=1, image_size=32, scene_width=3, state_width=5))
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    before = encoder(image)
    assert before.shape == (2, encoder.latent_width) == (2, 8)
    with torch.no_grad():
        encoder.flat[0].weight.add_(1.0)
    after = encoder(image)
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert not torch.allclose(after[:, :3], before[:, :3])


def test_without_a_scene_there_is_only_the_state():
    encoder = KeypointEncoder(KeypointConfig(image_channels=1, image_size=32, scene_width=0, state_width=5))
    assert encoder(torch.zeros(3, 1, 32, 32)).shape == (3, 5)
    assert not hasattr(encoder, "scene")


def test_parameters_are_as_many_as_the_layers_say():
    config = KeypointConfig(image_channels=2, image_size=64, scene_width=16, state_width=32)
    convolutions = (2 * 64 * 32 + 32) + (32 * 9 * 32 + 32) + (32 * 32 + 32) + 1
    state = 96 * 256 + 256 + 256 * 32 + 32
    scene = (32 * 8 + 8) + (96 + 8 * 256) * 256 + 256 + 256 * 16 + 16
    found = sum(parameter.numel() for parameter in KeypointEncoder(config).parameters())
    assert found == convolutions + state + scene


def test_wrong_input_is_refused_in_words():
    with pytest.raises(InputError, match="multiple of 4, at least 8; got 30"):
        KeypointConfig(image_size=30)
    with pytest.raises(InputError, match="scene_width >= 0"):
        KeypointConfig(scene_width=-1)
    with pytest.raises(InputError, match="takes images only"):
        KeypointEncoder(SMALL)(torch.zeros(1, 1, 32, 32), torch.zeros(1, 3))
