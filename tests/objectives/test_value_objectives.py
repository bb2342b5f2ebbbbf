import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.models.quasimetric import IQE, Euclidean
from jepaplan.objectives.iql import (
    ValueConfig,
    distances_to_goals,
    expectile_loss,
    goals_of_batch,
    value_loss,
)
from jepaplan.objectives.quasimetric import (
    constrained_loss,
    ordered_pairs,
    pair_regression_loss,
    spread_loss,
    step_excess,
)
from jepaplan.types import InputError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def value_loss_literally(distances, reached, gamma, tau):
    """arXiv:2601.00844, section 3, with V = -d; sums over segments, steps and goals become means."""
    segments, states, goals = distances.shape
    total = 0.0
    for b in range(segments):
        for n in range(goals):
            for t in range(states - 1):
                v_now, v_next = -float(distances[b, t, n]), -float(distances[b, t + 1, n])
                error = -(0.0 if reached[b, t, n] else 1.0) + gamma * v_next - v_now
                total += abs(tau - (1.0 if error < 0 else 0.0)) * error**2
    return total / (segments * (states - 1) * goals)


@given(st.floats(0.1, 1), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_value_loss_is_the_published_equation(gamma, tau, seed):
    distances = 5 * torch.rand(3, 4, 2, generator=seeded(seed), dtype=torch.float64)
    reached = torch.rand(3, 4, 2, generator=seeded(seed + 1)) < 0.3
    loss = value_loss(distances, reached, discount=gamma, expectile=tau)
    assert loss.item() == pytest.approx(value_loss_literally(distances, reached, gamma, tau))


def test_the_bootstrap_is_a_constant_and_may_come_from_elsewhere():
    distances = torch.rand(2, 3, 1, generator=seeded(0)).requires_grad_()
    reached = torch.zeros(2, 3, 1, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(value_loss(distances, reached, discount=0.9, expectile=0.7), distances)
    assert (gradient[:, :-1] != 0).all()
    assert (gradient[:, -1] == 0).all()  # the last state is only ever a next state
    same = value_loss(distances, reached, discount=0.9, expectile=0.7, target_distances=distances[:, 1:])
    other = value_loss(distances, reached, discount=0.9, expectile=0.7, target_distances=distances[:, 1:] + 1)
    assert same == value_loss(distances, reached, discount=0.9, expectile=0.7)
    assert same != other


def chain(expectile, discount=0.9, states=5):
    """Every transition of a random walk on a line, its ends reflecting, learned in a table of distances."""
    walk = [(s, min(max(s + move, 0), states - 1)) for s in range(states) for move in (-1, 1)]
    segments = torch.tensor(walk)
    goals = torch.arange(states)
    reached = segments[..., None] == goals
    table = torch.zeros(states, states, dtype=torch.float64, requires_grad=True)
    off_diagonal = 1 - torch.eye(
        states, dtype=torch.float64
    )  # d(g, g) = 0 by construction, as for a distance
    optimiser = torch.optim.Adam([table], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1500)
    for _ in range(1500):
        optimiser.zero_grad()
        value_loss(
            (table * off_diagonal)[segments], reached, discount=discount, expectile=expectile
        ).backward()
        optimiser.step()
        schedule.step()
    return -(table * off_diagonal).detach()


def value_iteration(expectile, discount=0.9, states=5):
    """The tau-expectile of two equally likely numbers is tau max + (1 - tau) min; 1 is optimal control."""
    values = torch.zeros(states, states, dtype=torch.float64)
    for _ in range(500):
        left, right = (
            values[[max(s - 1, 0) for s in range(states)]],
            values[[min(s + 1, states - 1) for s in range(states)]],
        )
        backup = -1 + discount * (
            expectile * torch.maximum(left, right) + (1 - expectile) * torch.minimum(left, right)
        )
        values = backup * (1 - torch.eye(states, dtype=torch.float64))
    return values


@pytest.mark.parametrize("expectile", [0.5, 0.8])
def test_iql_on_a_chain_is_value_iteration(expectile):
    torch.testing.assert_close(chain(expectile), value_iteration(expectile), rtol=0, atol=0.02)


def test_a_high_expectile_finds_the_shortest_way():
    steps = (torch.arange(5)[:, None] - torch.arange(5)).abs().double()
    optimal = -(1 - 0.9**steps) / 0.1
    torch.testing.assert_close(value_iteration(1.0), optimal)
    torch.testing.assert_close(chain(0.98), optimal, rtol=0, atol=0.12)


@given(st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_expectile_balances_weighted_errors(expectile, seed):
    """At the minimum of the loss over m, tau sum (x - m)+ = (1 - tau) sum (m - x)+."""
    numbers = torch.randn(50, generator=seeded(seed), dtype=torch.float64)
    low, high = numbers.min().item(), numbers.max().item()
    for _ in range(60):
        middle = (low + high) / 2
        pull = (
            expectile * (numbers - middle).clamp(min=0).sum()
            - (1 - expectile) * (middle - numbers).clamp(min=0).sum()
        )
        low, high = (middle, high) if pull > 0 else (low, middle)
    centre = torch.tensor(middle, dtype=torch.float64, requires_grad=True)
    expectile_loss(numbers - centre, expectile).backward()
    assert abs(centre.grad.item()) < 1e-6


def test_goals_are_the_own_last_state_then_states_of_the_batch():
    latents = torch.randn(4, 3, 6, generator=seeded(1), dtype=torch.float64)
    frames = torch.tensor([[0, 1, 2], [10, 11, 12], [1, 2, 3], [20, 21, 22]])
    distances, reached = distances_to_goals(latents, frames, Euclidean(), batch_goals=3)
    positions = [0, 1, 1]  # first frame number modulo 3, of the first three segments
    for b in range(4):
        for t in range(3):
            goals = [(b, 2)] + [(n, positions[n]) for n in range(3)]
            for g, (segment, position) in enumerate(goals):
                expected = (latents[b, t] - latents[segment, position]).norm()
                assert distances[b, t, g].item() == pytest.approx(expected.item(), abs=1e-5)
                assert reached[b, t, g] == (frames[b, t] == frames[segment, position])
    # Frame 2 was seen in two segments: the same index is the same state.
    assert reached[0, 2, 3]
    assert reached[2, 1, 3]


def test_own_goals_are_the_states_of_the_segment_itself():
    latents = torch.randn(3, 4, 6, generator=seeded(4), dtype=torch.float64)
    frames = torch.tensor([[0, 1, 2, 3], [7, 8, 9, 10], [2, 3, 4, 5]])
    distances, reached = distances_to_goals(latents, frames, Euclidean(), batch_goals=2, own_goals=True)
    assert distances.shape == reached.shape == (3, 4, 1 + 3 + 2)
    for b in range(3):
        for t in range(4):
            for goal, g in enumerate((3, 0, 1, 2)):  # the last first, then all others
                expected = (latents[b, t] - latents[b, g]).norm()
                assert distances[b, t, goal].item() == pytest.approx(expected.item(), abs=1e-5)
                assert reached[b, t, goal] == (t == g)
    alone, _ = distances_to_goals(latents, frames, Euclidean(), batch_goals=2)
    torch.testing.assert_close(distances[:, :, [0, 4, 5]], alone)


def test_shards_offer_the_goals_of_the_whole_batch():
    latents = torch.randn(6, 4, 3, generator=seeded(2))
    frames = torch.randint(0, 99, (6, 1), generator=seeded(3)) + torch.arange(4)
    whole = goals_of_batch(latents, frames, 5)
    own = [goals_of_batch(latents[part], frames[part], 3) for part in (slice(0, 3), slice(3, 6))]
    for index in (0, 1):
        torch.testing.assert_close(torch.cat([own[0][index], own[1][index]])[:5], whole[index])
    with pytest.raises(InputError, match="batch_goals=6"):
        goals_of_batch(latents, frames, 7)


def test_qrl_terms_by_hand():
    distances = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    softplus = [math.log1p(math.exp(0.1 * (15 - d))) / 0.1 for d in distances.tolist()]
    assert spread_loss(distances).item() == pytest.approx(sum(softplus) / 3, rel=1e-6)
    assert step_excess(distances).item() == pytest.approx((3 - 1) ** 2 / 3)


def test_the_model_descends_and_the_multiplier_ascends():
    spread, excess = torch.tensor(2.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    raw = torch.tensor(0.3, requires_grad=True)
    constrained_loss(spread, excess, raw, tolerance=0.25).backward()
    multiplier = torch.nn.functional.softplus(raw.detach())
    torch.testing.assert_close(spread.grad, torch.tensor(1.0))
    torch.testing.assert_close(excess.grad, multiplier)
    # d/draw of -softplus(raw) (excess - tolerance^2): a failing constraint raises the multiplier.
    torch.testing.assert_close(raw.grad, -torch.sigmoid(raw.detach()) * (0.5 - 0.25**2))


def test_qrl_counts_the_steps_of_a_one_way_street():
    """On a directed cycle of five states the way back is four steps."""
    torch.manual_seed(0)
    points = torch.randn(5, 64, requires_grad=True)
    distance = IQE(width=64, components=8)
    raw_multiplier = torch.tensor(0.0, requires_grad=True)
    learned = [points, *distance.parameters()]
    optimiser = torch.optim.Adam([{"params": learned}, {"params": [raw_multiplier], "lr": 0.1}], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 800)
    here = torch.arange(5)
    for _ in range(800):
        optimiser.zero_grad()
        table = distance.pairwise(points[None], points[None])[0]
        excess = step_excess(table[here, (here + 1) % 5])
        constrained_loss(spread_loss(table), excess, raw_multiplier, tolerance=0.05).backward()
        optimiser.step()
        schedule.step()
    assert (table[here, (here + 1) % 5] < 1.2).all()
    assert (table[here, (here + 2) % 5] > 1.9).all()
    assert (table[(here + 1) % 5, here] > 2.8).all()


def test_pairs_of_a_segment_are_all_earlier_later_pairs():
    earlier, later = ordered_pairs(4)
    assert list(zip(earlier.tolist(), later.tolist(), strict=True)) == [
        (i, j) for i in range(4) for j in range(4) if i < j
    ]
    with pytest.raises(InputError, match="two frames"):
        ordered_pairs(1)


def test_pair_regression_is_an_expectile_of_elapsed_minus_predicted_steps():
    earlier, later = ordered_pairs(4)
    distances = 4 * torch.rand(3, 6, generator=seeded(5), dtype=torch.float64)
    total = 0.0
    for b in range(3):
        for pair, (i, j) in enumerate(zip(earlier.tolist(), later.tolist(), strict=True)):
            error = (j - i) - float(distances[b, pair])
            total += (0.1 if error >= 0 else 0.9) * error**2
    loss = pair_regression_loss(distances, later - earlier, expectile=0.1)
    assert loss.item() == pytest.approx(total / 18)


def test_a_lower_expectile_prefers_the_shortest_witness():
    witnesses = torch.tensor([2, 4, 9])
    steps = torch.tensor(5.0, requires_grad=True)
    optimiser = torch.optim.Adam([steps], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        pair_regression_loss(steps.expand(3), witnesses, expectile=0.02).backward()
        optimiser.step()
    assert steps.item() == pytest.approx(2.17, abs=0.02)  # 0.02 (2 + 7 - 2 e) = 0.98 e at e = 0.173


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="discount"):
        ValueConfig(discount=1.5)
    with pytest.raises(InputError, match="batch_goals"):
        ValueConfig(batch_goals=-1)
