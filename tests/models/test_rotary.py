import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from

from jepaplan.models.rotary import (
    grid_ids,
    refuse_unturnable_heads,
    rotation_at,
    rotation_of_grid,
    rotation_of_ids,
    turned_channels,
)
from jepaplan.types import InputError

CPU = torch.device("cpu")
GRID = (3, 4, 5)


def tokens_at(time, row, column):
    return tuple(torch.tensor([float(axis)], dtype=torch.float64) for axis in (time, row, column))


@pytest.mark.parametrize(("width", "each"), [(64, 20), (32, 10), (80, 26), (24, 8), (12, 4), (6, 2)])
def test_channels_of_each_axis_are_those_of_the_released_code(width, each):
    assert turned_channels(width) == each


@pytest.mark.parametrize("layout", ["interleaved", "tiled"])
@pytest.mark.parametrize("width", [6, 8, 24, 32])
def test_against_the_definition_written_out(layout, width):
    """One token and one plane at a time: channels 2j and 2j+1 of an axis turn by position x omega."""
    generator = torch.Generator().manual_seed(width)
    channels = torch.randn(1, 12, 2, width, generator=generator, dtype=torch.float64)
    turned = rotation_of_grid((2, 2, 3), width, layout, CPU, torch.float64)(channels)
    expected, planes = channels.clone(), width // 3 // 2
    omega = [10_000 ** (-place / planes) for place in range(planes)]
    for token in range(12):
        place = (token // 6, token % 6 // 3, token % 3)
        for axis in range(3):
            for plane in range(planes):
                even, odd = 2 * (axis * planes + plane), 2 * (axis * planes + plane) + 1
                if layout == "interleaved":
                    first = second = torch.tensor(place[axis] * omega[plane])
                else:
                    first = torch.tensor(place[axis] * omega[2 * plane % planes])
                    second = torch.tensor(place[axis] * omega[(2 * plane + 1) % planes])
                x, y = channels[0, token, :, even], channels[0, token, :, odd]
                expected[0, token, :, even] = x * first.cos() - y * first.sin()
                expected[0, token, :, odd] = y * second.cos() + x * second.sin()
    torch.testing.assert_close(turned, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    seed=integers(0, 999),
    shift=sampled_from([(1, 0, 0), (0, 2, 0), (0, 0, 3), (7, 5, 2)]),
    width=sampled_from([8, 24, 32]),
)
def test_interleaved_attention_depends_on_differences_of_positions_only(seed, shift, width):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 1, 1, width, generator=generator, dtype=torch.float64)

    def score(moved, layout):
        there = rotation_at(tokens_at(*(1 + step for step in moved)), width, layout)
        here = rotation_at(tokens_at(*moved), width, layout)
        return (there(query) * here(key)).sum()

    torch.testing.assert_close(score(shift, "interleaved"), score((0, 0, 0), "interleaved"))
    if width > 8:  # one plane per axis cannot be tiled wrongly
        assert not torch.isclose(score(shift, "tiled"), score((0, 0, 0), "tiled"), rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", ["interleaved", "tiled"])
def test_half_precision_is_turned_in_single_precision_and_returned_in_half(layout):
    channels = torch.randn(1, 60, 2, 24, generator=torch.Generator().manual_seed(0))
    half = rotation_of_grid(GRID, 24, layout, CPU, torch.bfloat16)
    assert half.cos.dtype == torch.float32
    turned = half(channels.bfloat16())
    assert turned.dtype == torch.bfloat16
    exact = rotation_of_grid(GRID, 24, layout, CPU, torch.float32)(channels.bfloat16().float())
    torch.testing.assert_close(turned, exact.bfloat16(), rtol=0, atol=0)


def test_products_of_planes_and_of_channels_are_the_same_rotation():
    channels = torch.randn(2, 60, 3, 32, generator=torch.Generator().manual_seed(0))
    rotation = rotation_of_grid(GRID, 32, "interleaved", CPU, torch.float32)
    slow = rotation(channels.double())  # another dtype than the table's goes channel by channel
    torch.testing.assert_close(rotation(channels).double(), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["interleaved", "tiled"])
def test_rows_of_the_table_are_the_rotations_of_the_ids(layout):
    ids = torch.tensor([[3, 59, 0], [17, 17, 40]])
    picked = rotation_of_grid(GRID, 24, layout, CPU, torch.float32).at(ids)
    direct = rotation_of_ids(ids, GRID, 24, layout, torch.float32)
    assert torch.equal(picked.cos, direct.cos)
    assert torch.equal(picked.sin, direct.sin)


def test_ids_run_through_columns_then_rows_then_time_and_go_on_beyond_the_clip():
    time, row, column = grid_ids(torch.arange(80), GRID)
    assert torch.equal(time * 20 + row * 5 + column, torch.arange(80))
    assert (int(time[-1]), int(row[-1]), int(column[-1])) == (3, 3, 4)


def test_a_zero_position_leaves_an_axis_unturned():
    """Tokens of an action have a time and no place in the picture."""
    channels = torch.randn(1, 1, 2, 24, dtype=torch.float64)
    turned = rotation_at(tokens_at(5, 0, 0), 24, "interleaved")(channels)
    assert torch.equal(turned[..., 8:], channels[..., 8:])
    assert not torch.allclose(turned[..., :8], channels[..., :8])


def test_tables_are_computed_once_and_serve_autograd_even_if_first_asked_for_in_inference_mode():
    with torch.inference_mode():
        first = rotation_of_grid((5, 1, 3), 24, "interleaved", CPU, torch.float32)
    again = rotation_of_grid((5, 1, 3), 24, "interleaved", CPU, torch.float32)
    assert again.cos is first.cos
    channels = torch.randn(1, 15, 2, 24, requires_grad=True)
    again(channels).square().sum().backward()
    torch.testing.assert_close(channels.grad, 2 * channels)  # a rotation keeps norms


def test_heads_that_cannot_be_turned_are_refused():
    with pytest.raises(InputError, match="even width of 6 or more"):
        refuse_unturnable_heads(32, 8)
    with pytest.raises(InputError, match="even width"):
        refuse_unturnable_heads(21, 3)
    with pytest.raises(InputError, match="divisors of 32"):
        refuse_unturnable_heads(32, 5)
