import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepaplan.training.health import assess, effective_rank, rollout_errors
from jepaplan.types import InputError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def orthonormal(rows, columns, seed=0):
    """Unit columns, orthogonal to each other and to the constant vector: centring changes nothing."""
    random = torch.randn(rows, columns, generator=seeded(seed), dtype=torch.float64)
    return torch.linalg.qr(random - random.mean(dim=0))[0]


@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_equal_singular_values_count_themselves(rank):
    latents = orthonormal(64, rank) @ orthonormal(9, rank, seed=1).T
    assert effective_rank(latents + 100.0) == pytest.approx(rank)


def test_the_rank_of_a_known_spectrum_is_the_exponential_of_its_entropy():
    latents = orthonormal(64, 3) * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert effective_rank(latents) == pytest.approx(math.exp(entropy))


@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10))
def test_rank_ignores_scale_and_rotation_and_stays_in_its_bounds(seed, scale, offset):
    latents = torch.randn(40, 6, generator=seeded(seed), dtype=torch.float64)
    turned = latents @ torch.linalg.qr(torch.randn(6, 6, generator=seeded(seed + 1), dtype=torch.float64))[0]
    assert effective_rank(scale * (turned + offset)) == pytest.approx(effective_rank(latents), rel=1e-6)
    assert 1 <= effective_rank(latents) <= 6 + 1e-9


def test_one_point_has_rank_one_and_is_called_collapsed():
    point = torch.full((50, 16), 3.0) + 1e-7 * torch.randn(50, 16, generator=seeded(0))
    health = assess(point)
    assert health.effective_rank == pytest.approx(1.0)
    assert "collapsed" in health.warnings[0]
    assert "collapsed" in assess(torch.zeros(50, 16)).warnings[0]


def test_a_line_is_called_nearly_collapsed():
    line = torch.randn(50, 1, generator=seeded(0)) @ torch.randn(1, 16, generator=seeded(1))
    assert "nearly collapsed" in assess(line).warnings[0]


def test_dead_dimensions_are_counted():
    latents = torch.randn(200, 10, generator=seeded(0))
    latents[:, :6] = 0.5
    health = assess(latents)
    assert health.dead_fraction == pytest.approx(0.6)
    assert health.std_min == pytest.approx(0.0, abs=1e-6)
    assert any("60%" in warning for warning in health.warnings)


def test_white_latents_and_a_good_predictor_raise_no_warning():
    latents = torch.randn(400, 8, generator=seeded(0))
    paths = torch.randn(20, 6, 8, generator=seeded(1)).cumsum(dim=1)
    health = assess(latents, paths + 0.1 * torch.randn(20, 6, 8, generator=seeded(2)), paths)
    assert health.warnings == []
    assert health.std_median == pytest.approx(1.0, rel=0.1)
    assert health.effective_rank > 7.5
    assert set(health.rollout_errors) == {1, 2, 4, 5}
    assert health.rollout_errors[5] == pytest.approx(0.01, rel=0.3)
    assert health.copy_errors[4] == pytest.approx(4.0, rel=0.3)  # a random walk moves by its number of steps


def test_a_predictor_that_copies_is_told_so():
    paths = torch.randn(20, 6, 8, generator=seeded(1)).cumsum(dim=1)
    copies = paths[:, :1].expand_as(paths)
    imagined, copied = rollout_errors(copies, paths)
    assert imagined == copied
    warning = assess(torch.randn(100, 8, generator=seeded(2)), copies, paths).warnings[0]
    assert "standing still" in warning
    assert "1, 2, 4, 5" in warning


def test_latents_that_are_not_numbers_are_called_diverged():
    latents = torch.randn(10, 4, generator=seeded(0))
    latents[3, 2] = torch.nan
    assert "diverged" in assess(latents).warnings[0]


def test_one_latent_cannot_be_judged():
    with pytest.raises(InputError, match="at least 2"):
        assess(torch.zeros(1, 4))


def test_metrics_are_flat_numbers():
    paths = torch.randn(4, 3, 8, generator=seeded(1))
    metrics = assess(torch.randn(50, 8, generator=seeded(0)), paths, paths).metrics()
    assert metrics["health/rollout_error_2"] == 0.0
    assert all(isinstance(value, float) for value in metrics.values())


def test_two_numbers_that_are_both_used_have_not_collapsed():
    plane = torch.randn(200, 2, generator=seeded(0))
    assert not assess(plane).warnings  # its effective rank is a little below 2
    assert "nearly collapsed" in assess(plane[:, :1] * torch.tensor([1.0, 2.0])).warnings[0]
