"""The pieces of the video study: a training of each seed, and what each source of features says of it.

Training seeds have pretraining videos, weights and probes of their own; labelled clips and their splits are
the same for all. `video_study` says what the sources are, `video_page` writes the page.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from jepaplan.data.sprite_videos import write_sprite_videos
from jepaplan.recipes.reproduction_work import Shop, read_outcome
from jepaplan.recipes.run import is_finished
from jepaplan.recipes.serialise import fingerprint
from jepaplan.recipes.video import VideoExperiment
from jepaplan.recipes.video_findings import ProbedSource, generated_videos
from jepaplan.recipes.video_run import train_video
from jepaplan.recipes.video_study import ANTICIPATION, LEARNED_AHEAD, VideoStudy
from jepaplan.training import provenance
from jepaplan.training.runs import RunDirectory, write_json
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
        return self.study.experiment.recipe, self.seed, self.outcome_name

    @property
    def outcome_name(self) -> str:
        """Of the file with what was found."""
        if self.source is None:
            return "training"
        return f"{ANTICIPATION if self.ahead else 'probe'}-{self.source}".replace(" ", "_")

    @property
    def experiment(self) -> VideoExperiment:
        """What is trained."""
        return replace(self.study.experiment, seed=self.seed)

    @property
    def digest(self) -> str:
        """Changes with everything that decides the outcome, but for the seed and the code."""
        study = self.study
        if self.source is None:
            return fingerprint(study.experiment)
        labelled = (
            (study.bouncing_clips, study.bouncing, study.seen_frames)
            if self.ahead
            else (study.clips, study.sprites)
        )
        how = (study.supervised,) if self.source == "supervised" else (study.probe, study.linear)
        return fingerprint(study.experiment, labelled, how, self.source)

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
        return read_outcome(self.outcome(folder), self.digest)

    def done(self, folder: Path) -> bool:
        """Whether its result lies in the folder, made as it is described now.

        A training is as good as done when its curves and all that stands on it were found.
        """
        if self.read(folder) is None:
            return False
        return (
            self.source is not None
            or self._is_trained(folder)
            or all(piece.read(folder) is not None for piece in seed_pieces(self.study, self.seed))
        )

    def ready(self, folder: Path) -> bool:
        """Probes wait for the training, those that need it or not: so their seed's row is whole."""
        return self.source is None or self._is_trained(folder)

    def _is_trained(self, folder: Path) -> bool:
        return is_finished(self.run(folder), self.experiment)

    def carry_out(self, shop: Shop) -> None:
        """Train, or probe."""
        shop.board.report(self.name, 0, 1)
        if self.source is None:
            facts = self._train(shop)
            if facts is None:
                return
        else:
            found = ProbedSource(self.study, self.seed, self.source, self.run(shop.folder), shop)
            facts = {"tasks": found.ahead() if self.ahead else found.labels()}
        facts |= {
            "digest": self.digest,
            "training": self.study.experiment.recipe,
            "source": self.source,
            "seed": self.seed,
            "commit": provenance.commit(),
            "hardware": provenance.machine(),
            "command": shop.options.command,
        }
        write_json(self.outcome(shop.folder), facts)

    def _train(self, shop: Shop) -> dict[str, Any] | None:
        """Train; the curves' ends and means, or None where the training diverged."""
        videos = generated_videos(
            shop, f"pretraining-seed{self.seed}", self.experiment.generated, self._write_pretraining
        )
        path = self.run(shop.folder)
        shop.train(self, videos, lambda options: train_video(self.experiment, path, options))
        if not self._is_trained(shop.folder):
            return None
        run = RunDirectory(path)
        rows, card = run.read_metrics(), run.read_card()
        stages = card["stages"].values()
        ratios = {name for row in rows for name in row if "_ratio_" in name}
        return {
            "updates": sum(stage["updates"] for stage in stages),
            "seconds": card["seconds"],
            "last": rows[-1],
            "means": {name: sum(row[name] for row in rows) / len(rows) for name in sorted(ratios)},
            "warnings": [words for stage in stages for words in stage["warnings"]],
        }

    def _write_pretraining(self, folder: Path, progress: Callable[[int, int], None]) -> None:
        generated = self.study.experiment.generated
        seed = SeedTree(self.seed)["videos"] % 2**31
        write_sprite_videos(folder, generated.count, generated.sprites, seed, progress)


def seed_pieces(study: VideoStudy, seed: int) -> list[VideoPiece]:
    """What stands on the training of a seed; what no training decides is guessed once."""
    first = seed == study.experiment.seed
    ahead = [source for source in study.ahead if first or source in LEARNED_AHEAD]
    return [
        *(VideoPiece(study=study, seed=seed, source=source) for source in study.sources),
        *(VideoPiece(study=study, seed=seed, source=source, ahead=True) for source in ahead),
    ]


def video_pieces(study: VideoStudy, seeds: int) -> list[VideoPiece]:
    """All pieces, seed by seed."""
    first = study.experiment.seed
    return [
        piece
        for seed in range(first, first + seeds)
        for piece in (VideoPiece(study=study, seed=seed), *seed_pieces(study, seed))
    ]


Found = Mapping[tuple[str, str], list[dict[str, Any]]]  # by source and task, one of each seed


def found_in(study: VideoStudy, folder: Path, seeds: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What was found, by source and task, seed by seed; each with the facts of where and when."""
    table: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for piece in video_pieces(study, seeds):
        read = piece.read(folder)
        if read is None or piece.source is None:
            continue
        for task, outcome in read["tasks"].items():
            facts = {name: read[name] for name in ("seed", "commit", "hardware", "command")}
            table.setdefault((piece.source, task), []).append({**outcome, **facts})
    return table


def labels_of(found: list[dict[str, Any]]) -> Int[Tensor, " items"]:
    """The true classes of an anticipation's test items."""
    return torch.tensor(found[0]["labels"])
