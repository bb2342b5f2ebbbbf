"""The nodes of B search trees in flat tables, and what a search reads off them.

Silver et al., "A general reinforcement learning algorithm that masters chess, shogi, and Go", 2018, and
Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model", 2020 (MuZero),
appendix B, told in costs.

All costs are those of whole paths from the root, so siblings share what led to them, and a constant in
the cost changes nothing. The model is deterministic, so what has been seen to the end is not looked at again,
and a search with enough simulations is exhaustive: `room` counts the new nodes that may be built below a node
before its children have children of their own; without room it is closed. What a path costs is estimated anew
at each of its ends: a node that has children is as cheap as the cheapest of them, and its own first estimate
no longer counts.

Latents and actions stay on their device. The rest is a few numbers per edge on the host, where `tree_loops`
goes through them.

    axis    meaning
    B M     problems and their nodes; node m of problem b is number b M + m of all, its tree's root is b M
    N       all of these
    I       leaves being imagined, L for each problem: number l of problem b is b L + l
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.planners.tree_loops import Choice, Paths, Tables, Turn, descend, settle


@dataclass
class Tree:
    """M nodes per problem, filled in order."""

    latents: Float[Tensor, "B M *latent"]
    chunks: Float[Tensor, "B M K C A"]  # the edges that may leave a node
    tables: Tables
    depth: Int[np.ndarray, " N"]  # model steps from the root
    paid: Float[np.ndarray, " N"]  # by those steps
    low: Float[np.ndarray, " B"]  # the cheapest finite path of each tree
    high: Float[np.ndarray, " B"]  # and the dearest
    alike: bool  # all logits are equal
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
        count = problems * (nodes + 1)
        # half precision cannot count: its whole numbers end at 256 or 2048
        number = np.float64 if chunks.dtype == torch.float64 else np.float32
        tree = cls(
            latents=root.new_empty(problems, nodes + 1, *root.shape[1:]),
            chunks=chunks.new_empty(problems, nodes + 1, *chunks.shape[2:]),
            tables=Tables(
                logits=np.zeros((count, branches), number),
                children=np.zeros((count, branches), np.int32),
                visits=np.zeros((count, branches), number),
                total=np.zeros((count, branches), number),
                least=np.zeros((count, branches), number),
                room=np.zeros((count, branches), np.int32),
                value=np.zeros(count, number),
            ),
            depth=np.zeros(count, int),
            paid=np.zeros(count, number),
            low=np.full(problems, np.inf, number),
            high=np.full(problems, -np.inf, number),
            alike=True,
        )
        tree.latents[:, 0], tree.chunks[:, 0] = root, chunks[:, 0]
        tree.tables.room[tree.roots] = 1
        tree._prefer(tree.roots, on_host(logits[:, 0]))
        return tree

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

    def descend(
        self, leaves: int, longest: int, possible: Int[np.ndarray, " B"], turn: Turn, choice: Choice
    ) -> Paths:
        """The way to `leaves` edges of each tree that nobody took, as far as `possible`."""
        count = leaves * len(possible)
        paths = Paths(
            nodes=np.empty((count, longest), np.int64),
            slots=np.empty((count, longest), np.int64),
            before=np.empty((count, longest), self.paid.dtype),
            depth=np.empty(count, np.int64),
        )
        descend(self.tables, paths, possible, turn, choice)
        return paths

    def grow(self, paths: Paths, found: "Found") -> None:
        """Hang the new nodes below their edges, and tell every ancestor what the path through it costs."""
        problems = len(self.latents)
        leaves = len(paths.depth) // problems
        self.latents[:, self.size : self.size + leaves] = found.latents.unflatten(0, (problems, leaves))
        self.chunks[:, self.size : self.size + leaves] = found.chunks.unflatten(0, (problems, leaves))
        nodes = (self.roots[:, None] + self.size + np.arange(leaves)).reshape(-1)
        self.size += leaves
        self.depth[nodes], self.paid[nodes] = found.depth, found.paid
        self._prefer(nodes, found.logits)
        settle(self.tables, paths, nodes, found.value, found.final)
        known = np.where((paths.depth > 0) & np.isfinite(found.value), found.value, np.nan)
        known = known.reshape(problems, -1)
        self.low = np.fmin(self.low, np.fmin.reduce(known, axis=1))
        self.high = np.fmax(self.high, np.fmax.reduce(known, axis=1))

    def _prefer(self, nodes: Int[np.ndarray, " I"], logits: Float[np.ndarray, "I K"]) -> None:
        if logits.any():  # the tables begin with zeros
            self.tables.logits[nodes] = logits
            self.alike = False


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


@dataclass(frozen=True)
class RootEdges:
    """What leaves the roots while no path is being imagined."""

    logits: Float[np.ndarray, "B K"]
    visits: Float[np.ndarray, "B K"]
    worth: Float[np.ndarray, "B K"]  # in [0, 1], higher is cheaper; 0 where nobody went
    least: Float[np.ndarray, "B K"]  # cost of the cheapest path; infinite where nobody went
    room: Int[np.ndarray, "B K"]

    @property
    def tried(self) -> Bool[np.ndarray, "B K"]:
        """Somebody went."""
        return self.visits > 0

    @property
    def open(self) -> Bool[np.ndarray, "B K"]:
        """Nobody went, or there is something left to find."""
        return self.room > 0


@np.errstate(invalid="ignore")  # costs may be infinite
def root_edges(tree: Tree, *, least: bool) -> RootEdges:
    """The edges of all roots; `least`: Q is the cheapest path's cost, else the mean."""
    tables, roots = tree.tables, tree.roots
    visits = tables.visits[roots]
    cheapest = np.where(visits > 0, tables.least[roots], np.inf)
    high, spread = (bound[:, None] for bound in tree.dearest())
    cost = np.minimum(cheapest, high) if least else tables.total[roots] / np.maximum(visits, 1)
    # an infinite cost is worth as little as the dearest; where all are infinite fmax turns NaN to 0
    worth = np.fmin(np.fmax((high - cost) / spread, 0), 1) * (visits > 0)
    return RootEdges(tables.logits[roots], visits, worth, cheapest, tables.room[roots])


def best_paths(tree: Tree, slots: Int[np.ndarray, "B S"], horizon: int) -> Float[Tensor, "B S H A"]:
    """The cheapest path through each of these edges of the root; zeros beyond the depth where it was left."""
    tables, branches = tree.tables, slots.dtype.type(tree.tables.visits.shape[1])
    nodes, edge = np.broadcast_to(tree.roots[:, None], slots.shape), slots
    further = np.ones(slots.shape, bool)
    taken: list[np.ndarray] = []
    while further.any():
        taken.append(np.where(further, nodes * branches + edge, -1))
        nodes = np.where(further, tables.children[nodes, edge], nodes)
        tried = tables.children[nodes] > 0
        further = further & tried.any(axis=-1)
        # the cheapest may cost infinity: those that nobody took cost more
        cost = np.minimum(tables.least[nodes], np.finfo(tables.least.dtype).max)
        edge = np.where(tried, cost, np.inf).argmin(axis=-1)
    path = torch.from_numpy(np.stack(taken, axis=-1)).to(tree.chunks.device)
    steps = tree.chunks.flatten(0, 2)[path.clamp(min=0)]
    steps = steps.where(path[..., None, None] >= 0, 0.0).flatten(2, 3)[:, :, :horizon]
    return torch.nn.functional.pad(steps, (0, 0, 0, horizon - steps.shape[2]))


def on_host(values: Tensor) -> Float[np.ndarray, "*shape"]:
    """As numbers that numpy can count with: it knows no bfloat16."""
    values = values.detach()
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()
