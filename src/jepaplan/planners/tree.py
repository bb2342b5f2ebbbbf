"""Tree search in continuous actions: imagine step by step, and look again where paths turn out cheap.

Sampled actions as in Hubert et al., "Learning and Planning in Complex Action Spaces", 2021 (Sampled MuZero);
progressive widening as in Couëtoux et al., "Continuous Upper Confidence Trees", 2011; leaves in parallel by
virtual loss as in Chaslot et al., "Parallel Monte-Carlo Tree Search", 2008. The rules are in `tree_rules`.

    paper                 here
    K sampled actions     branches
    C N^alpha children    widening * visits ** widening_power
    simulations           simulations     each adds one node: one edge is imagined, and no path to its end
    leaf parallelism      leaves

The leaves of all problems are one call of the model. An edge is one action sampled around the plan to start
from, or a recorded chunk of them. With `unfinished="hold"` a path that ends before the horizon is taken to go
on at the price of its last step: without it a cost that is paid step by step would make short paths look
cheap. A terminal cost or a value wants `unfinished="to_go"`.

`Search.plan.mean` is the best path, as deep as it was searched, then mean actions, as in `shift`.
`Search.candidates` are the best paths of the root's actions, that of the plan first, with estimated costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.interfaces import SequenceCost, StepwiseCost
from jepaplan.planners.plan import last, uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling
from jepaplan.planners.stepwise import (
    NodeActions,
    as_stepwise,
    check_bank,
    expand_chunk,
    refuse_dead_ends,
    take,
)
from jepaplan.planners.tree_rules import PUCT, Rule
from jepaplan.planners.tree_statistics import ROOT, Edges, Found, Tree, best_paths, edges
from jepaplan.types import Expansion, InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class TreeSearch:
    """Configuration and planner at once; needs a `StepwiseCost`."""

    simulations: int = 256  # per problem
    leaves: int = 8  # imagined at once per problem; more are faster and a little less well chosen
    branches: int = 16  # most children of a node
    widening: float = 2.0  # children allowed after one visit
    widening_power: float = 0.5  # how their number grows with visits
    rule: Rule = field(default_factory=PUCT)
    backup: Literal["mean", "least"] = "mean"  # what a node passes up about the paths through it
    unfinished: Literal["hold", "to_go"] = "hold"  # what is left of a path that ends before the horizon
    horizon: int = 16  # model steps
    std: float = 1.0  # of sampled actions around the plan, in normalised action units
    bounds: NormBound | BoxBound | None = None
    keep_nominal: bool = True  # what the plan would do is the first edge of every node
    bank: Float[Tensor, "n C A"] | None = field(default=None, repr=False, compare=False)  # recorded chunks
    bank_weights: Float[Tensor, " n"] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(samples=self.branches, horizon=self.horizon, iterations=1, std=self.std)
        for name, number in (("simulations", self.simulations), ("leaves", self.leaves)):
            if number < 1:
                raise InputError(f"{name} must be at least 1; got {number}")
        if self.widening < 1 or not 0 <= self.widening_power <= 1:
            raise InputError(
                "widening is the number of children after one visit, at least 1, and widening_power lies in "
                f"[0, 1]; got {self.widening} and {self.widening_power}"
            )
        check_bank(self.bank, self.bank_weights)

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    @torch.no_grad()
    def refinements(
        self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness
    ) -> Iterator[Search]:
        """What is known after every phase: an eighth of the simulations, or a halving at the root."""
        stepwise = as_stepwise(cost, "TreeSearch")
        source = NodeActions(start, generator, self.bounds, self.bank, self.bank_weights, self.keep_nominal)
        branches = source.available(self.branches)
        chunks, logits = source.draw(start.mean.new_zeros(len(start.mean), 1).long(), branches)
        tree = Tree.planted(stepwise.latent, chunks, logits, self.simulations)
        noise = self.rule.root_noise(logits[:, 0], generator)
        considered = torch.ones_like(noise, dtype=torch.bool)
        spent = 0
        for running, simulations in self.rule.phases(self.simulations, branches):
            root = edges(tree, _root(tree), least=self.backup == "least")
            considered = self.rule.considered(root, considered, running, noise)
            for done in range(0, simulations, self.leaves):
                turn = Turn(considered, noise, min(self.leaves, simulations - done))
                if not self._simulate(stepwise, tree, source, turn):
                    break
                spent += turn.leaves * source.length
            yield self._search(tree, start, considered, noise, spent)

    def plan(self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness) -> Search:
        """Search as deep as `start` is long; sampled actions deviate from it by its std."""
        return last(self.refinements(cost, start, generator))

    def _simulate(self, cost: StepwiseCost, tree: Tree, source: NodeActions, turn: "Turn") -> bool:
        """Add nodes to every tree, all in one call of the model; False if there is nothing left to find."""
        reserved = [tree.reserve(*self._descend(tree, turn)) for _ in range(turn.leaves)]
        nodes = torch.stack(reserved, dim=1)
        if bool((nodes == tree.spare).all()):
            return False
        parents = take(tree.parent, nodes)
        # problems with nothing left to find are imagined from the root, for nobody
        parents = parents.where(nodes != tree.spare, ROOT)
        slots = take(tree.slot, nodes)
        rows = torch.arange(len(nodes), device=nodes.device)[:, None]
        before, horizon = take(tree.depth, parents), source.start.mean.shape[1]
        step = expand_chunk(
            cost, take(tree.latents, parents), tree.chunks[rows, parents, slots], before, horizon
        )
        depth = (before + source.length).clamp(max=horizon)
        paid = take(tree.paid, parents) + step.step_cost
        value = paid + step.to_go + self._unfinished(step, depth - before, horizon - depth)
        chunks, logits = source.draw(depth, tree.logits.shape[2])
        found = Found(step.latents, depth, paid, value, chunks, logits, depth >= horizon)
        tree.fill(nodes, found)
        tree.record(nodes, value)
        return True

    def _descend(
        self, tree: Tree, turn: "Turn"
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"], Bool[Tensor, " B"]]:
        """From the root along the rule to an edge that nobody took: its node, number, and if there is one."""
        least = self.backup == "least"
        node = _root(tree)
        root = edges(tree, node, least=least)
        possible = (root.open & turn.considered).any(dim=-1)
        parents, slots, done = node, torch.zeros_like(node), ~possible
        while not bool(done.all()):
            here = edges(tree, node, least=least)
            if (node == ROOT).all():
                slot = self.rule.at_root(here, turn.considered, self._may(here), turn.noise)
            else:
                slot = self.rule.choose(here, self._may(here))
            child = here.child.gather(1, slot[:, None])[:, 0]
            parents, slots = parents.where(done, node), slots.where(done, slot)
            done = done | (child < 0)
            node = node.where(done, child)
        return parents, slots, possible

    def _may(self, node: Edges) -> Bool[Tensor, "B K"]:
        """Edges worth taking: as many as the visits allow, and all that are left when those are exhausted."""
        allowed = (self.widening * node.node_visits.clamp(min=1) ** self.widening_power).ceil()
        number = torch.arange(node.child.shape[1], device=node.child.device)
        may = node.open & (node.tried | (number < allowed))
        return may.where(may.any(dim=-1, keepdim=True), node.open)

    def _unfinished(
        self, step: Expansion, taken: Int[Tensor, "B L"], left: Int[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        if self.unfinished == "to_go":
            return torch.zeros_like(step.step_cost)
        held = left * step.step_cost / taken.clamp(min=1)
        return held.where(left > 0, 0.0)

    def _search(
        self,
        tree: Tree,
        start: Plan,
        considered: Bool[Tensor, "B K"],
        noise: Float[Tensor, "B K"],
        spent: int,
    ) -> Search:
        root = edges(tree, _root(tree), least=self.backup == "least")
        least = take(tree.least, root.child.clamp(min=0)).where(root.tried, torch.inf)
        allowed = self.rule.answer(root, considered, noise)
        chosen = least.where(allowed, torch.inf).argmin(dim=-1, keepdim=True)
        # the answer first, then the others from the cheapest, as many as every problem has tried
        order = least.scatter(1, chosen, -torch.inf).argsort(dim=-1, stable=True)
        order = order[:, : int(root.tried.sum(dim=-1).amin())]
        costs = least.gather(1, order)
        refuse_dead_ends(costs)
        paths = best_paths(tree, root.child.gather(1, order), start.mean.shape[1])
        paths = paths if self.bounds is None else self.bounds.project(paths)
        return Search(Plan(paths[:, 0], start.std), paths, costs, spent)


@dataclass(frozen=True)
class Turn:
    """One batch of simulations."""

    considered: Bool[Tensor, "B K"]  # root actions in the running
    noise: Float[Tensor, "B K"]
    leaves: int


def _root(tree: Tree) -> Int[Tensor, " B"]:
    return torch.full_like(tree.parent[:, 0], ROOT)
