"""A tree small enough to count by hand, and many paths down many trees at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.tree_descent import descend
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.planners.tree_statistics import Edges, Found, Paths, Tree, best_paths, edges


def grown(values: list[tuple[int, int, float]], branches: int = 2, horizon: int = 3) -> Tree:
    """A tree of one problem, from (parent, slot, estimated cost) of each node in turn; edges are numbered."""
    chunks = torch.arange(1.0, branches + 1).view(1, branches, 1, 1)
    tree = Tree.planted(torch.zeros(1, 1), chunks[None], torch.zeros(1, 1, branches), len(values))
    routes: list[list[int]] = [[]]
    for parent, slot, value in values:
        routes.append([*routes[parent], slot])
        paths = follow(tree, routes[-1])
        tree.grow(paths, ending(tree, paths, [value], chunks + 10 * (tree.size + 1), horizon))
    return tree


def follow(tree: Tree, route: list[int]) -> Paths:
    """One path along these edges."""
    ahead = iter(route)
    return descend(tree, 1, np.ones(1, int), [lambda here: np.array([next(ahead)])] * 2, least=False)


def ending(tree: Tree, paths: Paths, values: list[float], chunks: torch.Tensor, horizon: int) -> Found:
    """Paths with these estimated costs, each edge of which is one step."""
    costs, depth = np.array(values, np.float32), tree.depth[paths.parents] + 1
    logits = np.zeros((len(costs), chunks.shape[1]), np.float32)
    return Found(torch.zeros(len(costs), 1), chunks, logits, depth, costs, costs, depth >= horizon)


def test_statistics_of_a_tree_small_enough_to_count_by_hand():
    tree = grown([(0, 0, 4.0), (0, 1, 6.0), (1, 0, 8.0), (1, 1, 2.0), (4, 0, 3.0), (4, 1, 5.0)])
    assert tree.visits[:7].tolist() == [6, 5, 1, 1, 3, 1, 1]
    assert tree.total[:7].tolist() == [28, 22, 6, 8, 10, 3, 5]
    # node 4 was thought to cost 2, but its children cost 3 and 5; node 1's best is through it
    assert tree.least[:7].tolist() == [3, 3, 6, 8, 3, 3, 5]
    # nodes 2 and 3 can have two children each; nodes 5 and 6 are at the horizon
    assert tree.room[:7].tolist() == [4, 2, 2, 2, 0, 0, 0]
    at_root = edges(tree, tree.roots, least=False)
    # costs seen lie between 2 and 8: a mean of 22 / 5 is worth (8 - 4.4) / 6
    assert at_root.worth[0].tolist() == pytest.approx([0.6, 1 / 3])
    assert edges(tree, tree.roots, least=True).worth[0].tolist() == pytest.approx([5 / 6, 1 / 3])
    path = best_paths(tree, np.array([[0, 1]]), 3)[0, :, :, 0].tolist()
    # numbers of the edges: of the root 1 and 2, of the n-th node 1 and 2 plus ten times what had been built
    assert path == [[1, 22, 51], [2, 0, 0]]


def test_a_path_being_imagined_counts_as_the_dearest():
    tree = grown([(0, 0, 4.0), (0, 1, 6.0)])
    during = edges(tree, tree.roots, least=False)
    assert during.worth.tolist() == [[1, 0]]
    during.imagine(np.array([0]))
    assert during.visits.tolist() == [[2, 1]]
    assert during.worth.tolist() == [[0.5, 0]]
    # it has nothing to say about the cheapest path
    during = edges(tree, tree.roots, least=True)
    during.imagine(np.array([0]))
    assert during.worth.tolist() == [[1, 0]]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    horizon=st.integers(1, 3),
    leaves=st.integers(2, 9),
    least=st.booleans(),
    rule=st.sampled_from([PUCT(), GumbelHalving()]),
)
def test_paths_sent_down_together_end_where_they_end_one_by_one(
    seed: int, horizon: int, leaves: int, least: bool, rule: PUCT | GumbelHalving
):
    """Each path alone, to its leaf, before the next begins; every node keeps an account of its own."""
    problems, branches, turns = 4, 3, 6
    noise = np.random.default_rng(seed)
    chunks = torch.zeros(problems, branches, 1, 1)
    logits = torch.zeros(problems, 1, branches)
    tree = Tree.planted(torch.zeros(problems, 1), chunks[:, None], logits, turns * leaves)

    def choose(here: Edges) -> np.ndarray:
        return rule.choose(here, np.minimum(1 + here.node_visits // 2, branches))

    for _ in range(turns):
        possible = np.minimum(tree.room[tree.roots], leaves)
        paths = descend(tree, leaves, possible, [choose, choose], least=least)
        accounts: dict[int, Edges] = {}
        for problem in range(problems):
            for number in range(int(possible[problem])):
                node, depth = int(tree.roots[problem]), 0
                while node != tree.spare:
                    here = accounts.setdefault(node, edges(tree, np.array([node]), least=least))
                    assert here.room.sum() == tree.room[node] - here.visits.sum() + here.settled.sum()
                    slot = choose(here)
                    here.imagine(slot)
                    end, node, depth = (node, slot.item()), int(tree.children[node, slot.item()]), depth + 1
                leaf = problem * leaves + number
                assert (paths.parents[leaf], paths.slots[leaf], paths.depth[leaf]) == (*end, depth)
        assert paths.possible.sum() == possible.sum()
        values = noise.normal(size=problems * leaves).tolist()
        tree.grow(paths, ending(tree, paths, values, chunks[:1].repeat(problems * leaves, 1, 1, 1), horizon))
