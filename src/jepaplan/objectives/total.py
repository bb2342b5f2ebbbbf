"""What the training loop minimises: modules whose `forward(batch)` returns the loss and its parts by name.

The methods of arXiv:2601.00844, table 1, are these modules with different weights:

    paper                      here
    Sep, first stage           ValueObjective             encoder and distance: value, contrast or unit steps
    Sep, second stage          LatentPredictionObjective  predictor, on the latents of the finished encoder
    pred_VCReg                 PredictionObjective        encoder and predictor, kept from collapse by VCReg
    pred_EMA                   the same, with a target encoder (`objectives/ema.py`)
    VF_pred, VF_quasi_pred     JointObjective             all together; frames are encoded once
    no row of the table        CoTrainedObjective         the above and a value head, in `co_trained.py`
    two spaces, second         LatentValueObjective       distance, on the latents of the finished encoder

Each part is in the metrics under the name of its weight. Parts of weight 0 are not computed.
"""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepaplan.objectives import vcreg
from jepaplan.objectives.contrastive import ContrastForm, contrastive_loss
from jepaplan.objectives.ema import refuse_impossible_decays
from jepaplan.objectives.iql import (
    PairwiseDistance,
    ValueConfig,
    distances_to_goals,
    goals_for,
    implicit_q_loss,
    value_loss,
)
from jepaplan.objectives.prediction import copy_error, prediction_loss, relative_prediction_loss
from jepaplan.objectives.quasimetric import ordered_pairs, pair_regression_loss
from jepaplan.objectives.regressive import regressive_loss
from jepaplan.objectives.segments import (
    FrameEncoder,
    LatentDynamics,
    LatentSegments,
    Segments,
    TrainableWorldModel,
)
from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError

Terms = dict[str, Tensor]


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
    contrastive: float = 0.0  # successive states against random pairs, Euclidean
    regressive: float = 0.0  # squared error of the Euclidean length of a recorded step beside 1

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not 0 <= weight < float("inf"):
                raise InputError(f"weights are finite and not negative; got {name}={weight}")

    def total(self, terms: Terms) -> Tensor:
        """The weighted sum of `terms`."""
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()


@dataclass(frozen=True, kw_only=True)
class RegulariserConfig:
    """How the parts are computed: over which latents, against which targets, in which form."""

    all_frames: bool = (
        False  # statistics over every frame of every segment; else over first frames, as PLDM does
    )
    detach_targets: bool = False  # whether prediction treats encoded latents as constants
    # Decay of a target encoder, at the first and at the last update; none: targets are the encoder's latents.
    target_decay: tuple[float, float] | None = None
    pair_expectile: float = 0.1  # of elapsed steps; below 0.5, towards the shortest
    contrast: ContrastForm = "info_nce"
    contrast_scale: float = 1.0  # temperature of "info_nce", margin of "margin"; in units of the latent

    def __post_init__(self) -> None:
        if self.target_decay is not None:
            refuse_impossible_decays(self.target_decay)
        if not self.contrast_scale > 0:
            raise InputError(
                f"contrast_scale is a temperature or a margin, so positive; got {self.contrast_scale}"
            )


class PredictionObjective(nn.Module):
    """Encoder and predictor, kept from collapse by VCReg, inverse dynamics or a target encoder.

    With `target_encoder` the targets of prediction are its latents, without gradient; whoever owns the
    objective moves it after each update (`objectives/ema.py`).
    """

    def __init__(
        self,
        world_model: TrainableWorldModel,
        weights: ObjectiveWeights,
        *,
        inverse_dynamics: nn.Module | None = None,
        target_encoder: FrameEncoder | None = None,
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
        self.target_encoder = target_encoder
        self.config = config or RegulariserConfig()
        self.gather = gather

    def forward(self, batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        return self.of_latents(self.encode(batch), batch)

    def encode(self, batch: Segments) -> Float[Tensor, "B frames D"]:
        """Latents of all frames, once."""
        return _encode(self.world_model, batch)

    def of_latents(self, encoded: Float[Tensor, "B frames D"], batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts, of what `encode` returned."""
        terms = self.terms(encoded, batch.actions, self.targets(batch))
        return self.weights.total(terms), _metrics(terms, encoded)

    def targets(self, batch: Segments) -> Float[Tensor, "B frames D"] | None:
        """What the target encoder makes of the frames; none without one."""
        if self.target_encoder is None:
            return None
        with torch.no_grad():
            return _encode(self.target_encoder, batch)

    def terms(
        self,
        encoded: Float[Tensor, "B frames D"],
        actions: Float[Tensor, "B T A"],
        targets: Float[Tensor, "B frames D"] | None = None,
    ) -> Terms:
        """Every part of positive weight, unweighted; actions in environment units."""
        if (targets is None) != (self.target_encoder is None):
            raise InputError("pass what `targets(batch)` returns: latents where there is a target encoder")
        normalised = self.world_model.action_units.normalise(actions)
        terms: Terms = {}
        if self.weights.prediction > 0:
            imagined = self.world_model.unroll(encoded[:, 0], normalised).float()
            terms["prediction"] = prediction_loss(
                imagined,
                encoded if targets is None else targets,
                detach_targets=self.config.detach_targets,
            )
        if self.inverse_dynamics is not None:
            read = self.inverse_dynamics(encoded[:, :-1], encoded[:, 1:]).float()
            terms["inverse_dynamics"] = (read - normalised).square().mean()
        return terms | regulariser_terms(encoded, self.weights, self.config, self.gather)


class ValueObjective(nn.Module):
    """Encoder and distance: minus the distance learns to be the value, or something simpler in its place.

    `action_values(latent, goal, action)`, needed in training only, stands between a state and the next where
    the value asks for it; actions are in environment units.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        distance: PairwiseDistance,
        weights: ObjectiveWeights,
        *,
        action_values: nn.Module | None = None,
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
        if self.value.action_values != (action_values is not None):
            raise InputError(
                "values of actions are learned by a module of their own: pass `action_values` together with "
                f"ValueConfig(action_values=True); got action_values={self.value.action_values} and "
                f"{'a' if action_values is not None else 'no'} module"
            )
        self.action_values = action_values
        self.config = config or RegulariserConfig()
        self.gather = gather

    def forward(self, batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts; prediction and inverse dynamics are left to other objectives."""
        encoded = _encode(self.encoder, batch)
        terms = self.terms(encoded, batch.frames, batch.actions)
        terms |= regulariser_terms(encoded, self.weights, self.config, self.gather)
        return self.weights.total(terms), _metrics(terms, encoded)

    def terms(
        self,
        encoded: Float[Tensor, "B frames D"],
        frames: Int[Tensor, "B frames"],
        actions: Float[Tensor, "B T A"],
    ) -> Terms:
        """The parts that shape the distance, unweighted."""
        terms: Terms = {}
        if self.weights.value > 0:
            config = self.value
            distances, reached = distances_to_goals(
                encoded, frames, self.distance, config.batch_goals, self.gather, config.own_goals
            )
            discount, expectile = config.discount, config.expectile
            if self.action_values is None:
                terms["value"] = value_loss(distances, reached, discount=discount, expectile=expectile)
            else:
                # They look at latents, and do not shape them.
                looked = encoded.detach()
                goals = goals_for(looked, frames, config.batch_goals, self.gather, config.own_goals)
                values = self.action_values(looked[:, :-1, None], goals[:, None], actions[:, :, None])
                terms["value"] = implicit_q_loss(
                    distances, reached, values, discount=discount, expectile=expectile
                )
        if self.weights.pair_regression > 0:
            earlier, later = ordered_pairs(encoded.shape[1], encoded.device)
            distances = self.distance(encoded[:, earlier], encoded[:, later])
            terms["pair_regression"] = pair_regression_loss(
                distances, later - earlier, expectile=self.config.pair_expectile
            )
        if self.weights.contrastive > 0:
            terms["contrastive"] = contrastive_loss(
                encoded, form=self.config.contrast, scale=self.config.contrast_scale, gather=self.gather
            )
        if self.weights.regressive > 0:
            terms["regressive"] = regressive_loss(encoded)
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
        self.distance, self.action_values = value.distance, value.action_values
        # Held, but not registered as a child: its encoder is the world model's, and weights are saved under
        # one name only.
        self._value_terms = value.terms

    @property
    def world_model(self) -> TrainableWorldModel:
        """That of `prediction`."""
        return self.prediction.world_model

    def forward(self, batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts."""
        return self.of_latents(self.encode(batch), batch)

    def encode(self, batch: Segments) -> Float[Tensor, "B frames D"]:
        """Latents of all frames, once."""
        return _encode(self.world_model, batch)

    def of_latents(self, encoded: Float[Tensor, "B frames D"], batch: Segments) -> tuple[Tensor, Terms]:
        """The loss and its parts, of what `encode` returned."""
        targets = self.prediction.targets(batch)
        terms = self.prediction.terms(encoded, batch.actions, targets)
        terms |= self._value_terms(encoded, batch.frames, batch.actions)
        return self.prediction.weights.total(terms), _metrics(terms, encoded)


class LatentPredictionObjective(nn.Module):
    """The predictor on latents of a finished encoder; with `inverse_dynamics`, these as well.

    Latents that keep a map up to number `moves_from` are compared from there on, each number beside what it
    changes by.
    """

    def __init__(
        self, dynamics: LatentDynamics, inverse_dynamics: nn.Module | None = None, moves_from: int = 0
    ) -> None:
        super().__init__()
        self.dynamics, self.inverse_dynamics = dynamics, inverse_dynamics
        self.moves_from = moves_from

    def forward(self, batch: LatentSegments) -> tuple[Tensor, Terms]:
        """The losses, of which neither moves what the other trains; and ratios as `_metrics` has them."""
        actions = self.dynamics.action_units.normalise(batch.actions)
        imagined = self.dynamics.unroll(batch.latents[:, 0], actions).float()
        moving, imagined = batch.latents[..., self.moves_from :], imagined[..., self.moves_from :]
        if self.moves_from:
            terms = {"prediction": relative_prediction_loss(imagined, moving)}
        else:
            terms = {"prediction": prediction_loss(imagined, moving, detach_targets=True)}
        if self.inverse_dynamics is not None:
            read = self.inverse_dynamics(batch.latents[:, :-1], batch.latents[:, 1:]).float()
            terms["inverse_dynamics"] = (read - actions).square().mean()
        metrics = _metrics(terms, moving)
        if self.moves_from:
            metrics["prediction_over_copy"] = metrics["prediction"]
        return torch.stack(list(terms.values())).sum(), metrics


class LatentValueObjective(nn.Module):
    """A distance of its own on latents of a finished encoder: the second space of arXiv:2601.00844."""

    def __init__(self, value: ValueObjective) -> None:
        super().__init__()
        self.weights = value.weights
        self.distance, self.action_values = value.distance, value.action_values
        # As in `JointObjective`: the encoder of `value` is neither used nor saved.
        self._value_terms = value.terms

    def forward(self, batch: LatentSegments) -> tuple[Tensor, Terms]:
        """The loss and its parts; regularisers would have nothing to move."""
        if batch.frames is None:
            raise InputError(
                "value learning asks which frame is which; pass `LatentSegments(..., frames=...)`"
            )
        terms = self._value_terms(batch.latents, batch.frames, batch.actions)
        return self.weights.total(terms), _metrics(terms, batch.latents)


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
    if weights.value == weights.pair_regression == weights.contrastive == weights.regressive == 0:
        raise InputError(
            "a value objective with weights value, pair_regression, contrastive and regressive of 0 teaches "
            "no distance; write for example `ObjectiveWeights(value=1.0)`"
        )
