"""Tree search in continuous actions: imagine step by step, and look again where paths turn out cheap.

Sampled actions as in Hubert et al., "Learning and Planning in Complex Action Spaces", 2021 (Sampled MuZero);
progressive widening as in Couëtoux et al., "Continuous Upper Confidence Trees", 2011; leaves in parallel by
virtual loss as in Chaslot et al., "Parallel Monte-Carlo Tree Search", 2008. The rules are in `tree_rules`,
the way down to the leaves is in `tree_loops`.

    paper                 here
    K sampled actions     branches
    C N^alpha children    widening * visits ** widening_power
    simulations           simulations     each adds one node: one edge is imagined, and no path to its end
    leaf parallelism      leaves
    expansion             siblings        edges that are imagined together where a way down ends

The leaves of all problems are one call of the model. An edge is one action sampled around the plan to start
from, or a recorded chunk of them. With `unfinished="hold"` a path that ends before the horizon is taken to go
on at the price of its last step: without it a cost that is paid step by step would make short paths look
cheap. A terminal cost or a value wants `unfinished="to_go"`.

The memory of a tree, `simulations` latents for each problem, stays with the planner for its next search.

`Search.plan.mean` is the best path, as deep as it was searched, then mean actions, as in `shift`.
`Search.candidates` are the best paths of the root's actions, that of the plan first, with estimated costs.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.interfaces import SequenceCost, StepwiseCost
from jepaplan.planners.plan import uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling
from jepaplan.planners.stepwise import (
    NodeActions,
    as_stepwise,
    check_bank,
    edges_available,
    expand_chunk,
    refuse_dead_ends,
)
from jepaplan.planners.tree_loops import Paths, Turn
from jepaplan.planners.tree_rules import PUCT, Rule
from jepaplan.planners.tree_statistics import (
    Found,
    Memory,
    RootEdges,
    Tree,
    best_paths,
    on_host,
    root_edges,
)
from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class TreeSearch:
    """Configuration and planner at once; needs a `StepwiseCost`."""

    simulations: int = 256  # per problem
    leaves: int = 8  # imagined at once per problem; more are faster and a little less well chosen
    siblings: int = 1  # of them where one way down ends; more are faster (docs/lab_notes.md: what plans lose)
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
        for name, number in (
            ("simulations", self.simulations),
            ("leaves", self.leaves),
            ("siblings", self.siblings),
        ):
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

    def schedule(self, horizon: int) -> list[int]:
        """Evaluations of each refinement, at most: a tree that has been seen to its end asks for fewer."""
        branches = edges_available(self.branches, self.bank, self.keep_nominal)
        return [number * self._chunk for _, number in self.rule.phases(self.simulations, branches)]

    def fitting(self, evaluations: int, horizon: int) -> "TreeSearch":
        """The same planner with at most so many evaluations, if it can: fewer simulations."""
        simulations = min(self.simulations, max(1, evaluations // self._chunk))
        smaller = replace(self, simulations=simulations)
        smaller.__dict__["_left"] = self._left  # one memory for all sizes
        return smaller

    @property
    def _chunk(self) -> int:
        return 1 if self.bank is None else self.bank.shape[1]

    @torch.no_grad()
    def refinements(
        self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness
    ) -> Iterator[Search]:
        """What is known after every phase: an eighth of the simulations, or a halving at the root."""
        with self._memory() as memory:
            for known in self._phases(as_stepwise(cost, "TreeSearch"), start, generator, memory):
                yield self._search(known, start)

    @torch.no_grad()
    def plan(self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness) -> Search:
        """Search as deep as `start` is long; sampled actions deviate from it by its std."""
        with self._memory() as memory:
            *_, known = self._phases(as_stepwise(cost, "TreeSearch"), start, generator, memory)
            return self._search(known, start)

    @contextmanager
    def _memory(self) -> Generator[Memory]:
        """What the search before left, unless another is using it."""
        memory = self._left.pop() if self._left else Memory()
        try:
            yield memory
        finally:
            self._left[:] = [memory]

    @cached_property
    def _left(self) -> list[Memory]:
        return []

    def _phases(
        self, cost: StepwiseCost, start: Plan, generator: Randomness, memory: Memory
    ) -> Iterator["Known"]:
        source = NodeActions(start, generator, self.bounds, self.bank, self.bank_weights, self.keep_nominal)
        branches, problems = source.available(self.branches), len(start.mean)
        roots = torch.zeros(problems, 1, dtype=torch.long, device=start.mean.device)
        edges = branches if self.bank is None else source.deal(roots, branches)
        chunk = start.mean.new_empty(source.length, start.mean.shape[2])
        tree = Tree.planted(cost.latent, chunk, edges, self.simulations, memory)
        logits = start.mean.new_zeros(problems, branches) if isinstance(edges, int) else edges.logits[:, 0]
        noise = self.rule.root_noise(logits, generator)
        considered, spent, before = np.ones(noise.shape, bool), 0, branches
        allowance = self.allowed(np.arange(self.simulations + 1, dtype=noise.dtype), branches)
        rates = self.rule.rates(self.simulations)
        for running, simulations in self.rule.phases(self.simulations, branches):
            if running < before:
                considered = self.rule.considered(self._edges(tree), considered, running, noise)
            before = running
            for done in range(0, simulations, self.leaves):
                leaves = min(self.leaves, simulations - done)
                left = (tree.tables.edges["room"][tree.roots] * considered).sum(axis=1)
                if not left.any():
                    break
                high, spread = tree.dearest()
                turn = Turn(considered, noise, allowance, rates, high, 1 / spread)
                choice = self.rule.choice(least=self.backup == "least", alike=tree.alike)
                longest = -(-start.mean.shape[1] // source.length)
                paths = tree.descend(leaves, longest, left, turn, choice, self.siblings)
                tree.grow(paths, self._imagine(cost, tree, source, paths))
                spent += leaves * source.length
            yield Known(tree, considered, noise, spent)

    def _imagine(self, cost: StepwiseCost, tree: Tree, source: NodeActions, paths: Paths) -> Found:
        """All leaves of all problems in one call of the model."""
        device, (problems, horizon) = tree.latents.device, source.start.mean.shape[:2]
        before = np.maximum(paths.depth - 1, 0) * source.length
        parents, taken, left = (
            torch.from_numpy(numbers).to(device).view(problems, -1)
            for numbers in (paths.parents, paths.taken, before)
        )
        dealt = None if tree.dealt is None else tree.dealt.flatten(0, 1)[parents, taken]
        chunks = source.taken(left, taken, dealt)
        # problems with nothing left to find are imagined from the root, for nobody
        latents = tree.latents.flatten(0, 1).index_select(0, parents.flatten())
        step = expand_chunk(cost, latents.unflatten(0, parents.shape), chunks, left, horizon)
        depth = np.minimum(before + source.length, horizon)
        hand = None
        if tree.dealt is not None:
            reached = torch.from_numpy(depth).to(device).view(problems, -1)
            hand = source.deal(reached, tree.dealt.shape[2])
        step_cost, to_go = on_host(step.step_cost).reshape(-1), on_host(step.to_go).reshape(-1)
        paid = tree.paid[paths.parents] + step_cost
        value = paid + to_go + self._unfinished(step_cost, depth - before, horizon - depth)
        return Found(
            latents=step.latents,
            chunks=chunks,
            hand=hand,
            paid=paid,
            value=value,
            final=depth >= horizon,
        )

    def allowed(self, visits: Float[np.ndarray, " n"], branches: int) -> Int[np.ndarray, " n"]:
        """How many of a node's edges may be tried after so many visits."""
        number = (self.widening * torch.from_numpy(visits).clamp(min=1) ** self.widening_power).ceil()
        return number.clamp(max=branches).long().numpy()

    def _unfinished(
        self, step_cost: Float[np.ndarray, " I"], taken: Int[np.ndarray, " I"], left: Int[np.ndarray, " I"]
    ) -> Float[np.ndarray, " I"]:
        if self.unfinished == "to_go":
            return np.zeros_like(step_cost)
        number = step_cost.dtype
        # nothing is left of a path to the end, whatever it cost: infinitely much times nothing is no number
        price = np.where(left > 0, step_cost, 0)
        return left.astype(number) * price / np.maximum(taken, 1).astype(number)

    def _edges(self, tree: Tree) -> RootEdges:
        return root_edges(tree, least=self.backup == "least")

    def _search(self, known: "Known", start: Plan) -> Search:
        root = self._edges(known.tree)
        least = root.least
        allowed = self.rule.answer(root, known.considered, known.noise, self.siblings)
        chosen = np.where(allowed, least, np.inf).argmin(axis=1)
        # the answer first, then the others from the cheapest, as many as every problem has tried
        rank = np.where(np.arange(least.shape[1]) == chosen[:, None], -np.inf, least)
        order = rank.argsort(axis=1, kind="stable")[:, : int(root.tried.sum(axis=1).min())]
        costs = torch.from_numpy(np.take_along_axis(least, order, axis=1)).to(start.mean)
        refuse_dead_ends(costs)
        paths = best_paths(known.tree, order, start.mean.shape[1])
        paths = paths if self.bounds is None else self.bounds.project(paths)
        return Search(Plan(paths[:, 0], start.std), paths, costs, known.spent)


@dataclass(frozen=True)
class Known:
    """What a phase leaves behind."""

    tree: Tree
    considered: Bool[np.ndarray, "B K"]  # root actions in the running
    noise: Float[np.ndarray, "B K"]
    spent: int  # evaluations
