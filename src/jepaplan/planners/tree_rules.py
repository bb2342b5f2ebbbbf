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
from jaxtyping import Bool, Float
from torch import Tensor

from jepaplan.planners.proposals import Randomness
from jepaplan.planners.stepwise import gumbel
from jepaplan.planners.tree_loops import Choice
from jepaplan.planners.tree_statistics import RootEdges, on_host
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
        self, root: RootEdges, before: Bool[np.ndarray, "B K"], count: int, noise: Float[np.ndarray, "B K"]
    ) -> Bool[np.ndarray, "B K"]:
        """All root actions, always."""
        return before

    def choice(self, *, least: bool, alike: bool) -> Choice:
        """For the way down."""
        return Choice(False, least, alike)

    def rates(self, simulations: int) -> Float[np.ndarray, " n"]:
        """Of exploration after 0, 1, .. visits, up to so many."""
        return _rates(self, simulations)

    def answer(
        self,
        root: RootEdges,
        considered: Bool[np.ndarray, "B K"],
        noise: Float[np.ndarray, "B K"],
        siblings: int,
    ) -> Bool[np.ndarray, "B K"]:
        """Any root action that was tried: the cheapest path decides."""
        return root.tried


@lru_cache(maxsize=8)
def _rates(rule: PUCT, simulations: int) -> Float[np.ndarray, " n"]:
    visits = np.arange(simulations + 1.0)
    growth = np.log((visits + rule.exploration_base + 1) / rule.exploration_base)
    return (rule.exploration + growth) * np.sqrt(visits)


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
        self, root: RootEdges, before: Bool[np.ndarray, "B K"], count: int, noise: Float[np.ndarray, "B K"]
    ) -> Bool[np.ndarray, "B K"]:
        """The best `count` of those considered before; at first, a draw from the prior."""
        drawn = noise + root.logits
        score = np.where(root.tried.any(axis=1, keepdims=True), self._score(root, noise), drawn)
        score = torch.from_numpy(np.where(before, score, -np.inf))
        chosen = np.zeros_like(before)
        np.put_along_axis(chosen, score.topk(count, dim=-1).indices.numpy(), True, axis=1)
        return chosen & before

    def choice(self, *, least: bool, alike: bool) -> Choice:
        """For the way down."""
        return Choice(
            True,
            least,
            alike,
            value_scale=self.value_scale,
            visit_offset=self.visit_offset,
            noise_scale=self.noise_scale,
        )

    def rates(self, simulations: int) -> Float[np.ndarray, " n"]:
        """None is needed."""
        return np.zeros(simulations + 1)

    def answer(
        self,
        root: RootEdges,
        considered: Bool[np.ndarray, "B K"],
        noise: Float[np.ndarray, "B K"],
        siblings: int,
    ) -> Bool[np.ndarray, "B K"]:
        """The best of those that were looked at the longest, or to the end."""
        left = considered & root.tried
        most = np.where(left, root.visits, -1).max(axis=1, keepdims=True)
        # those in the running take turns, each of which is up to so many visits
        left = left & ((root.visits > most - siblings) | ~root.open)
        best = np.where(left, self._score(root, noise), -np.inf).argmax(axis=1)
        return np.arange(left.shape[1]) == best[:, None]

    def _score(self, root: RootEdges, noise: Float[np.ndarray, "B K"]) -> Float[np.ndarray, "B K"]:
        scale = (self.visit_offset + root.visits.max(axis=1, keepdims=True)) * self.value_scale
        return self.noise_scale * noise + root.logits + scale * root.worth


Rule = PUCT | GumbelHalving
