"""Each term equals its definition: over whole paths, in chunks, one step at a time; and it has gradients."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from term_catalogue import CATALOGUE, Entry
from toy_worlds import Bending, LongestStride, euclidean, problem

from jepaplan.costs import streaming
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.steps import AdditiveTerm
from jepaplan.costs.streaming import BoundSum
from jepaplan.costs.terms import ActionSmoothness, GoalDistance
from jepaplan.interfaces import Distance
from jepaplan.types import InputError

ADDITIVE = [name for name, entry in CATALOGUE.items() if entry.additive]


def bind(
    entry: Entry, seed: int, samples: int, horizon: int, rows: int | None = None
) -> tuple[BoundSum, torch.Tensor]:
    """One term for two problems, and actions for it."""
    latent, goal, actions = problem(seed, 2, samples, horizon, entry.shape)
    cost = WeightedSum({"term": (1.0, entry.term)}, chunk_rows=rows)
    return cost.bind(Bending(*entry.shape), latent, entry.goal(goal)), actions


def walk(bound: BoundSum, actions: torch.Tensor, horizon: int):
    """Latents, total and to_go after each action, one step at a time."""
    latents = bound.latent[:, None].expand(-1, actions.shape[1], *bound.latent.shape[1:])
    paid = torch.zeros(actions.shape[:2], dtype=actions.dtype)
    for k in range(actions.shape[2]):
        step = bound.expand(latents, actions[:, :, k], k + 1, horizon)
        latents, paid = step.latents, paid + step.step_cost
        yield latents, paid, step.to_go


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("seed, horizon, rows", [(0, 1, 4), (1, 4, 4), (2, 4, 12), (3, 4, 18), (4, 4, None)])
def test_every_term_equals_its_definition(name: str, seed: int, horizon: int, rows: int | None):
    """Whether a step is looked at alone (4 rows), or with one, two or all of the others."""
    entry = CATALOGUE[name]
    bound, actions = bind(entry, seed, 3, horizon, rows)
    paths = Bending(*entry.shape).rollout(bound.latent, actions)
    expected = [
        [entry.literal(list(paths[b, s]), list(actions[b, s]), bound.goal[b]) for s in range(3)]
        for b in range(2)
    ]
    torch.testing.assert_close(bound(actions), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_term_has_exact_gradients_when_streamed_in_chunks(name: str):
    """Against central differences in float64."""
    bound, actions = bind(CATALOGUE[name], 3, 2, 3, rows=1)
    assert torch.autograd.gradcheck(bound, actions.requires_grad_())
    chunked, whole = (
        torch.autograd.grad(cost(actions).sum(), actions)[0]
        for cost in (bound, bind(CATALOGUE[name], 3, 2, 3)[0])
    )
    torch.testing.assert_close(chunked, whole)


@pytest.mark.parametrize("name", ADDITIVE)
def test_costs_paid_step_by_step_add_up_to_the_cost_of_the_path(name: str):
    bound, actions = bind(CATALOGUE[name], 4, 5, 4, rows=3)
    *_, (latents, paid, to_go) = walk(bound, actions, horizon=4)
    torch.testing.assert_close(paid + to_go, bound(actions))
    torch.testing.assert_close(latents, bound.world_model.rollout(bound.latent, actions)[:, :, -1])


@pytest.mark.parametrize("name", [name for name in ADDITIVE if name != "last 2"])
def test_a_path_that_ends_early_costs_what_a_shorter_plan_costs(name: str):
    bound, actions = bind(CATALOGUE[name], 5, 3, 4)
    for steps, (_, paid, to_go) in enumerate(walk(bound, actions, horizon=4), start=1):
        torch.testing.assert_close(paid + to_go, bound(actions[:, :, :steps]))


def test_the_mean_over_the_last_steps_expects_to_stay_where_it_is():
    bound, actions = bind(CATALOGUE["last 2"], 6, 3, 5)
    here = [
        euclidean(z, bound.goal[:, None])
        for z in bound.world_model.rollout(bound.latent, actions)[:, :, 1:].unbind(2)
    ]
    expected = [here[0], here[1], here[2], here[3], (here[3] + here[4]) / 2]
    for told, (_, paid, to_go) in zip(expected, walk(bound, actions, horizon=5), strict=True):
        torch.testing.assert_close(paid + to_go, told)


@pytest.mark.parametrize("name", ADDITIVE)
def test_nodes_of_different_depth_are_expanded_together(name: str):
    """What a node pays depends on its own depth and on nobody else's."""
    bound, actions = bind(CATALOGUE[name], 7, 5, 1, rows=4)
    latents = bound.latent[:, None] + torch.linspace(0, 1, 5, dtype=torch.float64).view(
        5, *(1,) * (bound.latent.ndim - 1)
    )
    depth = torch.tensor([[1, 2, 3, 4, 4], [4, 3, 1, 1, 2]])
    together = bound.expand(latents, actions[:, :, 0], depth, 4)
    for k in range(1, 5):
        alone = bound.expand(latents, actions[:, :, 0], k, 4)
        for one, all_ in ((alone.step_cost, together.step_cost), (alone.to_go, together.to_go)):
            torch.testing.assert_close(all_[depth == k], one[depth == k])


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 99),
    weights=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    horizon=st.integers(1, 5),
    rows=st.integers(1, 12),
)
def test_sums_are_paid_step_by_step_as_well(seed: int, weights: list[float], horizon: int, rows: int):
    latent, goal, actions = problem(seed, 2, 4, horizon)
    names = ("discounted", "n-step, threshold", "effort")
    terms = {name: (weight, CATALOGUE[name].term) for name, weight in zip(names, weights, strict=True)}
    bound = WeightedSum(terms, chunk_rows=rows).bind(Bending(), latent, goal)
    *_, (_, paid, to_go) = walk(bound, actions, horizon)
    torch.testing.assert_close(paid + to_go, bound(actions))


def test_one_step_has_gradients_with_respect_to_latents_and_actions():
    """What collocation differentiates."""
    latent, goal, actions = problem(8, 2, 3, 1)
    terms = {name: (0.5, CATALOGUE[name].term) for name in ("sum", "n-step, soft threshold", "effort")}
    bound = WeightedSum(terms, chunk_rows=2).bind(Bending(), latent, goal)
    nodes = problem(9, 6, 1, 1)[0].reshape(2, 3, 6)

    def step(nodes: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        expansion = bound.expand(nodes, actions, 2, 5)
        return expansion.latents, expansion.step_cost, expansion.to_go

    assert torch.autograd.gradcheck(step, (nodes.requires_grad_(), actions[:, :, 0].requires_grad_()))


def test_no_more_nodes_than_asked_are_expanded_at_once():
    bound, actions = bind(CATALOGUE["sum"], 10, 10, 1, rows=4)
    latents = bound.latent[:, None].expand(-1, 10, -1)
    bound.expand(latents, actions[:, :, 0], 1, 1)
    assert max(bound.world_model.rows) <= 4
    assert sum(bound.world_model.rows) == 20


def counting() -> tuple[Distance, list[int]]:
    """A distance, and how many rows it was asked about in each call."""
    asked: list[int] = []

    def distance(latent: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        asked.append(latent.shape[:2].numel())
        return euclidean(latent, goal)

    return distance, asked


@pytest.mark.parametrize(
    "over, rows, expected",
    [
        ("sum", None, [30]),  # 2 problems, 3 samples, 5 steps
        ("sum", 12, [12, 12, 6]),
        ("minimum", 12, [12, 12, 6]),
        ("sum", 4, [3] * 10),  # one problem after the other
        ("terminal", None, [6]),  # what does not count is not computed
    ],
)
def test_a_distance_is_asked_about_as_many_steps_at_once_as_a_chunk_has_room_for(
    over: Literal["sum", "minimum", "terminal"], rows: int | None, expected: list[int]
):
    distance, asked = counting()
    latent, goal, actions = problem(14, 2, 3, 5)
    cost = WeightedSum({"goal": (1.0, GoalDistance(distance=distance, over=over))}, chunk_rows=rows)
    cost.bind(Bending(), latent, goal)(actions)
    assert asked == expected


def test_of_wide_latents_few_are_held(monkeypatch: pytest.MonkeyPatch):
    distance, asked = counting()
    monkeypatch.setattr(streaming, "PATH_BYTES", 13 * 6 * 4)  # thirteen latents of six numbers
    latent, goal, actions = problem(14, 2, 3, 5)
    WeightedSum({"goal": (1.0, GoalDistance(distance=distance))}).bind(Bending(), latent, goal)(actions)
    assert asked == [12, 12, 6]


def test_one_step_in_bfloat16_is_paid_in_float32():
    latent, goal, actions = (values.float() for values in problem(11, 2, 3, 1))
    cost = WeightedSum({"goal": (1.0, GoalDistance(distance=euclidean))}, dtype=torch.bfloat16)
    bound = cost.bind(Bending(dtype=torch.bfloat16), latent, goal)
    step = bound.expand(bound.latent[:, None].expand(-1, 3, -1), actions[:, :, 0], 1, 1)
    assert (step.latents.dtype, step.step_cost.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(step.step_cost, bound(actions))


@pytest.mark.parametrize(
    "term, message",
    [
        (GoalDistance(distance=euclidean, over="minimum"), 'write over="discounted"'),
        (ActionSmoothness(), "'one' \\(ActionSmoothness\\) looks at more of a path than one step"),
        (LongestStride(), "'one' \\(LongestStride\\) looks at more"),
    ],
)
def test_terms_that_cannot_be_paid_step_by_step_are_refused(term: object, message: str):
    latent, goal, actions = problem(12, 2, 3, 1)
    bound = WeightedSum({"one": (1.0, term)}).bind(Bending(), latent, goal)
    with pytest.raises(InputError, match=message):
        bound.expand(latent[:, None].expand(-1, 3, -1), actions[:, :, 0], 1, 3)


def test_the_catalogue_knows_which_terms_are_additive():
    assert not isinstance(ActionSmoothness(), AdditiveTerm)
    for name in ADDITIVE:
        assert isinstance(CATALOGUE[name].term, AdditiveTerm)


def test_nan_of_one_step_is_refused_with_the_name_of_its_term():
    bound, actions = bind(CATALOGUE["sum"], 13, 3, 1)
    with pytest.raises(InputError, match="'term' is NaN"):
        bound.expand(torch.full((2, 3, 6), torch.nan, dtype=torch.float64), actions[:, :, 0], 1, 1)
