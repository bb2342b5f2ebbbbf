"""Stages on latents of a finished encoder: predictor, distance, imagined value; no frame is encoded twice."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.costs.value import RemainingCost, Value
from jepaplan.data.windows import Windows, rows
from jepaplan.objectives.imagined_graph import (
    GroupSampler,
    ImaginedGroups,
    ImaginedScenes,
    ImaginedValueObjective,
    MeanObjective,
)
from jepaplan.objectives.segments import LatentSegments
from jepaplan.objectives.total import LatentPredictionObjective, LatentValueObjective
from jepaplan.recipes.experiment import ImaginedValueStage, PredictorStage, ValueStage
from jepaplan.recipes.frame_stages import action_heads, held_out_windows, value_objective
from jepaplan.recipes.materials import HELD_OUT_WINDOWS, Materials, only
from jepaplan.recipes.scenes import RecordedScene, imagine_scenes
from jepaplan.recipes.value_stages import ensemble_of
from jepaplan.training.distributed import gather, map_tensors
from jepaplan.training.health import Health
from jepaplan.training.stage import Stage


def predictor_stage(materials: Materials, config: PredictorStage) -> Stage:
    """The predictor alone, or with the inverse dynamics."""
    world_model, inverse = materials.system.world_model, materials.system.inverse_dynamics
    moves_from = world_model.moves_from
    if config.inverse_dynamics:
        learns = LatentPredictionObjective(world_model, inverse, moves_from)
        objective = only(learns, [world_model.predictor, inverse])
    else:
        objective = only(
            LatentPredictionObjective(world_model, moves_from=moves_from), [world_model.predictor]
        )
    return _latent_stage(materials, config, objective, examined=True)


def latent_value_stage(materials: Materials, config: ValueStage) -> Stage:
    """The distance alone, by value learning."""
    objective = LatentValueObjective(value_objective(materials, config))
    learned = [materials.system.distance, *action_heads(objective)]
    return _latent_stage(materials, config, only(objective, learned))


def _latent_stage(
    materials: Materials,
    config: PredictorStage | ValueStage,
    objective: nn.Module,
    examined: bool = False,
) -> Stage:
    windows = Windows(materials.episodes, config.steps)
    count = held_out_windows(config) if isinstance(config, ValueStage) else HELD_OUT_WINDOWS
    limit, held_out = materials.train_windows(windows), materials.held_out(windows, count)
    foreign = isinstance(config, PredictorStage) and config.companion_maps
    maps = materials.system.world_model.moves_from if foreign else 0

    def sample(generator: torch.Generator, count: int) -> dict[str, Tensor]:
        drawn = {"window": torch.randint(limit, (count,), generator=generator)}
        return drawn | ({"map": torch.rand(count, generator=generator)} if maps else {})

    def load(drawn: dict[str, Tensor]) -> LatentSegments:
        index, episodes = windows.index(drawn["window"]), materials.episodes
        latents = rows(materials.latents(), index.frames)
        if maps:
            # Half of the maps are those of other frames: what moves must not be looked for on the map.
            other = (drawn["map"] * 2 - 1) * (episodes.lengths[index.episode] + 1)
            frames = episodes.starts[index.episode] + other.long()
            frames = torch.where(other < 0, index.frames[:, 0], frames)
            latents[:, 0, :maps] = materials.latents()[frames, :maps]
        return LatentSegments(
            latents=latents, actions=rows(episodes.actions, index.actions), frames=index.frames
        )

    fixed = {"window": held_out} | ({"map": torch.linspace(0, 0.999, len(held_out))} if maps else {})

    def evaluate() -> dict[str, float]:
        _, metrics = objective(map_tensors(materials.place, load(fixed)))
        return {f"held_out/{name}": float(part) for name, part in metrics.items()}

    def health() -> Health:
        batch = load(fixed)
        return materials.health(batch.latents, batch.actions)

    return Stage(
        name=config.name,
        objective=objective,
        sample=sample,
        load=load,
        product=materials.system,
        evaluate=evaluate,
        health=health if examined else None,
        frames_per_item=config.steps + 1,
    )


class StepsByValue(nn.Module):
    """Minus a value of (latent, goal) as a `ProjectedDistance`; nothing is projected."""

    def __init__(self, value: nn.Module) -> None:
        super().__init__()
        self.value = value

    def project(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The latents themselves."""
        return latents

    def between(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """What the value expects to pay."""
        return RemainingCost(cast(Value, self.value))(source, goal)


def imagined_value_stage(materials: Materials, config: ImaginedValueStage) -> Stage:
    """The distance alone, or a value head, from imagined states."""
    system = materials.system

    def fitted(distance: nn.Module) -> ImaginedValueObjective:
        return ImaginedValueObjective(distance, system.inverse_dynamics, config.imagination, gather=gather)

    if config.trains == "head":
        ensemble = ensemble_of(config, system)
        only(system, [ensemble])
        objective = MeanObjective(fitted(StepsByValue(member)) for member in ensemble.members)
    else:
        only(system, [system.distance])
        objective = fitted(system.distance)
    sampler: list[GroupSampler] = []

    def groups() -> GroupSampler:
        # Imagined when first needed: a finished stage that is only loaded needs none of it.
        if not sampler:
            scenes = imagined_scenes(materials, config)
            sampler.append(GroupSampler(scenes, system.world_model, config.imagination))
        return sampler[0]

    def load(drawn: dict[str, Tensor]) -> ImaginedGroups:
        return groups().load(drawn)

    return Stage(
        name=config.name,
        objective=objective,
        sample=lambda generator, count: groups().sample(generator, count),
        load=load,
        product=system,
    )


def imagined_scenes(materials: Materials, config: ImaginedValueStage) -> ImaginedScenes:
    """States and steps to go of the scenes of `config.scenes` recordings, drawn from those trained on."""
    episodes, seeds = materials.episodes, materials.seeds
    latents, count = materials.latents(), min(config.scenes, materials.trained_episodes)
    order = torch.randperm(materials.trained_episodes, generator=seeds.torch(config.name, "scenes"))

    def recorded(episode: int) -> RecordedScene:
        frames = slice(first := int(episodes.starts[episode]), first + int(episodes.lengths[episode]) + 1)
        # every episode before has one action fewer than frames
        actions = slice(frames.start - episode, frames.stop - episode - 1)
        taken = materials.system.world_model.action_units.normalise(
            materials.place(episodes.actions[actions])
        )
        return RecordedScene(
            latents=materials.place(latents[frames]),
            steps=taken.norm(dim=-1) / config.imagination.largest_norm,
            generator=seeds.torch(config.name, "scene", episode),
        )

    drawn = [recorded(episode) for episode in order[:count].tolist()]
    models = (materials.system.world_model, materials.system.inverse_dynamics)
    return imagine_scenes(
        models, drawn, config.imagination, lambda done: materials.report("imagining scenes", done, count)
    )
