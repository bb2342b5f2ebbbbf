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
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.planners.proposals import Randomness
from jepaplan.planners.stepwise import gumbel
from jepaplan.planners.tree_statistics import Edges, on_host
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

    def root_noise(self, logits: Float[Tensor, "B K"], generator: Randomness) -> Float[np.ndarray, "B K"]:
        """None is needed."""
        return on_host(torch.zeros_like(logits))

    def considered(
        self, root: Edges, before: Bool[np.ndarray, "B K"], count: int, noise: Float[np.ndarray, "B K"]
    ) -> Bool[np.ndarray, "B K"]:
        """All root actions, always."""
        return before

    def at_root(
        self,
        root: Edges,
        considered: Bool[np.ndarray, "B K"],
        allowed: Int[np.ndarray, " R"],
        noise: Float[np.ndarray, "B K"],
    ) -> Int[np.ndarray, " R"]:
        """The root is a node like any other."""
        return self.choose(root, allowed)

    def choose(self, node: Edges, allowed: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """A new edge if so many are `allowed`, else the highest bound."""
        # edges are tried in the order they were drawn, so the first new one is the number of those tried
        new = node.used < allowed
        if new.all():
            return node.used.copy()
        tried = node.visits > 0
        rate = _rates(self.exploration, self.exploration_base, node.most, node.worth.dtype)
        bound = _shares(node, tried, node.used) * rate.take(node.node_visits)[:, None]
        bound = bound * np.sqrt(node.node_visits, dtype=rate.dtype)[:, None] / (1 + node.visits) + node.worth
        np.copyto(bound, -np.inf, where=~tried | (node.room == 0))
        best = bound.argmax(axis=1)
        # where all that was tried has been seen to the end, there must be something new
        new |= bound.reshape(-1).take(node.begin + best) == -np.inf
        return np.where(new, node.used, best)

    def answer(
        self, root: Edges, considered: Bool[np.ndarray, "B K"], noise: Float[np.ndarray, "B K"]
    ) -> Bool[np.ndarray, "B K"]:
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

    def root_noise(self, logits: Float[Tensor, "B K"], generator: Randomness) -> Float[np.ndarray, "B K"]:
        """One Gumbel variable for each root action, for the whole search."""
        return on_host(gumbel(logits, generator))

    def considered(
        self, root: Edges, before: Bool[np.ndarray, "B K"], count: int, noise: Float[np.ndarray, "B K"]
    ) -> Bool[np.ndarray, "B K"]:
        """The best `count` of those considered before; at first, a draw from the prior."""
        drawn = noise + root.logits
        score = np.where(root.tried.any(axis=1, keepdims=True), self._score(root, noise), drawn)
        score = torch.from_numpy(np.where(before, score, -np.inf))
        chosen = np.zeros_like(before)
        np.put_along_axis(chosen, score.topk(count, dim=-1).indices.numpy(), True, axis=1)
        return chosen & before

    def at_root(
        self,
        root: Edges,
        considered: Bool[np.ndarray, "B K"],
        allowed: Int[np.ndarray, " R"],
        noise: Float[np.ndarray, "B K"],
    ) -> Int[np.ndarray, " R"]:
        """Take turns, however many are `allowed`; the best of those with the fewest visits first."""
        visits = np.where(considered[root.problem] & root.open, root.visits, np.inf)
        fewest = visits.min(axis=1, keepdims=True)
        score = self._score(root, noise[root.problem])
        return np.where(visits == fewest, score, -np.inf).argmax(axis=1)

    def choose(self, node: Edges, allowed: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        """Follow the improved policy as closely as whole visits can."""
        opened, tried = node.open, node.tried
        may = opened & (tried | (np.arange(tried.shape[1]) < allowed[:, None]))
        some = may.any(axis=1, keepdims=True)
        # where nothing is left of those, all are allowed
        may = may if some.all() else np.where(some, may, opened)
        running = may | tried
        prior = _shares(node, running, running.sum(axis=1))
        wanted = _prior(node.logits + self._sigma(node, _completed(node, prior)), running)
        behind = wanted - node.visits / (1 + node.edge_visits[:, None])
        np.copyto(behind, -np.inf, where=~may)
        return behind.argmax(axis=1)

    def answer(
        self, root: Edges, considered: Bool[np.ndarray, "B K"], noise: Float[np.ndarray, "B K"]
    ) -> Bool[np.ndarray, "B K"]:
        """The best of those that were looked at the longest, or to the end."""
        left = considered & root.tried
        most = np.where(left, root.visits, -1).max(axis=1, keepdims=True)
        left = left & ((root.visits == most) | ~root.open)
        best = np.where(left, self._score(root, noise), -np.inf).argmax(axis=1)
        return np.arange(left.shape[1]) == best[:, None]

    def _score(self, root: Edges, noise: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R K"]:
        return self.noise_scale * noise + root.logits + self._sigma(root, root.worth)

    def _sigma(self, node: Edges, worth: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R K"]:
        return ((self.visit_offset + node.most_visited) * self.value_scale)[:, None] * worth


Rule = PUCT | GumbelHalving


@lru_cache(maxsize=64)
def _rates(exploration: float, base: float, most: int, dtype: np.dtype) -> Float[np.ndarray, " n"]:
    """How much PUCT explores after 0, 1, .. `most` visits of a node."""
    visits = torch.from_numpy(np.arange(most + 1, dtype=dtype))
    return (exploration + ((visits + base + 1) / base).log()).numpy()


def _shares(
    node: Edges, among: Bool[np.ndarray, "R K"], count: Int[np.ndarray, " R"]
) -> Float[np.ndarray, "R K"] | Float[np.ndarray, "R 1"]:
    """The prior of so many edges; where all logits are equal the one number that these edges share."""
    if node.alike:
        return (1 / np.maximum(count, 1).astype(node.logits.dtype))[:, None]
    return _prior(node.logits, among)


def _prior(logits: Float[np.ndarray, "R K"], among: Bool[np.ndarray, "R K"]) -> Float[np.ndarray, "R K"]:
    prior = torch.from_numpy(np.where(among, logits, -np.inf)).softmax(dim=-1).numpy()
    # no edges at all make NaN of a softmax; they have no prior either
    return np.fmax(prior, 0)


def _completed(node: Edges, prior: Float[np.ndarray, "R #K"]) -> Float[np.ndarray, "R K"]:
    """The worth of tried edges, and for the others the mixed value: of the node and of what was tried."""
    known = node.tried
    tried = prior * known
    # summed by torch: numpy adds in another order
    share, worth = torch.from_numpy(np.stack([tried, tried * node.worth])).sum(dim=-1, keepdim=True).numpy()
    visits = node.edge_visits[:, None]
    average = worth / np.maximum(share, np.finfo(share.dtype).tiny)
    mixed = (node.own[:, None] + visits * average) / (1 + visits)
    return np.where(known, node.worth, mixed)
