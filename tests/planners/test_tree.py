"""A tree with enough simulations is exhaustive, and Gumbel improves on its prior with any number."""

import itertools
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_quadratic import planar

from jepaplan.planners import tree_threads
from jepaplan.planners.stepwise import NodeActions, distinct, gumbel
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.types import Expansion, InputError, Plan

COMPASS = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)[:, None]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int, components: int) -> Plan:
    mean = torch.zeros(problems, horizon, components, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


def test_noise_is_drawn_ahead_and_every_number_used_once():
    """However many are asked for at a time, and whoever else is there."""
    nothing = torch.zeros(3, 6, dtype=torch.long)
    plan = blank(3, horizon=4, components=2)
    source = NodeActions(plan, [seeded(0), seeded(1), seeded(2)], None, keep_nominal=False)
    alone = NodeActions(Plan(plan.mean[1:2], plan.std[1:2]), [seeded(1)], None, keep_nominal=False)
    counts = [6, 6, 2, 5, 6] * 20
    taken = [source.taken(nothing[:, :count], nothing[:, :count], None) for count in counts]
    drawn = torch.cat(taken, dim=1)
    assert len(drawn.unique()) == drawn.numel() == 3 * sum(counts) * 2
    assert abs(float(drawn.mean())) < 0.1
    assert abs(float(drawn.std()) - 1) < 0.1
    own = [alone.taken(nothing[:1, :count], nothing[:1, :count], None) for count in counts]
    assert torch.equal(torch.cat(own, dim=1)[0], drawn[1])


class Bandit:
    """One choice among the numbers 0..n-1 of a bank, each with its own cost."""

    def __init__(self, costs: torch.Tensor) -> None:
        self.costs = costs  # B n
        self.bank = torch.arange(costs.shape[1], dtype=costs.dtype)[:, None, None]
        self.latent = costs.new_zeros(len(costs), 1)

    def expand(
        self, latents: torch.Tensor, actions: torch.Tensor, depth: torch.Tensor | int, horizon: int
    ) -> Expansion:
        paid = self.costs.gather(1, actions[:, :, 0].long())
        return Expansion(latents, paid, torch.zeros_like(paid))


def test_chunks_that_are_all_alike_are_dealt_in_every_order_equally_often():
    random = torch.rand(60_000, 2, generator=seeded(0))
    random[0] = 1 - 2**-24  # the largest there is
    order = distinct(random, 4)
    assert order[0].tolist() == [3, 0]  # whose place the last has taken
    counts = torch.bincount(4 * order[1:, 0] + order[1:, 1], minlength=16).view(4, 4)
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(4, dtype=torch.bool)]
    assert (others / 60_000 - 1 / 12).abs().max() < 5 * (1 / 12 / 60_000) ** 0.5
    # every row by itself, in any shape and precision
    assert torch.equal(distinct(random.double().view(3, -1, 2), 4), order.view(3, -1, 2))
    assert distinct(random[:, :1], 4).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("leaves, siblings", [(3, 1), (5, 3)])
@pytest.mark.parametrize("backup", ["mean", "least"])
@pytest.mark.parametrize("unfinished", ["hold", "to_go"])
def test_with_enough_simulations_it_equals_exhaustive_search_at_depth_3(
    leaves: int, siblings: int, backup: str, unfinished: str
):
    system = planar(final_weight=2.0)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    paths = COMPASS[every, 0].expand(3, -1, -1, -1)
    costs = system(paths)
    planner = TreeSearch(
        simulations=100,
        leaves=leaves,
        siblings=siblings,
        branches=4,
        backup=backup,
        unfinished=unfinished,
        bank=COMPASS,
        keep_nominal=False,
    )
    found = planner.plan(system, blank(3, 3, 2), seeded(0))
    torch.testing.assert_close(found.plan.mean, paths[torch.arange(3), costs.argmin(dim=-1)])
    # of each first action the best continuation, cheapest first
    by_first = costs.view(3, 4, 16).amin(dim=-1).sort(dim=-1).values
    torch.testing.assert_close(found.costs, by_first)
    torch.testing.assert_close(system(found.candidates), found.costs)


def test_nothing_is_imagined_twice_and_an_exhausted_tree_stops():
    system = planar()
    planner = TreeSearch(simulations=10_000, leaves=1, branches=2, bank=COMPASS[:2], keep_nominal=False)
    found = planner.plan(system, blank(3, 2, 2), seeded(0))
    assert found.evaluations == 2 + 4
    assert sum(system.rows) == 2 + 4
    torch.testing.assert_close(system(found.candidates), found.costs)


def test_recorded_chunks_are_taken_whole_and_cut_at_the_horizon():
    system = planar(final_weight=1.0)
    chunks = torch.randn(3, 2, 2, generator=seeded(1), dtype=torch.float64)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    planner = TreeSearch(simulations=20, leaves=2, branches=3, bank=chunks, keep_nominal=False)
    for horizon in (4, 3):
        costs = system(chunks[every].flatten(1, 2)[:, :horizon].expand(3, -1, -1, -1))
        found = planner.plan(system, blank(3, horizon, 2), seeded(0))
        torch.testing.assert_close(found.costs[:, 0], costs.amin(dim=-1))
        torch.testing.assert_close(system(found.plan.mean[:, None])[:, 0], costs.amin(dim=-1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backup", ["mean", "least"])
@pytest.mark.parametrize("rule", [PUCT(), GumbelHalving(considered_actions=5)])
def test_forbidden_actions_cost_infinity_and_are_not_chosen(backup: str, rule: PUCT | GumbelHalving):
    costs = torch.randn(50, 5, generator=seeded(0), dtype=torch.float64)
    costs[:, 1:3] = torch.inf
    bandit = Bandit(costs)
    planner = TreeSearch(
        simulations=5, leaves=2, branches=5, rule=rule, backup=backup, bank=bandit.bank, keep_nominal=False
    )
    found = planner.plan(bandit, blank(50, 1, 1), seeded(0))
    assert found.costs.isinf().sum(dim=-1).eq(2).all()
    chosen = found.plan.mean[:, 0].long()
    torch.testing.assert_close(costs.gather(1, chosen)[:, 0], found.costs[:, 0])
    assert found.costs[:, 0].isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    simulations=st.integers(1, 20),
    actions=st.integers(2, 12),
    considered=st.integers(1, 16),
    leaves=st.integers(1, 4),
)
def test_gumbel_is_no_worse_than_its_prior_at_any_number_of_simulations(
    seed: int, simulations: int, actions: int, considered: int, leaves: int
):
    """In every bandit: the same noise alone draws from the prior, and what it draws is not better."""
    costs = torch.randn(200, actions, generator=seeded(seed), dtype=torch.float64)
    weights = torch.rand(actions, generator=seeded(seed + 1), dtype=torch.float64) + 0.01
    bandit = Bandit(costs)
    planner = TreeSearch(
        simulations=simulations,
        leaves=leaves,
        branches=actions,
        rule=GumbelHalving(considered_actions=considered),
        bank=bandit.bank,
        bank_weights=weights,
        keep_nominal=False,
    )
    found = planner.plan(bandit, blank(200, 1, 1), seeded(seed + 2))
    chosen = costs.gather(1, found.plan.mean[:, 0].long())[:, 0]
    logits = weights.log().expand(200, -1)
    drawn = (logits + gumbel(logits, seeded(seed + 2))).argmax(dim=-1, keepdim=True)
    assert (chosen <= costs.gather(1, drawn)[:, 0]).all()


@pytest.mark.parametrize("simulations", [1, 2, 3, 5, 8, 13, 32])
def test_gumbel_beats_the_prior_on_average_over_many_bandits(simulations: int):
    """Expected cost of the answer against that of the prior itself, not of a draw from it."""
    costs = torch.randn(4000, 8, generator=seeded(0), dtype=torch.float64)
    weights = torch.tensor([8.0, 4, 2, 1, 1, 1, 0.5, 0.5], dtype=torch.float64)
    bandit = Bandit(costs)
    planner = TreeSearch(
        simulations=simulations,
        branches=8,
        rule=GumbelHalving(considered_actions=8),
        bank=bandit.bank,
        bank_weights=weights,
        keep_nominal=False,
    )
    found = planner.plan(bandit, blank(4000, 1, 1), seeded(1))
    gain = (costs @ (weights / weights.sum())) - costs.gather(1, found.plan.mean[:, 0].long())[:, 0]
    error = gain.std() / math.sqrt(len(gain))
    # one simulation can only draw from the prior
    assert gain.mean() > (-3 * error if simulations == 1 else 3 * error)


def test_children_are_allowed_as_visits_grow():
    planner = TreeSearch(widening=1.5, widening_power=0.5)
    assert planner.allowed(np.array([0.0, 1.0, 4.0, 16.0, 400.0]), 16).tolist() == [2, 2, 3, 6, 16]


def test_what_is_left_of_a_short_path_is_paid_at_the_price_of_its_last_step():
    """Otherwise a single step would always look cheaper than any path to the goal."""
    system = planar()
    once = {"simulations": 1, "leaves": 1, "branches": 2}
    action = blank(3, 5, 2).mean[:, :1]
    first = system.expand(system.latent[:, None], action, 1, 5).step_cost[:, 0]
    held = TreeSearch(**once).plan(system, blank(3, 5, 2), seeded(0))
    bare = TreeSearch(**once, unfinished="to_go").plan(system, blank(3, 5, 2), seeded(0))
    torch.testing.assert_close(held.costs[:, 0], 5 * first)
    torch.testing.assert_close(bare.costs[:, 0], first)


@pytest.mark.parametrize("bank", [None, COMPASS])
def test_a_search_owes_nothing_to_the_memory_of_the_one_before(bank: torch.Tensor | None):
    """Neither to a larger one's, nor to that of one which is still under way."""
    small, large = planar(2), planar(5)
    used = TreeSearch(simulations=60, leaves=4, bank=bank)
    alone = replace(used).plan(small, blank(2, 4, 2), seeded(1))
    used.plan(large, blank(5, 4, 2), seeded(0))
    under_way = used.refinements(large, blank(5, 4, 2), seeded(2))
    next(under_way)
    again = [used.plan(small, blank(2, 4, 2), seeded(1)) for _ in range(2)]
    *_, last = under_way
    *_, fresh = replace(used).refinements(large, blank(5, 4, 2), seeded(2))
    for found, wanted in (*((one, alone) for one in again), (last, fresh)):
        assert torch.equal(found.candidates, wanted.candidates)
        assert torch.equal(found.costs, wanted.costs)
    # a copy takes none of it along, and as a setting the planner is what it was
    assert deepcopy(used) == used == replace(used)
    assert not deepcopy(used)._left[0]._kept


@pytest.mark.parametrize("rule", [PUCT(), GumbelHalving()])
@pytest.mark.parametrize("bank, siblings", [(None, 1), (COMPASS, 1), (None, 3)])
def test_threads_share_out_the_trees_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, rule: PUCT | GumbelHalving, bank: torch.Tensor | None, siblings: int
):
    monkeypatch.setattr(tree_threads, "_PATHS", 8)
    found = []
    for threads in (1, 3):
        planner = TreeSearch(simulations=90, leaves=4, siblings=siblings, rule=rule, bank=bank)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(planner.plan(planar(7), blank(7, 4, 2), seeded(1)))
    assert torch.equal(found[0].candidates, found[1].candidates)
    assert torch.equal(found[0].costs, found[1].costs)


def test_what_fails_in_a_thread_is_heard_of(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    parts = []

    def work(first: int, end: int) -> None:
        parts.append((first, end))
        if first > 0:
            raise ValueError("in the second run of trees")

    with pytest.raises(ValueError, match="second run"):
        tree_threads.share_trees(work, 3, 3000)
    assert sorted(parts) == [(0, 1), (1, 3)]
    tree_threads.share_trees(work, 3, 1000)  # too few to wake anybody
    assert parts[2:] == [(0, 3)]


def test_more_simulations_come_nearer_to_the_optimum():
    system = planar(12)
    least, _ = system.optimum(4)
    costs = []
    for simulations in (4, 24, 144):
        found = TreeSearch(simulations=simulations).plan(system, blank(12, 4, 2), seeded(0))
        costs.append(((system(found.plan.mean[:, None])[:, 0] - least) / least).mean().item())
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"simulations": 0}, "simulations must be at least 1"),
        ({"siblings": 0}, "siblings must be at least 1"),
        ({"widening": 0.5}, "widening is the number"),
        ({"bank": torch.full((2, 1, 2), torch.nan)}, "recorded chunks"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        TreeSearch(**wrong)
