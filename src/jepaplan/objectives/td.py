"""Values over latents learned from transitions: one step, many steps, or all that was recorded.

Temporal differences: Sutton and Barto, "Reinforcement Learning: An Introduction", 2018, chapters 6 and 12.
Expectiles: Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", arXiv:2110.06169,
equations 5 and 6; action-free and with goals as in Park et al., arXiv:2307.11949. Minimum of two members:
Chen et al., "Randomized Ensembled Double Q-Learning", arXiv:2101.05982.

    paper        here
    V            values                   any module (latents, goals, actions) -> ... M, members last
    V_bar        MovingAverage.average    or V itself without gradient
    tau          expectile                0.5: the mean over what was recorded; towards 1: its best
    lambda       trace_decay
    G, y         targets                  constants: no gradient reaches the next state's value

    method           objective            settings
    TD(0)            TDObjective          trace_decay=0
    TD(lambda)       TDObjective          trace_decay=0.95
    IQL without Q    TDObjective          trace_decay=0, expectile=0.7
    IQL              ActionValueObjective
    Monte-Carlo      ReturnObjective      returns of the recording
    pairs            ReturnObjective      the steps between two frames of one recording

Latents are data here: encoded before, or imagined. Whoever passes some with a gradient lets the values of
states and goals shape the encoder (`objectives/co_trained.py`); those of next states never do.
`IQL without Q` is optimistic where outcomes are random: it takes luck for skill.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from jepaplan.objectives.ema import MovingAverage
from jepaplan.objectives.iql import expectile_loss
from jepaplan.objectives.returns import lambda_returns
from jepaplan.types import InputError

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ValueSegments:
    """Segments of latents and what their transitions earned; one goal per segment where there are goals."""

    latents: Float[Tensor, "B frames D"]
    rewards: Float[Tensor, "B T"]
    terminal: Bool[Tensor, "B T"]
    goals: Float[Tensor, "B D"] | None = None
    actions: Float[Tensor, "B T A"] | None = None  # in normalised units
    subset: Int[Tensor, "B 2"] | None = None  # two members; their minimum is the segment's bootstrap


@dataclass(frozen=True, kw_only=True)
class ReturnBatch:
    """Latents and what was earned from each."""

    latents: Float[Tensor, "B D"]
    returns: Float[Tensor, " B"]
    goals: Float[Tensor, "B D"] | None = None
    actions: Float[Tensor, "B A"] | None = None  # in normalised units


@dataclass(frozen=True, kw_only=True)
class TDConfig:
    """Which Bellman equation, and from whose values the targets come."""

    discount: float = 0.98  # per step
    trace_decay: float = 0.0  # lambda: how much of the return is what was seen rather than the next value
    expectile: float = 0.5
    bootstrap: Literal["own", "mean", "minimum_of_two"] = (
        "own"  # next values: each member's own, or of several
    )
    target: Literal["moving_average", "stop_gradient"] = "moving_average"
    target_decay: float = 0.995  # of the moving average, per update

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or not 0 <= self.trace_decay <= 1 or not 0 < self.expectile < 1:
            raise InputError(
                "discount lies in (0, 1], trace_decay in [0, 1] and expectile in (0, 1); got "
                f"discount={self.discount}, trace_decay={self.trace_decay}, expectile={self.expectile}"
            )
        if not 0 <= self.target_decay <= 1:
            raise InputError(
                "target_decay lies in [0, 1], 0 to copy the values and 1 to freeze their average; got "
                f"{self.target_decay}"
            )


class Following(nn.Module):
    """The values that targets are made of: a moving average of `values`, or these themselves."""

    def __init__(self, values: nn.Module, config: TDConfig) -> None:
        super().__init__()
        self.config = config
        self.average = MovingAverage(values) if config.target == "moving_average" else None
        # In a list, so not registered: the objective saves it under its own name.
        self._values = [values]

    @torch.no_grad()
    def forward(
        self,
        latents: Float[Tensor, "B T D"],
        batch: ValueSegments,
        actions: Float[Tensor, "B T A"] | None = None,
    ) -> Float[Tensor, "B T members"]:
        """Constants: the values of `latents`, with one member or all of them last."""
        values = self._values[0] if self.average is None else self.average.average
        found = values(latents, _per_segment(batch.goals), actions)
        if self.config.bootstrap == "mean":
            return found.mean(-1, keepdim=True)
        if self.config.bootstrap == "minimum_of_two":
            return minimum_of_two(found, batch.subset)
        return found

    def follow(self) -> None:
        """Let the average take one step towards the values; due after every update."""
        if self.average is not None:
            self.average.follow(self.config.target_decay)


class TDObjective(nn.Module):
    """One-step, lambda or expectile temporal differences, of values of states or of states and goals."""

    def __init__(self, values: nn.Module, config: TDConfig | None = None) -> None:
        super().__init__()
        self.config = config or TDConfig()
        self.values = values
        self.following = Following(values, self.config)

    def forward(self, batch: ValueSegments) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        goals, config = _per_segment(batch.goals), self.config
        values = self.values(batch.latents[:, :-1], goals)
        targets = lambda_returns(
            batch.rewards,
            batch.terminal,
            self.following(batch.latents[:, 1:], batch),
            discount=config.discount,
            trace_decay=config.trace_decay,
        )
        error = targets - values
        loss = expectile_loss(error, config.expectile)
        return loss, _metrics(values, error)

    def follow(self) -> None:
        """Move the average; due after every update."""
        self.following.follow()


class ActionValueObjective(nn.Module):
    """Q(z, a) and V(z) that teach each other: V is a high expectile of Q over actions, Q sees V one step on.

    V's expectile is over actions only, so luck in the outcome is averaged by Q.
    """

    def __init__(
        self, action_values: nn.Module, state_values: nn.Module, config: TDConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config or TDConfig(expectile=0.7)
        self.action_values = action_values
        self.state_values = state_values
        self.following = Following(action_values, self.config)

    def forward(self, batch: ValueSegments) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        if batch.actions is None:
            raise InputError("action values learn from segments with actions; got a batch without them")
        here, goals = batch.latents[:, :-1], _per_segment(batch.goals)
        states = self.state_values(here, goals)
        best = self.following(here, batch, batch.actions) - states
        with torch.no_grad():
            later = self.state_values(batch.latents[:, 1:], goals)
            targets = lambda_returns(
                batch.rewards,
                batch.terminal,
                later.mean(-1, keepdim=True),
                discount=self.config.discount,
                trace_decay=0.0,
            )
        actions = self.action_values(here, goals, batch.actions)
        error = targets - actions
        state_loss, action_loss = expectile_loss(best, self.config.expectile), error.square().mean()
        parts = {"state_loss": state_loss.detach(), "action_loss": action_loss.detach()}
        return state_loss + action_loss, parts | _metrics(actions, error)

    def follow(self) -> None:
        """Move the average; due after every update."""
        self.following.follow()


class ReturnObjective(nn.Module):
    """Regression on returns that are known: of the recording, or of the steps between two of its frames.

    An expectile above 0.5 prefers the best return seen from a state: for pairs, the shortest way.
    """

    def __init__(self, values: nn.Module, expectile: float = 0.5) -> None:
        super().__init__()
        if not 0 < expectile < 1:
            raise InputError(f"expectile lies in (0, 1); got {expectile}")
        self.values = values
        self.expectile = expectile

    def forward(self, batch: ReturnBatch) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        values = self.values(batch.latents, batch.goals, batch.actions)
        error = batch.returns[:, None] - values
        return expectile_loss(error, self.expectile), _metrics(values, error)


def minimum_of_two(
    values: Float[Tensor, "B T M"], subset: Int[Tensor, "B 2"] | None
) -> Float[Tensor, "B T 1"]:
    """The smaller value of each segment's two members; of an ensemble of two, the smaller of both."""
    if values.shape[-1] == 2:
        return values.amin(-1, keepdim=True)
    if values.shape[-1] < 2 or subset is None:
        raise InputError(
            f"the minimum of two needs two members or more, and of more than two which ones: an ensemble of "
            f"{values.shape[-1]} came {'without' if subset is None else 'with'} subset. Write "
            "bootstrap='own', or draw `subset` with `two_of(members, count, generator)`"
        )
    return values.gather(-1, subset[:, None].expand(-1, values.shape[1], -1)).amin(-1, keepdim=True)


def two_of(members: int, count: int, generator: torch.Generator) -> Int[Tensor, "count 2"]:
    """For each of `count` segments two different members of an ensemble."""
    return torch.rand(count, members, generator=generator).argsort(dim=-1)[:, :2]


def _per_segment(goals: Tensor | None) -> Tensor | None:
    return None if goals is None else goals[:, None]


def _metrics(values: Tensor, error: Tensor) -> Terms:
    """For the record, in units of the value; no temporal-difference loss tells whether a value ranks well."""
    values = values.detach()
    return {
        "error": error.detach().abs().mean(),
        "value": values.mean(),
        "disagreement": values.std(-1, unbiased=False).mean(),
    }
