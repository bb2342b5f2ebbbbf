"""The nodes of B search trees in flat tables, and what a search reads off them.

Silver et al., "A general reinforcement learning algorithm that masters chess, shogi, and Go", 2018, and
Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model", 2020 (MuZero),
appendix B, told in costs.

    paper               here
    N(s, a)             visits of the child
    Q(s, a)             mean or least cost of the paths through the child, from the root on
    normalised Q        `worth` in [0, 1]: 1 for the cheapest path of the tree, 0 for the dearest
    virtual loss        Edges.imagine: a path being imagined counts as the dearest until its cost is known

All costs are those of whole paths from the root, so siblings share what led to them, and a constant in
the cost changes nothing. The model is deterministic, so what has been seen to the end is not looked at again,
and a search with enough simulations is exhaustive: `room` counts the new nodes that may be built below a node
before its children have children of their own; without room it is closed. What a path costs is estimated anew
at each of its ends: a node that has children is as cheap as the cheapest of them, and its own first estimate
no longer counts.

Latents and actions stay on their device. The rest is a few numbers per node, of which a search reads a
handful at a time, thousands of times: numpy has less to do around each of these small operations than torch.

    axis    meaning
    B M     problems and their nodes; node m of problem b is number b M + m of all, its tree's root is b M
    N       all of these, and at the end the spare: where edges lead that nobody took
    R       some nodes, whose edges are looked at
    I       leaves being imagined, L for each problem: number l of problem b is b L + l
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Tree:
    """M nodes per problem, filled in order."""

    latents: Float[Tensor, "B M *latent"]
    chunks: Float[Tensor, "B M K C A"]  # the edges that may leave a node
    logits: Float[np.ndarray, "N K"]  # of their prior
    children: Int[np.ndarray, "N K"]  # where they lead
    depth: Int[np.ndarray, " N"]  # model steps from the root
    paid: Float[np.ndarray, " N"]  # by those steps
    value: Float[np.ndarray, " N"]  # cost of the whole path as estimated when the node was new
    visits: Float[np.ndarray, " N"]
    total: Float[np.ndarray, " N"]  # sum of the costs of the paths through the node
    least: Float[np.ndarray, " N"]  # the cheapest path through the node that ends where nobody went on
    room: Int[np.ndarray, " N"]
    low: Float[np.ndarray, " B"]  # the cheapest finite path of each tree
    high: Float[np.ndarray, " B"]  # and the dearest
    size: int = 1  # nodes of each problem that are in use

    @classmethod
    def planted(
        cls,
        root: Float[Tensor, "B *latent"],
        chunks: Float[Tensor, "B 1 K C A"],
        logits: Float[Tensor, "B 1 K"],
        nodes: int,
    ) -> "Tree":
        """Trees of one root each, with room for `nodes` more."""
        problems, branches = len(root), logits.shape[2]
        count = problems * (nodes + 1) + 1
        # half precision cannot count: its whole numbers end at 256 or 2048
        number = np.float64 if chunks.dtype == torch.float64 else np.float32
        tree = cls(
            latents=root.new_empty(problems, nodes + 1, *root.shape[1:]),
            chunks=chunks.new_empty(problems, nodes + 1, *chunks.shape[2:]),
            logits=np.zeros((count, branches), number),
            children=np.full((count, branches), count - 1),
            depth=np.zeros(count, int),
            paid=np.zeros(count, number),
            value=np.zeros(count, number),
            visits=np.zeros(count, number),
            total=np.zeros(count, number),
            least=np.full(count, np.inf, number),
            room=np.zeros(count, int),
            low=np.full(problems, np.inf, number),
            high=np.full(problems, -np.inf, number),
        )
        tree.latents[:, 0], tree.chunks[:, 0] = root, chunks[:, 0]
        tree.logits[tree.roots] = on_host(logits[:, 0])
        tree.room[tree.roots] = branches
        tree._reset_spare()
        return tree

    @property
    def spare(self) -> int:
        """Where edges lead that nobody took: a node without visits and with room for one."""
        return len(self.visits) - 1

    @property
    def roots(self) -> Int[np.ndarray, " B"]:
        """One per problem."""
        return np.arange(len(self.latents)) * self.latents.shape[1]

    def dearest(self) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
        """What the dearest path costs, and how much less the cheapest; infinitely while all are alike."""
        known = self.high > self.low
        spread = np.full_like(self.high, np.inf)
        np.subtract(self.high, self.low, out=spread, where=known)
        return np.where(known, self.high, 0).astype(spread.dtype, copy=False), spread

    def grow(self, paths: "Paths", found: "Found") -> None:
        """Hang the new nodes below their edges, and tell every ancestor what the path through it costs."""
        problems, leaves = len(self.latents), paths.leaves
        self.latents[:, self.size : self.size + leaves] = found.latents.unflatten(0, (problems, leaves))
        self.chunks[:, self.size : self.size + leaves] = found.chunks.unflatten(0, (problems, leaves))
        nodes = (self.roots[:, None] + self.size + np.arange(leaves)).reshape(-1)
        self.size += leaves
        self.logits[nodes], self.depth[nodes] = found.logits, found.depth
        self.paid[nodes], self.value[nodes], self.least[nodes] = found.paid, found.value, found.value
        room = np.where(found.final, 0, found.logits.shape[1])
        self._tell_ancestors(paths, nodes, room)
        self.room[nodes] = room
        real = paths.possible
        self.children[paths.parents[real], paths.slots[real]] = nodes[real]
        for level in reversed(paths.levels):
            self.least[level.nodes] = self.least[self.children[level.nodes]].min(axis=1)
        self._widen_range(np.where(real & np.isfinite(found.value), found.value, np.nan), problems)

    def _tell_ancestors(
        self, paths: "Paths", nodes: Int[np.ndarray, " I"], room: Int[np.ndarray, " I"]
    ) -> None:
        path = np.full((len(paths.levels) + 1, len(nodes)), self.spare)
        for depth, level in enumerate(paths.levels):
            path[depth, level.leaves] = level.at
        real = np.flatnonzero(paths.possible)
        path[paths.depth[real], real] = nodes[real]
        # from the leaves up, so that sums do not depend on how long other paths are
        row = paths.depth - np.arange(len(path))[:, None]
        above = np.where(row < 0, self.spare, path[row, np.arange(len(nodes))]).reshape(-1)
        # one axis each: with two, `add.at` of numpy 2.4 adds numbers that nobody gave it
        np.add.at(self.total, above, self.value[nodes][None].repeat(len(path), axis=0).reshape(-1))
        np.add.at(self.visits, above, np.ones(len(above), self.visits.dtype))
        np.add.at(self.room, above, (room - 1)[None].repeat(len(path), axis=0).reshape(-1))
        self._reset_spare()

    def _reset_spare(self) -> None:
        self.visits[self.spare] = self.total[self.spare] = 0
        self.room[self.spare] = 1

    def _widen_range(self, values: Float[np.ndarray, " I"], problems: int) -> None:
        values = values.reshape(problems, -1)
        self.low = np.fmin(self.low, np.fmin.reduce(values, axis=1))
        self.high = np.fmax(self.high, np.fmax.reduce(values, axis=1))


@dataclass(frozen=True)
class Level:
    """Where paths are after so many edges."""

    leaves: Int[np.ndarray, " n"]  # which paths come so far
    at: Int[np.ndarray, " n"]  # the node of each
    nodes: Int[np.ndarray, " R"]  # all of these nodes, each once


@dataclass
class Paths:
    """The way to each of the leaves that are imagined next."""

    leaves: int  # L
    parents: Int[np.ndarray, " I"]  # of the leaf; the root where a problem has nothing left to find
    slots: Int[np.ndarray, " I"]  # which of the parent's edges leads to it
    depth: Int[np.ndarray, " I"]  # edges from the root; 0 where there is nothing left to find
    levels: list[Level]

    @property
    def possible(self) -> Bool[np.ndarray, " I"]:
        """There is such a leaf."""
        return self.depth > 0


@dataclass(frozen=True)
class Found:
    """What imagining the leaves gave."""

    latents: Float[Tensor, "I *latent"]
    chunks: Float[Tensor, "I K C A"]
    logits: Float[np.ndarray, "I K"]
    depth: Int[np.ndarray, " I"]
    paid: Float[np.ndarray, " I"]
    value: Float[np.ndarray, " I"]
    final: Bool[np.ndarray, " I"]  # at the horizon


@dataclass
class Edges:
    """What leaves some nodes: K edges of each of R nodes, in tables of their own, which `imagine` writes."""

    problem: Int[np.ndarray, " R"]
    logits: Float[np.ndarray, "R K"]
    settled: Float[np.ndarray, "R K"]  # visits of which the cost is known
    total: Float[np.ndarray, "R K"]  # sum of these costs
    visits: Float[np.ndarray, "R K"]  # of paths being imagined, too
    worth: Float[np.ndarray, "R K"]  # in [0, 1], higher is cheaper; 0 where nobody went
    room: Int[np.ndarray, "R K"]  # new nodes that may still be built there
    used: Int[np.ndarray, " R"]  # how many edges were tried
    node_visits: Int[np.ndarray, " R"]  # of the node itself
    edge_visits: Float[np.ndarray, " R"]  # of all edges together
    most_visited: Float[np.ndarray, " R"]  # visits of the edge that has most
    own: Float[np.ndarray, " R"]  # worth of the node itself as estimated when it was new
    high: Float[np.ndarray, " R"]  # what the dearest path costs
    spread: Float[np.ndarray, " R"]  # and how much less the cheapest
    begin: Int[np.ndarray, " R"]  # of each row when a table is written in one
    least: bool  # the cheapest path counts, and no path that is only imagined makes it dearer
    alike: bool  # all logits are equal
    most: int  # visits that any node can have

    @property
    def tried(self) -> Bool[np.ndarray, "R K"]:
        """Somebody went."""
        return self.visits > 0

    @property
    def open(self) -> Bool[np.ndarray, "R K"]:
        """Nobody went, or there is something left to find."""
        return self.room > 0

    def imagine(self, slot: Int[np.ndarray, " r"]) -> None:
        """A path through this edge of each node counts as the dearest, for the time being."""
        at = self.begin + slot
        self.node_visits += 1
        self.edge_visits += 1
        self.room.reshape(-1)[at] -= 1
        visits = self.visits.reshape(-1)
        count = visits[at] + 1
        visits[at] = count
        self.used += count == 1
        np.maximum(self.most_visited, count, out=self.most_visited)
        if not self.least:
            unknown = count - self.settled.reshape(-1)[at]
            cost = (self.total.reshape(-1)[at] + unknown * self.high) / count
            self.worth.reshape(-1)[at] = _worth(cost, self.high, self.spread)

    def first(self, rows: int) -> "Edges":
        """Those of the first nodes; what is imagined of one is seen by the other."""
        tables: dict[str, Any] = vars(self)
        tables = {
            name: each[:rows] if isinstance(each, np.ndarray) else each for name, each in tables.items()
        }
        return Edges(**tables)


@np.errstate(invalid="ignore")  # costs may be infinite
def edges(tree: Tree, nodes: Int[np.ndarray, " R"], *, least: bool) -> Edges:
    """The edges of these nodes; `least`: Q is the cheapest path's cost, else the mean."""
    child = tree.children[nodes]
    problem = nodes // tree.latents.shape[1]
    high, spread = (bound[problem] for bound in tree.dearest())
    logits, settled, total = tree.logits[nodes], tree.visits[child], tree.total[child]
    cost = np.minimum(tree.least[child], high[:, None]) if least else total / np.maximum(settled, 1)
    tried = child != tree.spare
    return Edges(
        problem=problem,
        logits=logits,
        settled=settled,
        total=total,
        visits=settled.copy(),
        worth=_worth(cost, high[:, None], spread[:, None]) * tried,
        room=tree.room[child],
        used=tried.sum(axis=1),
        node_visits=tree.visits[nodes].astype(int),
        edge_visits=settled.sum(axis=1),
        most_visited=settled.max(axis=1),
        own=_worth(tree.value[nodes], high, spread),
        high=high,
        spread=spread,
        begin=np.arange(len(nodes)) * logits.shape[1],
        least=least,
        alike=not logits.any(),
        most=tree.latents.shape[1],
    )


def best_paths(tree: Tree, slots: Int[np.ndarray, "B S"], horizon: int) -> Float[Tensor, "B S H A"]:
    """The cheapest path through each of these edges of the root; zeros beyond the depth where it was left."""
    nodes, edge = np.broadcast_to(tree.roots[:, None], slots.shape), slots
    further = np.ones(slots.shape, bool)
    taken: list[np.ndarray] = []
    while further.any():
        taken.append(np.where(further, nodes * tree.logits.shape[1] + edge, -1))
        nodes = np.where(further, tree.children[nodes, edge], nodes)
        children = tree.children[nodes]
        tried = children != tree.spare
        further = further & tried.any(axis=-1)
        # the cheapest may cost infinity: those that nobody took cost more
        cost = np.minimum(tree.least[children], np.finfo(tree.least.dtype).max)
        edge = np.where(tried, cost, np.inf).argmin(axis=-1)
    path = torch.from_numpy(np.stack(taken, axis=-1)).to(tree.chunks.device)
    steps = tree.chunks.flatten(0, 2)[path.clamp(min=0)]
    steps = steps.where(path[..., None, None] >= 0, 0.0).flatten(2, 3)[:, :, :horizon]
    return torch.nn.functional.pad(steps, (0, 0, 0, horizon - steps.shape[2]))


def on_host(values: Tensor) -> Float[np.ndarray, "*shape"]:
    """As numbers that numpy can count with: it knows no bfloat16."""
    values = values.detach()
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()


def _worth(cost: np.ndarray, high: np.ndarray, spread: np.ndarray) -> np.ndarray:
    # an infinite cost is worth as little as the dearest; where all are infinite fmax turns NaN to 0
    return np.fmin(np.fmax((high - cost) / spread, 0), 1)
