"""PUCT's bound, Gumbel's policy and its halving, as they were published."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.stepwise import gumbel
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.planners.tree_statistics import Edges


def test_gumbel_draws_in_proportion_to_the_prior():
    noise = gumbel(torch.zeros(1, 200_000, 3, dtype=torch.float64), torch.Generator().manual_seed(0))
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    first = (weights.log() + noise).argmax(dim=-1)[0]
    torch.testing.assert_close(torch.bincount(first).double() / len(first), weights, rtol=0.0, atol=5e-3)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)


@settings(max_examples=100, deadline=None)
@given(simulations=st.integers(1, 500), actions=st.integers(1, 40), considered=st.integers(1, 32))
def test_halving_spends_exactly_what_it_has_and_ends_between_two(
    simulations: int, actions: int, considered: int
):
    phases = GumbelHalving(considered_actions=considered).phases(simulations, actions)
    running = [count for count, _ in phases]
    assert sum(spent for _, spent in phases) == simulations
    assert running[0] == min(simulations, actions, considered)
    assert all(later == max(min(2, before), before // 2) for before, later in itertools.pairwise(running))
    assert phases[0][1] >= running[0]


def edges_of(
    visits: list[float], worth: list[float], own: float = 0.5, logits: list[float] | None = None
) -> Edges:
    """Of one node, with room for more below each."""
    count, weights = np.array([visits]), np.array([logits or [0.0] * len(visits)])
    return Edges(
        problem=np.zeros(1, int),
        logits=weights,
        settled=count,
        total=np.zeros_like(count),
        visits=count,
        worth=np.array([worth]),
        room=np.ones(count.shape, int),
        used=(count > 0).sum(axis=1),
        node_visits=count.sum(axis=1).astype(int) + 1,
        edge_visits=count.sum(axis=1),
        most_visited=count.max(axis=1),
        own=np.array([own]),
        high=np.ones(1),
        spread=np.ones(1),
        begin=np.zeros(1, int),
        least=False,
        alike=not weights.any(),
        most=100,
    )


def test_puct_equals_the_published_bound():
    node = edges_of([3.0, 1.0, 6.0], [0.9, 0.2, 0.7], logits=[0.0, 1.0, -1.0])
    prior = [math.exp(logit) for logit in (0.0, 1.0, -1.0)]
    total = 11.0
    bounds = [
        worth
        + share / sum(prior) * math.sqrt(total) / (1 + count) * (1.25 + math.log((total + 19652 + 1) / 19652))
        for worth, share, count in zip((0.9, 0.2, 0.7), prior, (3, 1, 6), strict=True)
    ]
    allowed = np.array([3])
    assert PUCT().choose(node, allowed).item() == max(range(3), key=bounds.__getitem__)
    # what is closed is not chosen, and what nobody tried goes first
    node.room[0, PUCT().choose(node, allowed)] = 0
    assert node.room[0, PUCT().choose(node, allowed)] == 1
    node = edges_of([3.0, 0.0], [1.0, 0.0])
    assert PUCT().choose(node, np.array([2])).item() == 1
    # unless it is not allowed yet; and where nothing else is left it always is
    assert PUCT().choose(node, np.array([1])).item() == 0
    node.room[0, 0] = 0
    assert PUCT().choose(node, np.array([1])).item() == 1


def test_the_rule_below_a_gumbel_root_equals_the_published_one():
    """pi' = softmax(logits + sigma(completed q)); v_mix for the untried; argmax pi' - N / (1 + sum N)."""
    visits, worth, own, logits = [4.0, 0.0, 1.0], [0.8, 0.0, 0.3], 0.4, [0.2, 0.5, -0.3]
    prior = [math.exp(logit) for logit in logits]
    prior = [share / sum(prior) for share in prior]
    average = (prior[0] * 0.8 + prior[2] * 0.3) / (prior[0] + prior[2])
    completed = [0.8, (own + 5 * average) / 6, 0.3]
    raised = [math.exp(logit + (50 + 4) * 0.1 * q) for logit, q in zip(logits, completed, strict=True)]
    behind = [weight / sum(raised) - count / 6 for weight, count in zip(raised, visits, strict=True)]
    chosen = GumbelHalving().choose(edges_of(visits, worth, own, logits), np.array([3]))
    assert chosen.item() == max(range(3), key=behind.__getitem__)
