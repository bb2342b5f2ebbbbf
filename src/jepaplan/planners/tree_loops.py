"""The loops of a tree search, compiled: the way down to the leaves, and what comes back up.

A search chooses among a handful of edges millions of times, which is nothing for arrays to do at once. All
functions here work on `Tables` in place, one path after the other, so that every path sees what the paths
before it chose: while it is being imagined a path counts as the dearest (virtual loss, Chaslot et al., 2008).

    paper               here
    N(s, a)             `visits` of an edge
    Q(s, a)             its `total` / `visits`, or its `least`
    normalised Q        `worth` in [0, 1]: 1 for the cheapest path of the tree, 0 for the dearest
    PUCT                MuZero, appendix B
    pi', v_mix          Danihelka et al., 2022: the policy improved by completed Q, the mixed value

numba compiles a function the first time it is called and keeps the result beside this file; it looks for
changes in this file alone, so what is compiled stays together here.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float, Int


def edge_of(number: type[np.floating]) -> np.dtype[np.void]:
    """What is known of an edge, side by side: a choice reads the few edges that were tried, all of each."""
    return np.dtype(
        [
            ("visits", number),  # paths along the edge, those being imagined among them
            ("total", number),  # of their costs; one being imagined costs as much as the dearest
            ("least", number),  # the cheapest path along the edge that ends where nobody went on
            ("child", np.int32),  # the node it leads to; 0 where nobody went, which is a root
            ("room", np.int32),  # new nodes that may still be built there
            ("span", np.int32),  # of the child's edges no later one was tried
        ],
        align=True,
    )


class Tables(NamedTuple):
    """What a search knows of N nodes with K edges each; only nodes that exist are ever read."""

    edges: Any  # "N K", each an `edge_of`
    value: Float[np.ndarray, " N"]  # cost of the whole path to the node as estimated when it was new
    logits: Float[np.ndarray, "#N K"]  # of the edges' prior; one row of zeros while all are alike


class Paths(NamedTuple):
    """The way to each of the I leaves that are imagined next, at most D edges long."""

    nodes: Int[np.ndarray, "I D"]  # from the root on
    slots: Int[np.ndarray, "I D"]  # which edge of each
    before: Float[np.ndarray, "I D"]  # `total` of that edge before this path came
    depth: Int[np.ndarray, " I"]  # edges; 0 where a problem has nothing left to find


class Turn(NamedTuple):
    """What choices depend on beside the tree."""

    considered: Bool[np.ndarray, "B K"]  # root actions in the running
    noise: Float[np.ndarray, "B K"]  # of the root's actions
    allowance: Int[np.ndarray, " n"]  # edges of a node that may be tried after 0, 1, .. visits
    high: Float[np.ndarray, " B"]  # what the dearest path costs
    per_spread: Float[np.ndarray, " B"]  # one by how much less the cheapest costs


class Choice(NamedTuple):
    """How an edge is chosen; a rule leaves what it does not know at 0."""

    gumbel: bool  # else by PUCT
    least: bool  # Q is the cheapest path, else the mean
    alike: bool  # all logits are equal
    rates: Float[np.ndarray, " n"]  # of PUCT's exploration after 0, 1, .. visits
    value_scale: float = 0.0
    visit_offset: float = 0.0
    noise_scale: float = 0.0


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # a test run wraps every function in checks of its types, which cannot be compiled
    return numba.njit(cache=True, error_model="numpy")(inspect.unwrap(function))


@_compiled
def _worth(edge: Any, turn: Turn, problem: int, choice: Choice) -> float:
    return _share(edge.least if choice.least else edge.total / edge.visits, turn, problem)


@_compiled
def _share(cost: float, turn: Turn, problem: int) -> float:
    worth = (turn.high[problem] - cost) * turn.per_spread[problem]
    # an infinite cost is worth as little as the dearest; where all are infinite this is no number
    return min(worth, 1.0) if worth > 0.0 else 0.0


@_compiled
def choose_puct(
    tables: Tables, node: int, visits: float, turn: Turn, problem: int, choice: Choice, span: int
) -> int:
    """A new edge if so many are allowed, else the highest bound."""
    # edges are tried in the order they were drawn, so the first new one is the number of those tried
    if span < turn.allowance[int(visits)]:
        return span
    highest, weights = 0.0, float(span)
    if not choice.alike:
        highest = tables.logits[node, :span].max()
        weights = np.exp(tables.logits[node, :span] - highest).sum()
    rate = choice.rates[int(visits)] / weights
    best, chosen = -math.inf, span  # where all that was tried has been seen to the end, something is new
    for slot in range(span):
        weight = 1.0 if choice.alike else math.exp(tables.logits[node, slot] - highest)
        edge = tables.edges[node, slot]
        bound = rate * weight / (1 + edge.visits) + _worth(edge, turn, problem, choice)
        if bound > best and edge.room > 0:
            best, chosen = bound, slot
    return chosen


@_compiled
def choose_at_gumbel_root(tables: Tables, node: int, turn: Turn, problem: int, choice: Choice) -> int:
    """Those considered take turns; the best of those with the fewest visits first."""
    edges = tables.edges.shape[1]
    fewest, most = math.inf, 0.0
    for slot in range(edges):
        edge = tables.edges[node, slot]
        most = max(most, edge.visits)
        if turn.considered[problem, slot] and edge.room > 0:
            fewest = min(fewest, edge.visits)
    scale = (choice.visit_offset + most) * choice.value_scale
    best, chosen = -math.inf, 0
    for slot in range(edges):
        edge = tables.edges[node, slot]
        if not (turn.considered[problem, slot] and edge.room > 0) or edge.visits > fewest:
            continue
        score = choice.noise_scale * turn.noise[problem, slot] + _logit(tables, node, slot, choice)
        if edge.visits > 0:
            score += scale * _worth(edge, turn, problem, choice)
        if score > best:
            best, chosen = score, slot
    return chosen


@_compiled
def _logit(tables: Tables, node: int, slot: int, choice: Choice) -> float:
    return 0.0 if choice.alike else tables.logits[node, slot]


@_compiled
def choose_gumbel(
    tables: Tables,
    node: int,
    visits: float,
    turn: Turn,
    problem: int,
    choice: Choice,
    span: int,
    scores: Float[np.ndarray, " K"],
) -> int:
    """Follow the improved policy as closely as whole visits can; `scores` is overwritten."""
    # no later edge has been tried, and none may be tried unless nothing else is left
    allowed = turn.allowance[int(visits)]
    some, highest = False, -math.inf
    for slot in range(max(span, allowed)):
        edge = tables.edges[node, slot]
        some |= edge.room > 0 and (edge.visits > 0 or slot < allowed)
        if not choice.alike and edge.visits > 0:
            highest = max(highest, tables.logits[node, slot])
    limit = allowed if some else tables.edges.shape[1]
    # the mixed value stands for the worth of what nobody tried
    taken, most, share, average = 0.0, 0.0, 0.0, 0.0
    for slot in range(span):
        edge = tables.edges[node, slot]
        if edge.visits > 0:
            scores[slot] = _worth(edge, turn, problem, choice)
            weight = 1.0 if choice.alike else math.exp(tables.logits[node, slot] - highest)
            taken, most = taken + edge.visits, max(most, edge.visits)
            share, average = share + weight, average + weight * scores[slot]
    average = average / share if share > 0 else 0.0
    mixed = (_share(tables.value[node], turn, problem) + taken * average) / (1 + taken)
    scale = (choice.visit_offset + most) * choice.value_scale
    peak = -math.inf
    for slot in range(max(span, limit)):
        edge = tables.edges[node, slot]
        if edge.visits > 0 or (edge.room > 0 and slot < limit):
            worth = scores[slot] if edge.visits > 0 else mixed
            scores[slot] = _logit(tables, node, slot, choice) + scale * worth
            peak = max(peak, scores[slot])
        else:
            scores[slot] = -math.inf
    total = 0.0
    for slot in range(max(span, limit)):
        scores[slot] = math.exp(scores[slot] - peak)
        total += scores[slot]
    best, chosen = -math.inf, 0
    for slot in range(max(span, limit)):
        edge = tables.edges[node, slot]
        if edge.room > 0 and (edge.visits > 0 or slot < limit):
            behind = scores[slot] / total - edge.visits / (1 + taken)
            if behind > best:
                best, chosen = behind, slot
    return chosen


@_compiled
def descend(
    tables: Tables,
    paths: Paths,
    possible: Int[np.ndarray, " B"],
    turn: Turn,
    choice: Choice,
) -> None:
    """Fill `paths` with ways to edges that nobody took, of each tree's leaves the first `possible`."""
    problems, edges = len(possible), tables.edges.shape[1]
    scores = np.empty(edges, tables.value.dtype)
    leaves, size = len(paths.depth) // problems, len(tables.value) // problems
    for problem in range(problems):
        for leaf in range(problem * leaves, (problem + 1) * leaves):
            node, depth, visits, span = problem * size, 0, 0.0, 0
            paths.nodes[leaf, 0], paths.slots[leaf, 0], paths.depth[leaf] = node, 0, 0
            if leaf - problem * leaves >= possible[problem]:
                continue
            for slot in range(edges):
                if tables.edges[node, slot].visits > 0:
                    visits, span = visits + tables.edges[node, slot].visits, slot + 1
            while True:
                if not choice.gumbel:
                    chosen = choose_puct(tables, node, visits, turn, problem, choice, span)
                elif depth == 0:
                    chosen = choose_at_gumbel_root(tables, node, turn, problem, choice)
                else:
                    chosen = choose_gumbel(tables, node, visits, turn, problem, choice, span, scores)
                edge = tables.edges[node, chosen]
                paths.nodes[leaf, depth], paths.slots[leaf, depth] = node, chosen
                paths.before[leaf, depth] = edge.total
                if depth > 0:
                    above = tables.edges[paths.nodes[leaf, depth - 1], paths.slots[leaf, depth - 1]]
                    above.span = max(above.span, chosen + 1)
                depth += 1
                # a node has been visited as often as its edge, whose newest path is this one
                visits, span = edge.visits, edge.span
                if visits == 0:
                    edge.least = math.inf  # until its cost is known
                edge.visits += 1
                edge.total += turn.high[problem]
                edge.room -= 1
                node = edge.child
                if node == 0:
                    break
            paths.depth[leaf] = depth


@_compiled
def settle(
    tables: Tables,
    paths: Paths,
    nodes: Int[np.ndarray, " I"],
    values: Float[np.ndarray, " I"],
    final: Bool[np.ndarray, " I"],
) -> None:
    """Hang new `nodes` below the edges where paths end, and tell every edge above what they cost."""
    edges = tables.edges.shape[1]
    for back in range(len(nodes)):
        leaf = len(nodes) - 1 - back
        for up in range(paths.depth[leaf]):
            depth = paths.depth[leaf] - 1 - up
            tables.edges[paths.nodes[leaf, depth], paths.slots[leaf, depth]].total = paths.before[leaf, depth]
    for leaf in range(len(nodes)):
        length = paths.depth[leaf]
        if length == 0:
            continue
        begin(tables, nodes[leaf], values[leaf])
        least, changed = values[leaf], True
        for up in range(length):
            depth = length - 1 - up
            node = paths.nodes[leaf, depth]
            edge = tables.edges[node, paths.slots[leaf, depth]]
            edge.total += values[leaf]
            edge.room += 0 if final[leaf] else edges
            if up == 0:
                edge.child = nodes[leaf]
            elif not changed:
                continue
            # where an edge's cheapest path stays what it was, so do those of all edges above
            changed = depth > 0 and (up == 0 or edge.least != least)
            edge.least = least
            if not changed:
                continue
            least = math.inf
            for other in range(tables.edges[paths.nodes[leaf, depth - 1], paths.slots[leaf, depth - 1]].span):
                beside = tables.edges[node, other]
                if beside.child != 0:
                    least = min(least, beside.least)


@_compiled
def begin(tables: Tables, node: int, value: float) -> None:
    """A node that nobody went on from, whatever lay in its place before."""
    tables.value[node] = value
    for slot in range(tables.edges.shape[1]):
        edge = tables.edges[node, slot]
        edge.visits, edge.total, edge.least = 0.0, 0.0, 0.0
        edge.child, edge.room, edge.span = 0, 1, 0
