"""What `jepaplan reproduce` works on, whatever it is made of: pieces to do, and a page to write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jepaplan.evaluation.results import ResultRow
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes.reproduction import Reproduction
from jepaplan.recipes.reproduction_cells import cells
from jepaplan.recipes.reproduction_chart import draw_success
from jepaplan.recipes.reproduction_maps import draw_maps
from jepaplan.recipes.reproduction_page import write_reproduction_page
from jepaplan.recipes.reproduction_pieces import pieces
from jepaplan.recipes.reproduction_work import Piece
from jepaplan.recipes.video_page import write_video_page
from jepaplan.recipes.video_pieces import video_pieces
from jepaplan.recipes.video_study import VideoStudy


@runtime_checkable
class Project(Protocol):
    """Pieces to do by seed, and the page that stands on them."""

    def only(self, words: tuple[str, ...]) -> "Project":
        """What holds one of the words."""
        ...

    def pieces(self, seeds: int) -> Sequence[Piece]:
        """All pieces of the first seeds."""
        ...

    def write(self, folder: Path, seeds: int, page: Path) -> list[ResultRow]:
        """The page and what lies beside it; its rows."""
        ...


@dataclass(frozen=True)
class Grid:
    """Trainings by seed, each evaluated on instances."""

    reproduction: Reproduction

    def only(self, words: tuple[str, ...]) -> "Grid":
        """The trainings, methods and tasks whose name holds one of the words."""
        return Grid(self.reproduction.only(words))

    def pieces(self, seeds: int) -> Sequence[Piece]:
        """Refuses missing instances now, not after hours of training."""
        for training in self.reproduction.trainings:
            for cell in training.evaluations:
                load_instances(cell.instances)
        return pieces(self.reproduction, seeds)

    def write(self, folder: Path, seeds: int, page: Path) -> list[ResultRow]:
        """The page, its rows (.json), its chart (.svg) and, where they are asked for, its maps (.png)."""
        known, picture = cells(self.reproduction, folder, seeds), page.with_suffix(".svg")
        drawn = draw_success(known, picture, self.reproduction.axis)
        maps = draw_maps(self.reproduction, folder, page)
        return write_reproduction_page(self.reproduction, known, page, picture if drawn else None, maps)


@dataclass(frozen=True)
class VideoProject:
    """Trainings of a video encoder by seed, each probed beside its baselines."""

    study: VideoStudy

    def only(self, words: tuple[str, ...]) -> "VideoProject":
        """The sources of features whose name holds one of the words."""
        return VideoProject(self.study.only(words))

    def pieces(self, seeds: int) -> Sequence[Piece]:
        """Trainings and probes."""
        return video_pieces(self.study, seeds)

    def write(self, folder: Path, seeds: int, page: Path) -> list[ResultRow]:
        """The page and its rows (.json)."""
        return write_video_page(self.study, folder, seeds, page)


def project_of(found: Reproduction | VideoStudy) -> Project:
    """The face that both kinds share."""
    return VideoProject(found) if isinstance(found, VideoStudy) else Grid(found)
