"""What an experiment is: a recording, a system, stages of training, a planner and a cost, as frozen records.

A recipe is a function that returns an `Experiment`; a variant derives from another recipe by `replace`. Every
field can be set from the command line. Stages are trained in the order in which they are listed:

    stage               arXiv:2601.00844              trains
    PredictionStage     pred_VCReg, pred_EMA          encoder, predictor, inverse dynamics
    MovingPointStage    ours                          encoder and predictor whose latent is a map and a point
    ValueStage          Sep, first part               encoder, distance; or the distance alone
    JointStage          VF_pred, VF_quasi_pred        encoder, predictor, distance
    PredictorStage      Sep, second part              predictor, on latents that are encoded once
    ImaginedValueStage  ours                          distance or a head on frozen latents, imagined states
    ValueHeadStage      not in the paper              a value head on frozen latents, by TD or regression
    ActionPriorStage    not in the paper              goal-conditioned inverse dynamics on frozen latents

`PredictionStage` and `JointStage` train a value head as well where `co_trained` says how.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jepaplan.control.learned_prior import check_lead
from jepaplan.data.mirrors import Mirror
from jepaplan.envs.worlds import WORLDS, nearest
from jepaplan.models.encoders import CompactConfig, ImpalaConfig
from jepaplan.models.keypoint_encoder import KeypointConfig
from jepaplan.models.local_predictor import LocalPredictorConfig
from jepaplan.models.predictors import PredictorConfig
from jepaplan.models.scene_map import SceneMapConfig
from jepaplan.models.value_heads import QuasimetricHeadConfig, Reading, ValueHeadConfig
from jepaplan.objectives.imagined_states import ImaginationConfig
from jepaplan.objectives.imagined_ways import WaysConfig
from jepaplan.objectives.iql import ValueConfig
from jepaplan.objectives.moving_point import MovingPointWeights
from jepaplan.objectives.total import ObjectiveWeights, RegulariserConfig
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.deadline import leadable
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.recipes.costs import CostConfig, refuse_unpayable
from jepaplan.recipes.prior_stages import ActionPriorStage
from jepaplan.recipes.value_learning import CoTrainedHead, head_key, heads_of
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError

EncoderConfig = KeypointConfig | CompactConfig | ImpalaConfig | SceneMapConfig
PlannerConfig = (
    MPPI | CEM | ICEM | RandomShooting | GradientDescent | GradientCEM | Collocation | BeamSearch | TreeSearch
)


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """What is recorded when no file is given."""

    world: str = "WallBig"  # a registered world, as `envs.worlds.find_world` knows it
    trajectories: int = 1000
    states: int = 64  # per trajectory; one action fewer
    crossing_fraction: float = 0.5  # of the trajectories, those that go through the door; two rooms only

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            near = nearest(self.world)
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"there is no world {self.world!r}.{meant} Known: {', '.join(WORLDS)}")


@dataclass(frozen=True, kw_only=True)
class DistanceConfig:
    """The distance that is minus the value."""

    # The heads project the latent first: "euclidean_head" is a second space, with a cost of its own.
    # "imagined_ways" learns nothing: the ways to a goal are imagined when the goal is seen.
    kind: Literal["euclidean", "iqe", "mrn", "quasimetric_head", "euclidean_head", "imagined_ways"] = (
        "quasimetric_head"
    )
    components: int = 32  # of a quasimetric on the latent itself, kinds "iqe" and "mrn"
    head: QuasimetricHeadConfig = field(default_factory=QuasimetricHeadConfig)  # of both heads
    ways: WaysConfig = field(default_factory=WaysConfig)  # kind "imagined_ways"


@dataclass(frozen=True, kw_only=True)
class PredictionStage:
    """Encoder and predictor together; with `scene_contrast` > 0 also which recording it is."""

    name: str = "world_model"
    fit: FitConfig
    steps: int = 15  # actions per window
    weights: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    scene_contrast: float = 0.0  # weight of the contrast between recordings
    scene_temperature: float = 1.0
    co_trained: CoTrainedHead | None = None  # a value head that learns beside encoder and predictor


@dataclass(frozen=True, kw_only=True)
class MovingPointStage:
    """Encoder and predictor whose latent is a map and a point: find what moves, and predict it."""

    name: str = "world_model"
    fit: FitConfig
    steps: int = 8  # actions per segment
    weights: MovingPointWeights = field(default_factory=MovingPointWeights)
    companion_maps: bool = True  # imagine every second segment on the map of another frame


@dataclass(frozen=True, kw_only=True)
class ValueStage:
    """Encoder and distance without a predictor, by value learning, contrast or unit steps."""

    name: str = "value"
    fit: FitConfig
    steps: int = 15
    frozen_encoder: bool = False  # the encoder is finished: only the distance learns, on cached latents
    weights: ObjectiveWeights = field(default_factory=lambda: ObjectiveWeights(prediction=0.0, value=1.0))
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    value: ValueConfig = field(default_factory=ValueConfig)


@dataclass(frozen=True, kw_only=True)
class JointStage:
    """Encoder, predictor and distance together."""

    name: str = "joint"
    fit: FitConfig
    steps: int = 15
    weights: ObjectiveWeights = field(default_factory=lambda: ObjectiveWeights(value=1.0))
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    co_trained: CoTrainedHead | None = None  # a value head that learns beside them


@dataclass(frozen=True, kw_only=True)
class PredictorStage:
    """The predictor alone, on cached latents of the finished encoder."""

    name: str = "predictor"
    fit: FitConfig
    steps: int = 15
    inverse_dynamics: bool = False  # train those on as well: imagined values believe what they read
    companion_maps: bool = True  # of latents with a map: every second segment on that of another frame


@dataclass(frozen=True, kw_only=True)
class ImaginedValueStage:
    """The distance alone, or a value head, fitted to steps to go between imagined states."""

    name: str = "imagined_value"
    fit: FitConfig
    scenes: int = 200  # recordings whose scene is imagined
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    trains: Literal["distance", "head"] = "distance"  # "head": one of this stage's own
    head: ValueHeadConfig = field(default_factory=ValueHeadConfig)
    members: int = 2  # heads with different first weights
    reading: Reading = field(default_factory=Reading)  # how planning reads them

    def __post_init__(self) -> None:
        if self.trains == "head" and (not self.head.goal or self.head.action or self.members < 1):
            raise InputError(
                "imagined ways lead from a state to a goal: a head needs head.goal=True, head.action=False "
                f"and members >= 1; got head.goal={self.head.goal}, head.action={self.head.action}, "
                f"members={self.members}"
            )


StageConfig = (
    PredictionStage
    | MovingPointStage
    | ValueStage
    | JointStage
    | PredictorStage
    | ImaginedValueStage
    | ValueHeadStage
    | ActionPriorStage
)


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Receding-horizon control around the planner."""

    replan_every: int = 1  # environment steps
    warm_start: Literal["shift", "keep"] = "shift"
    shrink: bool = False  # no plan looks beyond the end of the episode
    prior: str | None = None  # the stage whose action prior leads the search; None: nothing does
    prior_share: float = 0.5  # of the candidates, with a prior
    prior_std: float | None = None  # around the prior, in normalised action units; None: as it learned

    def __post_init__(self) -> None:
        check_lead(self.prior_share, self.prior_std)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a result; two runs with equal experiments and seeds are the same run."""

    recipe: str
    description: str
    seed: int = 0
    held_out: float = 0.05  # share of the recordings that is never trained on, for held-out metrics
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    mirrors: tuple[Mirror, ...] = ()  # learn from mirror images of the recordings, too: `data.mirrors`
    encoder: EncoderConfig
    predictor: PredictorConfig | LocalPredictorConfig
    distance: DistanceConfig
    stages: tuple[StageConfig, ...]
    baseline_distance: Literal["euclidean", "mean_square"] = "mean_square"  # what the baseline plans with
    planner: PlannerConfig
    cost: CostConfig = field(default_factory=CostConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    instances: str = "WallBig-demo"  # a packaged set or a file; see `jepaplan evaluate --help`

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"held_out is a share of the recordings, in [0, 1); got {self.held_out}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise InputError(f"stages need different names, since each has a folder; got {names}")
        heads = [head_key(head.name) for head in heads_of(self.stages)]
        if len(set(heads)) != len(heads):
            raise InputError(
                f"value heads need different names, since cost.value names one; got {heads}. Write a name of "
                "its own for the co-trained one, for example --stages.0.co-trained.name mine"
            )
        for number, stage in enumerate(self.stages):
            _refuse_other_seed(stage, number, self.seed)
            _refuse_missing_inverse_dynamics(stage, self.stages[:number])
            _refuse_nothing_to_learn(stage, self.distance)
        if self.control.prior is not None:
            _refuse_untrained_prior(self.control.prior, self.stages)
            leadable(self.planner)
        if self.distance.kind == "imagined_ways":
            _refuse_unbelieved_ways(self.predictor, self.stages)
        if self.cost.precision == "int8":
            _refuse_other_than_relu(self.predictor)
        refuse_unpayable(self.cost, self.planner, self.stages, self.learns_value)

    @property
    def learns_value(self) -> bool:
        """Whether planning minimises minus a value: of a head, by imagined ways, or of a taught distance."""
        return (
            self.cost.value is not None
            or self.distance.kind == "imagined_ways"
            or any(_teaches_distance(stage) for stage in self.stages)
        )


def _teaches_distance(stage: StageConfig) -> bool:
    match stage:
        case ImaginedValueStage() | ValueHeadStage():
            return stage.trains == "distance"
        case ValueStage() | JointStage():
            return stage.weights.value > 0 or stage.weights.pair_regression > 0
        case _:
            return False


def _refuse_other_seed(stage: StageConfig, number: int, seed: int) -> None:
    # Stages draw from the experiment's seed, split by their names; 0 is the default of `FitConfig`.
    if stage.fit.seed not in (0, seed):
        raise InputError(
            f"stage {stage.name!r} asks for seed {stage.fit.seed}, the experiment for {seed}; one seed "
            f"decides the whole experiment. Write --seed {stage.fit.seed} and leave "
            f"--stages.{number}.fit.seed out"
        )


def _refuse_other_than_relu(predictor: PredictorConfig | LocalPredictorConfig) -> None:
    if not isinstance(predictor, PredictorConfig) or predictor.activation != "relu":
        raise InputError(
            "cost.precision='int8' is written for predictors that are one network with relu; this one is "
            f"{predictor}. Take bf16 or fp32 (--cost.precision to train, --precision to evaluate)"
        )


def _refuse_missing_inverse_dynamics(stage: StageConfig, before: Sequence[StageConfig]) -> None:
    trained = any(
        isinstance(earlier, PredictionStage | JointStage) and earlier.weights.inverse_dynamics > 0
        for earlier in before
    )
    if isinstance(stage, ImaginedValueStage) and not trained:
        raise InputError(
            f"stage {stage.name!r} reads from the inverse dynamics what an imagined step did, and no stage "
            "before it trains them; give an earlier stage a weight, for example --stages.0.weights."
            "inverse-dynamics 4"
        )


def _refuse_untrained_prior(prior: str, stages: Sequence[StageConfig]) -> None:
    trained = [stage.name for stage in stages if isinstance(stage, ActionPriorStage)]
    if prior not in trained:
        raise InputError(
            f"control.prior={prior!r} names no stage that trains an action prior; this experiment has "
            f"{', '.join(trained) or 'none'}. Leave it out, or train a recipe that has one, such as "
            "wall_big_paths_prior (in Python: an ActionPriorStage in stages)"
        )


def _refuse_nothing_to_learn(stage: StageConfig, distance: DistanceConfig) -> None:
    if isinstance(stage, ValueStage) and stage.frozen_encoder and distance.kind == "euclidean":
        raise InputError(
            f"stage {stage.name!r} keeps the encoder as it is, and a Euclidean distance of its latents has "
            "nothing to learn; write --distance.kind euclidean_head, iqe or quasimetric_head"
        )


def _refuse_unbelieved_ways(
    predictor: PredictorConfig | LocalPredictorConfig, stages: Sequence[StageConfig]
) -> None:
    if not isinstance(predictor, LocalPredictorConfig):
        raise InputError(
            "imagined ways need a world model that knows where the thing is; write predictor="
            f"LocalPredictorConfig(...) and encoder=SceneMapConfig(...), not a {type(predictor).__name__}"
        )
    if not any(isinstance(stage, PredictorStage) and stage.inverse_dynamics for stage in stages):
        raise InputError(
            "imagined ways believe a step if the inverse dynamics read from it what was done, and no stage "
            "trains those on finished latents; write --stages.1.inverse-dynamics, of a predictor stage"
        )
