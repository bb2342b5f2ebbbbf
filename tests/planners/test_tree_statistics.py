"""A tree small enough to count by hand, and many paths down many trees at once."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepaplan.planners.stepwise import Hand
from jepaplan.planners.tree_loops import Paths, Turn, begin, edge_of
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.planners.tree_statistics import Found, Memory, Tree, best_paths, root_edges


def grown(values: list[tuple[int, int, float]], branches: int = 2, horizon: int = 3) -> Tree:
    """A tree of one problem, from (parent, slot, estimated cost) of each node in turn; nodes are numbered."""
    tree = Tree.planted(torch.zeros(1, 1), torch.zeros(1, 1), branches, len(values) + 5)
    routes: list[list[int]] = [[]]
    for parent, slot, value in values:
        routes.append([*routes[parent], slot])
        paths = sent(tree, routes[-1])
        tree.grow(paths, ending(paths, [value], horizon, number=tree.size))
    return tree


def turn_of(tree: Tree, rule: PUCT | GumbelHalving) -> Turn:
    """All edges of the root are considered and allowed."""
    high, spread = tree.dearest()
    return Turn(np.ones((1, 2), bool), np.zeros((1, 2)), np.full(9, 2), rule.rates(8), high, 1 / spread)


def sent(tree: Tree, route: list[int]) -> Paths:
    """One path along these edges, and the marks that it leaves."""
    nodes, edges = [0], tree.tables.edges
    for above, slot in itertools.pairwise(route):
        edge = edges[nodes[-1], above]
        begin(edges, int(edge["child"]), edge["span"], slot + 1)
        edge["span"] = max(edge["span"], slot + 1)
        nodes.append(int(edge["child"]))
    before = edges["total"][nodes, route].copy()
    edges["visits"][nodes, route] += 1
    edges["room"][nodes, route] -= 1
    way = np.array([nodes]), np.array([route]), before[None], np.array([len(route)]), np.array([1])
    return Paths(*way, parents=np.array(nodes[-1:]), taken=np.array(route[-1:]), depth=np.array([len(route)]))


def ending(
    paths: Paths,
    values: list[float],
    horizon: int,
    problems: int = 1,
    number: int = 0,
    hand: Hand | None = None,
) -> Found:
    """Paths with these estimated costs, each edge of which is one step that says `number`."""
    costs, depth = np.array(values, np.float32), paths.depth
    latents = torch.zeros(problems, len(costs) // problems, 1)
    chunks = torch.full_like(latents[..., None], number)
    return Found(latents, chunks, hand, costs, costs, depth >= horizon)


def test_statistics_of_a_tree_small_enough_to_count_by_hand():
    tree = grown([(0, 0, 4.0), (0, 1, 6.0), (1, 0, 8.0), (1, 1, 2.0), (4, 0, 3.0), (4, 1, 5.0)])
    edges = tree.tables.edges[[0, 1, 4]]
    assert edges["visits"].tolist() == [[5, 1], [1, 3], [1, 1]]
    assert edges["total"].tolist() == [[22, 6], [8, 10], [3, 5]]
    # node 4 was thought to cost 2, but its children cost 3 and 5; node 1's best is through it
    assert edges["least"].tolist() == [[3, 6], [8, 3], [3, 5]]
    # nodes 2 and 3 can have two children each; nodes 5 and 6 are at the horizon
    assert edges["room"].tolist() == [[2, 2], [2, 0], [0, 0]]
    # costs seen lie between 2 and 8: a mean of 22 / 5 is worth (8 - 4.4) / 6
    assert root_edges(tree, least=False).worth[0].tolist() == pytest.approx([0.6, 1 / 3])
    assert root_edges(tree, least=True).worth[0].tolist() == pytest.approx([5 / 6, 1 / 3])
    path = best_paths(tree, np.array([[0, 1]]), 3)[0, :, :, 0].tolist()
    # numbers of the nodes: through 1 and 4 to 5, or to 2 and no further
    assert path == [[1, 4, 5], [2, 0, 0]]


@pytest.mark.parametrize("least", [False, True])
def test_a_path_being_imagined_counts_as_the_dearest(least: bool):
    """So the second of two paths leaves the edge that is best when both set out."""
    tree = grown([(0, 0, 4.0), (0, 1, 6.0)])
    rule = PUCT(exploration=4.0)
    choice = rule.choice(least=least, alike=True)
    paths = tree.descend(2, 3, np.array([2]), turn_of(tree, rule), choice)
    # the mean of 4 and the dearest, 6, is worth half; the cheapest path knows nothing of those being imagined
    assert paths.slots[:, 0].tolist() == ([0, 0] if least else [0, 1])
    edges = tree.tables.edges[0]
    assert edges["visits"].tolist() == ([3, 1] if least else [2, 2])
    assert edges["total"].tolist() == ([16, 6] if least else [10, 12])
    # and no mark of it is left when its cost is known
    tree.grow(paths, ending(paths, [3.0, 7.0], 3))
    assert edges["total"].tolist() == ([14, 6] if least else [7, 13])


def test_one_way_down_ends_in_several_leaves_and_tells_of_all_of_them():
    """Of three siblings at most, while five leaves are asked for."""
    tree = grown([(0, 0, 4.0), (0, 1, 6.0), (1, 0, 5.0)], branches=4)
    rule = PUCT(exploration=0.0)
    choice = rule.choice(least=False, alike=True)
    paths = tree.descend(5, 3, np.array([5]), turn_of(tree, rule), choice, siblings=3)
    # node 1 may have a second edge and gets all it has left; then the way leads on to node 3
    assert paths.siblings[:2].tolist() == [3, 2]
    assert paths.edges.tolist() == [2, 3, 0, 0, 0]
    assert paths.parents.tolist() == [1, 1, 1, 3, 3]
    assert paths.taken.tolist() == [1, 2, 3, 0, 1]
    edge = tree.tables.edges[0, 0]
    assert (edge["visits"], edge["total"], edge["room"]) == (2 + 5, 4 + 5 + 5 * 6, 2)
    tree.grow(paths, ending(paths, [3.0, 7.0, 8.0, 2.0, 9.0], 3))
    # three of the new nodes can have four children each; the others are at the horizon
    assert (edge["total"], edge["least"], edge["room"]) == (9 + 29, 2, 2 + 12)
    assert tree.tables.edges[1]["least"].tolist() == [2, 3, 7, 8]


@pytest.mark.parametrize("least", [False, True])
def test_an_edge_that_is_new_is_worth_nothing_while_it_is_imagined(least: bool):
    """Else the paths behind it would believe that it costs nothing at all."""
    tree = grown([(0, 0, 4.0), (0, 1, 6.0)])
    rule = GumbelHalving()
    choice = rule.choice(least=least, alike=True)
    paths = tree.descend(2, 3, np.array([2]), turn_of(tree, rule), choice)
    assert paths.depth.tolist() == [2, 2]
    ends = tree.tables.edges[paths.nodes[:, 1], paths.slots[:, 1]]
    cost = ends["least"] if least else ends["total"] / ends["visits"]
    assert (cost >= tree.high).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    horizon=st.integers(1, 3),
    leaves=st.integers(2, 9),
    siblings=st.integers(1, 4),
    least=st.booleans(),
    weighted=st.booleans(),
    rule=st.sampled_from([PUCT(), GumbelHalving()]),
)
def test_every_edge_keeps_account_of_what_is_below_it(
    seed: int,
    horizon: int,
    leaves: int,
    siblings: int,
    least: bool,
    weighted: bool,
    rule: PUCT | GumbelHalving,
):
    """Counted anew from the leaves: visits, sums, cheapest paths and room; no leaf twice."""
    problems, branches, turns = 4, 3, 6
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(problems, 1, branches)) * weighted)
    hand = Hand(torch.zeros(logits.shape, dtype=torch.long), logits)
    memory = Memory()
    # what a larger search left is as good as new
    memory.array("edges", edge_of(np.float64), (999, branches)).view(np.uint8)[:] = 7
    chunk = torch.zeros(1, 1, dtype=torch.float64)
    tree = Tree.planted(torch.zeros(problems, 1), chunk, hand, turns * leaves, memory)
    more = Hand(*(part.expand(-1, leaves, -1) for part in (hand.numbers, hand.logits)))
    ends: dict[int, list[tuple[tuple[int, ...], float]]] = {problem: [] for problem in range(problems)}
    ways: dict[int, tuple[int, ...]] = dict.fromkeys(tree.roots.tolist(), ())
    for _ in range(turns):
        left = tree.tables.edges["room"][tree.roots].sum(axis=1)
        considered, noise = np.ones((problems, branches), bool), random.normal(size=(problems, branches))
        high, spread = tree.dearest()
        allowance = np.minimum(1 + np.arange(999) // 2, branches)
        turn = Turn(considered, noise, allowance, rule.rates(998), high, 1 / spread)
        choice = rule.choice(least=least, alike=tree.alike)
        paths = tree.descend(leaves, horizon, left, turn, choice, siblings)
        assert ((paths.depth > 0).reshape(problems, leaves).sum(axis=1) == np.minimum(left, leaves)).all()
        assert paths.siblings[paths.edges > 0].max(initial=0) <= siblings
        assert paths.siblings[paths.edges > 0].sum() == np.minimum(left, leaves).sum()
        values = random.normal(size=problems * leaves).tolist()
        new = (tree.roots[:, None] + tree.size + np.arange(leaves)).flatten().tolist()
        tree.grow(paths, ending(paths, values, horizon, problems, hand=more))
        for leaf, (length, value) in enumerate(zip(paths.depth.tolist(), values, strict=True)):
            if length:
                route = ways[new[leaf]] = (*ways[int(paths.parents[leaf])], int(paths.taken[leaf]))
                assert len(route) == length
                assert route not in [other for other, _ in ends[leaf // leaves]]
                ends[leaf // leaves].append((route, np.float32(value).item()))
    for problem, found in ends.items():
        for route in {other[:length] for other, _ in found for length in range(1, len(other) + 1)}:
            node = int(tree.roots[problem])
            for slot in route[:-1]:
                node = int(tree.tables.edges[node, slot]["child"])
            below = [(other, value) for other, value in found if other[: len(route)] == route]
            built = {other for other, _ in below}
            open_ends = [v for other, v in below if not any(o[:-1] == other for o in built)]
            room = sum(branches for other in built if len(other) < horizon) - (len(built) - 1)
            edge = tree.tables.edges[node, route[-1]]
            assert edge["visits"] == len(below)
            assert edge["total"] == pytest.approx(sum(value for _, value in below), abs=1e-5)
            assert edge["least"] == pytest.approx(min(open_ends), abs=1e-6)
            assert edge["room"] == room
