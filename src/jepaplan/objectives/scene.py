"""Which recording is this? A contrast between recordings that gives the latent its scene.

InfoNCE (van den Oord et al., arXiv:1807.03748, equation 4) with squared distances for similarity: two frames
of one recording, far apart in time, must be closer to each other than to the frames of other recordings. What
they share is what the recording keeps: the layout. Prediction alone leaves it out where it rarely matters; in
two rooms, where the door is (docs/lab_notes.md).

    paper        here
    x, c         first, second     the scene parts of two frames of the same recording
    f(x, c)      exp(-||first - second||^2 / temperature)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepaplan.objectives.segments import TrainableWorldModel
from jepaplan.objectives.total import PredictionObjective, Segments
from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class CompanionSegments:
    """Windows, and for each one more frame from anywhere in the same recording."""

    segments: Segments
    companions: UInt8[Tensor, "B C height width"]


def scene_contrast(
    first: Float[Tensor, "B D"],
    second: Float[Tensor, "B D"],
    *,
    temperature: float = 1.0,
    gather: Gather = alone,
) -> Float[Tensor, ""]:
    """Cross-entropy of finding each item's partner among the partners of all items, in nats."""
    # Every process contrasts all rows, so the mean over processes is what one process would compute.
    squared = torch.cdist(gather(second), gather(first)).square()
    return F.cross_entropy(-squared / temperature, torch.arange(len(squared), device=first.device))


class SceneObjective(nn.Module):
    """Prediction with its regularisers, and the contrast on the scene part of the latent."""

    def __init__(
        self,
        prediction: PredictionObjective,
        *,
        scene_width: int,
        weight: float = 1.0,
        temperature: float = 1.0,
        gather: Gather = alone,
    ) -> None:
        super().__init__()
        if scene_width < 1 or weight < 0 or temperature <= 0:
            raise InputError(
                "a scene objective needs scene_width >= 1, weight >= 0 and temperature > 0; got "
                f"{scene_width}, {weight} and {temperature}"
            )
        self.prediction = prediction
        self.scene_width, self.weight, self.temperature = scene_width, weight, temperature
        self.gather = gather

    @property
    def world_model(self) -> TrainableWorldModel:
        """That of `prediction`."""
        return self.prediction.world_model

    def forward(self, batch: CompanionSegments) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts."""
        return self.of_latents(self.encode(batch), batch)

    def encode(self, batch: CompanionSegments) -> Float[Tensor, "B frames D"]:
        """Latents of all frames of the windows, and of the companions last."""
        observations = torch.cat([batch.segments.observations, batch.companions[:, None]], dim=1)
        return self.world_model.encode_frames(observations).float()

    def of_latents(
        self, encoded: Float[Tensor, "B frames D"], batch: CompanionSegments
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts, of what `encode` returned."""
        terms = self.prediction.terms(encoded[:, :-1], batch.segments.actions)
        contrast = scene_contrast(
            encoded[:, 0, : self.scene_width],
            encoded[:, -1, : self.scene_width],
            temperature=self.temperature,
            gather=self.gather,
        )
        metrics = {name: term.detach() for name, term in terms.items()}
        metrics |= {
            "scene_contrast": contrast.detach(),
            "latent_std": encoded.detach()[:, 0].std(dim=0, unbiased=False).mean(),
        }
        return self.prediction.weights.total(terms) + self.weight * contrast, metrics
