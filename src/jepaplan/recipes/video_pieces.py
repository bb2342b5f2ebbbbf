"""The pieces of the video study: a training of each seed, and what each source of features says of it.

Training seeds have pretraining videos, weights and probes of their own; labelled clips and their splits are
the same for all. `video_study` says what the sources are, `video_page` writes the page.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
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
from jepaplan.recipes.reproduction_work import Left, Shop, WorkOptions, work_on
from jepaplan.recipes.serialise import decisive
from jepaplan.recipes.video import VideoExperiment
from jepaplan.recipes.video_run import LoadedVideoRun, is_video_finished, load_video_run, train_video
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
from jepaplan.training import provenance
from jepaplan.training.runs import write_json
from jepaplan.types import SeedTree


@dataclass(frozen=True, kw_only=True)
class VideoPiece:
    """The training of a seed, or one source's probes of it."""

    study: VideoStudy
    seed: int
    source: str | None = None  # of features; none: the training
    ahead: bool = False  # of anticipation

    @property
    def name(self) -> str:
        """For people."""
        what = "training" if self.source is None else f"{ANTICIPATION}, " * self.ahead + self.source
        return f"{self.study.experiment.recipe} seed {self.seed}, {what}"

    @property
    def key(self) -> tuple[str, int, str]:
        """For machines."""
        if self.source is None:
            return self.study.experiment.recipe, self.seed, "training"
        return self.study.experiment.recipe, self.seed, self.outcome_name

    @property
    def outcome_name(self) -> str:
        """Of the file with what was found."""
        return f"{ANTICIPATION if self.ahead else 'probe'}-{self.source}".replace(" ", "_")

    @property
    def experiment(self) -> VideoExperiment:
        """What is trained."""
        return replace(self.study.experiment, seed=self.seed)

    @property
    def digest(self) -> str:
        """Changes with everything that decides the outcome, but for the seed and the code."""
        study = self.study
        labelled = study.bouncing if self.ahead else study.sprites
        how = study.supervised if self.source == "supervised" else (study.probe, study.linear)
        decides = [decisive(study.experiment), study.clips, repr(labelled), repr(how), self.source]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]

    def run(self, folder: Path) -> Path:
        """The folder of the training."""
        return folder / self.study.experiment.recipe / f"seed{self.seed}"

    def lock(self, folder: Path) -> Path:
        """The file whose holder works on it."""
        return self.run(folder) / ".locks" / self.key[-1]

    def outcome(self, folder: Path) -> Path:
        """The file with what was found."""
        return self.run(folder) / "outcomes" / f"{self.outcome_name}.json"

    def read(self, folder: Path) -> dict[str, Any] | None:
        """What was found, if it was done as it is described now."""
        file = self.outcome(folder)
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if found.get("digest") == self.digest else None

    def done(self, folder: Path) -> bool:
        """Whether its result lies in the folder, made as it is described now."""
        if self.source is None:
            return is_video_finished(self.run(folder), self.experiment)
        return self.read(folder) is not None

    def ready(self, folder: Path) -> bool:
        """Probes wait for the training, those that need it or not: so their seed's row is whole."""
        return self.source is None or is_video_finished(self.run(folder), self.experiment)

    def carry_out(self, shop: Shop) -> None:
        """Train, or probe."""
        if self.source is None:
            videos = _videos(
                shop, f"pretraining-seed{self.seed}", self.experiment.generated, self._write_pretraining
            )
            path = self.run(shop.folder)
            shop.train(self, videos, lambda options: train_video(self.experiment, path, options))
            return
        shop.board.report(self.name, 0, 1)
        found = self._anticipate(shop) if self.ahead else self._probe(shop)
        facts = {
            "digest": self.digest,
            "training": self.study.experiment.recipe,
            "source": self.source,
            "seed": self.seed,
            "tasks": found,
            "commit": provenance.commit(),
            "hardware": provenance.machine(),
            "command": shop.options.command,
        }
        write_json(self.outcome(shop.folder), facts)

    def _write_pretraining(self, folder: Path, progress: Callable[[int, int], None]) -> None:
        generated = self.study.experiment.generated
        seed = SeedTree(self.seed)["videos"] % 2**31
        write_sprite_videos(folder, generated.count, generated.sprites, seed, progress)

    def _probe(self, shop: Shop) -> dict[str, Any]:
        study = self.study

        def write(folder: Path, progress: Callable[[int, int], None]) -> None:
            write_sprite_videos(folder, study.clips, study.sprites, LABELLED_SEED, progress)

        opened = open_sprite_videos(_videos(shop, "labelled", (study.clips, study.sprites), write))
        run = self._load(shop)
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
            shop.check_time()
        return found

    def _probe_task(
        self, run: LoadedVideoRun, known: LabelledClips, splits: Splits, task: str
    ) -> dict[str, ProbeResult]:
        """What each head reads."""
        study = self.study
        generator = SeedTree(self.seed).torch("probe", str(self.source), task)
        if self.source == "supervised":
            result = train_supervised(
                lambda: VideoTransformer(run.experiment.encoder), known, splits, study.supervised, generator
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

    def _load(self, shop: Shop) -> LoadedVideoRun:
        run = load_video_run(self.run(shop.folder))
        run.objective.to(shop.options.device)
        return run

    def _random(self, run: LoadedVideoRun) -> VideoTransformer:
        built = fresh_module(
            lambda: VideoTransformer(run.experiment.encoder), SeedTree(self.seed).torch("random encoder")
        )
        assert isinstance(built, VideoTransformer)
        return built.to(next(run.objective.parameters()).device)

    def _anticipate(self, shop: Shop) -> dict[str, Any]:
        study = self.study

        def write(folder: Path, progress: Callable[[int, int], None]) -> None:
            write_bouncing_videos(folder, study.clips, study.bouncing, BOUNCING_SEED, progress)

        videos = _videos(shop, "bouncing", (study.clips, study.bouncing), write)
        opened = open_sprite_videos(videos)
        labels = opened.labels[ANTICIPATION]
        splits = draw_splits(labels, SeedTree(BOUNCING_SEED).torch("splits"))
        if self.source in LEARNED_AHEAD:
            run = self._load(shop)
            clips = _all_clips(run, opened, 1.0)
            features = encode_clips(self._ahead(run), clips, FeatureConfig(), run.objective.pixels)
            features = features.to(shop.options.device)
            generator = SeedTree(self.seed).torch("probe", str(self.source))
            scores = probe_features(features, labels, splits, study.probe, generator).probabilities
        else:
            scores = _guess(str(self.source), bouncing_states(videos)[splits.test], study.bouncing)
        wanted = labels[splits.test]
        hits = {f"recall at {k}": _as_bits(hits_at(scores, wanted, k)) for k in RECALL_AT}
        return {ANTICIPATION: {**hits, "labels": wanted.tolist()}}

    def _ahead(self, run: LoadedVideoRun) -> Callable[[Tensor], Tensor]:
        if self.source == "encoder":
            return run.encoder
        if self.source == "random encoder":
            return self._random(run)
        rate = run.experiment.clips.fps or float(self.study.bouncing.fps)
        # The question counts from the last frame, the clip ends one frame later.
        ahead = AheadConfig(seconds=self.study.bouncing.ahead - 1 / rate, rate=rate)
        return TokensAhead(run.encoder, run.predictor, ahead).eval()


def video_pieces(study: VideoStudy, seeds: int) -> list[VideoPiece]:
    """All pieces, seed by seed."""
    first, found = study.experiment.seed, list[VideoPiece]()
    for seed in range(first, first + seeds):
        found.append(VideoPiece(study=study, seed=seed))
        found += [VideoPiece(study=study, seed=seed, source=source) for source in study.sources]
        # What no training decides is guessed once.
        ahead = study.ahead if seed == first else [one for one in study.ahead if one in LEARNED_AHEAD]
        found += [VideoPiece(study=study, seed=seed, source=source, ahead=True) for source in ahead]
    return found


def work_on_videos(study: VideoStudy, folder: Path, options: WorkOptions) -> Left:
    """Do what is missing, until all is done or time is up."""
    return work_on(video_pieces(study, options.seeds), folder, options)


def _videos(
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


Found = Mapping[tuple[str, str], list[dict[str, Any]]]  # by source and task, one of each seed


def found_in(study: VideoStudy, folder: Path, seeds: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What was found, by source and task, seed by seed; each with the facts of where and when."""
    table: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for piece in video_pieces(study, seeds):
        read = None if piece.source is None else piece.read(folder)
        if read is None:
            continue
        for task, outcome in read["tasks"].items():
            facts = {name: read[name] for name in ("seed", "commit", "hardware", "command")}
            table.setdefault((str(piece.source), task), []).append({**outcome, **facts})
    return table


def labels_of(found: list[dict[str, Any]]) -> Int[Tensor, " items"]:
    """The true classes of an anticipation's test items."""
    return torch.tensor(found[0]["labels"])
