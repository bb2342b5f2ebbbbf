"""From an experiment's records to what they name: models, normalisation, planner, cost and controller."""

import copy
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from jepaplan.control.learned_prior import GoalPrior, LearnedPrior
from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.distances import MovingDistance, mean_square
from jepaplan.costs.steps import StepDistance
from jepaplan.costs.value import (
    ActionWithoutGoal,
    RemainingActionCost,
    RemainingCost,
    StateActionValue,
    StateValue,
    WithoutGoal,
)
from jepaplan.data.episodes import Episodes
from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser, ProprioceptionNormaliser
from jepaplan.interfaces import Distance, WorldModel
from jepaplan.models.encoders import CompactConfig, CompactEncoder, ImpalaConfig, ImpalaEncoder
from jepaplan.models.int8 import Int8Predictor
from jepaplan.models.keypoint_encoder import KeypointConfig, KeypointEncoder
from jepaplan.models.local_predictor import LocalPredictor, LocalPredictorConfig
from jepaplan.models.predictors import MLPPredictor, PredictorConfig, to_bfloat16
from jepaplan.models.quasimetric import IQE, MRN, Euclidean
from jepaplan.models.scene_map import SceneMapConfig, SceneMapEncoder
from jepaplan.models.value_heads import InverseDynamics, QuasimetricHead, Reading, ReadValue
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.objectives.imagined_ways import ImaginedWays, WaysConfig
from jepaplan.planners.cem import CEM
from jepaplan.planners.deadline import Deadline
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.shooting import RandomShooting
from jepaplan.recipes.costs import CostConfig, build_cost
from jepaplan.recipes.experiment import (
    ControlConfig,
    DistanceConfig,
    EncoderConfig,
    Experiment,
    PlannerConfig,
)
from jepaplan.recipes.prior_stages import build_action_priors
from jepaplan.recipes.second_space import SecondSpace
from jepaplan.recipes.value_learning import head_key
from jepaplan.recipes.value_stages import build_value_heads
from jepaplan.types import InputError, SeedTree


class System(nn.Module):
    """All that is learned; its tensors are the run's weights."""

    def __init__(
        self,
        world_model: LatentWorldModel,
        inverse_dynamics: InverseDynamics,
        distance: nn.Module,
        values: nn.ModuleDict,
        priors: nn.ModuleDict,
    ) -> None:
        super().__init__()
        self.world_model = world_model
        self.inverse_dynamics = inverse_dynamics
        self.distance = distance
        self.values = values  # heads by the name of their stage
        self.priors = priors  # of actions, by the name of their stage

    def steps_to_go(self, cost: CostConfig, ways: WaysConfig | None = None) -> Distance | StepDistance:
        """What planning takes for the steps to go: the distance, or minus the value that `cost` names.

        A value of actions knows them only for a step that is taken, and is no distance between latents.

        With `ways`, imagined ways are as fine as they say; without it, as the system was built.
        """
        if cost.value is None:
            if ways is not None and isinstance(self.distance, ImaginedWays):
                return self.distance.imagined(ways)
            return cast(Distance, self.distance)
        if cost.value not in self.values:
            raise InputError(
                f"there is no value head {cost.value!r}; this run has {', '.join(self.values) or 'none'}. "
                "Leave cost.value out to plan with the distance"
            )
        head = cast(ReadValue, self.values[cost.value])
        if cost.reading is not None:
            head = ReadValue(head.ensemble, Reading(by=cost.reading, caution=cost.caution))
        if head.takes_actions:
            return RemainingActionCost(
                head if head.takes_goals else ActionWithoutGoal(cast(StateActionValue, head))
            )
        return RemainingCost(head if head.takes_goals else WithoutGoal(cast(StateValue, head)))

    def action_prior(self, control: ControlConfig) -> LearnedPrior | None:
        """What leads the search, if `control` names a prior: it imagines with the world model as trained."""
        if control.prior is None:
            return None
        if head_key(control.prior) not in self.priors:
            raise InputError(
                f"there is no action prior {control.prior!r}; this run has "
                f"{', '.join(self.priors) or 'none'}. Leave control.prior out to plan without one"
            )
        return LearnedPrior(
            prior=cast(GoalPrior, self.priors[head_key(control.prior)]),
            world_model=self.world_model,
            share=control.prior_share,
            std=control.prior_std,
        )


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Shapes of what a world shows and takes, without its statistics."""

    image: tuple[int, int, int]  # channels, height, width
    action_dim: int
    proprioception: int = 0  # numbers


def build_system(experiment: Experiment, interface: Interface) -> System:
    """Untrained models with identity normalisation; initialised from the experiment's seed alone."""
    seed = SeedTree(experiment.seed)["initialisation"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = build_encoder(experiment.encoder, interface)
        predictor = build_predictor(
            experiment.encoder, experiment.predictor, encoder.latent_width, interface.action_dim
        )
        world_model = LatentWorldModel(
            encoder,
            predictor,
            PixelNormaliser.identity(interface.image),
            ActionNormaliser.identity(interface.action_dim),
            ProprioceptionNormaliser.identity(felt) if (felt := interface.proprioception) else None,
        )
        inverse_dynamics = InverseDynamics(
            encoder.latent_width, interface.action_dim, hidden=256, moves_from=world_model.moves_from
        )
        if experiment.distance.kind == "imagined_ways":
            distance = ImaginedWays((world_model, inverse_dynamics), experiment.distance.ways)
        else:
            distance = build_distance(experiment.distance, encoder.latent_width)
        values = build_value_heads(experiment.stages, encoder.latent_width, interface.action_dim)
        priors = build_action_priors(
            experiment.stages, encoder.latent_width, interface.action_dim, world_model.moves_from
        )
    return System(world_model, inverse_dynamics, distance, values, priors)


def fit_normalisation(system: System, episodes: Episodes, seed: int, frames: int = 4096) -> None:
    """Statistics of the recording, into the buffers that travel with the weights."""
    generator = SeedTree(seed).torch("normalisation")
    some = torch.randint(len(episodes.observations), (frames,), generator=generator)
    pixels = PixelNormaliser.fit(episodes.observations[some])
    system.world_model.pixel_encoder.pixels.load_state_dict(pixels.state_dict())
    system.world_model.actions.load_state_dict(ActionNormaliser.fit(episodes.actions).state_dict())
    body, felt = system.world_model.pixel_encoder.proprioception, episodes.proprioception
    if body is not None and felt is not None:
        body.load_state_dict(ProprioceptionNormaliser.fit(felt).state_dict())


def build_encoder(
    config: EncoderConfig, interface: Interface
) -> KeypointEncoder | CompactEncoder | ImpalaEncoder | SceneMapEncoder:
    """The encoder that `config` describes; refuses one made for other images."""
    channels, height, width = interface.image
    if (config.image_channels, config.image_size, config.image_size) != (channels, height, width):
        raise InputError(
            f"the recording has images of {channels} channels, {height} x {width}; the recipe's encoder "
            f"takes {config.image_channels} channels, {config.image_size} x {config.image_size}. Write "
            f"--encoder.image-channels {channels} --encoder.image-size {height}, or record another size"
        )
    felt = felt_by(config)
    if felt != interface.proprioception:
        raise InputError(
            f"the recording has {interface.proprioception} numbers of proprioception for each frame; the "
            f"recipe's encoder takes {felt}. Write --encoder.proprioception-dim {interface.proprioception}, "
            "with a compact, an IMPALA or a scene map encoder"
        )
    if isinstance(config, KeypointConfig):
        return KeypointEncoder(config)
    if isinstance(config, CompactConfig):
        return CompactEncoder(config)
    if isinstance(config, SceneMapConfig):
        return SceneMapEncoder(config)
    assert isinstance(config, ImpalaConfig)
    return ImpalaEncoder(config)


def build_predictor(
    encoder: EncoderConfig, config: PredictorConfig | LocalPredictorConfig, latent_width: int, action_dim: int
) -> MLPPredictor | LocalPredictor:
    """The predictor that `config` describes; one that looks around on a map needs an encoder that has one."""
    if isinstance(config, PredictorConfig):
        return MLPPredictor(latent_width, action_dim, config)
    if not isinstance(encoder, SceneMapConfig):
        raise InputError(
            f"a local predictor looks around on the map of a scene map encoder; this encoder is a "
            f"{type(encoder).__name__}. Write encoder=SceneMapConfig(...), or predictor=PredictorConfig(...)"
        )
    return LocalPredictor(encoder, action_dim, config)


def felt_by(config: EncoderConfig) -> int:
    """How many numbers of proprioception an encoder takes."""
    return 0 if isinstance(config, KeypointConfig) else config.proprioception_dim


def build_distance(config: DistanceConfig, latent_width: int) -> nn.Module:
    """The distance that is minus the value."""
    if config.kind == "euclidean":
        return Euclidean()
    if config.kind == "iqe":
        return IQE(width=latent_width, components=config.components)
    if config.kind == "mrn":
        return MRN(width=latent_width, components=config.components)
    if config.kind == "euclidean_head":
        return SecondSpace(latent_width, config.head)
    return QuasimetricHead(latent_width, config.head)


def baseline_distance(experiment: Experiment) -> Distance:
    """What planning in a latent without a value compares with: what moves, where the latent has a map."""
    distance: Distance = Euclidean() if experiment.baseline_distance == "euclidean" else mean_square
    if isinstance(experiment.encoder, SceneMapConfig) and isinstance(
        experiment.predictor, LocalPredictorConfig
    ):
        return MovingDistance(distance=distance, moves_from=experiment.encoder.map_width)
    return distance


def samples_of(planner: PlannerConfig) -> int | None:
    """How many sequences the planner samples for each problem; None if it searches in another way."""
    match planner:
        case MPPI() | CEM() | ICEM() | RandomShooting() | GradientCEM():
            return planner.samples
        case _:
            return None


def in_bfloat16(world_model: WorldModel) -> WorldModel:
    """A copy whose predictor computes in bfloat16; encoding and units stay as they are.

    Refuses weights that are no numbers: in bfloat16 they would not be noticed later.
    """
    twin = copy.deepcopy(world_model)
    assert isinstance(twin, LatentWorldModel)
    to_bfloat16(twin.predictor)
    for name, weight in twin.predictor.named_parameters():
        if not bool(weight.isfinite().all()):
            raise InputError(
                f"the predictor's {name} holds numbers that are infinite or none in bfloat16; plan with "
                "--precision fp32, and if that fails too, train again with a lower learning rate"
            )
    return twin


def in_int8(world_model: WorldModel) -> WorldModel:
    """A copy whose predictor multiplies 8-bit integers; encoding and units stay as they are."""
    twin = copy.deepcopy(world_model)
    assert isinstance(twin, LatentWorldModel)
    if not isinstance(twin.predictor, MLPPredictor):
        raise InputError(
            f"8-bit products are written for an MLPPredictor, and this run has a "
            f"{type(twin.predictor).__name__}; plan with --precision bf16 or fp32"
        )
    twin.predictor = Int8Predictor(twin.predictor)
    return twin


def in_time(planner: PlannerConfig, milliseconds: float | None) -> PlannerConfig | Deadline:
    """The planner, made to end after so many milliseconds of each search; None: it takes its time."""
    if milliseconds is None:
        return planner
    return Deadline(planner=planner, milliseconds=milliseconds)


def build_controller(
    experiment: Experiment,
    world_model: WorldModel,
    distance: Distance | StepDistance,
    episode_steps: int | None = None,
    milliseconds: float | None = None,
    prior: LearnedPrior | None = None,
    also: WeightedSum | None = None,
) -> RecedingHorizon:
    """The experiment's planner and cost around any world model and distance.

    `also`: what is to be paid beside its cost.
    `prior` is `system.action_prior(experiment.control)`; whoever imagines in true states plans without it.
    """
    cost, control = experiment.cost, experiment.control
    # others, such as references, which imagine in true states, are left as they are
    learned = isinstance(world_model, LatentWorldModel)
    precision = cost.precision if learned else "fp32"
    if learned and control.prior is not None and prior is None:
        raise InputError(
            f"control.prior={control.prior!r} asks for a search that a prior leads, and none was given; "
            "write build_controller(..., prior=system.action_prior(experiment.control))"
        )
    rounded = {"fp32": lambda model: model, "bf16": in_bfloat16, "int8": in_int8}[precision]
    paid = build_cost(cost, distance, dtype=torch.bfloat16 if precision == "bf16" else None)
    return RecedingHorizon(
        world_model=rounded(world_model),
        planner=in_time(experiment.planner, milliseconds),
        cost=paid if also is None else paid + also,
        prior=replace(prior, bounds=experiment.planner.bounds) if learned and prior is not None else None,
        replan_every=control.replan_every,
        warm_start=control.warm_start,
        episode_steps=episode_steps if control.shrink else None,
        explains=milliseconds is None,  # who has a deadline has no time for it
    )
