"""The two baselines that shape distances without a value, beside their equations written out with loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.objectives.contrastive import contrastive_loss
from jepaplan.objectives.regressive import regressive_loss
from jepaplan.types import InputError


def latents(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(first, second):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)))


def info_nce_literally(z, temperature):
    """Successors are positives; negatives are the states at the same place of the other segments."""
    segments, frames = len(z), len(z[0])
    total = 0.0
    for b in range(segments):
        for t in range(frames - 1):
            scores = [
                math.exp(-distance(z[b][t], z[other][t + 1]) / temperature) for other in range(segments)
            ]
            total -= math.log(scores[b] / sum(scores))
    return total / (segments * (frames - 1))


def margin_literally(z, margin):
    """Squared distance of successors, squared shortfall of random pairs."""
    segments, frames = len(z), len(z[0])
    positive, negative = [], []
    for b in range(segments):
        for t in range(frames - 1):
            for other in range(segments):
                apart = distance(z[b][t], z[other][t + 1])
                if other == b:
                    positive.append(apart**2)
                else:
                    negative.append(max(0.0, margin - apart) ** 2)
    return sum(positive) / len(positive) + sum(negative) / len(negative)


@given(st.integers(2, 5), st.integers(2, 5), st.floats(0.1, 3), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_both_contrasts_are_their_equations(segments, frames, scale, seed):
    z = latents(seed, segments, frames, 4)
    for form, literally in (("info_nce", info_nce_literally), ("margin", margin_literally)):
        expected = literally(z.tolist(), scale)
        assert contrastive_loss(z, form=form, scale=scale).item() == pytest.approx(expected, abs=1e-10)


@given(st.integers(1, 5), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_regression_is_its_equation(segments, frames, seed):
    z = latents(seed, segments, frames, 4)
    rows = z.tolist()
    errors = [
        (distance(rows[b][t], rows[b][t + 1]) - 1) ** 2 for b in range(segments) for t in range(frames - 1)
    ]
    assert regressive_loss(z).item() == pytest.approx(sum(errors) / len(errors), abs=1e-10)


def test_unit_steps_cost_nothing_however_they_turn():
    angles = latents(0, 3, 9)
    steps = torch.stack([angles.cos(), angles.sin()], dim=-1)
    walk = torch.cat([torch.zeros(3, 1, 2, dtype=torch.float64), steps.cumsum(1)], dim=1)
    assert regressive_loss(walk).item() == pytest.approx(0, abs=1e-12)
    assert regressive_loss(2 * walk).item() == pytest.approx(1)


def test_states_that_did_not_move_have_finite_gradients():
    still = torch.ones(3, 4, 5).requires_grad_()
    regressive_loss(still).backward()
    assert still.grad.isfinite().all()
    for form in ("info_nce", "margin"):
        still.grad = None
        contrastive_loss(still, form=form).backward()
        assert still.grad.isfinite().all()


@pytest.mark.parametrize("form", ["info_nce", "margin"])
def test_a_contrast_brings_successors_together_and_keeps_others_apart(form):
    torch.manual_seed(0)
    z = torch.randn(8, 3, 4).mul(0.1).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    before = contrastive_loss(z, form=form).item()
    for _ in range(200):
        optimiser.zero_grad()
        contrastive_loss(z, form=form).backward()
        optimiser.step()
    steps = (z[:, 1:] - z[:, :-1]).norm(dim=-1).mean()
    across = (z[:, 0] - z[:, 1].roll(1, 0)).norm(dim=-1).mean()
    assert contrastive_loss(z, form=form).item() < 0.5 * before
    assert steps < 0.2 * across


@pytest.mark.parametrize("form", ["info_nce", "margin"])
def test_two_processes_minimise_what_one_would(form):
    """The rule of `training/distributed.py`, for values and gradients."""
    rows = latents(1, 6, 3, 4)
    whole = rows.clone().requires_grad_()
    expected = contrastive_loss(whole, form=form)
    (gradient,) = torch.autograd.grad(expected, whole)
    shards = [rows[:3].clone().requires_grad_(), rows[3:].clone().requires_grad_()]
    losses = [contrastive_loss(shard, form=form, gather=lambda own: torch.cat(shards)) for shard in shards]
    torch.testing.assert_close(sum(losses) / 2, expected)
    torch.testing.assert_close(torch.cat(torch.autograd.grad(sum(losses) / 2, shards)), gradient)


def test_a_lone_segment_has_no_negatives():
    with pytest.raises(InputError, match="two segments"):
        contrastive_loss(torch.zeros(1, 4, 3))
