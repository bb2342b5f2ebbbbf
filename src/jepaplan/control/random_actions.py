"""Act at random: the reference below which nothing counts as planning."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from jepaplan.types import InputError, Observation


@runtime_checkable
class ActionSampler(Protocol):
    """How someone without a goal would act, such as the behaviour that recorded the data."""

    def __call__(self, count: int, generator: torch.Generator) -> Float[Tensor, "count A_env"]:
        """Actions in environment units."""
        ...


@dataclass(kw_only=True)
class RandomController:
    """A `Controller` that looks at nothing.

    Actions are drawn for finished problems too, so that finishing changes nobody else's luck.
    """

    sampler: ActionSampler
    _generator: torch.Generator | None = field(default=None, init=False, repr=False)

    def reset(self, goal: Observation | Shaped[Tensor, "B *observation"], generator: torch.Generator) -> None:
        """Take the generator; goals do not matter."""
        self._generator = generator

    def act(
        self,
        observation: Observation | Shaped[Tensor, "B *observation"],
        active: Bool[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B A_env"]:
        """One random action per problem; zeros for problems that are not `active`."""
        if self._generator is None:
            raise InputError("act needs a generator first: reset(goal, generator)")
        actions = self.sampler(len(Observation.of(observation).frames), self._generator)
        return actions if active is None else actions.where(active[:, None], 0.0)
