"""What a source of features says of labelled clips, and of where a sprite will be.

Labelled clips and their splits are the same for all seeds and sources. `video_study` says what the sources
are, `video_pieces` asks them.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from jepaplan.data.sprite_videos import (
    BouncingConfig,
    bouncing_states,
    open_sprite_videos,
    write_bouncing_videos,
    write_sprite_videos,
)
from jepaplan.data.video_clips import VideoClips
from jepaplan.data.video_sets import VideoSet
from jepaplan.evaluation.anticipation import (
    AheadConfig,
    TokensAhead,
    bin_centres,
    constant_velocity,
    hits_at,
    nearness,
)
from jepaplan.evaluation.video_probe_features import (
    FeatureConfig,
    encode_clips,
    fresh_module,
    middle_frame_repeated,
    pixel_features,
    shuffled_time,
)
from jepaplan.evaluation.video_probe_supervised import LabelledClips, train_supervised
from jepaplan.evaluation.video_probes import (
    ProbeResult,
    Splits,
    draw_splits,
    probe_features,
)
from jepaplan.models.video_vit import VideoTransformer
from jepaplan.recipes.reproduction_work import Shop
from jepaplan.recipes.video_run import LoadedVideoRun, load_video_run
from jepaplan.recipes.video_study import (
    ANTICIPATION,
    ATTENTIVE,
    BOUNCING_SEED,
    LABELLED_SEED,
    LEARNED_AHEAD,
    LINEAR,
    RECALL_AT,
    TASKS,
    VideoStudy,
)
from jepaplan.types import SeedTree


@dataclass(frozen=True)
class ProbedSource:
    """One source of features of one training."""

    study: VideoStudy
    seed: int
    source: str
    run: Path
    shop: Shop

    def labels(self) -> dict[str, Any]:
        """Which test clips its probes label rightly, by task and head."""
        study = self.study

        def write(folder: Path, progress: Callable[[int, int], None]) -> None:
            write_sprite_videos(folder, study.clips, study.sprites, LABELLED_SEED, progress)

        opened = open_sprite_videos(
            generated_videos(self.shop, "labelled", (study.clips, study.sprites), write)
        )
        run = self._load()
        clips = _all_clips(run, opened, 0.5)
        found: dict[str, Any] = {}
        for task in TASKS:
            labels = opened.labels[task]
            splits = draw_splits(labels, SeedTree(LABELLED_SEED).torch("splits", task))
            known = LabelledClips(clips, labels)
            for head, result in self._probe_task(run, known, splits, task).items():
                found[f"{task}, {head}"] = {
                    "correct": _as_bits(result.correct),
                    "commonest": result.commonest,
                    "learning_rate": result.chosen.learning_rate,
                    "weight_decay": result.chosen.weight_decay,
                }
            self.shop.check_time()
        return found

    def _probe_task(
        self, run: LoadedVideoRun, known: LabelledClips, splits: Splits, task: str
    ) -> dict[str, ProbeResult]:
        """What each head reads."""
        study = self.study
        generator = SeedTree(self.seed).torch("probe", self.source, task)
        if self.source == "supervised":
            result = train_supervised(
                lambda: copy.deepcopy(run.encoder), known, splits, study.supervised, generator
            )
            return {ATTENTIVE: result}  # its head is one; there is no frozen feature for another
        features = self._features(run, known.clips, splits)
        # Components of pixels are one token, which leaves nothing to attend to.
        heads = (
            {LINEAR: study.linear}
            if self.source == "pixels"
            else {ATTENTIVE: study.probe, LINEAR: study.linear}
        )
        return {
            head: probe_features(features, known.labels, splits, probe, generator)
            for head, probe in heads.items()
        }

    def _features(
        self, run: LoadedVideoRun, clips: UInt8[Tensor, "items T C height width"], splits: Splits
    ) -> Tensor:
        seeds, pixels = SeedTree(self.seed), run.objective.pixels
        if self.source == "pixels":
            return pixel_features(clips, splits.train)
        if self.source == "one frame":
            clips = middle_frame_repeated(clips)
        if self.source == "shuffled":
            clips = shuffled_time(clips, seeds.torch("shuffled"))
        encoder = run.encoder if self.source != "random" else self._random(run)
        return encode_clips(encoder, clips, FeatureConfig(), pixels).to(next(pixels.buffers()).device)

    def _load(self) -> LoadedVideoRun:
        run = load_video_run(self.run)
        run.objective.to(self.shop.options.device)
        return run

    def _random(self, run: LoadedVideoRun) -> VideoTransformer:
        built = fresh_module(
            lambda: VideoTransformer(run.experiment.encoder), SeedTree(self.seed).torch("random encoder")
        )
        assert isinstance(built, VideoTransformer)
        return built.to(next(run.objective.parameters()).device)

    def ahead(self) -> dict[str, Any]:
        """Which test clips it anticipates."""
        study = self.study

        def write(folder: Path, progress: Callable[[int, int], None]) -> None:
            write_bouncing_videos(folder, study.bouncing_clips, study.bouncing, BOUNCING_SEED, progress)

        videos = generated_videos(self.shop, "bouncing", (study.bouncing_clips, study.bouncing), write)
        opened = open_sprite_videos(videos)
        labels = opened.labels[ANTICIPATION]
        splits = draw_splits(labels, SeedTree(BOUNCING_SEED).torch("splits"))
        if self.source in LEARNED_AHEAD:
            run = self._load()
            # The predictor learned to look no further than its clips were long: what is shown leaves room.
            clips = _all_clips(run, opened, 1.0)[:, -self.study.seen_frames :]
            features = encode_clips(self._ahead(run), clips, FeatureConfig(), run.objective.pixels)
            features = features.to(self.shop.options.device)
            generator = SeedTree(self.seed).torch("probe", self.source)
            scores = probe_features(features, labels, splits, study.probe, generator).probabilities
        else:
            scores = _guess(self.source, bouncing_states(videos)[splits.test], study.bouncing)
        wanted = labels[splits.test]
        hits = {f"recall at {k}": _as_bits(hits_at(scores, wanted, k)) for k in RECALL_AT}
        return {ANTICIPATION: {**hits, "labels": wanted.tolist()}}

    def _ahead(self, run: LoadedVideoRun) -> TokensAhead:
        encoder = self._random(run) if self.source == "random encoder" else run.encoder
        predictor = run.predictor if self.source == "encoder and predictor" else None
        rate = run.experiment.clips.fps or float(self.study.bouncing.fps)
        # The question counts from the last frame, the clip ends one frame later.
        ahead = AheadConfig(seconds=self.study.bouncing.ahead - 1 / rate, rate=rate)
        return TokensAhead(encoder, predictor, ahead).eval()


def generated_videos(
    shop: Shop, name: str, asked: Any, write: Callable[[Path, Callable[[int, int], None]], None]
) -> Path:
    """A generated set, written by one of the workers; another request is another folder."""
    folder = shop.folder / "data" / f"{name}-{hashlib.sha256(repr(asked).encode()).hexdigest()[:8]}"
    done = folder.with_suffix(".done")

    def make() -> None:
        what = f"writing videos: {name}"
        write(folder, lambda written, count: shop.board.report(what, written, count))
        shop.board.drop(what)
        done.touch()

    shop.make_once(done, make)
    return folder


def _all_clips(
    run: LoadedVideoRun, videos: VideoSet, position: float
) -> UInt8[Tensor, "items T C height width"]:
    """One window of every file: the first at position 0, the last at 1."""
    clips = VideoClips((videos,), replace(run.experiment.clips, frames=run.frames))
    parts = torch.arange(len(clips)).split(64)
    return torch.cat([clips.load(clips.at(part, position)).clips for part in parts])


def _guess(source: str, states: Tensor, config: BouncingConfig) -> Tensor:
    places, velocities = states[:, :2], states[:, 2:]
    box = config.box if source == "bouncing" else None
    seconds = 0.0 if source == "last place" else config.ahead
    return nearness(constant_velocity(places, velocities, seconds, box), bin_centres(config))


def _as_bits(hits: Bool[Tensor, " items"]) -> list[int]:
    return [int(hit) for hit in hits.tolist()]
