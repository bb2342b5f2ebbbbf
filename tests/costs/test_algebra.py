"""Costs form a vector space whose coordinates are the shares of a breakdown."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_worlds import Bending, LongestStride, euclidean, problem

from jepaplan.costs.compose import Constant, Summand, WeightedSum
from jepaplan.costs.distances import mean_square
from jepaplan.costs.terms import ActionEffort, ActionSmoothness, GoalDistance
from jepaplan.types import InputError

LATENT, GOAL, ACTIONS = problem(0, 2, 5, 3)
PATH = GoalDistance(distance=mean_square)
END = GoalDistance(distance=euclidean, over="terminal")
EFFORT = ActionEffort()
PARTS = {
    "path": PATH.named("path"),
    "end": END.named("end"),
    "effort": EFFORT.named("effort"),
    "stride": WeightedSum({"stride": (1.0, LongestStride())}),
}

weights = st.floats(-10, 10).filter(lambda weight: weight != 0)
sums = st.dictionaries(st.sampled_from(sorted(PARTS)), weights, min_size=1).map(
    lambda chosen: sum(weight * PARTS[name] for name, weight in chosen.items())
)


class Idle(Summand):
    """Has operators, but counts nothing."""

    label = "idle"


def shares(cost: WeightedSum) -> dict[str, torch.Tensor]:
    return cost.bind(Bending(), LATENT, GOAL).breakdown(ACTIONS)


def total(cost: WeightedSum) -> torch.Tensor:
    return cost.bind(Bending(), LATENT, GOAL)(ACTIONS)


@settings(deadline=None, max_examples=25)
@given(cost=sums, factor=weights, other=weights)
def test_multiplication_reaches_every_share(cost: WeightedSum, factor: float, other: float):
    before = shares(cost)
    for after in (shares(factor * cost), shares(cost * factor)):
        assert list(after) == list(before)
        for name in before:
            torch.testing.assert_close(after[name], factor * before[name])
    torch.testing.assert_close(total(factor * (other * cost)), total((factor * other) * cost))
    torch.testing.assert_close(total(factor * cost), factor * total(cost))


@settings(deadline=None, max_examples=25)
@given(cost=sums, factor=weights, first=weights, second=weights)
def test_addition_unites_the_shares_and_multiplication_distributes_over_it(
    cost: WeightedSum, factor: float, first: float, second: float
):
    other = first * ActionSmoothness() + second * GoalDistance(distance=euclidean).named("another")
    united = shares(cost + other)
    assert united.keys() == shares(cost).keys() | {"smoothness", "another"}
    for name, share in {**shares(cost), **shares(other)}.items():
        torch.testing.assert_close(united[name], share)
    torch.testing.assert_close(total(cost + other), total(cost) + total(other))
    torch.testing.assert_close(total(cost + other), total(other + cost))
    together, apart = shares(factor * (cost + other)), shares(factor * cost + factor * other)
    assert together.keys() == apart.keys()
    for name in together:
        torch.testing.assert_close(together[name], apart[name])


@settings(deadline=None, max_examples=25)
@given(cost=sums, first=weights, second=weights, factor=weights)
def test_constants_move_every_cost_alike(cost: WeightedSum, first: float, second: float, factor: float):
    moved = shares(factor * (first + cost + second))
    expected = torch.full((2, 5), factor * (first + second), dtype=torch.float64)
    torch.testing.assert_close(moved.pop("constant"), expected)
    for name, share in shares(factor * cost).items():
        torch.testing.assert_close(moved[name], share)
    assert total(cost + 0).equal(total(cost))


@settings(deadline=None, max_examples=10)
@given(cost=sums)
def test_the_breakdown_sums_to_the_cost(cost: WeightedSum):
    torch.testing.assert_close(sum(shares(cost).values()), total(cost))


def test_sums_are_flat_and_named_after_their_terms():
    cost = 0.7 * PATH + (0.1 * EFFORT + (ActionSmoothness() + 2 * END.named("end")))
    assert {name: weight for name, (weight, _) in cost.terms.items()} == {
        "goal": 0.7,
        "effort": 0.1,
        "smoothness": 1.0,
        "end": 2.0,
    }
    assert sum([PATH, EFFORT, 3.0 * END.named("end")]).terms.keys() == {"goal", "effort", "end"}


def test_options_survive_operators():
    cost = WeightedSum({"goal": (1.0, PATH)}, chunk_rows=7)
    half = WeightedSum({"effort": (1.0, EFFORT)}, dtype=torch.bfloat16)
    both = EFFORT.named("more") + 2 * (cost + half)
    assert (both.chunk_rows, both.dtype) == (7, torch.bfloat16)
    with pytest.raises(InputError, match="chunk_rows=7, the other chunk_rows=8"):
        cost + WeightedSum({"effort": (1.0, EFFORT)}, chunk_rows=8)


def test_what_cannot_be_added_is_explained():
    with pytest.raises(InputError, match=r"both sides of \+ have a term called 'goal'.*named"):
        PATH + END
    with pytest.raises(InputError, match="called 'constant'"):
        (PATH + 1.0) + EFFORT.named("constant")
    with pytest.raises(InputError, match="a LongestStride cannot be added to a cost by itself"):
        PATH + LongestStride()
    with pytest.raises(InputError, match="'idle' is a Idle, which has neither `accumulate`"):
        2.0 * Idle()
    with pytest.raises(InputError, match="weight nan"):
        float("nan") * PATH
    with pytest.raises(InputError, match="weight inf"):
        WeightedSum({"goal": (float("inf"), PATH)})


def test_a_constant_counts_once_however_a_path_is_paid():
    bound = (2.0 * EFFORT + 5.0).bind(Bending(), LATENT, GOAL)
    step = bound.expand(LATENT[:, None].expand(-1, 5, -1), ACTIONS[:, :, 0], 1, 3)
    torch.testing.assert_close(step.step_cost, 2 * ACTIONS[:, :, 0].square().sum(dim=-1))
    assert (step.to_go == 5).all()
    assert isinstance((EFFORT + 5.0).terms["constant"][1], Constant)
