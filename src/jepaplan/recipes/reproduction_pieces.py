"""What a `Reproduction` consists of: trainings by seed, and evaluations and maps of each.

Recordings are shared by all trainings of a seed that ask for the same: methods differ, data does not. A
recording is finished before time is looked at, since it knows of no middle.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jepaplan.data.collect import record_world
from jepaplan.evaluation.episodes import Outcomes
from jepaplan.evaluation.episodes import Progress as EpisodeProgress
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.reproduction import (
    Evaluation,
    Reproduction,
    Training,
    digest,
    evaluate_cell,
    outcome_file,
    read_outcomes,
    run_folder,
)
from jepaplan.recipes.reproduction_maps import MapPiece, map_pieces
from jepaplan.recipes.reproduction_work import Shop
from jepaplan.recipes.run import is_finished, train
from jepaplan.training import provenance
from jepaplan.training.runs import write_json
from jepaplan.types import SeedTree


@dataclass(frozen=True, kw_only=True)
class CellPiece:
    """A training of one seed, or one evaluation of it."""

    training: Training
    seed: int
    evaluation: Evaluation | None = None
    maps: tuple[MapPiece, ...] = ()  # that a training is asked for beside its evaluations

    @property
    def name(self) -> str:
        """For people."""
        cell = "" if self.evaluation is None else f", {self.evaluation.label}"
        return f"{self.training.name} seed {self.seed}{cell}"

    @property
    def key(self) -> tuple[str, int, str]:
        """For machines: no other piece of a reproduction has it."""
        cell = "training" if self.evaluation is None else f"outcomes-{self.evaluation.name}"
        return self.training.name, self.seed, cell

    @property
    def experiment(self) -> Experiment:
        """What is trained."""
        return self.training.at(self.seed)

    def lock(self, folder: Path) -> Path:
        """The file whose holder works on it."""
        return run_folder(folder, self.training, self.seed) / ".locks" / self.key[-1]

    @property
    def digest(self) -> str:
        """Changes with everything that decides the outcome, but for the seed and the code."""
        return "" if self.evaluation is None else digest(self.training, self.evaluation)

    def outcome(self, folder: Path) -> Path | None:
        """The file with what an evaluation found."""
        if self.evaluation is None:
            return None
        return outcome_file(folder, self.training, self.seed, self.evaluation)

    def done(self, folder: Path) -> bool:
        """Whether its result lies in the folder, made as it is described now.

        A training is as good as done when all that is asked of it was found: weights are no result.
        """
        if self.evaluation is not None:
            return read_outcomes(folder, self.training, self.seed, self.evaluation) is not None
        cells = self.training.evaluations
        return self._is_trained(folder) or (
            all(read_outcomes(folder, self.training, self.seed, cell) is not None for cell in cells)
            and all(piece.done(folder) for piece in self.maps)
        )

    def ready(self, folder: Path) -> bool:
        """An evaluation waits for its training."""
        return self.evaluation is None or self._is_trained(folder)

    def carry_out(self, shop: Shop) -> None:
        """Train, or evaluate."""
        if self.evaluation is None:
            path = run_folder(shop.folder, self.training, self.seed)
            shop.train(self, self._recording(shop), lambda options: train(self.experiment, path, options))
        else:
            self._evaluate(shop, self.evaluation)

    def _is_trained(self, folder: Path) -> bool:
        return is_finished(run_folder(folder, self.training, self.seed), self.experiment)

    def _recording(self, shop: Shop) -> Path:
        experiment = self.experiment
        config = experiment.recording
        asked = hashlib.sha256(repr(config).encode()).hexdigest()[:8]
        path = shop.folder / "data" / f"{config.world}-{asked}-seed{experiment.seed}.h5"
        what = f"recording {config.world}, seed {experiment.seed}"

        def make() -> None:
            record_world(
                path,
                config.world,
                config,
                SeedTree(experiment.seed)["collect"] % 2**31,
                lambda done, total: shop.board.report(what, done, total),
            )
            shop.board.drop(what)

        shop.make_once(path, make)
        return path

    def _evaluate(self, shop: Shop, cell: Evaluation) -> None:
        def note(progress: EpisodeProgress) -> None:
            shop.board.report(self.name, progress.step, progress.steps, f"{progress.solved} solved")
            shop.check_time()

        path = run_folder(shop.folder, self.training, self.seed)
        outcomes = evaluate_cell(path, cell, shop.options.device, note)
        write_json(
            outcome_file(shop.folder, self.training, self.seed, cell),
            {
                "digest": digest(self.training, cell),
                "training": self.training.name,
                "seed": self.seed,
                **_facts(cell, outcomes),
                "command": shop.options.command,
            },
        )


def pieces(reproduction: Reproduction, seeds: int) -> list[CellPiece | MapPiece]:
    """All pieces, seed by seed, so that an interrupted reproduction has whole tables of the first seeds."""
    maps = {(piece.training.name, piece.seed): piece for piece in map_pieces(reproduction)}
    found: list[CellPiece | MapPiece] = []
    for number in range(seeds):
        for training in reproduction.trainings:
            seed = training.seeds(seeds)[number]
            drawn = (maps[training.name, seed],) if (training.name, seed) in maps else ()
            cells = (
                CellPiece(training=training, seed=seed, evaluation=cell) for cell in training.evaluations
            )
            found += [CellPiece(training=training, seed=seed, maps=drawn), *cells, *drawn]
    return found


def _facts(cell: Evaluation, outcomes: Outcomes) -> dict[str, object]:
    return {
        "method": cell.label,
        "task": cell.task,
        "instances": cell.instances,
        "split": outcomes.instances.split,
        "success": outcomes.success.tolist(),
        "final_distance": [round(left, 3) for left in outcomes.final_distance.tolist()],
        "evaluations_per_step": float(outcomes.evaluations_per_step),
        "seconds_per_step": float(outcomes.seconds_per_step),
        "commit": provenance.commit(),
        "hardware": provenance.machine(),
    }
