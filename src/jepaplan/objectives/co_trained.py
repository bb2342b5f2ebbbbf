"""A value head that learns beside encoder and predictor: the loss of the stage plus that of the value.

Value learning as an auxiliary loss of a latent model: MuZero (Schrittwieser et al., arXiv:1911.08265) and
TD-MPC2 (Hansen et al., arXiv:2310.16828) shape the latent by it; with `shapes_encoder=False` the head follows
an encoder that does not know of it.

    L = L_stage(E, P) + weight L_TD(V; z, g),      z = E(s), g = E(goal)

    paper        here
    E, P, L_stage    objective        prediction and what is added to it; frames are encoded once
    V, L_TD          learner          as on frozen latents: `objectives/td.py`

Targets carry no gradient, to V or to E. As in TD-MPC2 their moving average is of V alone: it looks at latents
of the encoder as it is, which are those that planning will ask about.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from jepaplan.objectives.scene import CompanionSegments
from jepaplan.objectives.segments import Segments, TrainableWorldModel
from jepaplan.objectives.td import ActionValueObjective, TDObjective, ValueSegments

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ValueWindows:
    """Windows as the stage takes them, what their transitions earned, and a goal each where there are any."""

    windows: Segments | CompanionSegments
    actions: Float[Tensor, "B T A"]  # in environment units
    rewards: Float[Tensor, "B T"]
    terminal: Bool[Tensor, "B T"]
    goals: UInt8[Tensor, "B C height width"] | None = None
    felt_at_goals: Float[Tensor, "B P"] | None = None
    subset: Int[Tensor, "B 2"] | None = None  # two members; their minimum is the window's bootstrap


@runtime_checkable
class EncodesOnce(Protocol):
    """`PredictionObjective`, `JointObjective`, `SceneObjective`: others may learn from their latents."""

    @property
    def world_model(self) -> TrainableWorldModel:
        """Encoder and predictor that learn."""
        ...

    def encode(self, batch: Any, /) -> Float[Tensor, "B frames D"]:
        """Latents of the frames of windows, perhaps followed by others."""
        ...

    def of_latents(self, encoded: Float[Tensor, "B frames D"], batch: Any, /) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        ...


class CoTrainedObjective(nn.Module):
    """Both losses; parts of the head's are in the metrics as `head` and `head_...`."""

    def __init__(
        self,
        objective: EncodesOnce,
        learner: TDObjective | ActionValueObjective,
        *,
        weight: float = 1.0,
        shapes_encoder: bool = True,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.learner = learner
        self.weight, self.shapes_encoder = weight, shapes_encoder

    def forward(self, batch: ValueWindows) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        encoded = self.objective.encode(batch.windows)
        loss, metrics = self.objective.of_latents(encoded, batch.windows)
        frames = encoded[:, : batch.rewards.shape[1] + 1]
        head, found = self.learner(self.segments(frames, batch))
        parts = {"head": head.detach()} | {f"head_{name}": part for name, part in found.items()}
        return loss + self.weight * head, metrics | parts

    def segments(self, frames: Float[Tensor, "B frames D"], batch: ValueWindows) -> ValueSegments:
        """What the head learns from: latents with a gradient where it may shape the encoder."""
        model = self.objective.world_model
        goals = None
        if batch.goals is not None:
            felt = None if batch.felt_at_goals is None else batch.felt_at_goals[:, None]
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.shapes_encoder):
                goals = model.encode_frames(batch.goals[:, None], felt).float()[:, 0]
        return ValueSegments(
            latents=frames if self.shapes_encoder else frames.detach(),
            rewards=batch.rewards,
            terminal=batch.terminal,
            goals=goals,
            actions=model.action_units.normalise(batch.actions),
            subset=batch.subset,
        )

    def follow(self) -> None:
        """Move the average; due after every update."""
        self.learner.follow()
