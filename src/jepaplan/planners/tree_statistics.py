"""The nodes of B search trees in tensors "B M", and what a search reads off them.

Silver et al., "A general reinforcement learning algorithm that masters chess, shogi, and Go", 2018, and
Schrittwieser et al., "Mastering Atari, Go, chess and shogi by planning with a learned model", 2020 (MuZero),
appendix B, told in costs.

    paper               here
    N(s, a)             visits of the child
    Q(s, a)             mean or least cost of the paths through the child, from the root on
    normalised Q        `worth` in [0, 1]: 1 for the cheapest path of the tree, 0 for the dearest
    virtual loss        pending: a path being imagined counts as the dearest until its cost is known

All costs are those of whole paths from the root, so siblings share what led to them, and a constant in
the cost changes nothing. A node is closed when nothing new can be found below it: the model is
deterministic, so what has been seen to the end is not looked at again, and a search with enough simulations
is exhaustive. What a path costs is estimated anew at each of its ends: a node that has children is as cheap
as the cheapest of them, and its own first estimate no longer counts.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.planners.stepwise import take

ROOT = 0


@dataclass
class Tree:
    """M nodes per problem, filled in order; the last is a spare that takes writes nobody reads."""

    latents: Float[Tensor, "B M *latent"]
    depth: Int[Tensor, "B M"]  # model steps from the root
    paid: Float[Tensor, "B M"]  # by those steps
    value: Float[Tensor, "B M"]  # cost of the whole path as estimated when the node was new
    parent: Int[Tensor, "B M"]
    slot: Int[Tensor, "B M"]  # which of its parent's edges leads here
    chunks: Float[Tensor, "B M K C A"]  # the edges that may leave a node
    logits: Float[Tensor, "B M K"]  # of their prior
    children: Int[Tensor, "B M K"]  # where they lead; -1 as long as nobody went
    visits: Float[Tensor, "B M"]
    pending: Float[Tensor, "B M"]
    total: Float[Tensor, "B M"]  # sum of the costs of the paths through the node
    least: Float[Tensor, "B M"]  # the cheapest path through the node that ends where nobody went on
    closed: Bool[Tensor, "B M"]
    size: int = 1

    @classmethod
    def planted(
        cls,
        root: Float[Tensor, "B *latent"],
        chunks: Float[Tensor, "B 1 K C A"],
        logits: Float[Tensor, "B 1 K"],
        nodes: int,
    ) -> "Tree":
        """Trees of one root each, with room for `nodes` more."""
        problems, capacity = len(root), nodes + 2
        numbers = chunks.new_zeros(problems, capacity)
        indices = torch.zeros(problems, capacity, dtype=torch.long, device=chunks.device)
        tree = cls(
            latents=root.new_zeros(problems, capacity, *root.shape[1:]),
            depth=indices.clone(),
            paid=numbers.clone(),
            value=numbers.clone(),
            parent=indices + (capacity - 1),
            slot=indices.clone(),
            chunks=chunks.new_zeros(problems, capacity, *chunks.shape[2:]),
            logits=logits.new_zeros(problems, capacity, logits.shape[2]),
            children=indices.new_full((problems, capacity, logits.shape[2]), -1),
            visits=numbers.clone(),
            pending=numbers.clone(),
            total=numbers.clone(),
            least=numbers + torch.inf,
            closed=indices.bool(),
        )
        tree.latents[:, ROOT], tree.chunks[:, ROOT], tree.logits[:, ROOT] = root, chunks[:, 0], logits[:, 0]
        return tree

    @property
    def spare(self) -> int:
        """The node that nobody reads."""
        return self.visits.shape[1] - 1

    def climb(self, nodes: Int[Tensor, "B L"]) -> list[Int[Tensor, "B L"]]:
        """The nodes, their parents, and so on up to the root; the spare from there on."""
        path: list[Tensor] = []
        while bool((nodes != self.spare).any()):
            path.append(nodes)
            nodes = take(self.parent, nodes)
        return path

    def reserve(
        self, parents: Int[Tensor, " B"], slots: Int[Tensor, " B"], possible: Bool[Tensor, " B"]
    ) -> Int[Tensor, " B"]:
        """A new node for each problem where one is `possible`, pending and closed until it is filled."""
        node = torch.full_like(parents, self.spare).where(~possible, self.size)
        self.size += 1
        everyone = torch.arange(len(node), device=node.device)
        self.parent[everyone, node] = parents.where(possible, self.spare)
        self.slot[everyone, node] = slots
        # an impossible node hangs below the spare, where its writes do no harm
        self.children[everyone, parents.where(possible, self.spare), slots] = node
        self.closed[everyone, node] = True
        for above in self.climb(node[:, None]):
            self._add(self.pending, above, 1.0)
            self._close_if_done(above, but=node[:, None])
        return node

    def fill(self, nodes: Int[Tensor, "B L"], found: "Found") -> None:
        """Write down what was imagined of reserved nodes; those that may lead further are open."""
        rows = torch.arange(len(nodes), device=nodes.device)[:, None]
        self.latents[rows, nodes] = found.latents.to(self.latents)
        self.depth[rows, nodes] = found.depth
        self.paid[rows, nodes] = found.paid.to(self.paid)
        self.value[rows, nodes] = found.value.to(self.value)
        self.chunks[rows, nodes] = found.chunks
        self.logits[rows, nodes] = found.logits
        self.closed[rows, nodes] = found.final

    def record(self, nodes: Int[Tensor, "B L"], costs: Float[Tensor, "B L"]) -> None:
        """Tell every ancestor what the path through it costs; the path is no longer pending."""
        for above in self.climb(nodes):
            self._add(self.pending, above, -1.0)
            self._add(self.visits, above, 1.0)
            self._add(self.total, above, costs)
            self._close_if_done(above, but=nodes)
            self._estimate_anew(above)

    def _add(self, numbers: Tensor, nodes: Int[Tensor, "B L"], what: Tensor | float) -> None:
        amount = torch.as_tensor(what, dtype=numbers.dtype, device=numbers.device)
        numbers.scatter_add_(1, nodes, amount.expand(nodes.shape))

    def _estimate_anew(self, nodes: Int[Tensor, "B L"]) -> None:
        children = take(self.children, nodes)
        index = children.clamp(min=0).flatten(1)
        known = (children >= 0) & (take(self.visits, index) > 0).view_as(children)
        below = take(self.least, index).view_as(children).where(known, torch.inf).amin(dim=-1)
        self.least.scatter_(1, nodes, below.where(known.any(dim=-1), take(self.value, nodes)))

    def _close_if_done(self, nodes: Int[Tensor, "B L"], but: Int[Tensor, "B L"]) -> None:
        children = take(self.children, nodes)
        seen = (children >= 0) & take(self.closed, children.clamp(min=0).flatten(1)).view_as(children)
        done = seen.all(dim=-1).where(nodes != but, take(self.closed, nodes))
        self.closed.scatter_(1, nodes, done)


@dataclass(frozen=True)
class Found:
    """What imagining L new nodes per problem gave."""

    latents: Float[Tensor, "B L *latent"]
    depth: Int[Tensor, "B L"]
    paid: Float[Tensor, "B L"]
    value: Float[Tensor, "B L"]
    chunks: Float[Tensor, "B L K C A"]
    logits: Float[Tensor, "B L K"]
    final: Bool[Tensor, "B L"]  # at the horizon


@dataclass(frozen=True)
class Edges:
    """What leaves one node of each problem."""

    child: Int[Tensor, "B K"]  # -1 where nobody went
    visits: Float[Tensor, "B K"]  # pending ones included
    worth: Float[Tensor, "B K"]  # in [0, 1], higher is cheaper; 0 where nobody went
    logits: Float[Tensor, "B K"]
    open: Bool[Tensor, "B K"]  # nobody went, or there is something left to find
    own: Float[Tensor, "B 1"]  # worth of the node itself as estimated when it was new
    node_visits: Float[Tensor, "B 1"]  # of the node itself

    @property
    def tried(self) -> Bool[Tensor, "B K"]:
        """Somebody went."""
        return self.child >= 0


def edges(tree: Tree, node: Int[Tensor, " B"], *, least: bool) -> Edges:
    """The edges of one node per problem; `least`: Q is the cheapest path's cost, else the mean."""
    at = node[:, None]
    child = take(tree.children, at)[:, 0]
    tried, index = child >= 0, child.clamp(min=0)
    low, high = _range(tree)
    visits, pending = take(tree.visits, index), take(tree.pending, index)
    if least:
        cost = take(tree.least, index).minimum(high)
    else:
        # what is being imagined counts as dear, so that the next path looks elsewhere
        cost = (take(tree.total, index) + pending * high) / (visits + pending).clamp(min=1)
    return Edges(
        child=child,
        visits=(visits + pending).where(tried, 0.0),
        worth=_worth(cost, low, high).where(tried, 0.0),
        logits=take(tree.logits, at)[:, 0],
        open=~tried | ~take(tree.closed, index),
        own=_worth(take(tree.value, at), low, high),
        node_visits=take(tree.visits, at) + take(tree.pending, at),
    )


def best_paths(tree: Tree, nodes: Int[Tensor, "B S"], horizon: int) -> Float[Tensor, "B S H A"]:
    """The cheapest path through each node, from the root; zeros beyond the depth where it was left."""
    while True:
        children = take(tree.children, nodes)
        index = children.clamp(min=0)
        costs = take(tree.least, index.flatten(1)).view_as(children).where(children >= 0, torch.inf)
        further = (children >= 0).any(dim=-1)
        if not bool(further.any()):
            break
        cheapest = costs.argmin(dim=-1, keepdim=True)
        nodes = index.gather(-1, cheapest)[:, :, 0].where(further, nodes)
    problems, samples = nodes.shape
    length, components = tree.chunks.shape[3:]
    paths = tree.chunks.new_zeros(problems, samples, horizon + 2 * length, components)
    ahead = torch.arange(length, device=nodes.device)
    for above in tree.climb(nodes):
        parent = take(tree.parent, above)
        chunk = take(tree.chunks, parent)
        chunk = take(chunk.flatten(0, 1), take(tree.slot, above).view(-1, 1))[:, 0].unflatten(0, nodes.shape)
        # the root has no edge above it, and the spare no place on a path: both write beyond the horizon
        began = take(tree.depth, parent).where(parent != tree.spare, horizon + length)
        steps = (began[:, :, None] + ahead)[..., None].expand(-1, -1, -1, components)
        paths.scatter_(2, steps, chunk)
    return paths[:, :, :horizon]


def _range(tree: Tree) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    known = (tree.visits > 0) & tree.value.isfinite()
    known[:, [ROOT, tree.spare]] = False
    low = tree.value.where(known, torch.inf).amin(dim=-1, keepdim=True)
    high = tree.value.where(known, -torch.inf).amax(dim=-1, keepdim=True)
    return low, high


def _worth(cost: Tensor, low: Tensor, high: Tensor) -> Tensor:
    spread = high - low
    worth = (high - cost) / spread.where(spread > 0, 1.0)
    # an infinite cost is worth as little as the dearest; nothing known yet: all alike
    return worth.clamp(0, 1).where(spread > 0, 0.0).nan_to_num(0.0)
