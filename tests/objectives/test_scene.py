"""The contrast between recordings against a literal transcription, and its two extremes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.objectives.scene import scene_contrast


def pair(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, width, generator=generator, dtype=torch.float64)


def literal(first, second, temperature):
    """Equation 4 of arXiv:1807.03748, one item after the other."""
    losses = []
    for i in range(len(second)):
        similarities = [math.exp(-float((second[i] - other).square().sum()) / temperature) for other in first]
        losses.append(-math.log(similarities[i] / sum(similarities)))
    return sum(losses) / len(losses)


@given(
    seed=st.integers(0, 9999), count=st.integers(1, 9), width=st.integers(1, 5), temperature=st.floats(0.3, 9)
)
@settings(max_examples=40, deadline=None)
def test_is_the_equation(seed, count, width, temperature):
    first, second = pair(count, width, seed)
    found = scene_contrast(first, second, temperature=temperature)
    assert float(found) == pytest.approx(literal(first, second, temperature), abs=1e-9)


def test_far_recordings_cost_nothing_and_equal_ones_log_b():
    apart = 100 * torch.eye(6)
    assert float(scene_contrast(apart, apart + 0.01)) == pytest.approx(0, abs=1e-6)
    same = torch.ones(6, 3)
    assert float(scene_contrast(same, same)) == pytest.approx(math.log(6), abs=1e-6)


def test_gradients_stay_finite_where_partners_agree():
    first = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scene_contrast(first, first.detach().clone()).backward()
    assert first.grad.isfinite().all()


def test_two_shards_that_gather_cost_what_one_batch_costs():
    first, second = pair(8, 3, 0)
    whole = scene_contrast(first, second)
    for part in (slice(0, 4), slice(4, 8)):
        gathered = {id(first[part]): first}
        mine = [first[part].clone(), second[part].clone()]
        gathered = {mine[0].data_ptr(): first, mine[1].data_ptr(): second}
        shared = scene_contrast(*mine, gather=lambda own, known=gathered: known[own.data_ptr()])
        torch.testing.assert_close(shared, whole)
