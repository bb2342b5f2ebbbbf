"""Train a video encoder into a run folder, and read a run back as something to encode with.

Beside what every run holds (`training/runs.py`):

    videos/    the generated files, where none were given
    cache/     decoded frames, where the recipe keeps them
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from jepaplan.data.clips import ClipBatch
from jepaplan.data.tubelet_masks import TubeletMasks, draw_masks
from jepaplan.data.video_cache import VideoCache, cache_videos
from jepaplan.data.video_clips import ClipConfig, ClipSample, Epochs, VideoClips, random_views
from jepaplan.models.masked_predictor import MaskedPredictor
from jepaplan.models.video_vit import VideoTransformer
from jepaplan.objectives.masked_latents import MaskedLatents
from jepaplan.recipes.materials import Report, silent
from jepaplan.recipes.run import TrainOptions, completed, refuse_unfinished
from jepaplan.recipes.serialise import experiment_to_json, video_experiment_from_json
from jepaplan.recipes.video import VideoExperiment, VideoPhase
from jepaplan.recipes.video_sources import Sources, generated_sources, open_sources
from jepaplan.training.checkpoint import load_weights
from jepaplan.training.distributed import map_tensors
from jepaplan.training.health import CollapseWatch, Health, assess, running_probe
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, RunDirectory, open_run
from jepaplan.training.stage import FitResult, Stage
from jepaplan.types import SeedTree

CACHE = "cache"  # folder of a run
HELD_OUT_CLIPS = 64
LOOKED_AT = 256  # clips, trained on and held out each, that health is judged by


@dataclass(frozen=True)
class Draw:
    """A batch before it is decoded: tensors only, so processes can share it out."""

    clips: ClipSample
    masks: tuple[TubeletMasks, ...]


@dataclass(frozen=True, kw_only=True)
class LoadedVideoRun:
    """A finished run: what was asked, and what was learned."""

    path: Path
    experiment: VideoExperiment
    objective: MaskedLatents
    card: Mapping[str, Any]

    @property
    def frames(self) -> int:
        """Frames of the clips that it learned from last."""
        return self.experiment.shape(self.experiment.phases[-1]).frames

    @property
    def encoder(self) -> VideoTransformer:
        """The target encoder: what probes and planners are to use."""
        return cast(VideoTransformer, self.objective.target.average)

    @property
    def predictor(self) -> MaskedPredictor:
        """What fills in masked tokens."""
        return cast(MaskedPredictor, self.objective.predictor)


def build_objective(experiment: VideoExperiment) -> MaskedLatents:
    """Encoder, predictor and target with random weights that the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SeedTree(experiment.seed)["initial weights"])
        encoder = VideoTransformer(experiment.encoder)
        predictor = MaskedPredictor(experiment.encoder.width, experiment.predictor)
        return MaskedLatents(encoder, predictor, experiment.objective)


def train_video(
    experiment: VideoExperiment, path: Path, options: TrainOptions | None = None
) -> list[FitResult]:
    """Train all phases of `experiment` into `path`, or go on where an earlier call stopped."""
    options = options or TrainOptions()
    given, report = options.data, options.report
    sources = generated_sources(experiment, path, report) if given is None else open_sources(given)
    origin = Origin(
        recipe=experiment.recipe,
        configuration=experiment_to_json(experiment),
        data=sources.content_hash,
        seed=experiment.seed,
    )
    objective = build_objective(experiment).to(options.device)
    with open_run(path, origin, options.tensorboard, complete=partial(completed, experiment)) as run:
        workshop = VideoWorkshop(experiment, objective, sources, run, report)
        results: list[FitResult] = []
        for phase in experiment.phases:
            config = replace(phase.fit, seed=experiment.seed)
            results.append(fit(workshop.stage(phase), run, config, options.on_progress))
        for words in workshop.unreadable():
            report(words, 1, 1)
    return results


def load_video_run(path: Path | str) -> LoadedVideoRun:
    """Read a run's configuration and weights; refuses unfinished runs and weights of another architecture."""
    run = RunDirectory(path)
    card = run.read_card()
    experiment = video_experiment_from_json(card.get("configuration"), str(run.card))
    refuse_unfinished(run, experiment)
    objective = build_objective(experiment)
    load_weights(run.weights, objective)
    return LoadedVideoRun(path=run.path, experiment=experiment, objective=objective.eval(), card=card)


class VideoWorkshop:
    """An objective, the videos, and the stages made of them."""

    def __init__(
        self,
        experiment: VideoExperiment,
        objective: MaskedLatents,
        sources: Sources,
        run: RunDirectory,
        report: Report = silent,
    ) -> None:
        self.experiment, self.objective, self.run = experiment, objective, run
        self.seeds = SeedTree(experiment.seed)
        self.learned, self.kept = sources.split(experiment.held_out, experiment.seed)
        self._sets, self._report = sources.sets, report
        self._caches: dict[int | None, VideoCache] = {}
        self._opened: list[VideoClips] = []

    def clips(self, phase: VideoPhase, sources: Sources, augmented: bool) -> VideoClips:
        """Clips of a phase."""
        shape, views = self.experiment.shape(phase), self.experiment.augmentation
        square = (shape.image, shape.image)
        augment = random_views(views, square) if augmented and views is not None else None
        # What no augmentation crops is decoded at the size that the encoder wants.
        size = shape.image if augment is None else self.experiment.clips.size or shape.image
        config = replace(self.experiment.clips, frames=shape.frames, size=size)
        opened = VideoClips(sources.sets, config, sources.weights, augment, self._cached(config))
        self._opened.append(opened)
        return opened

    def _cached(self, config: ClipConfig) -> VideoCache | None:
        """The decoded frames of all files at this size, where the recipe keeps them."""
        if self.experiment.cache and config.size not in self._caches:
            self._caches[config.size] = cache_videos(
                self.run.path / CACHE,
                self._sets,
                config,
                lambda done, total: self._report("decoding videos", done, total),
            )
        return self._caches.get(config.size)

    def stage(self, phase: VideoPhase) -> Stage:
        """What the training loop runs in a phase."""
        experiment, grid = self.experiment, self.experiment.shape(phase).grid
        learned = self.clips(phase, self.learned, augmented=True)
        held = self._held_out(phase)
        watch = CollapseWatch(
            history=lambda: [row for row in self.run.read_metrics() if row["stage"] == phase.name]
        )
        # Updates of earlier phases count: the target goes on where it was, and so do shuffled epochs.
        earlier = experiment.phases[: experiment.phases.index(phase)]
        before = sum(one.fit.updates for one in earlier)
        epochs = Epochs(learned, self.seeds["epochs"])
        files = epochs if experiment.order == "shuffled" else learned

        def sample(generator: torch.Generator, items: int) -> Draw:
            masks = draw_masks(grid, items, experiment.masks, generator, experiment.equalise)
            return Draw(files.sample(generator, items), masks)

        def load(draw: Draw) -> ClipBatch:
            return ClipBatch(learned.load(draw.clips).clips, draw.masks)

        return Stage(
            name=phase.name,
            objective=self.objective,
            sample=sample,
            load=load,
            evaluate=lambda: self._evaluate(held),
            health=lambda: watch.judge(self._health(phase)),
            before_update=lambda done: epochs.before_update(before + done),
            after_update=lambda done: self.objective.after_update(before + done),
            shard_units=self._units,
            frames_per_item=grid[0] * experiment.encoder.tubelet,
        )

    def unreadable(self) -> list[str]:
        """A line for all files that could not be read, naming the first ones."""
        found: dict[Path, str] = {}
        for opened in self._opened:
            found |= opened.unreadable()
        if not found:
            return []
        named = "; ".join(f"{path}: {why}" for path, why in list(found.items())[:5])
        return [f"{len(found)} videos could not be read and were replaced by others: {named}"]

    def _units(self) -> list[nn.Module]:
        """What is gathered one at a time when processes share parameters: blocks, then what holds them."""
        encoder, predictor, target = (
            self.objective.encoder,
            self.objective.predictor,
            self.objective.target.average,
        )
        blocks = [block for whole in (encoder, predictor, target) for block in cast(Any, whole).blocks]
        # The dense loss enters the predictor by another door than `forward`, which a unit does not guard.
        dense = self.experiment.objective.context_weight > 0
        return [*blocks, encoder, target] if dense else [*blocks, encoder, predictor, target]

    def _held_out(self, phase: VideoPhase) -> ClipBatch:
        """Clips and masks that are never trained on, the same at every evaluation."""
        clips = self.clips(phase, self.kept, augmented=False)
        generator = self.seeds.torch("held out", phase.name)
        draw = clips.sample(generator, HELD_OUT_CLIPS)
        masks = draw_masks(
            self.experiment.shape(phase).grid,
            HELD_OUT_CLIPS,
            self.experiment.masks,
            generator,
            self.experiment.equalise,
        )
        return ClipBatch(clips.load(draw).clips, masks)

    def _evaluate(self, held: ClipBatch) -> Mapping[str, float]:
        loss, metrics = self.objective(map_tensors(self._place, held))
        return {"held_out/loss": float(loss)} | {
            f"held_out/{name}": float(metrics[name]) for name in ("masked_over_constant",)
        }

    def _health(self, phase: VideoPhase) -> Health:
        learned, held = (self._looked_at(phase, part) for part in (self.learned, self.kept))
        health = assess(torch.cat([learned[0], held[0]]))
        if learned[1] is None or held[1] is None:
            return health
        return replace(health, probe_accuracy=running_probe(learned[0], learned[1], held[0], held[1]))

    def _looked_at(self, phase: VideoPhase, sources: Sources) -> tuple[Tensor, Tensor | None]:
        """Means of the tokens of some clips, and their labels where the videos have the probed kind."""
        clips = self.clips(phase, sources, augmented=False)
        batch = clips.load(clips.sample(self.seeds.torch("health"), LOOKED_AT))
        means = torch.cat([self._means(part) for part in batch.clips.split(64)])
        labels = batch.labels.get(self.experiment.probed or "")
        return means, None if labels is None else labels.to(means.device)

    def _means(self, clips: Tensor) -> Tensor:
        """Means of the tokens of each half of the clips: order in time is not lost altogether."""
        tokens = self.objective.encode(self._place(clips))
        halves = tokens.chunk(2, dim=1)
        return torch.cat([half.mean(1) for half in halves], dim=1)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.objective.parameters()).device)
