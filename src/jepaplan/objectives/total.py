"""What the training loop minimises: modules whose `forward(batch)` returns the loss and its parts by name.

The methods of arXiv:2601.00844, table 1, are these modules with different weights:

    paper                      here
    Sep, first stage           ValueObjective             encoder and distance, by value learning
    Sep, second stage          LatentPredictionObjective  predictor, on the latents of the finished encoder
    pred_VCReg                 PredictionObjective        encoder and predictor, kept from collapse by VCReg
    VF_pred, VF_quasi_pred     JointObjective             all together; frames are encoded once

Each part is in the metrics under the name of its weight. Parts of weight 0 are not computed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from jepaplan.interfaces import ActionUnits
from jepaplan.objectives import vcreg
from jepaplan.objectives.iql import PairwiseDistance, ValueConfig, distances_to_goals, value_loss
from jepaplan.objectives.prediction import copy_error, prediction_loss
from jepaplan.objectives.quasimetric import ordered_pairs, pair_regression_loss
from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError

Terms = dict[str, Tensor]


@runtime_checkable
class Segments(Protocol):
    """Recorded windows, as `data.windows.WindowBatch`; actions in environment units."""

    @property
    def observations(self) -> UInt8[Tensor, "B frames C height width"]:
        """uint8 frames."""
        ...

    @property
    def actions(self) -> Float[Tensor, "B T A"]:
        """In environment units."""
        ...

    @property
    def frames(self) -> Int[Tensor, "B frames"]:
        """Number of each frame in the recording."""
        ...

    @property
    def proprioception(self) -> Float[Tensor, "B frames P"] | None:
        """What the body feels at each frame."""
        ...


@dataclass(frozen=True)
class LatentSegments:
    """Windows of latents that were encoded before; actions in environment units."""

    latents: Float[Tensor, "B frames D"]
    actions: Float[Tensor, "B T A"]


@runtime_checkable
class FrameEncoder(Protocol):
    """Encodes all frames of all segments, with gradients."""

    def encode_frames(
        self,
        observations: UInt8[Tensor, "B frames C height width"],
        proprioception: Float[Tensor, "B frames P"] | None = None,
    ) -> Float[Tensor, "B frames D"]:
        """Latents of every frame."""
        ...


@runtime_checkable
class LatentDynamics(Protocol):
    """Unrolls latents along normalised actions, with gradients."""

    @property
    def action_units(self) -> ActionUnits:
        """How environment actions become normalised ones."""
        ...

    def unroll(
        self, latent: Float[Tensor, "B D"], actions: Float[Tensor, "B T A"]
    ) -> Float[Tensor, "B frames D"]:
        """Begins with `latent` itself."""
        ...


@runtime_checkable
class TrainableWorldModel(FrameEncoder, LatentDynamics, Protocol):
    """Both: what `models.world_model.LatentWorldModel` is."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveWeights:
    """Weight of each part in the loss; every part is a mean, so weights compare."""

    prediction: float = 1.0  # unrolled squared error per number of the latent
    variance: float = 0.0  # standard deviations over the batch below 1
    covariance: float = 0.0  # squared covariances over the batch
    time_variance: float = 0.0  # standard deviations along each segment below 1
    time_covariance: float = 0.0  # squared covariances along each segment
    time_similarity: float = 0.0  # squared changes from frame to frame
    inverse_dynamics: float = 0.0  # squared error of the normalised action read from two successive latents
    value: float = 0.0  # expectile of the Bellman error, in squared steps
    pair_regression: float = 0.0  # expectile of elapsed minus predicted steps, in squared steps

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"weights are finite and not negative; got {name}={weight}")

    def total(self, terms: Terms) -> Tensor:
        """The weighted sum of `terms`."""
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()


@dataclass(frozen=True, kw_only=True)
class RegulariserConfig:
    """Which latents the batch statistics are taken over, and what the targets of prediction are."""

    all_frames: bool = (
        False  # statistics over every frame of every segment; else over first frames, as PLDM does
    )
    detach_targets: bool = False  # whether prediction treats encoded latents as constants
    pair_expectile: float = 0.1  # of elapsed steps; below 0.5, towards the shortest


class PredictionObjective(nn.Module):
    """Encoder and predictor, kept from collapse by VCReg and, where given, inverse dynamics."""

    def __init__(
        self,
        world_model: TrainableWorldModel,
        weights: ObjectiveWeights,
        *,
        inverse_dynamics: nn.Module | None = None,
        config: RegulariserConfig | None = None,
        gather: Gather = alone,
    ) -> None:
        super().__init__()
        if weights.inverse_dynamics > 0 and inverse_dynamics is None:
            raise InputError(
                f"weights.inverse_dynamics is {weights.inverse_dynamics} but there is no such model; "
                "pass `inverse_dynamics=InverseDynamics(latent_width, action_dim)` or set the weight to 0"
            )
        self.world_model = world_model
        self.weights = weights
        self.inverse_dynamics = inverse_dynamics if weights.inverse_dynamics > 0 else None
        self.config = config or RegulariserConfig()
        self.gather = gather

    def forward(self, batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        encoded = _encode(self.world_model, batch)
        terms = self.terms(encoded, batch.actions)
        return self.weights.total(terms), _metrics(terms, encoded)

    def terms(self, encoded: Float[Tensor, "B frames D"], actions: Float[Tensor, "B T A"]) -> Terms:
        """Every part of positive weight, unweighted; actions in environment units."""
        normalised = self.world_model.action_units.normalise(actions)
        terms: Terms = {}
        if self.weights.prediction > 0:
            imagined = self.world_model.unroll(encoded[:, 0], normalised).float()
            terms["prediction"] = prediction_loss(
                imagined, encoded, detach_targets=self.config.detach_targets
            )
        if self.inverse_dynamics is not None:
            read = self.inverse_dynamics(encoded[:, :-1], encoded[:, 1:]).float()
            terms["inverse_dynamics"] = (read - normalised).square().mean()
        return terms | regulariser_terms(encoded, self.weights, self.config, self.gather)


class ValueObjective(nn.Module):
    """Encoder and distance: minus the distance learns to be the value of reaching the goal."""

    def __init__(
        self,
        encoder: FrameEncoder,
        distance: PairwiseDistance,
        weights: ObjectiveWeights,
        *,
        value: ValueConfig | None = None,
        config: RegulariserConfig | None = None,
        gather: Gather = alone,
    ) -> None:
        super().__init__()
        _refuse_no_value(weights)
        self.encoder = encoder
        self.distance = distance
        self.weights = weights
        self.value = value or ValueConfig()
        self.config = config or RegulariserConfig()
        self.gather = gather

    def forward(self, batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts; prediction and inverse dynamics are left to other objectives."""
        encoded = _encode(self.encoder, batch)
        terms = self.terms(encoded, batch.frames)
        terms |= regulariser_terms(encoded, self.weights, self.config, self.gather)
        return self.weights.total(terms), _metrics(terms, encoded)

    def terms(self, encoded: Float[Tensor, "B frames D"], frames: Int[Tensor, "B frames"]) -> Terms:
        """The parts that shape the distance, unweighted."""
        terms: Terms = {}
        if self.weights.value > 0:
            distances, reached = distances_to_goals(
                encoded, frames, self.distance, self.value.batch_goals, self.gather
            )
            terms["value"] = value_loss(
                distances, reached, discount=self.value.discount, expectile=self.value.expectile
            )
        if self.weights.pair_regression > 0:
            earlier, later = ordered_pairs(encoded.shape[1], encoded.device)
            distances = self.distance(encoded[:, earlier], encoded[:, later])
            terms["pair_regression"] = pair_regression_loss(
                distances, later - earlier, expectile=self.config.pair_expectile
            )
        return terms


class JointObjective(nn.Module):
    """Prediction, regularisers and value together; every frame is encoded once.

    Both objectives must have been given the same `weights`. The encoder of `value` is not used: latents come
    from the world model of `prediction`.
    """

    def __init__(self, prediction: PredictionObjective, value: ValueObjective) -> None:
        super().__init__()
        if prediction.weights != value.weights:
            raise InputError(
                "the two objectives of a joint one have different weights, so the weight of their shared "
                "parts is undefined; write one `ObjectiveWeights(...)` and pass it to both"
            )
        self.prediction = prediction
        self.distance = value.distance
        # Held, but not registered as a child: its encoder is the world model's, and weights are saved under
        # one name only.
        self._value_terms = value.terms

    def forward(self, batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        encoded = _encode(self.prediction.world_model, batch)
        terms = self.prediction.terms(encoded, batch.actions) | self._value_terms(encoded, batch.frames)
        return self.prediction.weights.total(terms), _metrics(terms, encoded)


class LatentPredictionObjective(nn.Module):
    """The predictor alone, on latents of a finished encoder."""

    def __init__(self, dynamics: LatentDynamics) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, batch: LatentSegments) -> tuple[Tensor, Terms]:
        """The prediction loss, and its ratio to that of predicting no change."""
        actions = self.dynamics.action_units.normalise(batch.actions)
        imagined = self.dynamics.unroll(batch.latents[:, 0], actions).float()
        loss = prediction_loss(imagined, batch.latents, detach_targets=True)
        return loss, _metrics({"prediction": loss}, batch.latents)


def regulariser_terms(
    encoded: Float[Tensor, "B frames D"], weights: ObjectiveWeights, config: RegulariserConfig, gather: Gather
) -> Terms:
    """The VCReg parts of positive weight, unweighted."""
    samples = encoded.flatten(0, 1) if config.all_frames else encoded[:, 0]
    terms: Terms = {}
    if weights.variance > 0:
        terms["variance"] = vcreg.variance(samples, gather=gather)
    if weights.covariance > 0:
        terms["covariance"] = vcreg.covariance(samples, gather=gather)
    # The first frame is already spread over the batch; PLDM takes statistics along time over the later ones.
    if weights.time_variance > 0:
        terms["time_variance"] = vcreg.time_variance(encoded[:, 1:])
    if weights.time_covariance > 0:
        terms["time_covariance"] = vcreg.time_covariance(encoded[:, 1:])
    if weights.time_similarity > 0:
        terms["time_similarity"] = vcreg.time_similarity(encoded)
    return terms


def _encode(encoder: FrameEncoder, batch: Segments) -> Tensor:
    # Statistics and distances need more digits than bf16 has, whatever the encoder runs in.
    return encoder.encode_frames(batch.observations, batch.proprioception).float()


def _metrics(terms: Terms, encoded: Tensor) -> Terms:
    """For the record: the parts, the spread of latents, prediction relative to a frozen world."""
    metrics = {name: term.detach() for name, term in terms.items()}
    metrics["latent_std"] = encoded.detach()[:, 0].std(dim=0, unbiased=False).mean()
    if "prediction" in terms:
        # Above 1, the predictor is worse than a frozen world.
        metrics["prediction_over_copy"] = metrics["prediction"] / copy_error(encoded).clamp(min=1e-12)
    return metrics


def _refuse_no_value(weights: ObjectiveWeights) -> None:
    if weights.value == 0 and weights.pair_regression == 0:
        raise InputError(
            "a value objective with weights value=0 and pair_regression=0 teaches its distance nothing; "
            "write for example `ObjectiveWeights(value=1.0)`"
        )
