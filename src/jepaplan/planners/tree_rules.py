"""Two ways to decide where a tree search looks next, and what it answers.

`PUCT`: Schrittwieser et al., MuZero, 2020, appendix B. `GumbelHalving`: Danihelka et al., "Policy improvement
by planning with Gumbel", ICLR 2022; its constants are those of the authors' library mctx.

    paper                here
    c_1, c_2             PUCT.exploration, PUCT.exploration_base
    P(s, a), pi          softmax of the edges' logits
    n, m                 simulations, GumbelHalving.considered
    g(a)                 noise
    sigma(q)             (visit_offset + max N) * value_scale * worth
    completed Q          worth, and for actions nobody tried the mixed value v_mix
    pi'                  softmax(logits + sigma(completed Q))

PUCT explores by optimism and answers with the cheapest path it has found. Gumbel draws a few root actions
from the prior, halves them by what they turn out to be worth, and below the root follows pi'
deterministically; its answer is no worse than the prior in expectation after any number of simulations, if
the values are right.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.planners.proposals import Randomness
from jepaplan.planners.stepwise import gumbel
from jepaplan.planners.tree_statistics import Edges
from jepaplan.types import InputError

REPORTS = 8  # how often a search that has no phases of its own tells what it knows


@dataclass(frozen=True, kw_only=True)
class PUCT:
    """Prior-weighted upper confidence bounds, at the root as everywhere."""

    exploration: float = 1.25  # in units of the tree's whole range of costs
    exploration_base: float = 19652.0  # visits after which exploration grows noticeably

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        if self.exploration < 0 or self.exploration_base <= 0:
            raise InputError(
                "exploration must not be negative and exploration_base must be positive; got "
                f"{self.exploration} and {self.exploration_base}"
            )

    def phases(self, simulations: int, actions: int) -> list[tuple[int, int]]:
        """Root actions in the running and simulations spent on them, phase by phase."""
        part = -(-simulations // REPORTS)
        return [(actions, min(part, simulations - done)) for done in range(0, simulations, part)]

    def root_noise(self, logits: Float[Tensor, "B K"], generator: Randomness) -> Float[Tensor, "B K"]:
        """None is needed."""
        return torch.zeros_like(logits)

    def considered(
        self, root: Edges, before: Bool[Tensor, "B K"], count: int, noise: Float[Tensor, "B K"]
    ) -> Bool[Tensor, "B K"]:
        """All root actions, always."""
        return before

    def at_root(
        self,
        root: Edges,
        considered: Bool[Tensor, "B K"],
        may: Bool[Tensor, "B K"],
        noise: Float[Tensor, "B K"],
    ) -> Int[Tensor, " B"]:
        """The root is a node like any other."""
        return self.choose(root, may)

    def choose(self, node: Edges, may: Bool[Tensor, "B K"]) -> Int[Tensor, " B"]:
        """A new edge if there `may` be one, else the highest bound."""
        prior = _prior(node.logits, node.tried)
        base = self.exploration_base
        rate = self.exploration + ((node.node_visits + base + 1) / base).log()
        bound = node.worth + rate * prior * node.node_visits.sqrt() / (1 + node.visits)
        new = may & ~node.tried
        # argmax takes the first of equals: the edges nobody tried come in the order they were drawn
        return torch.where(new, torch.inf, bound.where(may, -torch.inf)).argmax(dim=-1)

    def answer(
        self, root: Edges, considered: Bool[Tensor, "B K"], noise: Float[Tensor, "B K"]
    ) -> Bool[Tensor, "B K"]:
        """Any root action that was tried: the cheapest path decides."""
        return root.tried


@dataclass(frozen=True, kw_only=True)
class GumbelHalving:
    """Gumbel-top-m and sequential halving at the root, the improved policy below."""

    considered_actions: int = 16  # m, root actions that are tried at all
    value_scale: float = 0.1
    visit_offset: float = 50.0
    noise_scale: float = 1.0  # of the noise in the choice among tried actions; 0: the worth and prior decide

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        if self.considered_actions < 1:
            raise InputError(f"considered_actions must be at least 1; got {self.considered_actions}")
        if min(self.value_scale, self.visit_offset, self.noise_scale) < 0:
            raise InputError(
                "value_scale, visit_offset and noise_scale must not be negative; got "
                f"{self.value_scale}, {self.visit_offset}, {self.noise_scale}"
            )

    def phases(self, simulations: int, actions: int) -> list[tuple[int, int]]:
        """Halve the running after equal shares of the simulations; the last two share what is left."""
        running = min(self.considered_actions, actions, simulations)
        rounds = max(1, math.ceil(math.log2(running)))
        phases: list[tuple[int, int]] = []
        left = simulations
        while left > 0:
            spent = min(left, running * max(1, simulations // (rounds * running)))
            phases.append((running, spent))
            left -= spent
            running = max(min(2, running), running // 2)
        return phases

    def root_noise(self, logits: Float[Tensor, "B K"], generator: Randomness) -> Float[Tensor, "B K"]:
        """One Gumbel variable for each root action, for the whole search."""
        return gumbel(logits, generator)

    def considered(
        self, root: Edges, before: Bool[Tensor, "B K"], count: int, noise: Float[Tensor, "B K"]
    ) -> Bool[Tensor, "B K"]:
        """The best `count` of those considered before; at first, a draw from the prior."""
        drawn = noise + root.logits
        score = self._score(root, noise).where(root.tried.any(dim=-1, keepdim=True), drawn)
        chosen = score.where(before, -torch.inf).topk(count, dim=-1).indices
        return torch.zeros_like(before).scatter(1, chosen, True) & before

    def at_root(
        self,
        root: Edges,
        considered: Bool[Tensor, "B K"],
        may: Bool[Tensor, "B K"],
        noise: Float[Tensor, "B K"],
    ) -> Int[Tensor, " B"]:
        """Take turns, whatever the widening; the best of those with the fewest visits first."""
        running = considered & root.open
        fewest = root.visits.where(running, torch.inf).amin(dim=-1, keepdim=True)
        turn = running & (root.visits == fewest)
        return self._score(root, noise).where(turn, -torch.inf).argmax(dim=-1)

    def choose(self, node: Edges, may: Bool[Tensor, "B K"]) -> Int[Tensor, " B"]:
        """Follow the improved policy as closely as whole visits can."""
        running = may | node.tried
        prior = _prior(node.logits, running)
        wanted = _prior(node.logits + self._sigma(node, _completed(node, prior)), running)
        behind = wanted - node.visits / (1 + node.visits.sum(dim=-1, keepdim=True))
        return behind.where(may, -torch.inf).argmax(dim=-1)

    def answer(
        self, root: Edges, considered: Bool[Tensor, "B K"], noise: Float[Tensor, "B K"]
    ) -> Bool[Tensor, "B K"]:
        """The best of those that were looked at the longest, or to the end."""
        left = considered & root.tried
        most = root.visits.where(left, -1.0).amax(dim=-1, keepdim=True)
        left = left & ((root.visits == most) | ~root.open)
        best = self._score(root, noise).where(left, -torch.inf).argmax(dim=-1, keepdim=True)
        return torch.zeros_like(left).scatter(1, best, True)

    def _score(self, root: Edges, noise: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return self.noise_scale * noise + root.logits + self._sigma(root, root.worth)

    def _sigma(self, node: Edges, worth: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return (self.visit_offset + node.visits.amax(dim=-1, keepdim=True)) * self.value_scale * worth


Rule = PUCT | GumbelHalving


def _prior(logits: Float[Tensor, "B K"], among: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    # no edges at all make NaN of a softmax; they have no prior either
    return torch.softmax(logits.where(among, -torch.inf), dim=-1).nan_to_num(0.0)


def _completed(node: Edges, prior: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """The worth of tried edges, and for the others the mixed value: of the node and of what was tried."""
    tried = prior.where(node.tried, 0.0)
    share, visits = tried.sum(dim=-1, keepdim=True), node.visits.sum(dim=-1, keepdim=True)
    average = (tried * node.worth).sum(dim=-1, keepdim=True) / share.clamp(min=torch.finfo(share.dtype).tiny)
    mixed = (node.own + visits * average) / (1 + visits)
    return node.worth.where(node.tried, mixed)
