"""The loops of a tree search, compiled: the way down to the leaves, and what comes back up.

A search chooses among a handful of edges millions of times, which is nothing for arrays to do at once. All
functions here work on `Tables` in place, one path after the other, so that every path sees what the paths
before it chose: while it is being imagined a path counts as the dearest (virtual loss, Chaslot et al., 2008).

    paper               here
    N(s, a)             Tables.visits
    Q(s, a)             Tables.total / Tables.visits, or Tables.least
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


class Tables(NamedTuple):
    """What a search knows of N nodes with K edges each; only nodes that exist are ever read."""

    logits: Float[np.ndarray, "N K"]  # of the edges' prior
    children: Int[np.ndarray, "N K"]  # where they lead; 0 where nobody went, which is a root
    visits: Float[np.ndarray, "N K"]  # paths along the edge, those being imagined among them
    total: Float[np.ndarray, "N K"]  # of their costs; one being imagined costs as much as the dearest
    least: Float[np.ndarray, "N K"]  # the cheapest path along the edge that ends where nobody went on
    room: Int[np.ndarray, "N K"]  # new nodes that may still be built there
    value: Float[np.ndarray, " N"]  # cost of the whole path to the node as estimated when it was new


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
    spread: Float[np.ndarray, " B"]  # and how much less the cheapest


class Choice(NamedTuple):
    """How an edge is chosen; a rule leaves what it does not know at 0."""

    gumbel: bool  # else by PUCT
    least: bool  # Q is the cheapest path, else the mean
    alike: bool  # all logits are equal
    exploration: float = 0.0
    exploration_base: float = 0.0
    value_scale: float = 0.0
    visit_offset: float = 0.0
    noise_scale: float = 0.0


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # a test run wraps every function in checks of its types, which cannot be compiled
    return numba.njit(cache=True, error_model="numpy")(inspect.unwrap(function))


@_compiled
def _worth(tables: Tables, node: int, slot: int, high: float, spread: float, least: bool) -> float:
    cost = tables.least[node, slot] if least else tables.total[node, slot] / tables.visits[node, slot]
    return _share(cost, high, spread)


@_compiled
def _share(cost: float, high: float, spread: float) -> float:
    worth = (high - cost) / spread
    # an infinite cost is worth as little as the dearest; where all are infinite this is no number
    return min(worth, 1.0) if worth > 0.0 else 0.0


@_compiled
def choose_puct(tables: Tables, node: int, visits: float, turn: Turn, problem: int, choice: Choice) -> int:
    """A new edge if so many are allowed, else the highest bound."""
    edges = tables.visits.shape[1]
    # edges are tried in the order they were drawn, so the first new one is the number of those tried
    used = 0
    while used < edges and tables.visits[node, used] > 0:
        used += 1
    if used < turn.allowance[int(visits)]:
        return used
    highest, weights = 0.0, float(used)
    if not choice.alike:
        highest = tables.logits[node, :used].max()
        weights = np.exp(tables.logits[node, :used] - highest).sum()
    rate = choice.exploration + math.log((visits + choice.exploration_base + 1) / choice.exploration_base)
    rate *= math.sqrt(visits) / weights
    high, spread = turn.high[problem], turn.spread[problem]
    best, chosen = -math.inf, used  # where all that was tried has been seen to the end, something is new
    for slot in range(used):
        weight = 1.0 if choice.alike else math.exp(tables.logits[node, slot] - highest)
        bound = rate * weight / (1 + tables.visits[node, slot])
        bound += _worth(tables, node, slot, high, spread, choice.least)
        if bound > best and tables.room[node, slot] > 0:
            best, chosen = bound, slot
    return chosen


@_compiled
def choose_at_gumbel_root(tables: Tables, node: int, turn: Turn, problem: int, choice: Choice) -> int:
    """Those considered take turns; the best of those with the fewest visits first."""
    edges = tables.visits.shape[1]
    fewest, most = math.inf, 0.0
    for slot in range(edges):
        most = max(most, tables.visits[node, slot])
        if turn.considered[problem, slot] and tables.room[node, slot] > 0:
            fewest = min(fewest, tables.visits[node, slot])
    scale = (choice.visit_offset + most) * choice.value_scale
    best, chosen = -math.inf, 0
    for slot in range(edges):
        open_ = turn.considered[problem, slot] and tables.room[node, slot] > 0
        if not open_ or tables.visits[node, slot] > fewest:
            continue
        score = choice.noise_scale * turn.noise[problem, slot] + tables.logits[node, slot]
        if tables.visits[node, slot] > 0:
            score += scale * _worth(
                tables, node, slot, turn.high[problem], turn.spread[problem], choice.least
            )
        if score > best:
            best, chosen = score, slot
    return chosen


@_compiled
def choose_gumbel(
    tables: Tables,
    node: int,
    visits: float,
    turn: Turn,
    problem: int,
    choice: Choice,
    scores: Float[np.ndarray, " K"],
) -> int:
    """Follow the improved policy as closely as whole visits can; `scores` is overwritten."""
    edges, high, spread = tables.visits.shape[1], turn.high[problem], turn.spread[problem]
    allowed = turn.allowance[int(visits)]
    some = False  # of those allowed there is one left; else all are allowed
    for slot in range(edges):
        tried = tables.visits[node, slot] > 0
        some |= tables.room[node, slot] > 0 and (tried or slot < allowed)
    limit = allowed if some else edges
    taken, most, highest = 0.0, 0.0, -math.inf
    for slot in range(edges):
        count = tables.visits[node, slot]
        taken, most = taken + count, max(most, count)
        if count > 0 or (tables.room[node, slot] > 0 and slot < limit):
            highest = max(highest, tables.logits[node, slot])
    # the mixed value stands for the worth of what nobody tried
    share, average = 0.0, 0.0
    for slot in range(edges):
        if tables.visits[node, slot] > 0:
            weight = 1.0 if choice.alike else math.exp(tables.logits[node, slot] - highest)
            share += weight
            average += weight * _worth(tables, node, slot, high, spread, choice.least)
    average = average / share if share > 0 else 0.0
    mixed = (_share(tables.value[node], high, spread) + taken * average) / (1 + taken)
    scale = (choice.visit_offset + most) * choice.value_scale
    peak = -math.inf
    for slot in range(edges):
        if tables.visits[node, slot] > 0 or (tables.room[node, slot] > 0 and slot < limit):
            worth = mixed
            if tables.visits[node, slot] > 0:
                worth = _worth(tables, node, slot, high, spread, choice.least)
            scores[slot] = tables.logits[node, slot] + scale * worth
            peak = max(peak, scores[slot])
        else:
            scores[slot] = -math.inf
    total = 0.0
    for slot in range(edges):
        scores[slot] = math.exp(scores[slot] - peak)
        total += scores[slot]
    best, chosen = -math.inf, 0
    for slot in range(edges):
        count = tables.visits[node, slot]
        if tables.room[node, slot] > 0 and (count > 0 or slot < limit):
            behind = scores[slot] / total - count / (1 + taken)
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
    problems = len(possible)
    scores = np.empty(tables.visits.shape[1], tables.total.dtype)
    leaves, size = len(paths.depth) // problems, len(tables.value) // problems
    for problem in range(problems):
        for leaf in range(problem * leaves, (problem + 1) * leaves):
            node, depth, visits = problem * size, 0, 0.0
            paths.nodes[leaf, 0], paths.slots[leaf, 0], paths.depth[leaf] = node, 0, 0
            if leaf - problem * leaves >= possible[problem]:
                continue
            for slot in range(tables.visits.shape[1]):
                visits += tables.visits[node, slot]
            while True:
                if not choice.gumbel:
                    chosen = choose_puct(tables, node, visits, turn, problem, choice)
                elif depth == 0:
                    chosen = choose_at_gumbel_root(tables, node, turn, problem, choice)
                else:
                    chosen = choose_gumbel(tables, node, visits, turn, problem, choice, scores)
                paths.nodes[leaf, depth], paths.slots[leaf, depth] = node, chosen
                paths.before[leaf, depth] = tables.total[node, chosen]
                depth += 1
                # a node has been visited as often as its edge, whose newest path is this one
                visits = tables.visits[node, chosen]
                if visits == 0:
                    tables.least[node, chosen] = math.inf  # until its cost is known
                tables.visits[node, chosen] += 1
                tables.total[node, chosen] += turn.high[problem]
                tables.room[node, chosen] -= 1
                node = tables.children[node, chosen]
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
    edges = tables.visits.shape[1]
    for back in range(len(nodes)):
        leaf = len(nodes) - 1 - back
        for up in range(paths.depth[leaf]):
            depth = paths.depth[leaf] - 1 - up
            tables.total[paths.nodes[leaf, depth], paths.slots[leaf, depth]] = paths.before[leaf, depth]
    for leaf in range(len(nodes)):
        length, node = paths.depth[leaf], nodes[leaf]
        if length == 0:
            continue
        tables.value[node] = values[leaf]
        tables.room[node] = 1
        parent, slot = paths.nodes[leaf, length - 1], paths.slots[leaf, length - 1]
        tables.children[parent, slot] = node
        least, changed = values[leaf], True
        for up in range(length):
            node, slot = paths.nodes[leaf, length - 1 - up], paths.slots[leaf, length - 1 - up]
            tables.total[node, slot] += values[leaf]
            tables.room[node, slot] += 0 if final[leaf] else edges
            if not changed:
                continue
            # where an edge's cheapest path stays what it was, so do those of all edges above
            changed = up == 0 or tables.least[node, slot] != least
            tables.least[node, slot] = least
            least = math.inf
            for other in range(edges):
                if tables.children[node, other] != 0:
                    least = min(least, tables.least[node, other])
