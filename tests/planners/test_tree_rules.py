"""PUCT's bound, Gumbel's policy and its halving, as they were published."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.stepwise import gumbel
from jepaplan.planners.tree_loops import (
    Scale,
    Tables,
    choose_at_gumbel_root,
    choose_gumbel,
    choose_puct,
    edge_of,
)
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.planners.tree_statistics import RootEdges


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


def node_of(visits: list[float], worth: list[float], logits: list[float] | None = None) -> Tables:
    """One node with room for more below each edge; costs of 0 and 1 are worth 1 and 0."""
    count, cost = np.array([visits]), 1 - np.array([worth])
    edges = np.zeros(count.shape, edge_of(np.float64))
    edges["visits"], edges["total"], edges["room"] = count, count * cost, 1
    edges["least"] = np.where(count > 0, cost, 0.0)
    return Tables(edges, np.array([logits or [0.0] * len(visits)]))


def chosen_by(
    rule: PUCT | GumbelHalving, tables: Tables, allowed: int, *, least: bool = False, own: float = 0.5
) -> int:
    """What the rule takes at a node below the root, worth `own`, visited once more than its edges."""
    visits = tables.edges["visits"][0].clip(0)
    total, span = int(visits.sum()) + 1, int(visits.nonzero()[0].max()) + 1
    choice, scale = rule.choice(least=least, alike=not tables.logits.any()), Scale(1.0, 1.0)
    # nobody has written to edges that nobody took, so nothing that lies there may matter
    for name in tables.edges.dtype.names:
        tables.edges[name][0, span:] = -7
    if isinstance(rule, PUCT):
        return choose_puct(*tables, 0, span, allowed, rule.rates(total)[total], scale, choice)
    return choose_gumbel(*tables, 0, span, allowed, 1 - own, scale, choice, np.empty(len(visits)))


@pytest.mark.parametrize("least", [False, True])
def test_puct_equals_the_published_bound(least: bool):
    node = node_of([3.0, 1.0, 6.0], [0.9, 0.2, 0.7], logits=[0.0, 1.0, -1.0])
    prior = [math.exp(logit) for logit in (0.0, 1.0, -1.0)]
    total = 11.0
    bounds = [
        worth
        + share / sum(prior) * math.sqrt(total) / (1 + count) * (1.25 + math.log((total + 19652 + 1) / 19652))
        for worth, share, count in zip((0.9, 0.2, 0.7), prior, (3, 1, 6), strict=True)
    ]
    best, second = sorted(range(3), key=bounds.__getitem__, reverse=True)[:2]
    assert chosen_by(PUCT(), node, 3, least=least) == best
    # what is closed is not chosen, and what nobody tried goes first
    node.edges["room"][0, best] = 0
    assert chosen_by(PUCT(), node, 3, least=least) == second
    node = node_of([3.0, 0.0], [1.0, 0.0])
    assert chosen_by(PUCT(), node, 2) == 1
    # unless it is not allowed yet; and where nothing else is left it always is
    assert chosen_by(PUCT(), node, 1) == 0
    node.edges["room"][0, 0] = 0
    assert chosen_by(PUCT(), node, 1) == 1


@pytest.mark.parametrize("logits", [[0.2, 0.5, -0.3], [0.0, 0.0, 0.0]])
def test_the_rule_below_a_gumbel_root_equals_the_published_one(logits: list[float]):
    """pi' = softmax(logits + sigma(completed q)); v_mix for the untried; argmax pi' - N / (1 + sum N)."""
    visits, worth, own = [4.0, 0.0, 1.0], [0.8, 0.0, 0.3], 0.4
    prior = [math.exp(logit) for logit in logits]
    prior = [share / sum(prior) for share in prior]
    average = (prior[0] * 0.8 + prior[2] * 0.3) / (prior[0] + prior[2])
    completed = [0.8, (own + 5 * average) / 6, 0.3]
    raised = [math.exp(logit + (50 + 4) * 0.1 * q) for logit, q in zip(logits, completed, strict=True)]
    behind = [weight / sum(raised) - count / 6 for weight, count in zip(raised, visits, strict=True)]
    chosen = chosen_by(GumbelHalving(), node_of(visits, worth, logits), 3, own=own)
    assert chosen == max(range(3), key=behind.__getitem__)


def test_a_gumbel_policy_of_thousands_of_visits_is_still_one():
    """Weights below the smallest number that there is: the best edge decides, not a division of zeros."""
    node = node_of([9000.0, 9000.0, 9000.0], [0.05, 0.1, 0.0])
    assert chosen_by(GumbelHalving(), node, 3) == 1


def test_a_gumbel_root_takes_turns_among_those_considered():
    node = node_of([2.0, 1.0, 1.0, 0.0], [1.0, 0.3, 0.6, 0.0])
    rule = GumbelHalving()
    considered, noise = np.ones((1, 4), bool), np.zeros((1, 4))
    situation = (*node, 0, considered, noise, 0, Scale(1.0, 1.0), rule.choice(least=False, alike=True))
    assert choose_at_gumbel_root(*situation) == 3
    considered[0, 3] = False
    assert choose_at_gumbel_root(*situation) == 2
    noise[0, 1] = 100.0
    assert choose_at_gumbel_root(*situation) == 1
    node.edges["room"][0, 1:] = 0
    assert choose_at_gumbel_root(*situation) == 0


def test_where_turns_are_several_visits_the_last_turn_decides_nothing():
    """Two actions in the running, one of which has just had its turn; the other is worth more."""
    visits, worth, room = np.array([[8.0, 5.0, 2.0]]), np.array([[0.2, 0.7, 0.9]]), np.ones((1, 3), int)
    root, rule = RootEdges(np.zeros((1, 3)), visits, worth, 1 - worth, room), GumbelHalving()
    situation = root, np.array([[True, True, False]]), np.zeros((1, 3))
    assert rule.answer(*situation, 1).tolist() == [[True, False, False]]
    assert rule.answer(*situation, 4).tolist() == [[False, True, False]]
