"""Which state each recorded transition should be taught to reach: a mixture of named kinds of goals.

Hindsight relabelling (Andrychowicz et al., arXiv:1707.01495) with the mixture of HIQL (Park et al.,
arXiv:2307.11949).

    name         goal of the state at step t of a window
    last         the last frame of the window (arXiv:2601.00844)
    batch        any frame of any window of the batch, all equally likely (arXiv:2601.00844)
    uniform      a later frame of the same episode, all equally likely
    geometric    the frame k steps later in the same episode, k geometric with mean
                 `geometric_mean`, cut at the episode's end
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from jepaplan.data.episodes import Episodes
from jepaplan.data.windows import WindowIndex
from jepaplan.types import InputError

KINDS = ("last", "batch", "uniform", "geometric")


@dataclass(frozen=True, kw_only=True)
class GoalMixture:
    """Weights of the kinds of goals; they are divided by their sum."""

    last: float = 0.0
    batch: float = 0.0
    uniform: float = 0.0
    geometric: float = 0.0
    geometric_mean: float = 50.0  # steps ahead; a discount gamma has mean 1 / (1 - gamma)

    def __post_init__(self) -> None:
        """Refuse mixtures of nothing."""
        weights = self.weights()
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
            raise InputError(
                f"goal weights must be at least 0 and not all 0; got {dict(zip(KINDS, weights, strict=True))}"
            )
        if not 1 <= self.geometric_mean < math.inf:
            raise InputError(
                f"geometric_mean counts steps ahead and is at least 1; got {self.geometric_mean}"
            )

    def weights(self) -> tuple[float, ...]:
        """In the order of `KINDS`."""
        return (self.last, self.batch, self.uniform, self.geometric)

    def sample(
        self, index: WindowIndex, episodes: Episodes, generator: torch.Generator
    ) -> Int[Tensor, "B T"]:
        """A goal for every transition of the windows, as flat frame numbers."""
        shape = index.actions.shape
        weights = torch.tensor(self.weights(), dtype=torch.float64)
        kind = torch.multinomial(weights, shape.numel(), replacement=True, generator=generator).view(shape)
        goals = torch.empty_like(index.actions)
        draws = {
            "last": lambda: last_of_window(index),
            "batch": lambda: random_of_batch(index, generator),
            "uniform": lambda: later_uniform(index, episodes, generator),
            "geometric": lambda: later_geometric(index, episodes, self.geometric_mean, generator),
        }
        for number, name in enumerate(KINDS):
            if self.weights()[number] > 0:
                goals = torch.where(kind == number, draws[name](), goals)
        return goals


def last_of_window(index: WindowIndex) -> Int[Tensor, "B T"]:
    """The last frame of the window, for all its transitions."""
    return index.frames[:, -1:].expand_as(index.actions)


def random_of_batch(index: WindowIndex, generator: torch.Generator) -> Int[Tensor, "B T"]:
    """Frames of the batch, drawn with replacement; most are of other episodes."""
    chosen = torch.randint(index.frames.numel(), index.actions.shape, generator=generator)
    return index.frames.flatten()[chosen]


def later_uniform(index: WindowIndex, episodes: Episodes, generator: torch.Generator) -> Int[Tensor, "B T"]:
    """A later frame of the same episode, from the next one to the last."""
    ahead = _end(index, episodes) - index.frames[:, :-1]
    draw = torch.rand(ahead.shape, generator=generator, dtype=torch.float64)
    return index.frames[:, :-1] + 1 + (draw * ahead).long()


def later_geometric(
    index: WindowIndex, episodes: Episodes, mean: float, generator: torch.Generator
) -> Int[Tensor, "B T"]:
    """Frame k steps later, P(k) = (1 - gamma) gamma^(k-1), gamma = 1 - 1 / mean; at most the last one."""
    draw = torch.rand(index.actions.shape, generator=generator, dtype=torch.float64)
    gamma = 1 - 1 / mean
    steps = torch.ones_like(index.actions)
    if gamma > 0:
        steps = 1 + (torch.log1p(-draw) / math.log(gamma)).clamp(max=2**40).long()
    return torch.minimum(index.frames[:, :-1] + steps, _end(index, episodes))


def _end(index: WindowIndex, episodes: Episodes) -> Int[Tensor, "B 1"]:
    """The last frame of each window's episode."""
    return (episodes.starts + episodes.lengths)[index.episode][:, None]
