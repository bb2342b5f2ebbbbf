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
goes through them. What an edge does is sampled when it is taken; a bank deals its chunks to a node when it is
new. A tree lies in a `Memory` that outlives it: fresh memory costs a large tree as much time as its choices.

    axis    meaning
    B M     problems and their nodes; node m of problem b is number b M + m of all, its tree's root is b M
    N       all of these
    I       leaves being imagined, L for each problem: number l of problem b is b L + l
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.planners.stepwise import Hand
from jepaplan.planners.tree_loops import (
    Choice,
    Paths,
    Tables,
    Turn,
    begin,
    descend,
    edge_of,
    follow_cheapest,
    settle,
)
from jepaplan.planners.tree_threads import share_trees


@dataclass
class Memory:
    """Arrays that one search leaves to the next, if they are large enough for it."""

    _kept: dict[str, Any] = field(default_factory=dict[str, Any])

    def tensor(self, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Of the dtype and on the device of `like`; what it holds is anything."""

        def fits(kept: Tensor) -> bool:
            return (kept.dtype, kept.device) == (like.dtype, like.device)

        return self._first(name, shape, fits, lambda: like.new_empty(shape))

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        """What it holds is anything."""
        return self._first(name, shape, lambda kept: kept.dtype == dtype, lambda: np.empty(shape, dtype))

    def _first(
        self, name: str, shape: tuple[int, ...], fits: Callable[[Any], bool], make: Callable[[], Any]
    ) -> Any:
        kept = self._kept.get(name)
        if kept is None or not fits(kept) or kept.shape[1:] != shape[1:] or len(kept) < shape[0]:
            kept = self._kept[name] = make()
        return kept[: shape[0]]

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        """A copy begins with nothing."""
        return Memory, ()


@dataclass
class Tree:
    """M nodes per problem, filled in order."""

    latents: Float[Tensor, "B M *latent"]
    chunks: Float[Tensor, "B M C A"]  # that led to a node; nothing did to a root
    dealt: Int[Tensor, "B M K"] | None  # which chunks of a bank its edges are
    tables: Tables
    paid: Float[np.ndarray, " N"]  # by the steps from the root
    low: Float[np.ndarray, " B"]  # the cheapest finite path of each tree
    high: Float[np.ndarray, " B"]  # and the dearest
    alike: bool  # all logits are equal
    size: int = 1  # nodes of each problem that are in use

    @classmethod
    def planted(
        cls,
        root: Float[Tensor, "B *latent"],
        chunk: Float[Tensor, "C A"],
        edges: Hand | int,
        nodes: int,
        memory: Memory | None = None,
    ) -> "Tree":
        """Trees of one root each, with room for `nodes` more; `chunk` is what edges will look like.

        `edges`: how many leave a node, or what a bank deals to the roots.
        """
        problems, memory = len(root), memory or Memory()
        branches = edges if isinstance(edges, int) else edges.numbers.shape[2]
        grid, count = (problems, nodes + 1), problems * (nodes + 1)
        # half precision cannot count: its whole numbers end at 256 or 2048
        number = np.float64 if chunk.dtype == torch.float64 else np.float32
        hand = None if isinstance(edges, int) else edges
        tree = cls(
            latents=memory.tensor("latents", root, (*grid, *root.shape[1:])),
            chunks=memory.tensor("chunks", chunk, (*grid, *chunk.shape)),
            dealt=None if hand is None else memory.tensor("dealt", hand.numbers, (*grid, branches)),
            tables=Tables(
                edges=memory.array("edges", edge_of(number), (count, branches)),
                logits=np.zeros((1, branches), number),
            ),
            paid=memory.array("paid", np.dtype(number), (count,)),
            low=np.full(problems, np.inf, number),
            high=np.full(problems, -np.inf, number),
            alike=True,
        )
        tree.latents[:, 0], tree.chunks[:, 0] = root, 0
        tree.paid[tree.roots] = 0
        for node in tree.roots:
            begin(tree.tables.edges, node, 0, branches)
        tree._deal(tree.roots, slice(0, 1), hand)
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
        self,
        leaves: int,
        longest: int,
        possible: Int[np.ndarray, " B"],
        turn: Turn,
        choice: Choice,
        siblings: int = 1,
    ) -> Paths:
        """The way to `leaves` edges of each tree that nobody took, as far as `possible`."""
        count = leaves * len(possible)
        paths = Paths.unknown(count, longest, self.paid.dtype)
        down = partial(descend, self.tables, paths, possible, siblings, turn, choice)
        share_trees(down, len(possible), count)
        return paths

    def grow(self, paths: Paths, found: "Found") -> None:
        """Hang the new nodes below their edges, and tell every ancestor what the path through it costs."""
        problems = len(self.latents)
        leaves = len(paths.depth) // problems
        new = slice(self.size, self.size + leaves)
        self.latents[:, new], self.chunks[:, new] = found.latents, found.chunks
        nodes = (self.roots[:, None] + self.size + np.arange(leaves)).reshape(-1)
        self.size += leaves
        self.paid[nodes] = found.paid
        self._deal(nodes, new, found.hand)
        hang = partial(settle, self.tables, paths, nodes, found.value, found.final, self.low, self.high)
        share_trees(hang, problems, len(nodes))

    def _deal(self, nodes: Int[np.ndarray, " I"], new: slice, hand: Hand | None) -> None:
        if hand is None or self.dealt is None:
            return
        self.dealt[:, new] = hand.numbers
        logits = on_host(hand.logits).reshape(len(nodes), -1)
        if self.alike and logits.any():
            self.tables = self.tables._replace(logits=np.zeros(self.tables.edges.shape, logits.dtype))
            self.alike = False
        if not self.alike:
            self.tables.logits[nodes] = logits


@dataclass(frozen=True)
class Found:
    """What imagining the leaves gave."""

    latents: Float[Tensor, "B L *latent"]
    chunks: Float[Tensor, "B L C A"]
    hand: Hand | None  # dealt to the new nodes
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
    edges = tables.edges[roots]
    visits = edges["visits"]
    cheapest = np.where(visits > 0, edges["least"], np.inf)
    high, spread = (bound[:, None] for bound in tree.dearest())
    cost = np.minimum(cheapest, high) if least else edges["total"] / np.maximum(visits, 1)
    # an infinite cost is worth as little as the dearest; where all are infinite fmax turns NaN to 0
    worth = np.fmin(np.fmax((high - cost) / spread, 0), 1) * (visits > 0)
    logits = np.broadcast_to(tables.logits, tables.edges.shape)[roots]
    return RootEdges(logits, visits, worth, cheapest, edges["room"])


def best_paths(tree: Tree, slots: Int[np.ndarray, "B S"], horizon: int) -> Float[Tensor, "B S H A"]:
    """The cheapest path through each of these edges of the root; zeros beyond the depth where it was left."""
    longest = -(-horizon // tree.chunks.shape[2])
    nodes = np.empty((*slots.shape, longest), np.int64)
    follow_cheapest(tree.tables.edges, tree.roots, slots, nodes)
    path = torch.from_numpy(nodes).to(tree.chunks.device)
    steps = tree.chunks.flatten(0, 1)[path.clamp(min=0)]
    steps = steps.where(path[..., None, None] >= 0, 0.0).flatten(2, 3)[:, :, :horizon]
    return torch.nn.functional.pad(steps, (0, 0, 0, horizon - steps.shape[2]))


def on_host(values: Tensor) -> Float[np.ndarray, "*shape"]:
    """As numbers that numpy can count with: it knows no bfloat16."""
    values = values.detach()
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()
