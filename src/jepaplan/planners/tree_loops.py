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
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_LINE = 64  # bytes of memory that come together


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
            ("first", number),  # cost of the whole path to the child as estimated when it was new
        ],
        align=True,
    )


class Tables(NamedTuple):
    """What a search knows of N nodes with K edges each.

    Only nodes that exist are ever read, and of their edges only those up to the last that was tried, as many
    as `span` says: memory nobody has written to yet is what a large tree spends its time on.
    """

    edges: Any  # "N K", each an `edge_of`
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
    rates: Float[np.ndarray, " n"]  # of PUCT's exploration after 0, 1, .. visits; Gumbel has none
    high: Float[np.ndarray, " B"]  # what the dearest path costs
    per_spread: Float[np.ndarray, " B"]  # one by how much less the cheapest costs


class Choice(NamedTuple):
    """How an edge is chosen; a rule leaves what it does not know at 0."""

    gumbel: bool  # else by PUCT
    least: bool  # Q is the cheapest path, else the mean
    alike: bool  # all logits are equal
    value_scale: float = 0.0
    visit_offset: float = 0.0
    noise_scale: float = 0.0


class Scale(NamedTuple):
    """What the costs of one tree are worth."""

    high: float  # of the dearest path
    per_spread: float


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # a test run wraps every function in checks of its types, which cannot be compiled
    return numba.njit(cache=True, error_model="numpy", nogil=True)(inspect.unwrap(function))


def _asking(typing: Any, address: Any) -> Any:
    """Ask for the line of memory at an address, and do not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


_prefetch: Any = intrinsic(_asking)


@_compiled
def _fetch(start: int, width: int, first: int, end: int) -> None:
    """Ask for edges of a node that will be looked at soon: `width` bytes each, from address `start` on."""
    for line in range(start + first * width, start + end * width, _LINE):
        _prefetch(line)


@_compiled
def _worth(edges: Any, node: int, slot: int, scale: Scale, choice: Choice) -> float:
    edge = edges[node, slot]
    return _share(edge.least if choice.least else edge.total / edge.visits, scale)


@_compiled
def _share(cost: float, scale: Scale) -> float:
    worth = (scale.high - cost) * scale.per_spread
    # an infinite cost is worth as little as the dearest; where all are infinite this is no number
    return min(worth, 1.0) if worth > 0.0 else 0.0


@_compiled
def choose_puct(
    edges: Any,
    logits: Float[np.ndarray, "#N K"],
    node: int,
    span: int,
    allowed: int,
    rate: float,
    scale: Scale,
    choice: Choice,
) -> int:
    """A new edge if so many are allowed, else the highest bound."""
    # edges are tried in the order they were drawn, so the first new one is the number of those tried
    if span < allowed:
        return span
    highest, weights = 0.0, float(span)
    if not choice.alike:
        highest, weights = -math.inf, 0.0
        for slot in range(span):
            highest = max(highest, logits[node, slot])
        for slot in range(span):
            weights += math.exp(logits[node, slot] - highest)
    rate = rate / weights
    best, chosen = -math.inf, span  # where all that was tried has been seen to the end, something is new
    for slot in range(span):
        weight = 1.0 if choice.alike else math.exp(logits[node, slot] - highest)
        bound = rate * weight / (1 + edges[node, slot].visits) + _worth(edges, node, slot, scale, choice)
        if bound > best and edges[node, slot].room > 0:
            best, chosen = bound, slot
    return chosen


@_compiled
def choose_at_gumbel_root(
    edges: Any,
    logits: Float[np.ndarray, "#N K"],
    node: int,
    considered: Bool[np.ndarray, "B K"],
    noise: Float[np.ndarray, "B K"],
    problem: int,
    scale: Scale,
    choice: Choice,
) -> int:
    """Those considered take turns; the best of those with the fewest visits first."""
    fewest, most = math.inf, 0.0
    for slot in range(edges.shape[1]):
        visits = edges[node, slot].visits
        most = max(most, visits)
        if considered[problem, slot] and edges[node, slot].room > 0:
            fewest = min(fewest, visits)
    height = (choice.visit_offset + most) * choice.value_scale
    best, chosen = -math.inf, 0
    for slot in range(edges.shape[1]):
        visits = edges[node, slot].visits
        if not (considered[problem, slot] and edges[node, slot].room > 0) or visits > fewest:
            continue
        score = choice.noise_scale * noise[problem, slot] + (0.0 if choice.alike else logits[node, slot])
        if visits > 0:
            score += height * _worth(edges, node, slot, scale, choice)
        if score > best:
            best, chosen = score, slot
    return chosen


@_compiled
def choose_gumbel(
    edges: Any,
    logits: Float[np.ndarray, "#N K"],
    node: int,
    span: int,
    allowed: int,
    first: float,
    scale: Scale,
    choice: Choice,
    scores: Float[np.ndarray, " K"],
) -> int:
    """Follow the improved policy as closely as whole visits can; `scores` is overwritten."""
    # no edge from `span` on has been tried, and none beyond `allowed` may be unless nothing else is left
    limit = allowed if span < allowed else edges.shape[1]
    for slot in range(span):
        if edges[node, slot].room > 0 and (edges[node, slot].visits > 0 or slot < allowed):
            limit = allowed
            break
    highest = 0.0
    if not choice.alike:
        highest = -math.inf
        for slot in range(span):
            if edges[node, slot].visits > 0:
                highest = max(highest, logits[node, slot])
    # the mixed value stands for the worth of what nobody tried
    taken, most, share, average = 0.0, 0.0, 0.0, 0.0
    for slot in range(span):
        visits = edges[node, slot].visits
        if visits > 0:
            worth = _worth(edges, node, slot, scale, choice)
            weight = 1.0 if choice.alike else math.exp(logits[node, slot] - highest)
            taken, most = taken + visits, max(most, visits)
            share, average = share + weight, average + weight * worth
            scores[slot] = worth
    average = average / share if share > 0 else 0.0
    mixed = (_share(first, scale) + taken * average) / (1 + taken)
    height = (choice.visit_offset + most) * choice.value_scale
    peak, reach = -math.inf, max(span, limit)
    for slot in range(reach):
        tried = slot < span and edges[node, slot].visits > 0
        logit = 0.0 if choice.alike else logits[node, slot]
        score = logit + height * (scores[slot] if tried else mixed)
        # what nobody tried has room
        scores[slot] = score if tried or slot < limit else -math.inf
        peak = max(peak, scores[slot])
    total = 0.0
    for slot in range(reach):
        scores[slot] = math.exp(scores[slot] - peak)
        total += scores[slot]
    best, chosen, visited = -math.inf, 0, total / (1 + taken)
    for slot in range(reach):
        edge = edges[node, slot]
        tried = slot < span and edge.visits > 0
        behind = scores[slot] - (edge.visits * visited if tried else 0.0)
        if behind > best and (edge.room > 0 if tried else slot < limit):
            best, chosen = behind, slot
    return chosen


@_compiled
def descend(
    tables: Tables,
    paths: Paths,
    possible: Int[np.ndarray, " B"],
    turn: Turn,
    choice: Choice,
    first: int,
    end: int,
) -> None:
    """Fill `paths` with ways to edges that nobody took, of each tree's leaves the first `possible`.

    Of trees number `first` up to `end`: nothing else is read or written, so threads may share them out.
    """
    # an array is counted whenever it is taken out of a tuple: once is enough
    edges, logits, allowance, rates = tables.edges, tables.logits, turn.allowance, turn.rates
    considered, noise = turn.considered, turn.noise
    nodes, slots, before, depths = paths.nodes, paths.slots, paths.before, paths.depth
    high: Any = turn.high
    per_spread: Any = turn.per_spread
    problems, branches = len(possible), edges.shape[1]
    # so is one whose address is asked for
    address, width = edges.ctypes.data, edges.itemsize
    leaves, size = len(depths) // problems, len(edges) // problems
    scores = np.empty(branches, before.dtype)
    under_way, visits, spans = np.empty((3, problems), np.int64)
    for number in range(leaves):
        going = 0
        for problem in range(first, end):
            leaf, root = problem * leaves + number, problem * size
            nodes[leaf, 0], slots[leaf, 0], depths[leaf] = root, 0, 0
            if number < possible[problem]:
                under_way[going], visits[problem], spans[problem] = problem, 0, 0
                going += 1
                for slot in range(branches):
                    if edges[root, slot].visits > 0:
                        visits[problem] += int(edges[root, slot].visits)
                        spans[problem] = slot + 1
        depth = 0
        # no tree knows of another: while memory is fetched for one, the others go on
        while going > 0:
            waiting, going = going, 0
            for place in range(waiting):
                problem = under_way[place]
                scale = Scale(high[problem], per_spread[problem])
                leaf = problem * leaves + number
                node, count, span = nodes[leaf, depth], visits[problem], spans[problem]
                if not choice.gumbel:
                    chosen = choose_puct(
                        edges, logits, node, span, allowance[count], rates[count], scale, choice
                    )
                elif depth == 0:
                    chosen = choose_at_gumbel_root(
                        edges, logits, node, considered, noise, problem, scale, choice
                    )
                else:
                    estimate = edges[nodes[leaf, depth - 1], slots[leaf, depth - 1]].first
                    chosen = choose_gumbel(
                        edges, logits, node, span, allowance[count], estimate, scale, choice, scores
                    )
                if depth > 0 and chosen >= span:
                    begin(edges, node, span, chosen + 1)
                    edges[nodes[leaf, depth - 1], slots[leaf, depth - 1]].span = chosen + 1
                edge = edges[node, chosen]
                slots[leaf, depth], before[leaf, depth] = chosen, edge.total
                depths[leaf] = depth + 1
                # a node has been visited as often as its edge, whose newest path is this one
                visits[problem], spans[problem] = int(edge.visits), edge.span
                if edge.visits == 0:
                    edge.least = math.inf  # until its cost is known
                edge.visits += 1
                edge.total += scale.high
                edge.room -= 1
                if edge.child != 0:
                    nodes[leaf, depth + 1], under_way[going] = edge.child, problem
                    going += 1
                    _fetch(address + edge.child * branches * width, width, 0, edge.span + 1)
            depth += 1


@_compiled
def settle(
    tables: Tables,
    paths: Paths,
    nodes: Int[np.ndarray, " I"],
    values: Float[np.ndarray, " I"],
    final: Bool[np.ndarray, " I"],
    leaves: int,
    first: int,
    end: int,
) -> None:
    """Hang new `nodes`, so many on each tree, where paths end, and tell every edge above what they cost.

    On trees number `first` up to `end`, and of no other.
    """
    edges, branches = tables.edges, tables.edges.shape[1]
    address, width = edges.ctypes.data, edges.itemsize
    along, slots, before, depths = paths.nodes, paths.slots, paths.before, paths.depth
    for start in range(first * leaves, end * leaves, leaves):
        for leaf in range(start + leaves - 1, start - 1, -1):
            for depth in range(depths[leaf] - 1, -1, -1):
                edges[along[leaf, depth], slots[leaf, depth]].total = before[leaf, depth]
            # the next tree's, by the time its turn comes
            ahead = min(leaf + leaves, end * leaves - 1)
            for depth in range(depths[ahead]):
                _fetch(address + along[ahead, depth] * branches * width, width, 0, slots[ahead, depth] + 1)
        for leaf in range(start, start + leaves):
            least, changed = values[leaf], True
            for depth in range(depths[leaf] - 1, -1, -1):
                node, last = along[leaf, depth], depth == depths[leaf] - 1
                edge = edges[node, slots[leaf, depth]]
                edge.total += values[leaf]
                edge.room += 0 if final[leaf] else branches
                if last:
                    edge.child, edge.first = nodes[leaf], values[leaf]
                elif not changed:
                    continue
                # where an edge's cheapest path stays what it was, so do those of all edges above
                changed = depth > 0 and (last or edge.least != least)
                edge.least = least
                if not changed:
                    continue
                least = math.inf
                for other in range(edges[along[leaf, depth - 1], slots[leaf, depth - 1]].span):
                    beside = edges[node, other]
                    if beside.child != 0:
                        least = min(least, beside.least)


@_compiled
def begin(edges: Any, node: int, first: int, end: int) -> None:
    """Edges of a node that nobody took, whatever lay in their place before."""
    for slot in range(first, end):
        edge = edges[node, slot]
        edge.visits, edge.total, edge.least, edge.first = 0.0, 0.0, 0.0, 0.0
        edge.child, edge.room, edge.span = 0, 1, 0
