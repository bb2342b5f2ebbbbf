"""Stages that read recorded frames: everything that trains the encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from jepaplan.data.normalise import ActionNormaliser
from jepaplan.data.windows import Windows, rows
from jepaplan.models.keypoint_encoder import KeypointConfig
from jepaplan.models.scene_map import SceneMapConfig
from jepaplan.models.value_heads import ValueHead, ValueHeadConfig
from jepaplan.objectives.ema import MovingAverage, decay_after
from jepaplan.objectives.moving_point import MovingPointObjective
from jepaplan.objectives.scene import CompanionSegments, SceneObjective
from jepaplan.objectives.segments import Segments
from jepaplan.objectives.total import (
    JointObjective,
    LatentValueObjective,
    PredictionObjective,
    ValueObjective,
)
from jepaplan.recipes.experiment import JointStage, MovingPointStage, PredictionStage, ValueStage
from jepaplan.recipes.materials import HELD_OUT_WINDOWS, Materials, only
from jepaplan.training.distributed import gather, map_tensors
from jepaplan.training.health import Health
from jepaplan.training.stage import Stage
from jepaplan.types import InputError

FrameStage = PredictionStage | MovingPointStage | ValueStage | JointStage


def prediction_stage(materials: Materials, config: PredictionStage) -> Stage:
    """Encoder, predictor and inverse dynamics; with a target encoder where the configuration asks for one."""
    average = _moving_average(materials, config)
    objective = _prediction(materials, config, average)
    if config.scene_contrast == 0:
        return _frame_stage(materials, config, objective, average=average)
    encoder = materials.experiment.encoder
    width = (
        encoder.scene_width
        if isinstance(encoder, KeypointConfig)
        else getattr(materials.experiment.predictor, "held", 0)
    )
    if width == 0:
        option = "encoder.scene-width" if isinstance(encoder, KeypointConfig) else "predictor.held"
        raise InputError(
            f"scene_contrast is {config.scene_contrast} but no part of the latent is the scene; write "
            f"--{option} with how many leading numbers are, or --stages.N.scene-contrast 0"
        )
    if average is not None:
        raise InputError(
            "a scene contrast beside a target encoder is not made; set scene_contrast to 0 or leave "
            "regulariser.target_decay out"
        )
    scene = SceneObjective(
        objective,
        scene_width=width,
        weight=config.scene_contrast,
        temperature=config.scene_temperature,
        gather=gather,
    )
    return _frame_stage(materials, config, scene, companions=True)


def moving_point_stage(materials: Materials, config: MovingPointStage) -> Stage:
    """Encoder and predictor of a map and a point, and what reads how far the point went."""
    model, encoder = materials.system.world_model, materials.experiment.encoder
    if not isinstance(encoder, SceneMapConfig):
        raise InputError(
            f"stage {config.name!r} trains an encoder of a map and a point; this one is a "
            f"{type(encoder).__name__}. Write encoder=SceneMapConfig(...) and predictor="
            "LocalPredictorConfig(...), or another stage"
        )
    # Like all first weights, those of the reader are drawn from the experiment's seed alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(materials.seeds[config.name, "travel"])
        objective = MovingPointObjective(
            model.pixel_encoder,
            model,
            model.moves_from,
            model.action_dim,
            config.weights,
            companion_maps=config.companion_maps,
            gather=gather,
        )
    objective.to(next(materials.system.parameters()).device)
    return _frame_stage(materials, config, objective, companions=True)


def value_stage(materials: Materials, config: ValueStage) -> Stage:
    """Encoder and distance."""
    return _frame_stage(materials, config, value_objective(materials, config))


def joint_stage(materials: Materials, config: JointStage) -> Stage:
    """Encoder, predictor, inverse dynamics and distance."""
    average = _moving_average(materials, config)
    prediction = _prediction(materials, config, average)
    joint = JointObjective(prediction, value_objective(materials, config))
    return _frame_stage(materials, config, joint, average=average)


def value_objective(materials: Materials, config: ValueStage | JointStage) -> ValueObjective:
    """What shapes the distance."""
    action_values = None
    if config.value.action_values:
        model = materials.system.world_model
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(materials.seeds[config.name, "action values"])
            # Of an action at the goal is asked what follows it, so it need not be 0 there.
            shape = ValueHeadConfig(action=True, zero_at_goal=False)
            head = ValueHead(cast(int, model.pixel_encoder.encoder.latent_width), shape, model.action_dim)
        action_values = _OfRecordedActions(head, model.actions).to(next(materials.system.parameters()).device)
    return ValueObjective(
        materials.system.world_model,
        materials.system.distance,  # pyright: ignore[reportArgumentType]
        config.weights,
        action_values=action_values,
        value=config.value,
        config=config.regulariser,
        gather=gather,
    )


class _OfRecordedActions(nn.Module):
    """A head for actions in normalised units, asked in environment units."""

    def __init__(self, head: ValueHead, units: ActionNormaliser) -> None:
        super().__init__()
        self.head = head
        self._units = (units,)  # the world model's, and saved with it

    def forward(self, latent: Tensor, goal: Tensor, action: Tensor) -> Tensor:
        return self.head(latent, goal, self._units[0].normalise(action))


def held_out_windows(config: FrameStage) -> int:
    """How many windows are examined: each offers one goal, so no fewer than goals are asked of a batch."""
    goals = 0 if isinstance(config, PredictionStage | MovingPointStage) else config.value.batch_goals
    return max(HELD_OUT_WINDOWS, goals)


def examined(windows: Int[Tensor, " B"]) -> dict[str, Tensor]:
    """The same windows at every examination, with companions from all along their recordings."""
    return {"window": windows, "companion": torch.linspace(0, 0.999, len(windows))}


def _prediction(
    materials: Materials, config: PredictionStage | JointStage, average: MovingAverage | None
) -> PredictionObjective:
    return PredictionObjective(
        materials.system.world_model,
        config.weights,
        inverse_dynamics=materials.system.inverse_dynamics,
        target_encoder=None if average is None else average.average,  # pyright: ignore[reportArgumentType]
        config=config.regulariser,
        gather=gather,
    )


def _moving_average(materials: Materials, config: PredictionStage | JointStage) -> MovingAverage | None:
    if config.regulariser.target_decay is None:
        return None
    return MovingAverage(materials.system.world_model.pixel_encoder)


def _frame_stage(
    materials: Materials,
    config: FrameStage,
    objective: nn.Module,
    *,
    companions: bool = False,
    average: MovingAverage | None = None,
) -> Stage:
    materials.forget_latents()
    windows = Windows(materials.episodes, config.steps)
    batches = _FrameBatches(materials, windows, companions)
    held_out = materials.held_out(windows, held_out_windows(config))

    def evaluate() -> dict[str, float]:
        loss, metrics = objective(map_tensors(materials.place, batches.load(examined(held_out))))
        parts = {f"held_out/{name}": float(part) for name, part in metrics.items()}
        return {"held_out/loss": float(loss)} | parts

    def health() -> Health:
        batch = map_tensors(materials.place, windows.gather(windows.index(held_out)))
        encode = materials.system.world_model.encode_frames
        return materials.health(encode(batch.observations, batch.proprioception), batch.actions)

    return Stage(
        name=config.name,
        objective=only(objective, _trained_by(materials, config, objective)),
        sample=batches.sample,
        load=batches.load,
        product=materials.system,
        evaluate=evaluate,
        health=health,
        after_update=_following(average, config),
        frames_per_item=config.steps + 1 + companions,
    )


@dataclass(frozen=True)
class _FrameBatches:
    """Windows of frames; with `companions`, one more frame of each window's recording."""

    materials: Materials
    windows: Windows
    companions: bool

    def sample(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        limit = self.materials.train_windows(self.windows)
        numbers = torch.randint(limit, (count,), generator=generator)
        return {"window": numbers, "companion": torch.rand(count, generator=generator)}

    def load(self, drawn: dict[str, Tensor]) -> Segments | CompanionSegments:
        index = self.windows.index(drawn["window"])
        segments = self.windows.gather(index)
        if not self.companions:
            return segments
        # Uniform over the recording.
        episodes, episode = self.materials.episodes, index.episode
        frames = episodes.lengths[episode] + 1
        offset = (drawn["companion"] * frames).long().clamp(max=frames - 1)
        companions = rows(episodes.observations, episodes.starts[episode] + offset)
        return CompanionSegments(segments=segments, companions=companions)


def _following(average: MovingAverage | None, config: FrameStage) -> Callable[[int], None] | None:
    """Moves the target encoder after each step of the optimiser."""
    if average is None or isinstance(config, MovingPointStage) or config.regulariser.target_decay is None:
        return None
    decays = config.regulariser.target_decay
    updates = config.fit.updates
    return lambda update: average.follow(decay_after(update, updates, decays))


def _trained_by(materials: Materials, config: FrameStage, objective: nn.Module) -> list[nn.Module]:
    system = materials.system
    encoder = system.world_model.pixel_encoder
    match config:
        case PredictionStage():
            return [encoder, system.world_model.predictor, system.inverse_dynamics]
        case MovingPointStage():
            assert isinstance(objective, MovingPointObjective)
            return [encoder, system.world_model.predictor, objective.travel]
        case ValueStage():
            return [encoder, system.distance, *action_heads(objective)]
        case JointStage():
            dynamics = [system.world_model.predictor, system.inverse_dynamics]
            return [encoder, *dynamics, system.distance, *action_heads(objective)]


def action_heads(objective: nn.Module) -> list[nn.Module]:
    """What learns values of actions, where something does."""
    assert isinstance(objective, ValueObjective | JointObjective | LatentValueObjective)
    return [] if objective.action_values is None else [objective.action_values]
