import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.models.interval_unions import pairwise_union_lengths
from jepaplan.models.quasimetric import IQE, MRN, Euclidean, iqe_components
from jepaplan.models.sorting_network import sort_rows, unsort_rows
from jepaplan.types import InputError


def union_length_by_sweep(source, goal):
    """Equation 1 of arXiv:2211.15120, literally: walk along the sorted intervals of one component."""
    intervals = sorted((u, max(u, v)) for u, v in zip(source, goal, strict=True))
    length, edge = 0.0, float("-inf")
    for start, end in intervals:
        length += max(0.0, end - max(start, edge))
        edge = max(edge, end)
    return length


def components_by_sweep(source, goal):
    shape = source.shape[:-1]
    rows = zip(source.flatten(0, -2).tolist(), goal.flatten(0, -2).tolist(), strict=True)
    return torch.tensor([union_length_by_sweep(u, v) for u, v in rows], dtype=source.dtype).view(shape)


def latents(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def points(draw, count):
    """Latents of two components; small integers make ties and touching intervals common."""
    length = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 16]))
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-5, 5, width=32))
    flat = draw(st.lists(number, min_size=count * 2 * length, max_size=count * 2 * length))
    return torch.tensor(flat, dtype=torch.float64).view(count, 2, length)


@given(points(2))
@settings(max_examples=200, deadline=None)
def test_components_are_lengths_of_unions(pair):
    source, goal = pair
    torch.testing.assert_close(iqe_components(source, goal), components_by_sweep(source, goal))
    # With gradients the same function takes another path.
    tracked = iqe_components(source.clone().requires_grad_(), goal)
    torch.testing.assert_close(tracked.detach(), components_by_sweep(source, goal))


def test_a_union_measured_by_painting_pixels():
    source, goal = latents(0, 5, 8).clamp(-2, 2), latents(1, 5, 8).clamp(-2, 2)
    centres = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 100_000 - 2
    for u, v, length in zip(source, goal, iqe_components(source, goal), strict=True):
        painted = ((centres[:, None] >= u) & (centres[:, None] < v)).any(-1).double().sum() / 100_000
        assert abs(painted - length) < 1e-3


@given(points(3))
@settings(max_examples=200, deadline=None)
def test_iqe_is_a_quasimetric(xyz):
    x, y, z = xyz.flatten(1)
    for reduction in ("maxmean", "sum"):
        d = IQE(width=len(x), components=2, reduction=reduction).double()
        assert d(x, x).item() == 0
        assert d(x, y).item() >= 0
        assert d(x, z).item() <= d(x, y).item() + d(y, z).item() + 1e-9


def test_iqe_is_asymmetric_and_its_reductions_are_those_of_the_paper():
    x, y = latents(2, 2, 64)
    maxmean = IQE(width=64, components=4).double()
    lengths = components_by_sweep(x.view(4, 16), y.view(4, 16))
    alpha = 1 / (1 + torch.e)  # sigmoid(-1)
    torch.testing.assert_close(
        maxmean(x, y).detach(), alpha * lengths.max() + (1 - alpha) * lengths.mean(), rtol=1e-6, atol=0
    )
    total = IQE(width=64, components=4, reduction="sum")
    torch.testing.assert_close(total(x, y), lengths.sum())
    assert abs(maxmean(x, y) - maxmean(y, x)) > 0.01


@given(points(3))
@settings(max_examples=200, deadline=None)
def test_mrn_is_a_quasimetric(xyz):
    x, y, z = xyz.flatten(1)
    d = MRN(width=len(x), components=len(x) // 2)
    assert d(x, x).item() == pytest.approx(0, abs=1e-5)
    assert d(x, y).item() >= 0
    assert d(x, z).item() <= d(x, y).item() + d(y, z).item() + 1e-9


def test_mrn_by_hand():
    # two components: (1, 0 | 3, 4) is 1 beyond in its first half and 5 away in its second; (0, -2 | 0, 0)
    source = torch.tensor([1.0, 0.0, 3.0, 4.0, 0.0, -2.0, 0.0, 0.0])
    d = MRN(width=8, components=2)
    assert d(source, torch.zeros(8)).item() == pytest.approx((1 + 5 + 0 + 0) / 2)
    assert d(torch.zeros(8), source).item() == pytest.approx((0 + 5 + 2 + 0) / 2)


@pytest.mark.parametrize("length", [1, 3, 8, 16])
def test_gradients_are_those_of_finite_differences(length):
    source = latents(3, 4, 3, length).requires_grad_()
    goal = latents(4, 4, 3, length).requires_grad_()
    assert torch.autograd.gradcheck(iqe_components, (source, goal))
    assert torch.autograd.gradcheck(pairwise_union_lengths, (source, goal))


@given(points(6))
@settings(max_examples=100, deadline=None)
def test_all_pairs_are_the_pairs(six):
    """Lengths agree everywhere; so do gradients, except at ties, where a kink has several."""
    lengths = pairwise_union_lengths(six[:4], six[4:])
    torch.testing.assert_close(
        lengths, components_by_sweep(*torch.broadcast_tensors(six[:4, None], six[None, 4:]))
    )


def test_all_pairs_have_the_gradients_of_pairs():
    d = IQE(width=32, components=4).double()
    sources, goals = latents(5, 2, 7, 32).requires_grad_(), latents(6, 2, 5, 32).requires_grad_()
    weights = latents(7, 2, 7, 5)
    wanted = (sources, goals, d.raw_alpha)
    by_scan = torch.autograd.grad((weights * d.pairwise(sources, goals)).sum(), wanted)
    by_pairs = torch.autograd.grad((weights * d(sources[:, :, None], goals[:, None])).sum(), wanted)
    for one, other in zip(by_scan, by_pairs, strict=True):
        torch.testing.assert_close(one, other)


def test_all_pairs_survive_being_cut_into_blocks(monkeypatch):
    d = IQE(width=32, components=4).double()
    sources, goals = latents(8, 2, 9, 32).requires_grad_(), latents(9, 2, 5, 32)
    whole = d.pairwise(sources, goals)
    (gradient,) = torch.autograd.grad(whole.square().sum(), sources)
    monkeypatch.setattr("jepaplan.models.quasimetric._PAIR_COMPONENTS", 60)
    monkeypatch.setattr("jepaplan.models.interval_unions._SCANNED_NUMBERS", 400)
    torch.testing.assert_close(d.pairwise(sources, goals), whole)
    torch.testing.assert_close(
        torch.autograd.grad(d.pairwise(sources, goals).square().sum(), sources)[0], gradient
    )


def test_gradients_are_finite_where_points_coincide_and_where_intervals_touch():
    ties = torch.tensor([[0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]]).requires_grad_()
    for d in (IQE(width=8, components=2), MRN(width=8, components=2), Euclidean(), Euclidean(squared=True)):
        (gradient,) = torch.autograd.grad(d(ties, ties.detach()).sum(), ties)
        assert torch.isfinite(gradient).all()
    for d in (IQE(width=8, components=2), Euclidean()):
        (gradient,) = torch.autograd.grad(d.pairwise(ties[None], ties[None].detach()).sum(), ties)
        assert torch.isfinite(gradient).all()


def test_moving_an_interval_along_costs_nothing_and_stretching_its_end_costs_one():
    source = torch.tensor([[0.0, 0.5, 3.0, 9.0]]).requires_grad_()
    goal = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).requires_grad_()  # [0, 2] and [3, 4]; the last is empty
    by_source, by_goal = torch.autograd.grad(iqe_components(source, goal), (source, goal))
    torch.testing.assert_close(by_source, torch.tensor([[-1.0, 0.0, -1.0, 0.0]]))
    torch.testing.assert_close(by_goal, torch.tensor([[0.0, 1.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    "d",
    [IQE(width=12, components=3), MRN(width=12, components=3), Euclidean(), Euclidean(squared=True)],
)
def test_distances_broadcast(d):
    source, goal = latents(10, 5, 12, dtype=torch.float32), latents(11, 3, 12, dtype=torch.float32)
    table = d(source[:, None], goal)
    assert table.shape == (5, 3)
    torch.testing.assert_close(table[2, 1], d(source[2], goal[1]))
    torch.testing.assert_close(d.pairwise(source[None], goal[None])[0], table)


def test_euclid_by_hand():
    source, goal = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]])
    assert Euclidean()(source, goal).item() == pytest.approx(5)
    assert Euclidean(squared=True)(source, goal).item() == pytest.approx(25)


@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_the_network_sorts_and_its_swaps_lead_back(power, columns, seed):
    values = torch.randint(-3, 4, (2**power, columns), generator=torch.Generator().manual_seed(seed)).double()
    before, swaps = values.clone(), []
    ordered = sort_rows(values, swaps)
    assert torch.equal(values, before)
    assert torch.equal(ordered, values.sort(0).values)
    for number in (-1.0, 0.0, 2.0):
        assert torch.equal(unsort_rows(ordered == number, list(swaps)), values == number)


def test_impossible_shapes_are_refused_with_advice():
    with pytest.raises(InputError, match="choose components"):
        IQE(width=10, components=3)
    with pytest.raises(InputError, match="two halves; choose components"):
        MRN(width=12, components=4)
    with pytest.raises(InputError, match="width=12"):
        IQE(width=12, components=3)(torch.zeros(2, 8), torch.zeros(2, 8))
