"""Where videos come from: a folder, a list, a weighted mixture, or sprites that are written into the run."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from jepaplan.data.sprite_videos import open_sprite_videos, write_sprite_videos
from jepaplan.data.video_sets import VideoSet
from jepaplan.recipes.materials import Report
from jepaplan.recipes.video import VideoExperiment
from jepaplan.training.distributed import barrier, processes
from jepaplan.types import InputError, SeedTree

VIDEOS = "videos"  # folder of a run, with what was generated for it


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sets of videos and how often each is drawn from; none: every file alike."""

    sets: tuple[VideoSet, ...]
    weights: tuple[float, ...] | None = None

    @property
    def content_hash(self) -> str:
        """Of the names and sizes of all files: a million hours are not read for it."""
        digest = hashlib.sha256()
        for one in self.sets:
            for path in one.paths:
                size = path.stat().st_size if path.exists() else -1
                digest.update(f"{path.name} {size}\n".encode())
        return digest.hexdigest()

    def split(self, held_out: float, seed: int) -> tuple["Sources", "Sources"]:
        """What is learned from, and what is held out."""
        parts = [one.split((1 - held_out, held_out), seed) for one in self.sets]
        learned, kept = zip(*parts, strict=True)
        return replace(self, sets=learned), replace(self, sets=kept)


def open_sources(data: Path | str) -> Sources:
    """Videos from a folder, a list of files ("path label" a line), or a mixture.

    A mixture is JSON: [{"videos": "folder or list", "weight": 0.3}, ...]; paths count from the file's folder.
    """
    data = Path(data)
    if data.suffix != ".json":
        return Sources(sets=(_open_set(data),))
    try:
        entries = json.loads(data.read_text())
        sets = tuple(_open_set(data.parent / entry["videos"]) for entry in entries)
        weights = tuple(float(entry["weight"]) for entry in entries)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'{data} is no mixture of videos ({error}); expected JSON such as [{{"videos": "kinetics.csv", '
            '"weight": 0.2}, {"videos": "folder", "weight": 0.8}]'
        ) from error
    return Sources(sets=sets, weights=weights)


def _open_set(path: Path) -> VideoSet:
    if path.is_dir():
        return open_sprite_videos(path) if (path / "motion.csv").exists() else VideoSet.folder(path)
    return VideoSet.listed(path)


def generated_sources(experiment: VideoExperiment, path: Path, report: Report) -> Sources:
    """The recipe's own videos, written into the run unless they are there."""
    folder = path / VIDEOS
    if processes().writes:
        write_sprite_videos(
            folder,
            experiment.generated.count,
            experiment.generated.sprites,
            SeedTree(experiment.seed)["videos"] % 2**31,
            lambda done, total: report("writing videos", done, total),
        )
    barrier()
    return Sources(sets=(open_sprite_videos(folder),))
