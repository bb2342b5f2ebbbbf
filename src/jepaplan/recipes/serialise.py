"""Experiments as JSON and back: dataclasses by name, from a list of those that an experiment may hold.

A file can only name records of this list, so reading one never runs anything else.
"""

import dataclasses
import hashlib
import json
from typing import Any, cast

from jepaplan.data.clips import AugmentationConfig
from jepaplan.data.goals import GoalMixture
from jepaplan.data.sprite_videos import SpriteConfig
from jepaplan.data.tubelet_masks import MaskConfig
from jepaplan.data.video_clips import ClipConfig
from jepaplan.models.encoders import CompactConfig, ImpalaConfig
from jepaplan.models.goal_inverse_dynamics import GoalInverseDynamicsConfig
from jepaplan.models.keypoint_encoder import KeypointConfig
from jepaplan.models.local_predictor import LocalPredictorConfig
from jepaplan.models.masked_predictor import MaskedPredictorConfig
from jepaplan.models.predictors import PredictorConfig
from jepaplan.models.scene_map import SceneMapConfig
from jepaplan.models.value_heads import QuasimetricHeadConfig, Reading, ValueHeadConfig
from jepaplan.models.video_vit import VideoTransformerConfig
from jepaplan.objectives.imagined_states import ImaginationConfig
from jepaplan.objectives.imagined_ways import WaysConfig
from jepaplan.objectives.iql import ValueConfig
from jepaplan.objectives.masked_latents import MaskedLatentsConfig
from jepaplan.objectives.moving_point import MovingPointWeights
from jepaplan.objectives.total import ObjectiveWeights, RegulariserConfig
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import SGD, Adam, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.noise import ColouredNoise, UniformNoise
from jepaplan.planners.proposals import BoxBound, GaussianNoise, NormBound
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import PUCT, GumbelHalving
from jepaplan.recipes import experiment, video
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.prior_stages import ActionPriorStage
from jepaplan.recipes.value_batches import ImaginedActions
from jepaplan.recipes.value_learning import CoTrainedHead
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError

_KIND = "kind of record"

_RECORDS: dict[str, type] = {
    record.__name__: record
    for record in (
        experiment.Experiment,
        experiment.RecordingConfig,
        experiment.DistanceConfig,
        experiment.PredictionStage,
        experiment.MovingPointStage,
        experiment.ValueStage,
        experiment.JointStage,
        experiment.PredictorStage,
        experiment.ImaginedValueStage,
        CostConfig,
        experiment.ControlConfig,
        KeypointConfig,
        SceneMapConfig,
        CompactConfig,
        ImpalaConfig,
        PredictorConfig,
        LocalPredictorConfig,
        QuasimetricHeadConfig,
        ImaginationConfig,
        WaysConfig,
        MovingPointWeights,
        ValueConfig,
        ObjectiveWeights,
        RegulariserConfig,
        FitConfig,
        MPPI,
        CEM,
        ICEM,
        RandomShooting,
        GradientDescent,
        GradientCEM,
        Collocation,
        BeamSearch,
        TreeSearch,
        Descent,
        Adam,
        SGD,
        PUCT,
        GumbelHalving,
        GaussianNoise,
        ColouredNoise,
        UniformNoise,
        ValueHeadStage,
        CoTrainedHead,
        ValueHeadConfig,
        Reading,
        ActionPriorStage,
        GoalInverseDynamicsConfig,
        GoalMixture,
        ImaginedActions,
        NormBound,
        BoxBound,
        video.VideoExperiment,
        video.GeneratedVideos,
        video.VideoPhase,
        SpriteConfig,
        ClipConfig,
        AugmentationConfig,
        MaskConfig,
        MaskedLatentsConfig,
        MaskedPredictorConfig,
        VideoTransformerConfig,
    )
}
_UNDECISIVE = frozenset({"description"})  # fields that decide nothing
DEFAULTS = 1
"""Raised whenever the default of a field changes: what was found with the old one is then asked for again.
A test knows all defaults."""


def experiment_to_json(value: Any) -> Any:
    """Records become objects that name their kind; tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: experiment_to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [experiment_to_json(item) for item in cast("list[Any]", value)]
    return value


def decisive(value: Any) -> Any:
    """`experiment_to_json` without what decides nothing: descriptions, and fields that have their default.

    So what is known by it stays known when a record gains a field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: decisive(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in _UNDECISIVE and getattr(value, field.name) != _default(field)
        }
        return {_KIND: type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [decisive(item) for item in cast("list[Any]", value)]
    return value


def fingerprint(*decides: Any) -> str:
    """Sixteen digits that change with everything among `decides`, records or plain values."""
    plain = [DEFAULTS, *(decisive(one) for one in decides)]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def any_experiment_from_json(
    value: Any, where: str = "the configuration"
) -> experiment.Experiment | video.VideoExperiment:
    """The experiment that `experiment_to_json` wrote, whichever kind it is."""
    read = _read(value, where)
    if not isinstance(read, experiment.Experiment | video.VideoExperiment):
        raise InputError(f"{where} does not describe an experiment; is it the config.json of a run?")
    return read


def experiment_from_json(value: Any, where: str = "the configuration") -> experiment.Experiment:
    """The same for one that plans."""
    read = any_experiment_from_json(value, where)
    if isinstance(read, video.VideoExperiment):
        raise InputError(
            f"{where} describes the pretraining of a video encoder, which has no actions to plan with; "
            "`jepaplan probe RUN --data VIDEOS` says what its features know"
        )
    return read


def video_experiment_from_json(value: Any, where: str = "the configuration") -> video.VideoExperiment:
    """The same for one that pretrains a video encoder."""
    read = any_experiment_from_json(value, where)
    if not isinstance(read, video.VideoExperiment):
        raise InputError(
            f"{where} does not describe the pretraining of a video encoder; a run that plans is measured by "
            "`jepaplan evaluate RUN`"
        )
    return read


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default  # MISSING equals nothing, so a field without a default is always there


def _read(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return tuple(_read(item, where) for item in cast("list[Any]", value))
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    kind = fields.get(_KIND)
    record = _RECORDS.get(str(kind))
    if record is None:
        raise InputError(f"{where} names a record {kind!r}; known are {', '.join(_RECORDS)}")
    known = {field.name for field in dataclasses.fields(record)}
    unknown = sorted(set(fields) - known - {_KIND})
    if unknown:
        raise InputError(
            f"{where}: {kind} has no field {', '.join(unknown)}; it was written by another version. Fields: "
            f"{', '.join(sorted(known))}"
        )
    try:
        return record(**{name: _read(item, where) for name, item in fields.items() if name != _KIND})
    except TypeError as error:  # a field is missing, or a word where a number belongs
        raise InputError(f"{where}: a {kind} cannot be made of {fields}: {error}") from error
