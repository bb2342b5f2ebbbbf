"""A latent of map, point and what is felt, and the predictor that looks around on it."""

import pytest
import torch

from jepaplan.models.local_predictor import LocalPredictor, LocalPredictorConfig
from jepaplan.models.scene_map import SceneMapConfig, SceneMapEncoder
from jepaplan.models.value_heads import InverseDynamics
from jepaplan.types import InputError

SMALL = SceneMapConfig(
    image_channels=3, image_size=32, map_channels=2, channels=8, keypoints=4, proprioception_dim=2
)


def predictor(config=SMALL, **changes):
    torch.manual_seed(0)
    made = LocalPredictor(config, action_dim=2, config=LocalPredictorConfig(hidden=16, **changes))
    torch.nn.init.normal_(made.last.weight)  # it begins by standing still
    return made


def latents(config, count, generator, points=None):
    still = torch.randn(count, config.map_width, generator=generator)
    points = torch.rand(count, 2, generator=generator) - 0.5 if points is None else points
    return torch.cat([still, points, torch.randn(count, config.proprioception_dim, generator=generator)], 1)


def test_a_latent_is_the_map_the_point_and_what_is_felt():
    torch.manual_seed(0)
    encoder = SceneMapEncoder(SMALL)
    pixels, felt = torch.randn(5, 3, 32, 32), torch.randn(5, 2)
    latent, looks = encoder.attend(pixels, felt)
    assert latent.shape == (5, encoder.latent_width) == (5, 2 * 64 + 2 + 2)
    assert looks.shape == (5, 4, 64)
    assert torch.equal(latent[:, -2:], felt)
    assert torch.equal(encoder(pixels, felt), latent)


def test_the_point_is_where_the_keypoints_look():
    encoder = SceneMapEncoder(SMALL)
    with torch.no_grad():  # attention is the brightness of the first channel in the middle of each cell
        for layer in (encoder.body[0], encoder.body[2], encoder.attention):
            layer.weight.zero_()
            layer.bias.zero_()
        encoder.body[0].weight[0, 0, 2:6, 2:6] = 1
        encoder.body[2].weight[0, 0, 1, 1] = 1
        encoder.attention.weight[:, 0] = 10
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[0, 0, 8:12, 20:24] = 1  # row 2, column 5 of 8 x 8 cells
    pixels[1, 0, 28:32, 0:4] = 1
    point = encoder(pixels, torch.zeros(2, 2))[:, -4:-2]
    cells = torch.tensor([[5.0, 2.0], [0.0, 7.0]])
    assert torch.allclose(point, 2 * (cells / 3.5 - 1), atol=1e-3)
    pixel = LocalPredictor(SMALL, 2).places(encoder(pixels, torch.zeros(2, 2)))
    assert torch.allclose(pixel, 4 * cells + 1.5, atol=0.05)


def test_a_shifted_map_and_point_move_alike():
    """What happens at a place is decided by its surroundings alone."""
    made, generator = predictor(window=3), torch.Generator().manual_seed(1)
    latent, action = latents(SMALL, 6, generator), torch.randn(6, 2, generator=generator)
    maps = latent[:, : SMALL.map_width].view(6, 2, 8, 8)
    shifted = latent.clone()
    shifted[:, : SMALL.map_width] = maps.roll((1, -1), (2, 3)).flatten(1)
    shifted[:, SMALL.map_width : SMALL.map_width + 2] += torch.tensor([-1.0, 1.0]) * 2 / 3.5
    here = made(latent, action)[:, made.moves_from :] - latent[:, made.moves_from :]
    there = made(shifted, action)[:, made.moves_from :] - shifted[:, made.moves_from :]
    assert here.abs().min() > 1e-4
    assert torch.allclose(here, there, atol=1e-5)


def test_it_sees_no_further_than_its_window():
    made, generator = predictor(window=3, spacing=2.0), torch.Generator().manual_seed(1)
    latent = latents(SMALL, 1, generator, points=torch.zeros(1, 2))
    action = torch.zeros(1, 2)
    near, far = latent.clone(), latent.clone()
    near[:, : SMALL.map_width].view(1, 2, 8, 8)[:, :, 4, 4] += 1
    far[:, : SMALL.map_width].view(1, 2, 8, 8)[:, :, 6, 6] += 1
    moved = made.moves_from
    assert not torch.allclose(made(near, action)[:, moved:], made(latent, action)[:, moved:])
    assert torch.equal(made(far, action)[:, moved:], made(latent, action)[:, moved:])


def test_the_map_stays_and_an_untrained_predictor_stands_still():
    generator = torch.Generator().manual_seed(0)
    latent, action = latents(SMALL, 4, generator), torch.randn(4, 2, generator=generator)
    assert torch.equal(predictor()(latent, action)[:, : SMALL.map_width], latent[:, : SMALL.map_width])
    assert torch.equal(LocalPredictor(SMALL, 2)(latent, action), latent)


def test_inverse_dynamics_reads_only_what_moves():
    torch.manual_seed(0)
    inverse, generator = InverseDynamics(10, 2, hidden=8, moves_from=6), torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 10, generator=generator)
    other = first.clone()
    other[:, :6] = 0
    assert torch.equal(inverse(first, second), inverse(other, second))
    assert inverse.layers[0].in_features == 8


def test_wrong_input_is_refused_in_words():
    with pytest.raises(InputError, match="multiple of 4, at least 8; got 30"):
        SceneMapConfig(image_size=30)
    with pytest.raises(InputError, match="positive channels"):
        SceneMapConfig(keypoints=0)
    with pytest.raises(InputError, match="an odd window"):
        LocalPredictorConfig(window=4)
    with pytest.raises(InputError, match="got 0 proprioceptive numbers"):
        SceneMapEncoder(SMALL)(torch.zeros(1, 3, 32, 32))
