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

What is compiled stays together here (`jepaplan.compiled`).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from jepaplan.compiled import compiled

_LINE = 64  # bytes of memory that come together
_compiled = compiled(nogil=True)


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
    """The ways to the I leaves that are imagined next, at most D edges long.

    Leaf number l of problem b is b L + l, and so are ways, of which a problem has as many as leaves or fewer:
    where a way ends, the edges after its last one may lead to leaves as well.
    """

    nodes: Int[np.ndarray, "I D"]  # of a way, from the root on
    slots: Int[np.ndarray, "I D"]  # which edge of each
    before: Float[np.ndarray, "I D"]  # `total` of that edge before this way came; not of the last, new one
    edges: Int[np.ndarray, " I"]  # of a way; 0 where a problem needs no more of them
    siblings: Int[np.ndarray, " I"]  # leaves at the end of a way
    parents: Int[np.ndarray, " I"]  # of the leaves
    taken: Int[np.ndarray, " I"]  # which of the parent's edges leads to a leaf
    depth: Int[np.ndarray, " I"]  # edges from the root to a leaf; 0 where nothing is left to find

    @classmethod
    def unknown(cls, leaves: int, longest: int, number: np.dtype[np.floating]) -> "Paths":
        """For so many leaves of all problems; what it holds is anything."""
        return cls(
            nodes=np.empty((leaves, longest), np.int64),
            slots=np.empty((leaves, longest), np.int64),
            before=np.empty((leaves, longest), number),
            edges=np.empty(leaves, np.int64),
            siblings=np.empty(leaves, np.int64),
            parents=np.empty(leaves, np.int64),
            taken=np.empty(leaves, np.int64),
            depth=np.empty(leaves, np.int64),
        )


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
        scores[slot] -= peak
        scores[slot] = math.exp(scores[slot])  # of single precision where the scores are
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
    siblings: int,
    turn: Turn,
    choice: Choice,
    first: int,
    end: int,
) -> None:
    """Fill `paths` with ways to edges that nobody took, of each tree's leaves the first `possible`.

    A way ends in up to so many `siblings`. Of trees number `first` up to `end`: nothing else is read or
    written, so threads may share them out.
    """
    # an array is counted whenever it is taken out of a tuple: once is enough
    edges, logits, allowance, rates = tables.edges, tables.logits, turn.allowance, turn.rates
    considered, noise = turn.considered, turn.noise
    nodes, slots, before, lengths, ends = paths.nodes, paths.slots, paths.before, paths.edges, paths.siblings
    parents, taken, depths = paths.parents, paths.taken, paths.depth
    high: Any = turn.high
    per_spread: Any = turn.per_spread
    problems, branches = len(possible), edges.shape[1]
    # so is one whose address is asked for
    address, width = edges.ctypes.data, edges.itemsize
    leaves, size = len(depths) // problems, len(edges) // problems
    scores = np.empty(branches, before.dtype)
    under_way, visits, spans, found = np.empty((4, problems), np.int64)
    found[first:end] = 0
    lengths[first * leaves : end * leaves] = 0
    for number in range(leaves):
        going = 0
        for problem in range(first, end):
            if found[problem] < possible[problem] and found[problem] < leaves:
                root = problem * size
                nodes[problem * leaves + number, 0] = root
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
                way = problem * leaves + number
                node, count, span = nodes[way, depth], visits[problem], spans[problem]
                if not choice.gumbel:
                    chosen = choose_puct(
                        edges, logits, node, span, allowance[count], rates[count], scale, choice
                    )
                elif depth == 0:
                    chosen = choose_at_gumbel_root(
                        edges, logits, node, considered, noise, problem, scale, choice
                    )
                else:
                    estimate = edges[nodes[way, depth - 1], slots[way, depth - 1]].first
                    chosen = choose_gumbel(
                        edges, logits, node, span, allowance[count], estimate, scale, choice, scores
                    )
                if chosen < span and edges[node, chosen].visits > 0:
                    edge = edges[node, chosen]
                    slots[way, depth], before[way, depth] = chosen, edge.total
                    # a node has been visited as often as its edge, whose newest path is this one
                    visits[problem], spans[problem] = int(edge.visits), edge.span
                    edge.visits += 1
                    edge.total += scale.high
                    edge.room -= 1
                    nodes[way, depth + 1], under_way[going] = edge.child, problem
                    going += 1
                    _fetch(address + edge.child * branches * width, width, 0, edge.span + 1)
                    continue
                # at the root Gumbel's rule draws its actions, so that none comes with another
                most = 1 if choice.gumbel and depth == 0 else siblings
                most = min(
                    most, branches - chosen, possible[problem] - found[problem], leaves - found[problem]
                )
                new = 1
                while new < most and (chosen + new >= span or edges[node, chosen + new].visits == 0):
                    new += 1
                if depth > 0 and chosen + new > span:
                    begin(edges, node, span, chosen + new)
                    edges[nodes[way, depth - 1], slots[way, depth - 1]].span = chosen + new
                slots[way, depth], lengths[way], ends[way] = chosen, depth + 1, new
                for slot in range(chosen, chosen + new):
                    edge, leaf = edges[node, slot], problem * leaves + found[problem]
                    found[problem] += 1
                    parents[leaf], taken[leaf], depths[leaf] = node, slot, depth + 1
                    edge.least = math.inf  # until its cost is known
                    edge.visits += 1
                    edge.total += scale.high
                    edge.room -= 1
                if new > 1:
                    for above in range(depth):
                        edge = edges[nodes[way, above], slots[way, above]]
                        edge.visits += new - 1
                        edge.total += (new - 1) * scale.high
                        edge.room -= new - 1
            depth += 1
    for problem in range(first, end):
        for leaf in range(problem * leaves + found[problem], (problem + 1) * leaves):
            parents[leaf], taken[leaf], depths[leaf] = problem * size, 0, 0


@_compiled
def settle(
    tables: Tables,
    paths: Paths,
    nodes: Int[np.ndarray, " I"],
    values: Float[np.ndarray, " I"],
    final: Bool[np.ndarray, " I"],
    low: Float[np.ndarray, " B"],
    high: Float[np.ndarray, " B"],
    first: int,
    end: int,
) -> None:
    """Hang new `nodes` where paths end, and tell every edge above what they cost, and `low` and `high`.

    On trees number `first` up to `end`, and of no other.
    """
    leaves = len(nodes) // len(low)
    edges, branches = tables.edges, tables.edges.shape[1]
    address, width = edges.ctypes.data, edges.itemsize
    along, slots, before, lengths, ends = paths.nodes, paths.slots, paths.before, paths.edges, paths.siblings
    for tree in range(first, end):
        start = tree * leaves
        for way in range(start + leaves - 1, start - 1, -1):
            # new edges, where a way ends, cost what is found there
            for depth in range(lengths[way] - 2, -1, -1):
                edges[along[way, depth], slots[way, depth]].total = before[way, depth]
            # the next tree's, by the time its turn comes
            ahead = min(way + leaves, end * leaves - 1)
            for depth in range(lengths[ahead]):
                _fetch(address + along[ahead, depth] * branches * width, width, 0, slots[ahead, depth] + 1)
        leaf = start
        for way in range(start, start + leaves):
            last = lengths[way] - 1
            if last < 0:
                break
            node, slot, new = along[way, last], slots[way, last], ends[way]
            cost, room = 0.0, 0
            for number in range(new):
                edge = edges[node, slot + number]
                edge.total, edge.least, edge.first = values[leaf], values[leaf], values[leaf]
                edge.child, edge.room = nodes[leaf], 0 if final[leaf] else branches
                cost, room = cost + values[leaf], room + edge.room
                if math.isfinite(values[leaf]):
                    low[tree], high[tree] = min(low[tree], values[leaf]), max(high[tree], values[leaf])
                leaf += 1
            changed = True
            for depth in range(last - 1, -1, -1):
                edge, below = edges[along[way, depth], slots[way, depth]], along[way, depth + 1]
                edge.total += cost
                edge.room += room
                # where an edge's cheapest path stays what it was, so do those of all edges above
                if not changed:
                    continue
                least = math.inf
                for other in range(edge.span):
                    beside = edges[below, other]
                    if beside.child != 0:
                        least = min(least, beside.least)
                changed = edge.least != least
                edge.least = least


@_compiled
def follow_cheapest(
    edges: Any,
    roots: Int[np.ndarray, " B"],
    slots: Int[np.ndarray, "B S"],
    nodes: Int[np.ndarray, "B S D"],
) -> None:
    """The nodes of the cheapest path through each of these edges of the roots; -1 beyond its end."""
    for problem in range(slots.shape[0]):
        for path in range(slots.shape[1]):
            node, slot = roots[problem], slots[problem, path]
            for depth in range(nodes.shape[2]):
                if slot < 0:
                    nodes[problem, path, depth] = -1
                    continue
                edge = edges[node, slot]
                node, slot, cheapest = edge.child, -1, math.inf
                nodes[problem, path, depth] = node
                for other in range(edge.span):
                    beside = edges[node, other]
                    # the cheapest may cost infinity
                    if beside.child != 0 and (slot < 0 or beside.least < cheapest):
                        slot, cheapest = other, beside.least


@_compiled
def begin(edges: Any, node: int, first: int, end: int) -> None:
    """Edges of a node that nobody took, whatever lay in their place before."""
    for slot in range(first, end):
        edge = edges[node, slot]
        edge.visits, edge.total, edge.least, edge.first = 0.0, 0.0, 0.0, 0.0
        edge.child, edge.room, edge.span = 0, 1, 0


@_compiled
def draw_distinct(random: Float[np.ndarray, "R K"], count: int, drawn: Int[np.ndarray, "R K"]) -> None:
    """Of the numbers below `count` K different ones, every order alike; `random` is even over [0, 1).

    The first K exchanges of a shuffle (Fisher and Yates; Durstenfeld, 1964), undone for the next row.
    """
    numbers, places = np.arange(count), np.empty(random.shape[1], np.int64)
    for row in range(len(random)):
        for index in range(random.shape[1]):
            place = index + int(np.float64(random[row, index]) * (count - index))
            numbers[index], numbers[place] = numbers[place], numbers[index]
            drawn[row, index], places[index] = numbers[index], place
        for index in range(random.shape[1] - 1, -1, -1):
            place = places[index]
            numbers[index], numbers[place] = numbers[place], numbers[index]
