"""Windows of recorded episodes: T actions and their T+1 frames, never across the end of an episode.

Every window of every episode is equally likely (PLDM, arXiv:2502.14819). Sampling draws numbers only;
gathering copies the frames by one `index_select`, so a batch costs little more than moving its bytes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.episodes import Episodes
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class WindowIndex:
    """Which rows of the flat columns a batch of windows is made of."""

    actions: Int[Tensor, "B T"]
    frames: Int[Tensor, "B T+1"]
    episode: Int[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class WindowBatch:
    """What was recorded in a batch of windows; actions in environment units."""

    actions: Float[Tensor, "B T A"]
    observations: UInt8[Tensor, "B T+1 C height width"]
    frames: Int[Tensor, "B T+1"]
    episode: Int[Tensor, " B"]
    proprioception: Float[Tensor, "B T+1 P"] | None


class Windows:
    """All windows of `steps` actions in `episodes`; `len(windows)` of them, numbered from 0."""

    def __init__(self, episodes: Episodes, steps: int) -> None:
        if steps < 1 or steps > int(episodes.lengths.max()):
            raise InputError(
                f"windows of {steps} actions do not fit: the longest episode of {episodes.path} has "
                f"{int(episodes.lengths.max())}; choose steps from 1 to that"
            )
        self.episodes, self.steps = episodes, steps
        # Row e: the number of windows in the episodes up to and including e.
        self._ends = (episodes.lengths - steps + 1).clamp(min=0).cumsum(0)

    def __len__(self) -> int:
        """How many windows there are."""
        return int(self._ends[-1])

    def sample(self, count: int, generator: torch.Generator) -> WindowIndex:
        """`count` windows drawn uniformly, with replacement."""
        return self.index(torch.randint(len(self), (count,), generator=generator))

    def index(self, numbers: Int[Tensor, " B"]) -> WindowIndex:
        """The rows of the windows with these numbers."""
        episode = torch.searchsorted(self._ends, numbers, right=True)
        before = torch.where(episode > 0, self._ends[episode - 1], 0)
        first = self.episodes.starts[episode] + numbers - before
        frames = first[:, None] + torch.arange(self.steps + 1)
        return WindowIndex(actions=frames[:, :-1] - episode[:, None], frames=frames, episode=episode)

    def gather(self, index: WindowIndex) -> WindowBatch:
        """Copy the windows out of the recording."""
        episodes, proprioception = self.episodes, self.episodes.proprioception
        return WindowBatch(
            observations=rows(episodes.observations, index.frames),
            actions=rows(episodes.actions, index.actions),
            frames=index.frames,
            episode=index.episode,
            proprioception=None if proprioception is None else rows(proprioception, index.frames),
        )


def rows(column: Tensor, index: Int[Tensor, "*batch"]) -> Tensor:
    """The rows of a flat column, in the shape of `index`: windows, goals, or single frames."""
    return column.index_select(0, index.flatten()).view(*index.shape, *column.shape[1:])
