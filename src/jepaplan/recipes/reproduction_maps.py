"""What the trained systems of a reproduction take for far: distances to a goal from everywhere, side by side.

    row       an instance: its layout and goal
    column    the true way first, then every method's distance; bright is near, a band is equally far

A map of a system is found like an evaluation and travels with the page, so weights need not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepaplan.costs.steps import StepDistance
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.probes import distance_map
from jepaplan.evaluation.references import GeodesicDistance, RenderedDistance
from jepaplan.evaluation.tasks import load_instances
from jepaplan.interfaces import World
from jepaplan.recipes.reproduction import Evaluation, Reproduction, Training, run_folder
from jepaplan.recipes.reproduction_chart import PICTURE_SETTINGS, save_picture
from jepaplan.recipes.reproduction_work import Shop, read_outcome
from jepaplan.recipes.run import is_finished, load_run
from jepaplan.recipes.serialise import fingerprint
from jepaplan.recipes.system import baseline_distance
from jepaplan.training import provenance
from jepaplan.training.runs import write_json
from jepaplan.types import InputError

STRIDE = 2  # pixels between the places of a map
BANDS = 10  # colours of a map, from the nearest places to the farthest


@dataclass(frozen=True, kw_only=True)
class MapPiece:
    """The maps of one trained system; a `reproduction_work.Piece`."""

    training: Training
    seed: int
    count: int  # instances, from the first

    @property
    def cell(self) -> Evaluation:
        """Whose distance and instances are used: the first evaluation's."""
        return self.training.evaluations[0]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.training.name} seed {self.seed}, maps"

    @property
    def key(self) -> tuple[str, int, str]:
        """For machines."""
        return self.training.name, self.seed, "maps"

    @property
    def digest(self) -> str:
        """Changes with everything that decides the maps, but for the seed and the code."""
        planned = self.cell.experiment
        return fingerprint(
            self.training.experiment,
            planned.cost.value,
            planned.baseline_distance,
            self.cell.instances,
            self.cell.guided,
            self.count,
            STRIDE,
        )

    def lock(self, folder: Path) -> Path:
        """The file whose holder works on it."""
        return run_folder(folder, self.training, self.seed) / ".locks" / "maps"

    def outcome(self, folder: Path) -> Path:
        """The file with the maps."""
        return run_folder(folder, self.training, self.seed) / "maps.json"

    def done(self, folder: Path) -> bool:
        """Whether they were made of the training as it is described now."""
        return self.read(folder) is not None

    def read(self, folder: Path) -> dict[str, Any] | None:
        """What was found."""
        return read_outcome(self.outcome(folder), self.digest)

    def ready(self, folder: Path) -> bool:
        """They wait for the training."""
        return is_finished(run_folder(folder, self.training, self.seed), self.training.at(self.seed))

    def carry_out(self, shop: Shop) -> None:
        """Encode what is seen from every place, and measure."""
        run = load_run(run_folder(shop.folder, self.training, self.seed))
        instances, experiment = load_instances(self.cell.instances), self.cell.experiment
        world, system = find_world(instances.world), run.system
        learned = system.steps_to_go(experiment.cost) if self.cell.guided else baseline_distance(experiment)
        if isinstance(learned, StepDistance):
            raise InputError(
                f"{self.name} wants the distance from every place, and head {experiment.cost.value!r} values "
                "actions, not places; write maps for cells whose cost.value names a value of states"
            )
        distance = RenderedDistance(world, system.world_model.encode, learned)
        maps: list[list[list[float | None]]] = []
        for goal in instances.goals[: self.count]:
            shop.board.report(self.name, len(maps), self.count)
            shop.check_time()
            rows = distance_map(world, distance, goal, STRIDE).tolist()
            maps.append(
                [[None if value != value else float(f"{value:.3g}") for value in row] for row in rows]
            )
        write_json(
            self.outcome(shop.folder),
            {
                "digest": self.digest,
                "training": self.training.name,
                "seed": self.seed,
                "maps": maps,
                "commit": provenance.commit(),
                "command": shop.options.command,
            },
        )


def map_pieces(reproduction: Reproduction) -> list[MapPiece]:
    """One for every training, of its first seed; none where no maps are asked for."""
    if not reproduction.maps:
        return []
    return [
        MapPiece(training=training, seed=training.experiment.seed, count=reproduction.maps)
        for training in reproduction.trainings
    ]


def draw_maps(reproduction: Reproduction, folder: Path, page: Path) -> list[tuple[str, Path]]:
    """A picture for every task of which maps are known, beside the page: (task, file)."""
    drawn: list[tuple[str, Path]] = []
    found = [(piece, piece.read(folder)) for piece in map_pieces(reproduction)]
    for task in dict.fromkeys(piece.cell.task for piece, _ in found):
        columns = {
            piece.cell.label: maps["maps"]
            for piece, maps in found
            if piece.cell.task == task and maps is not None
        }
        if columns:
            instances = next(piece.cell.instances for piece, _ in found if piece.cell.task == task)
            path = page.with_name(f"{page.stem}_maps_{task}.png")
            _draw_task(instances, reproduction.maps, columns, path)
            drawn.append((task, path))
    return drawn


def _draw_task(file: str, count: int, columns: dict[str, Sequence[Any]], path: Path) -> None:
    instances = load_instances(file)
    world = find_world(instances.world)
    goals = instances.goals[:count]
    true = [distance_map(world, GeodesicDistance(world), goal, STRIDE) for goal in goals]
    shown = {"the true way": true}
    for label, maps in columns.items():
        numbers = [
            [[float("nan") if value is None else value for value in row] for row in rows] for rows in maps
        ]
        shown[label] = [torch.tensor(rows) for rows in numbers]
    with matplotlib.rc_context(PICTURE_SETTINGS):
        size = (0.2 + 1.15 * len(shown), 0.45 + 1.15 * len(goals))
        figure = Figure(figsize=size, layout="constrained", dpi=110)
        panels = figure.subplots(len(goals), len(shown), squeeze=False)
        for column, (label, maps) in enumerate(shown.items()):
            panels[0, column].set_title(_wrapped(label), fontsize=7)
            for row, values in enumerate(maps):
                _draw_map(panels[row, column], world, values, goals[row])
        save_picture(figure, path)


def _draw_map(
    panel: Axes, world: World, values: Float[Tensor, "rows columns"], goal: Float[Tensor, " W"]
) -> None:
    _, height, width = world.image
    known = values[values.isfinite()]
    panel.set(xticks=(), yticks=(), facecolor="#5b6472", aspect="equal")
    if known.numel():
        # the dearest places of a learned map can be outliers: the scale ends where 99 % of the map does
        low, high = float(known.min()), float(known.double().quantile(0.99))
        banded = ((values - low) / max(high - low, 1e-12) * BANDS).floor().clamp(0, BANDS - 1)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        panel.imshow(banded.numpy(), cmap="viridis_r", vmin=0, vmax=BANDS - 1, extent=extent)
    x, y = world.positions(goal).tolist()
    panel.plot(x, y, "*", color="#e0245e", markersize=6, markeredgecolor="white", markeredgewidth=0.5)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _wrapped(label: str) -> str:
    """A title of two lines where there is a place to break it."""
    for mark in (" (", ", "):
        head, found, rest = label.partition(mark)
        if found:
            return f"{head}{mark.rstrip('( ')}\n{mark.strip(', ')}{rest}"
    return label
