"""Batches that values learn from: `sample` draws numbers only, `load` gathers latents and imagines.

    SegmentBatches    segments of transitions, recorded or imagined, for temporal differences
    ReturnBatches     single states and what their recording earned from there
    PairBatches       two frames of one recording, all numbers of steps between them equally likely

A frame is its own goal by number, never by likeness. In an imagined segment the same numbers count: where the
goal is a frame of the segment's own window, the latent imagined there takes its place, so imagination reaches
goals of its own. Other goals stay what was recorded, and imagination is not told when it passes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.data.episodes import Episodes
from jepaplan.data.goals import GoalMixture
from jepaplan.data.windows import WindowIndex, Windows, rows
from jepaplan.objectives.returns import balanced_pairs, returns_to_go, rewards_until, value_of_steps
from jepaplan.objectives.segments import LatentDynamics
from jepaplan.objectives.td import ReturnBatch, ValueSegments, two_of
from jepaplan.types import InputError

Drawn = dict[str, Tensor]
Goals = tuple[GoalMixture, float]  # and the share of segments that begin at their goal


@dataclass(frozen=True, kw_only=True)
class ImaginedActions:
    """The actions of imagined segments: a recorded sequence and noise."""

    actions: Literal["own", "other", "none"] = "own"  # those of the same window, of another one, or zeros
    noise: float = 0.3  # standard deviation, in normalised units (1: as the recording's)

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise InputError(f"noise is a standard deviation, at least 0; got {self.noise}")


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What a recording earned, as it says or beside it: a reward per action, or success per frame."""

    rewards: Float[Tensor, " K"] | None = None
    terminal: Bool[Tensor, " K"] | None = None  # with rewards: nothing is earned after this action
    success: Bool[Tensor, " F"] | None = None

    @classmethod
    def recorded(cls, episodes: Episodes) -> "Signals":
        """What the recording itself says."""
        return cls(**episodes.earned.columns())

    def only(self, reward: str, episodes: Episodes) -> "Signals":
        """What `reward` needs and nothing else; refuses what is missing or of another recording."""
        asked = {"recorded": ("rewards", episodes.actions), "success": ("success", episodes.observations)}
        if reward not in asked:
            return Signals()
        name, beside = asked[reward]
        column = getattr(self, name)
        if column is None or len(column) != len(beside):
            found = "none" if column is None else f"{len(column)} rows"
            raise InputError(
                f"reward={reward!r} needs a column `{name}` of {len(beside)} rows for {episodes.path}; got "
                f"{found}. `jepaplan collect` records what a gymnasium environment tells of it; "
                f"write yours with `EpisodeWriter.append(..., earned=Earned({name}=...))`, or learn "
                "with reward='goal'"
            )
        return replace(self, success=None) if reward == "recorded" else Signals(success=self.success)

    def of(self, index: WindowIndex) -> tuple[Tensor, Tensor]:
        """Rewards and ends of the transitions of windows."""
        if self.success is not None:
            succeeded = self.success[index.frames]
            rewards, ends = rewards_until(succeeded)
            # Environments often end with success: then no action begins there that could say so.
            return rewards, ends | succeeded[:, 1:]
        assert self.rewards is not None
        rewards = self.rewards[index.actions]
        ends = (
            torch.zeros_like(rewards, dtype=torch.bool)
            if self.terminal is None
            else self.terminal[index.actions]
        )
        return rewards, ends

    def until(
        self, goal: Int[Tensor, " B"] | None, index: WindowIndex
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """The same on the way to a goal, a frame for each window: -1 per step, and the end where it is."""
        return self.of(index) if goal is None else rewards_until(index.frames == goal[:, None])

    def returns(self, episodes: Episodes, discount: float) -> Float[Tensor, " K"]:
        """Monte-Carlo returns of all actions; what ends without success would never have succeeded."""
        every = torch.arange(len(episodes.actions))
        episode = torch.repeat_interleave(torch.arange(len(episodes)), episodes.lengths)
        here = every + episode
        index = WindowIndex(
            actions=every[:, None], frames=torch.stack([here, here + 1], dim=1), episode=episode
        )
        rewards, ends = (column[:, 0] for column in self.of(index))
        tail = 0.0
        if self.success is not None:
            last = self.success[episodes.starts + episodes.lengths]
            if discount == 1 and not bool(last.all()):
                raise InputError(
                    f"{int((~last).sum())} of {len(episodes)} recordings end without success, which is worth "
                    "minus infinity without discount; write a discount below 1"
                )
            tail = 0.0 if discount == 1 else -1 / (1 - discount)
        return returns_to_go(rewards, ends, episodes.lengths, discount=discount, tail=tail)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Episodes `first` to `end` of a recording, their latents, and a model that imagines others."""

    episodes: Episodes
    latents: Callable[[], Tensor]
    dynamics: LatentDynamics
    device: torch.device
    first: int
    end: int

    @property
    def lengths(self) -> Int[Tensor, " E"]:
        """Actions of each of these episodes."""
        return self.episodes.lengths[self.first : self.end]

    @property
    def first_frame(self) -> int:
        """Where they begin among all frames."""
        return int(self.episodes.starts[self.first])

    def at(self, frames: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """Latents of frames, where the models are."""
        return rows(self.latents(), frames).to(self.device)

    def actions(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch A"]:
        """Actions in normalised units, where the models are."""
        return self.dynamics.action_units.normalise(rows(self.episodes.actions, index).to(self.device))

    def draw(self, windows: Windows, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
        """Numbers of windows of these episodes."""
        counts = (self.episodes.lengths - windows.steps + 1).clamp(min=0).cumsum(0)
        low = int(counts[self.first - 1]) if self.first else 0
        high = int(counts[self.end - 1])
        if low == high:
            raise InputError(
                f"no episode from {self.first} to {self.end - 1} of {self.episodes.path} has {windows.steps} "
                f"actions; write steps={int(self.lengths.max())} or less"
            )
        return torch.randint(low, high, (count,), generator=generator)


class SegmentBatches:
    """Segments for temporal differences; every segment has one goal, or none where `goals` is none."""

    def __init__(
        self,
        recording: Recording,
        steps: int,
        goals: Goals | None,
        signals: Signals,
        *,
        members: int,
        imagination: tuple[float, ImaginedActions],
    ) -> None:
        self.recording, self.goals, self.signals, self.members = recording, goals, signals, members
        self.windows = Windows(recording.episodes, steps)
        self.share, self.imagination = imagination
        self.frames_per_item = steps + 1

    def sample(self, generator: torch.Generator, count: int) -> Drawn:
        """Windows, goals, the two members that each segment believes, and what imagination does."""
        recording, windows = self.recording, self.windows
        numbers = recording.draw(windows, count, generator)
        drawn = {"window": numbers}
        if self.goals is not None:
            drawn["goal"] = draw_goals(self.goals, windows.index(numbers), recording.episodes, generator)
        if self.members > 1:
            drawn["subset"] = two_of(self.members, count, generator)
        if self.share > 0:
            shape = (count, windows.steps, recording.episodes.actions.shape[1])
            drawn["imagined"] = torch.rand(count, generator=generator) < self.share
            drawn["other"] = recording.draw(windows, count, generator)
            drawn["noise"] = self.imagination.noise * torch.randn(shape, generator=generator)
        return drawn

    @torch.no_grad()
    def load(self, drawn: Drawn) -> ValueSegments:
        """The segments of a draw."""
        recording, index = self.recording, self.windows.index(drawn["window"])
        latents, actions = recording.at(index.frames), recording.actions(index.actions)
        if self.share > 0:
            latents, actions = self._imagine(drawn, latents, actions)
        goal, goals = drawn.get("goal"), None
        rewards, terminal = self.signals.until(goal, index)
        if goal is not None:
            at_goal = index.frames == goal[:, None]
            goals = recording.at(goal)
            inside, position = at_goal.any(1).to(goals.device), at_goal.int().argmax(1).to(goals.device)
            own = latents[torch.arange(len(latents), device=goals.device), position]
            goals = torch.where(inside[:, None], own, goals)
        return ValueSegments(
            latents=latents,
            rewards=rewards,
            terminal=terminal,
            goals=goals,
            actions=actions,
            subset=drawn.get("subset"),
        )

    def _imagine(self, drawn: Drawn, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the segments that were drawn for it by what the world model makes of other actions."""
        device, chosen = latents.device, drawn["imagined"].to(latents.device)
        if self.imagination.actions == "other":
            base = self.recording.actions(self.windows.index(drawn["other"]).actions)
        else:
            base = actions if self.imagination.actions == "own" else torch.zeros_like(actions)
        actions = torch.where(chosen[:, None, None], base + drawn["noise"].to(device), actions)
        if not bool(chosen.any()):
            return latents, actions
        latents = latents.clone()
        latents[chosen] = self.recording.dynamics.unroll(latents[chosen, 0], actions[chosen]).to(
            latents.dtype
        )
        return latents, actions


class ReturnBatches:
    """States and what their recordings earned: until a goal later on, or in rewards."""

    frames_per_item = 2

    def __init__(
        self, recording: Recording, discount: float, goals: Goals | None, signals: Signals, *, actions: bool
    ) -> None:
        self.recording, self.discount, self.goals, self.signals = recording, discount, goals, signals
        self.windows, self.takes_actions = Windows(recording.episodes, 1), actions

    @cached_property
    def _returns(self) -> Tensor:
        return self.signals.returns(self.recording.episodes, self.discount)

    def sample(self, generator: torch.Generator, count: int) -> Drawn:
        """States, and goals where there are any."""
        drawn = {"window": self.recording.draw(self.windows, count, generator)}
        if self.goals is not None:
            index = self.windows.index(drawn["window"])
            drawn["goal"] = draw_goals(self.goals, index, self.recording.episodes, generator)
        return drawn

    @torch.no_grad()
    def load(self, drawn: Drawn) -> ReturnBatch:
        """Their latents and returns."""
        recording, index, goal = self.recording, self.windows.index(drawn["window"]), drawn.get("goal")
        here, action = index.frames[:, 0], index.actions[:, 0]
        return ReturnBatch(
            latents=recording.at(here),
            returns=self._returns[action] if goal is None else value_of_steps(goal - here, self.discount),
            goals=None if goal is None else recording.at(goal),
            actions=recording.actions(action) if self.takes_actions else None,
        )


class PairBatches:
    """Two frames of one recording, at most `longest` steps apart, all numbers of steps equally likely."""

    frames_per_item = 2

    def __init__(self, recording: Recording, discount: float, longest: int | None, *, actions: bool) -> None:
        self.recording, self.discount, self.longest = recording, discount, longest
        self.takes_actions = actions

    def sample(self, generator: torch.Generator, count: int) -> Drawn:
        """Frame numbers."""
        earlier, later = balanced_pairs(self.recording.lengths, count, generator, self.longest)
        return {"earlier": earlier + self.recording.first_frame, "later": later + self.recording.first_frame}

    @torch.no_grad()
    def load(self, drawn: Drawn) -> ReturnBatch:
        """Their latents, and the value of the steps between them."""
        recording, earlier, later = self.recording, drawn["earlier"], drawn["later"]
        # Every episode before has one action fewer than frames.
        action = earlier - (torch.searchsorted(recording.episodes.starts, earlier, right=True) - 1)
        return ReturnBatch(
            latents=recording.at(earlier),
            returns=value_of_steps(later - earlier, self.discount),
            goals=recording.at(later),
            actions=recording.actions(action) if self.takes_actions else None,
        )


def draw_goals(
    goals: Goals, index: WindowIndex, episodes: Episodes, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """One goal per window, as the mixture draws it for the first transition, or the first frame itself."""
    mixture, self_goals = goals
    drawn = mixture.sample(index, episodes, generator)[:, 0]
    itself = torch.rand(len(drawn), generator=generator) < self_goals
    return torch.where(itself, index.frames[:, 0], drawn)
