"""Find what moves, and predict it: the objective of encoders whose latent is a map and a point.

    term          what it asks, over segments of T steps and one companion frame of each recording
    attention     look where a frame differs from its companion, a frame from another time of the recording
    travel        the mean action of a stretch of steps can be read from how far the point went
    prediction    the unrolled squared error of the moving numbers, as a share of their variance
    constancy     how the maps of a frame and of its companion differ, beside how those of the batch do

What moves is in the picture, so it leaves its mark on the map, which `constancy` makes small. And every
second segment is imagined on the map of its companion: a predictor that has only seen maps with the mark
nearby walks through walls wherever it is not (docs/lab_notes.md).

Without `attention` the point may be anything that is spread out and easy to predict, such as which layout it
is: in the maze that is what it became, and no weight of variance or inverse dynamics brought it to the ball
(docs/lab_notes.md). `travel` is akin to the multi-step inverse dynamics of Lamb et al., arXiv:2207.08229, but
sees nothing but the displacement and reads the mean action. Both the prediction's share of the variance and
it keep the point from shrinking, which would be easiest to predict: a point that shrank was no longer where
the thing is on the map (docs/lab_notes.md).
"""

from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from jepaplan.objectives.prediction import copy_error, prediction_loss, scaled_prediction_loss
from jepaplan.objectives.scene import CompanionSegments
from jepaplan.objectives.segments import LatentDynamics
from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class MovingPointWeights:
    """Weight of each term."""

    attention: float = 1.0  # nats
    travel: float = 4.0  # squared error of the mean normalised action times the root of the steps
    prediction: float = 12.0  # share of the variance, which is small: a step is a tenth of the deviation
    constancy: float = 0.3  # share of the variance of maps

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"weights are finite and not negative; got {name}={weight}")


@runtime_checkable
class AttentiveEncoder(Protocol):
    """An encoder that shows where it looks."""

    def attend(
        self,
        observation: Shaped[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K cells"]]:
        """Latents, and the logarithms of where each keypoint looks, on a square grid of cells."""
        ...


def motion_attention(
    looks: Float[Tensor, "B K cells"],
    first: UInt8[Tensor, "B C height width"],
    second: UInt8[Tensor, "B C height width"],
) -> Float[Tensor, ""]:
    """Cross-entropy of where the keypoints look with where two frames differ; 0 if they never do, in nats."""
    cells = round(looks.shape[-1] ** 0.5)
    differs = (first.float() - second.float()).abs().sum(dim=1, keepdim=True) / 255
    differs = F.adaptive_avg_pool2d(differs, cells).flatten(1)
    entropy = -(looks.float().log_softmax(dim=-1).mean(dim=1) * differs).sum(dim=-1)
    return entropy.sum() / differs.sum().clamp(min=1e-6)


class MovingPointObjective(nn.Module):
    """Encoder and predictor; the network that reads `travel` is needed in training only."""

    def __init__(
        self,
        encoder: AttentiveEncoder,
        dynamics: LatentDynamics,
        moves_from: int,
        action_dim: int,
        weights: MovingPointWeights,
        *,
        companion_maps: bool = True,
        gather: Gather = alone,
    ) -> None:
        super().__init__()
        self.gather = gather
        self.encoder, self.dynamics = encoder, dynamics
        self.moves_from, self.weights, self.companion_maps = moves_from, weights, companion_maps
        self.travel = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, action_dim))

    def forward(self, batch: CompanionSegments) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts; also what standing still would be off by, and the spread of the point."""
        segments = batch.segments
        frames = torch.cat([segments.observations, batch.companions[:, None]], dim=1)
        felt = segments.proprioception
        if felt is not None:  # what the body felt at the companion is not looked at
            felt = torch.cat([felt, felt[:, :1]], dim=1).flatten(0, 1)
        latents, looks = self.encoder.attend(frames.flatten(0, 1), felt)
        latents = latents.float().unflatten(0, frames.shape[:2])
        looks = looks.unflatten(0, frames.shape[:2])
        ends = torch.cat([looks[:, 0], looks[:, -1]])
        there, then = frames[:, 0], frames[:, -1]
        actions = self.dynamics.action_units.normalise(segments.actions)
        still, moving = latents[..., : self.moves_from], latents[:, :-1, self.moves_from :]
        scene = still[:, 0]
        if self.companion_maps:
            own = (torch.arange(len(still), device=still.device) % 2 == 0)[:, None]
            scene = scene.where(own, still[:, -1])
        start = torch.cat([scene, moving[:, 0]], dim=1)
        imagined = self.dynamics.unroll(start, actions).float()
        terms = {
            "attention": motion_attention(ends, torch.cat([there, then]), torch.cat([then, there])),
            "travel": self._travel(moving[..., :2], actions),
            "prediction": scaled_prediction_loss(
                imagined[..., self.moves_from :], moving, self.gather(moving[:, 0]).var(dim=0, correction=0)
            ),
            "constancy": self._constancy(still[:, 0], still[:, -1]),
        }
        weights = asdict(self.weights)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        metrics = {name: term.detach() for name, term in terms.items()}
        error = prediction_loss(imagined[..., self.moves_from :], moving).detach()
        metrics["prediction_over_copy"] = error / copy_error(moving).clamp(min=1e-12)
        metrics["latent_std"] = moving.detach()[:, 0].std(dim=0, unbiased=False).mean()
        return loss, metrics

    def _constancy(self, first: Float[Tensor, "B M"], companion: Float[Tensor, "B M"]) -> Float[Tensor, ""]:
        variance = self.gather(first).var(dim=0, correction=0).mean()
        return (companion - first).square().mean() / variance.clamp(min=1e-8)

    def _travel(
        self, points: Float[Tensor, "B frames 2"], actions: Float[Tensor, "B T A"]
    ) -> Float[Tensor, ""]:
        """Of both halves of the segments, and of the whole."""
        steps = actions.shape[1]
        stretches = {(0, max(1, steps // 2)), (steps // 2, steps), (0, steps)}
        errors = [
            self.travel(10 * (points[:, end] - points[:, begin]))
            - actions[:, begin:end].mean(dim=1) * (end - begin) ** 0.5
            for begin, end in sorted(stretches)
        ]
        return torch.stack([error.square().mean() for error in errors]).mean()
