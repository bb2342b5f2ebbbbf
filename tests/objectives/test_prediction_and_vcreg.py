import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.objectives import vcreg
from jepaplan.objectives.prediction import copy_error, prediction_loss
from jepaplan.types import InputError


def latents(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def std_of(numbers):
    mean = sum(numbers) / len(numbers)
    return (sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1) + 1e-4) ** 0.5


def variance_literally(rows):
    """VICReg, equations 1-2: v(Z) = 1/d sum_j max(0, gamma - S(z^j, epsilon)), gamma = 1."""
    width = len(rows[0])
    return sum(max(0.0, 1 - std_of([row[j] for row in rows])) for j in range(width)) / width


def covariance_literally(rows):
    """VICReg, equations 3-4, divided by d (d - 1) as PLDM does."""
    count, width = len(rows), len(rows[0])
    means = [sum(row[j] for row in rows) / count for j in range(width)]
    total = 0.0
    for i in range(width):
        for j in range(width):
            if i != j:
                entry = sum((row[i] - means[i]) * (row[j] - means[j]) for row in rows) / (count - 1)
                total += entry**2
    return total / (width * (width - 1))


def test_prediction_is_the_mean_square_after_the_first_latent():
    imagined, encoded = latents(0, 3, 5, 4), latents(1, 3, 5, 4)
    total = 0.0
    for item in range(3):
        for t in range(1, 5):
            for number in range(4):
                total += float(imagined[item, t, number] - encoded[item, t, number]) ** 2
    assert prediction_loss(imagined, encoded).item() == pytest.approx(total / (3 * 4 * 4))


def test_targets_learn_unless_detached():
    imagined, encoded = latents(0, 2, 3, 4).requires_grad_(), latents(1, 2, 3, 4).requires_grad_()
    both = torch.autograd.grad(prediction_loss(imagined, encoded), (imagined, encoded))
    torch.testing.assert_close(both[0], -both[1])
    prediction_loss(imagined, encoded, detach_targets=True).backward()
    assert imagined.grad is not None
    assert encoded.grad is None


def test_copying_is_judged_like_predicting():
    encoded = latents(2, 3, 4, 5)
    frozen = encoded[:, :1].expand_as(encoded)
    torch.testing.assert_close(copy_error(encoded), prediction_loss(frozen, encoded))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_vcreg_is_the_published_equation(samples, width, seed):
    """More samples than numbers and fewer: the two use different products."""
    rows = 0.8 * latents(seed, samples, width)
    assert vcreg.variance(rows).item() == pytest.approx(variance_literally(rows.tolist()), abs=1e-12)
    assert vcreg.covariance(rows).item() == pytest.approx(covariance_literally(rows.tolist()), abs=1e-12)


def test_along_time_every_segment_is_a_batch_of_its_own():
    segments = 0.8 * latents(3, 4, 6, 5)
    assert vcreg.time_variance(segments).item() == pytest.approx(
        sum(variance_literally(segment.tolist()) for segment in segments) / 4
    )
    assert vcreg.time_covariance(segments).item() == pytest.approx(
        sum(covariance_literally(segment.tolist()) for segment in segments) / 4
    )
    changes = [float((segment[t + 1] - segment[t]).square().mean()) for segment in segments for t in range(5)]
    assert vcreg.time_similarity(segments).item() == pytest.approx(sum(changes) / len(changes))


@given(st.integers(1, 8), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_vcreg_is_zero_on_whitened_latents(width, seed):
    raw = latents(seed, 40, width)
    centred = raw - raw.mean(0)
    triangle = torch.linalg.cholesky(centred.T @ centred / 39)
    white = torch.linalg.solve_triangular(triangle, centred.T, upper=False).T
    assert vcreg.variance(white).item() == 0
    assert vcreg.covariance(white).item() == pytest.approx(0, abs=1e-12)


@given(st.floats(-100, 100), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_vcreg_ignores_where_the_latents_are(offset, seed):
    rows = latents(seed, 12, 5)
    torch.testing.assert_close(vcreg.variance(rows + offset), vcreg.variance(rows))
    torch.testing.assert_close(vcreg.covariance(rows + offset), vcreg.covariance(rows))


def test_collapsed_latents_have_a_finite_gradient_and_nearly_the_full_penalty():
    collapsed = torch.zeros(8, 4).requires_grad_()
    loss = vcreg.variance(collapsed)
    assert loss.item() == pytest.approx(0.99)
    loss.backward()
    assert torch.isfinite(collapsed.grad).all()


@pytest.mark.parametrize("statistic", [vcreg.variance, vcreg.covariance])
def test_two_processes_compute_the_statistic_of_one(statistic):
    """Both see the global value, and the mean of their gradients is the gradient of that value."""
    rows = 0.5 * latents(4, 10, 6)
    whole = rows.clone().requires_grad_()
    expected = statistic(whole)
    (gradient,) = torch.autograd.grad(expected, whole)

    shards = [rows[:5].clone().requires_grad_(), rows[5:].clone().requires_grad_()]
    losses = [statistic(shard, gather=lambda own: torch.cat(shards)) for shard in shards]
    for loss in losses:
        torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(sum(losses) / 2, shards)
    torch.testing.assert_close(torch.cat(gradients), gradient)


def test_autocast_does_not_round_the_covariance():
    rows = latents(5, 64, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vcreg.covariance(rows)
    torch.testing.assert_close(rounded, vcreg.covariance(rows))


def test_a_single_sample_has_no_variance():
    with pytest.raises(InputError, match="two samples"):
        vcreg.variance(torch.zeros(1, 4))
