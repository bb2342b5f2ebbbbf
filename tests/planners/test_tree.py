"""A tree with enough simulations is exhaustive, and Gumbel improves on its prior with any number."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_quadratic import planar

from jepaplan.planners.stepwise import gumbel
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.planners.tree_statistics import Edges, Found, Tree, best_paths, edges
from jepaplan.types import Expansion, InputError, Plan

COMPASS = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)[:, None]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(problems: int, horizon: int, components: int) -> Plan:
    mean = torch.zeros(problems, horizon, components, dtype=torch.float64)
    return Plan(mean=mean, std=torch.ones_like(mean))


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


@pytest.mark.parametrize("leaves", [3])
@pytest.mark.parametrize("backup", ["mean", "least"])
@pytest.mark.parametrize("unfinished", ["hold", "to_go"])
def test_with_enough_simulations_it_equals_exhaustive_search_at_depth_3(
    leaves: int, backup: str, unfinished: str
):
    system = planar(final_weight=2.0)
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    paths = COMPASS[every, 0].expand(3, -1, -1, -1)
    costs = system(paths)
    planner = TreeSearch(
        simulations=100,
        leaves=leaves,
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


def test_gumbel_draws_in_proportion_to_the_prior():
    noise = gumbel(torch.zeros(1, 200_000, 3, dtype=torch.float64), seeded(0))
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
    count = torch.tensor([visits], dtype=torch.float64)
    return Edges(
        child=torch.where(count > 0, 1, -1),
        visits=count,
        worth=torch.tensor([worth], dtype=torch.float64),
        logits=torch.tensor([logits or [0.0] * len(visits)], dtype=torch.float64),
        open=torch.ones_like(count, dtype=torch.bool),
        own=torch.tensor([[own]], dtype=torch.float64),
        node_visits=count.sum(dim=-1, keepdim=True) + 1,
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
    may = torch.ones(1, 3, dtype=torch.bool)
    assert PUCT().choose(node, may).item() == max(range(3), key=bounds.__getitem__)
    # what is closed is not chosen, and what nobody tried goes first
    may[0, PUCT().choose(node, may)] = False
    assert may[0, PUCT().choose(node, may)]
    assert PUCT().choose(edges_of([3.0, 0.0], [1.0, 0.0]), torch.ones(1, 2, dtype=torch.bool)).item() == 1


def test_the_rule_below_a_gumbel_root_equals_the_published_one():
    """pi' = softmax(logits + sigma(completed q)); v_mix for the untried; argmax pi' - N / (1 + sum N)."""
    visits, worth, own, logits = [4.0, 0.0, 1.0], [0.8, 0.0, 0.3], 0.4, [0.2, 0.5, -0.3]
    prior = [math.exp(logit) for logit in logits]
    prior = [share / sum(prior) for share in prior]
    average = (prior[0] * 0.8 + prior[2] * 0.3) / (prior[0] + prior[2])
    completed = [0.8, (own + 5 * average) / 6, 0.3]
    raised = [math.exp(logit + (50 + 4) * 0.1 * q) for logit, q in zip(logits, completed, strict=True)]
    behind = [weight / sum(raised) - count / 6 for weight, count in zip(raised, visits, strict=True)]
    chosen = GumbelHalving().choose(edges_of(visits, worth, own, logits), torch.ones(1, 3, dtype=torch.bool))
    assert chosen.item() == max(range(3), key=behind.__getitem__)


def grown(values: list[tuple[int, int, float]], branches: int = 2, horizon: int = 3) -> Tree:
    """A tree of one problem, from (parent, slot, estimated cost) of each node in turn; edges are numbered."""
    chunks = torch.arange(1.0, branches + 1).view(1, 1, branches, 1, 1)
    tree = Tree.planted(torch.zeros(1, 1), chunks, torch.zeros(1, 1, branches), len(values))
    for parent, slot, value in values:
        possible = torch.ones(1, dtype=torch.bool)
        node = tree.reserve(torch.tensor([parent]), torch.tensor([slot]), possible)[:, None]
        depth = tree.depth[:, parent, None] + 1
        cost = torch.tensor([[value]])
        more = chunks + 10 * tree.size
        found = Found(
            torch.zeros(1, 1, 1), depth, cost, cost, more, torch.zeros(1, 1, branches), depth >= horizon
        )
        tree.fill(node, found)
        tree.record(node, cost)
    return tree


def test_statistics_of_a_tree_small_enough_to_count_by_hand():
    tree = grown([(0, 0, 4.0), (0, 1, 6.0), (1, 0, 8.0), (1, 1, 2.0), (4, 0, 3.0), (4, 1, 5.0)])
    assert tree.visits[0, :7].tolist() == [6, 5, 1, 1, 3, 1, 1]
    assert tree.pending[0, :7].tolist() == [0] * 7
    assert tree.total[0, :7].tolist() == [28, 22, 6, 8, 10, 3, 5]
    # node 4 was thought to cost 2, but its children cost 3 and 5; node 1's best is through it
    assert tree.least[0, :7].tolist() == [3, 3, 6, 8, 3, 3, 5]
    assert tree.closed[0, :7].tolist() == [False, False, False, False, True, True, True]
    at_root = edges(tree, torch.tensor([0]), least=False)
    # costs seen lie between 2 and 8: a mean of 22 / 5 is worth (8 - 4.4) / 6
    torch.testing.assert_close(at_root.worth, torch.tensor([[0.6, 1 / 3]]))
    assert edges(tree, torch.tensor([0]), least=True).worth[0].tolist() == pytest.approx([5 / 6, 1 / 3])
    path = best_paths(tree, torch.tensor([[1, 2]]), 3)[0, :, :, 0].tolist()
    # numbers of the edges: of the root 1 and 2, of the n-th node 1 and 2 plus ten times what had been built
    assert path == [[1, 22, 51], [2, 0, 0]]


def test_a_path_being_imagined_counts_as_the_dearest():
    tree = grown([(0, 0, 4.0), (0, 1, 6.0)])
    assert edges(tree, torch.tensor([0]), least=False).worth.tolist() == [[1, 0]]
    tree.pending[0, 1] += 1
    during = edges(tree, torch.tensor([0]), least=False)
    assert during.visits.tolist() == [[2, 1]]
    assert during.worth.tolist() == [[0.5, 0]]


def test_children_are_allowed_as_visits_grow():
    planner = TreeSearch(widening=1.5, widening_power=0.5)
    for visits, allowed in ((0.0, 2), (1.0, 2), (4.0, 3), (16.0, 6)):
        node = edges_of([0.0] * 8, [0.0] * 8)
        node = Edges(**{**vars(node), "node_visits": torch.tensor([[visits]])})
        assert planner._may(node).sum().item() == allowed


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
        ({"widening": 0.5}, "widening is the number"),
        ({"bank": torch.full((2, 1, 2), torch.nan)}, "recorded chunks"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        TreeSearch(**wrong)
