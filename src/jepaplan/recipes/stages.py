"""From the records of an experiment's stages to what the training loop runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.data.episodes import Episodes
from jepaplan.data.windows import WindowIndex, Windows, rows
from jepaplan.objectives.imagined_graph import (
    GroupSampler,
    ImaginedGroups,
    ImaginedScenes,
    ImaginedValueObjective,
)
from jepaplan.objectives.scene import CompanionSegments, SceneObjective
from jepaplan.objectives.total import (
    JointObjective,
    LatentPredictionObjective,
    LatentSegments,
    PredictionObjective,
    Segments,
    ValueObjective,
)
from jepaplan.recipes.experiment import (
    Experiment,
    ImaginedValueStage,
    JointStage,
    PredictionStage,
    PredictorStage,
    StageConfig,
    ValueStage,
)
from jepaplan.recipes.scenes import imagine_scenes
from jepaplan.recipes.system import System
from jepaplan.training.distributed import gather, map_tensors
from jepaplan.training.health import Health, assess
from jepaplan.training.stage import Stage
from jepaplan.types import InputError, SeedTree

_HELD_OUT_WINDOWS = 64
_ENCODE_AT_ONCE = 512  # frames; bounds the memory of an encoder's activations


@runtime_checkable
class Report(Protocol):
    """Told how far a preparation is: what, done, of how many."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Note it."""
        ...


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


@dataclass
class Workshop:
    """A system in training and what it learns from; latents are encoded once, when first asked for."""

    experiment: Experiment
    system: System
    episodes: Episodes
    report: Report = silent
    _latents: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def seeds(self) -> SeedTree:
        """The experiment's seed, split by name."""
        return SeedTree(self.experiment.seed)

    @property
    def trained_episodes(self) -> int:
        """How many recordings, from the first, are trained on; the rest is held out."""
        kept = round(len(self.episodes) * (1 - self.experiment.held_out))
        return max(1, min(kept, len(self.episodes)))

    def latents(self) -> Float[Tensor, "F D"]:
        """Latents of all recorded frames, by the encoder as it is when first called."""
        if self._latents is None:
            frames = self.episodes.observations
            chunks: list[Tensor] = []
            with torch.no_grad():
                for start in range(0, len(frames), _ENCODE_AT_ONCE):
                    self.report("encoding the recording", start, len(frames))
                    some = self._place(frames[start : start + _ENCODE_AT_ONCE])
                    # Beside the recording: the loop moves batches, not columns, to the accelerator.
                    chunks.append(self.system.world_model.encode(some).cpu())
            self.report("encoding the recording", len(frames), len(frames))
            self._latents = torch.cat(chunks)
        return self._latents

    def build(self, config: StageConfig) -> Stage:
        """The stage that `config` describes."""
        match config:
            case PredictionStage():
                return self._prediction(config)
            case ValueStage():
                return self._value(config)
            case JointStage():
                return self._joint(config)
            case PredictorStage():
                return self._predictor(config)
            case ImaginedValueStage():
                return self._imagined_value(config)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.system.parameters()).device)

    # ---- stages on frames ----------------------------------------------------------------------------------

    def _prediction(self, config: PredictionStage) -> Stage:
        objective: nn.Module = PredictionObjective(
            self.system.world_model,
            config.weights,
            inverse_dynamics=self.system.inverse_dynamics,
            config=config.regulariser,
            gather=gather,
        )
        if config.scene_contrast == 0:
            return self._on_frames(config, objective)
        held = self.experiment.predictor.held
        if held == 0:
            raise InputError(
                f"scene_contrast is {config.scene_contrast} but no part of the latent is held as the scene; "
                "write --predictor.held with the encoder's scene_width"
            )
        assert isinstance(objective, PredictionObjective)
        scene = SceneObjective(
            objective,
            scene_width=held,
            weight=config.scene_contrast,
            temperature=config.scene_temperature,
            gather=gather,
        )
        return self._on_frames(config, scene, companions=True)

    def _value(self, config: ValueStage) -> Stage:
        objective = ValueObjective(
            self.system.world_model,
            self.system.distance,  # pyright: ignore[reportArgumentType]
            config.weights,
            value=config.value,
            config=config.regulariser,
            gather=gather,
        )
        return self._on_frames(config, objective)

    def _joint(self, config: JointStage) -> Stage:
        prediction = PredictionObjective(
            self.system.world_model,
            config.weights,
            inverse_dynamics=self.system.inverse_dynamics,
            config=config.regulariser,
            gather=gather,
        )
        value = ValueObjective(
            self.system.world_model,
            self.system.distance,  # pyright: ignore[reportArgumentType]
            config.weights,
            value=config.value,
            config=config.regulariser,
            gather=gather,
        )
        return self._on_frames(config, JointObjective(prediction, value))

    def _on_frames(
        self,
        config: PredictionStage | ValueStage | JointStage,
        objective: nn.Module,
        companions: bool = False,
    ) -> Stage:
        self._latents = None  # this stage changes the encoder
        windows = Windows(self.episodes, config.steps)
        limit = self._train_windows(windows)
        held_out = self._held_out(windows)

        def sample(generator: torch.Generator, count: int) -> dict[str, Tensor]:
            numbers = torch.randint(limit, (count,), generator=generator)
            return {"window": numbers, "companion": torch.rand(count, generator=generator)}

        def load(drawn: dict[str, Tensor]) -> Segments | CompanionSegments:
            index = windows.index(drawn["window"])
            segments = windows.gather(index)
            return (
                CompanionSegments(segments=segments, companions=self._companions(index, drawn))
                if companions
                else segments
            )

        def evaluate() -> dict[str, float]:
            drawn = {"window": held_out, "companion": torch.linspace(0, 0.999, len(held_out))}
            loss, metrics = objective(map_tensors(self._place, load(drawn)))
            return {"held_out/loss": float(loss)} | {
                f"held_out/{name}": float(part) for name, part in metrics.items()
            }

        def health() -> Health:
            batch = windows.gather(windows.index(held_out))
            observations = self._place(batch.observations)
            return self._health(self.system.world_model.encode_frames(observations), batch.actions)

        return Stage(
            name=config.name,
            objective=_only(objective, self._trained_by(config)),
            sample=sample,
            load=load,
            product=self.system,
            evaluate=evaluate,
            health=health,
            frames_per_item=config.steps + 1 + companions,
        )

    def _companions(self, index: WindowIndex, drawn: dict[str, Tensor]) -> Tensor:
        """One more frame of each window's recording, uniform over it."""
        episode = index.episode
        frames = self.episodes.lengths[episode] + 1
        offset = (drawn["companion"] * frames).long().clamp(max=frames - 1)
        return rows(self.episodes.observations, self.episodes.starts[episode] + offset)

    # ---- stages on latents ---------------------------------------------------------------------------------

    def _predictor(self, config: PredictorStage) -> Stage:
        windows, world_model = Windows(self.episodes, config.steps), self.system.world_model
        limit, held_out = self._train_windows(windows), self._held_out(windows)
        objective = LatentPredictionObjective(world_model)

        def load(numbers: Tensor) -> LatentSegments:
            index = windows.index(numbers)
            return LatentSegments(
                latents=rows(self.latents(), index.frames), actions=rows(self.episodes.actions, index.actions)
            )

        def evaluate() -> dict[str, float]:
            _, metrics = objective(map_tensors(self._place, load(held_out)))
            return {f"held_out/{name}": float(part) for name, part in metrics.items()}

        def health() -> Health:
            batch = load(held_out)
            return self._health(batch.latents, batch.actions)

        return Stage(
            name=config.name,
            objective=_only(objective, [world_model.predictor]),
            sample=lambda generator, count: torch.randint(limit, (count,), generator=generator),
            load=load,
            product=self.system,
            evaluate=evaluate,
            health=health,
            frames_per_item=config.steps + 1,
        )

    def _imagined_value(self, config: ImaginedValueStage) -> Stage:
        system = self.system
        _only(system, [system.distance])
        objective = ImaginedValueObjective(
            system.distance, system.inverse_dynamics, config.imagination, gather=gather
        )
        sampler: list[GroupSampler] = []

        def groups() -> GroupSampler:
            # Imagined when first needed: a finished stage that is only loaded needs none of it.
            if not sampler:
                scenes = self.imagined_scenes(config)
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

    def imagined_scenes(self, config: ImaginedValueStage) -> ImaginedScenes:
        """States and steps to go of the scenes of `config.scenes` recordings, drawn from those trained on."""
        latents, count = self.latents(), min(config.scenes, self.trained_episodes)
        order = torch.randperm(self.trained_episodes, generator=self.seeds.torch(config.name, "scenes"))

        def recorded(episode: int) -> Tensor:
            start = int(self.episodes.starts[episode])
            return self._place(latents[start : start + int(self.episodes.lengths[episode]) + 1])

        drawn = [
            (recorded(episode), self.seeds.torch(config.name, "scene", episode))
            for episode in order[:count].tolist()
        ]
        models = (self.system.world_model, self.system.inverse_dynamics)
        return imagine_scenes(
            models, drawn, config.imagination, lambda done: self.report("imagining scenes", done, count)
        )

    # ---- what stages share ---------------------------------------------------------------------------------

    def _trained_by(self, config: PredictionStage | ValueStage | JointStage) -> list[nn.Module]:
        system = self.system
        encoder = system.world_model.pixel_encoder
        match config:
            case PredictionStage():
                return [encoder, system.world_model.predictor, system.inverse_dynamics]
            case ValueStage():
                return [encoder, system.distance]
            case JointStage():
                return [encoder, system.world_model.predictor, system.inverse_dynamics, system.distance]

    def _train_windows(self, windows: Windows) -> int:
        """Windows are numbered by episode: those below this number are trained on."""
        counts = (self.episodes.lengths - windows.steps + 1).clamp(min=0)
        return max(1, int(counts[: self.trained_episodes].sum()))

    def _held_out(self, windows: Windows) -> Tensor:
        """Some windows that are never trained on; where none is held out, some of the trained ones."""
        first = self._train_windows(windows)
        low = first if first < len(windows) else 0
        generator = self.seeds.torch("held out", windows.steps)
        return torch.randint(low, len(windows), (_HELD_OUT_WINDOWS,), generator=generator)

    def _health(self, latents: Tensor, actions: Tensor) -> Health:
        model = self.system.world_model
        observed = self._place(latents).float()
        taken = model.action_units.normalise(self._place(actions))
        predicted = model.unroll(observed[:, 0], taken).float()
        return assess(observed.flatten(0, 1), predicted, observed)


def _only(objective: nn.Module, trained: Iterable[nn.Module]) -> nn.Module:
    """`objective`, of which only the parameters of `trained` learn."""
    for parameter in objective.parameters():
        parameter.requires_grad_(False)
    for module in trained:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return objective
