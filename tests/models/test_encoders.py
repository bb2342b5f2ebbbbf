import pytest
import torch

from jepaplan.models.encoders import (
    CompactConfig,
    CompactEncoder,
    ImpalaConfig,
    ImpalaEncoder,
    expectation_and_level,
    spatial_expectation,
)
from jepaplan.types import InputError


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def convolution(before, after, kernel=3):
    return after * (before * kernel**2 + 1)


@pytest.mark.parametrize(("channels", "with_norm"), [(2, 2_219_120), (3, 2_219_264)])
def test_impala_has_the_parameters_of_the_paper(channels, with_norm):
    """2.2 million, arXiv:2601.00844; the sum written out, and the totals known in advance."""
    body = 0
    for before, after in ((channels, 16), (16, 32), (32, 64)):
        body += convolution(before, after) + 2 * convolution(after, after)
    head = 64 * 8 * 8 * 512 + 512
    assert count(ImpalaEncoder(ImpalaConfig(image_channels=channels))) == body + head == with_norm - 2 * 512
    assert count(ImpalaEncoder(ImpalaConfig(image_channels=channels, final_norm=True))) == with_norm


def test_proprioception_enters_the_last_linear_layer_only():
    plain, felt = ImpalaEncoder(), ImpalaEncoder(ImpalaConfig(proprioception_dim=2))
    assert count(felt) - count(plain) == 2 * 512
    pixels = torch.randn(3, 2, 64, 64)
    body = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    moved = felt(pixels, body) - felt(pixels, torch.zeros(3, 2))
    torch.testing.assert_close(moved, body @ felt.head.linear.weight[:, -2:].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", ["flatten", "keypoints"])
def test_proprioception_must_be_what_the_encoder_was_built_for(readout):
    encoder = CompactEncoder(CompactConfig(readout=readout, proprioception_dim=2, latent_width=32))
    pixels = torch.randn(3, 2, 64, 64)
    assert encoder(pixels, torch.zeros(3, 2)).shape == (3, 32)
    with pytest.raises(InputError, match="proprioception_dim=2"):
        encoder(pixels)
    with pytest.raises(InputError, match="Leave proprioception out"):
        CompactEncoder(CompactConfig(readout=readout))(pixels, torch.zeros(3, 2))


@pytest.mark.parametrize("build", [ImpalaEncoder, CompactEncoder])
def test_channels_last_is_the_same_function(build):
    torch.manual_seed(0)
    encoder = build().double()
    pixels = torch.randn(2, 2, 64, 64, dtype=torch.float64)
    expected = encoder(pixels)
    encoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(pixels.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("build", [ImpalaEncoder, CompactEncoder])
def test_one_image_does_not_see_the_others_of_its_batch(build):
    torch.manual_seed(0)
    encoder = build()
    pixels = torch.randn(4, 2, 64, 64)
    torch.testing.assert_close(encoder(pixels)[2:3], encoder(pixels[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("x", "y"), [(5.0, 7.0), (5.25, 7.5), (8.9, 3.1)])
def test_keypoints_are_read_to_a_fraction_of_a_pixel(x, y):
    """The softmax of -r^2 / 2s^2 is a sampled Gaussian, whose mean is its centre to far below a pixel."""
    rows, columns = torch.meshgrid(torch.arange(13.0), torch.arange(15.0), indexing="ij")
    maps = -((columns - x).square() + (rows - y).square()) / 2
    found_x, found_y = spatial_expectation(maps[None, None])[0, 0]
    assert (found_x + 1) / 2 * 14 == pytest.approx(x, abs=0.01)
    assert (found_y + 1) / 2 * 12 == pytest.approx(y, abs=0.01)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_points_and_levels_and_their_gradients_are_those_of_softmax(layout, dtype):
    generator = torch.Generator().manual_seed(0)
    maps = (3 * torch.randn(4, 5, 6, 7, generator=generator)).to(dtype).contiguous(memory_format=layout)
    directions = [torch.randn(4, 5, 2, generator=generator), torch.randn(4, 5, generator=generator)]
    maps.requires_grad_(True)
    found = expectation_and_level(maps)
    slope = torch.autograd.grad(found, maps, [part.to(found[0].dtype) for part in directions])[0]
    exact = maps.detach().double().requires_grad_(True)
    weights = exact.flatten(2).softmax(-1).unflatten(2, (6, 7))
    x = (weights * torch.linspace(-1, 1, 7, dtype=torch.float64)).sum((2, 3))
    y = (weights * torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]).sum((2, 3))
    expected = (torch.stack([x, y], dim=-1), exact.flatten(2).logsumexp(-1))
    steep = torch.autograd.grad(expected, exact, [part.double() for part in directions])[0]
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for mine, theirs in zip((*found, slope), (*expected, steep), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=close, atol=close)
    assert slope.dtype == dtype


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="channels"):
        CompactConfig(channels=())
    with pytest.raises(InputError, match="keypoints"):
        CompactConfig(keypoints=0)
    with pytest.raises(InputError, match="latent_width=0"):
        ImpalaConfig(latent_width=0)
