"""Work on a reproduction: do what is missing, until nothing is left or time is up.

    piece    a training of one seed, or one evaluation of it
    lock     a claim on a piece, or on a recording; the system lets it go when its holder dies

So any number of workers may share a folder, under torchrun, on a cluster or in two terminals; none does what
another does or has done. A training that was stopped or killed goes on from its last checkpoint and ends with
the same weights; an evaluation is begun again, and a recording is finished before time is looked at, since
neither knows of a middle.
"""

import fcntl
import hashlib
import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from jepaplan.data.collect import record_world
from jepaplan.evaluation.episodes import Outcomes
from jepaplan.evaluation.episodes import Progress as EpisodeProgress
from jepaplan.evaluation.tasks import load_instances
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
from jepaplan.recipes.run import TrainOptions, is_finished, train
from jepaplan.training import provenance
from jepaplan.training.runs import write_json
from jepaplan.training.stage import Diverged, Interrupted, Progress
from jepaplan.types import SeedTree

WAIT_SECONDS = 1.0  # between looks for work that another worker still holds


@runtime_checkable
class Board(Protocol):
    """Who is told how far things are."""

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` of `what` are done."""
        ...

    def drop(self, what: str) -> None:
        """`what` is over and need not be shown any more."""
        ...

    def warn(self, words: str) -> None:
        """Something that a person should read, once."""
        ...


class Silent:
    """Nobody is told."""

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """Not told."""

    def drop(self, what: str) -> None:
        """Not told."""

    def warn(self, words: str) -> None:
        """Not told."""


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How much, on what, how long, and who is told."""

    seeds: int = 1  # of each training, from its own on
    device: str = "cpu"
    deadline: float | None = None  # of time.monotonic(); None: until all is done
    command: str = ""  # that makes these numbers, for the page
    board: Board = field(default_factory=Silent)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One thing to do: a training of one seed, or one evaluation of it."""

    training: Training
    seed: int
    evaluation: Evaluation | None = None

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
        return replace(self.training.experiment, seed=self.seed)

    def done(self, folder: Path) -> bool:
        """Whether its result lies in the folder, made as it is described now."""
        if self.evaluation is None:
            return is_finished(run_folder(folder, self.training, self.seed), self.experiment)
        return read_outcomes(folder, self.training, self.seed, self.evaluation) is not None


@dataclass(frozen=True, kw_only=True)
class Left:
    """What `work` did not do."""

    pieces: int  # because time was up, or because their training diverged
    diverged: tuple[str, ...] = ()  # trainings, each with what to try


class TimeIsUp(Exception):
    """The deadline has passed; what was begun can be continued."""


def pieces(reproduction: Reproduction, seeds: int) -> list[Piece]:
    """All pieces, seed by seed, so that an interrupted reproduction has whole tables of the first seeds."""
    found: list[Piece] = []
    for number in range(seeds):
        for training in reproduction.trainings:
            seed = training.seeds(seeds)[number]
            found.append(Piece(training=training, seed=seed))
            found += [Piece(training=training, seed=seed, evaluation=cell) for cell in training.evaluations]
    return found


def left_open(reproduction: Reproduction, folder: Path, seeds: int) -> list[Piece]:
    """The pieces that are not done, by whomever."""
    return [piece for piece in pieces(reproduction, seeds) if not piece.done(folder)]


def work(reproduction: Reproduction, folder: Path, options: WorkOptions) -> Left:
    """Do what is missing, beside other workers, until all is done or time is up.

    A training that diverges is left alone, with its evaluations: one bad cell does not stop a grid.
    """
    todo = pieces(reproduction, options.seeds)
    for name in {piece.evaluation.instances for piece in todo if piece.evaluation is not None}:
        load_instances(name)  # a missing file is an error now, not after hours of training
    shop = _Shop(folder, options)
    try:
        while remaining := shop.still_open(todo):
            if not any([shop.attempt(piece) for piece in remaining]):
                time.sleep(WAIT_SECONDS)
    except TimeIsUp:
        pass
    return Left(pieces=sum(not piece.done(folder) for piece in todo), diverged=tuple(shop.diverged.values()))


class _Shop:
    """Does single pieces in one folder."""

    def __init__(self, folder: Path, options: WorkOptions) -> None:
        self.folder, self.options, self.board = folder, options, options.board
        self.diverged: dict[tuple[str, int], str] = {}
        self._done: set[tuple[str, int, str]] = set()  # what was done stays done while we work

    def done(self, piece: Piece) -> bool:
        if piece.key not in self._done and piece.done(self.folder):
            self._done.add(piece.key)
        return piece.key in self._done

    def still_open(self, todo: Sequence[Piece]) -> list[Piece]:
        """What can still be done, by us or by others."""
        undone = [piece for piece in todo if not self.done(piece)]
        self.board.report("all pieces", len(todo) - len(undone), len(todo))
        return [piece for piece in undone if (piece.training.name, piece.seed) not in self.diverged]

    def attempt(self, piece: Piece) -> bool:
        """Do the piece, unless another worker has it or it waits for its training; whether we did it."""
        self.check_time()
        if piece.evaluation is not None and not self.done(replace(piece, evaluation=None)):
            return False
        with _claimed(run_folder(self.folder, piece.training, piece.seed) / ".locks" / piece.key[-1]) as mine:
            if not mine or self.done(piece):
                return False
            try:
                if piece.evaluation is None:
                    self._train(piece)
                else:
                    self._evaluate(piece, piece.evaluation)
            finally:
                self.board.drop(piece.name)
        return True

    def check_time(self) -> None:
        """Stop here if time is up."""
        if self.is_late():
            raise TimeIsUp

    def is_late(self) -> bool:
        return self.options.deadline is not None and time.monotonic() > self.options.deadline

    def _train(self, piece: Piece) -> None:
        def note(progress: Progress) -> None:
            words = f"{progress.stage}, loss {progress.loss:.3g}"
            self.board.report(piece.name, progress.update, progress.updates, words)
            for warning in progress.warnings:
                self.board.warn(f"{piece.name}: {warning}")
            if self.is_late():
                _stop_training()

        def prepared(what: str, done: int, total: int) -> None:
            self.board.report(piece.name, done, total, what)
            self.check_time()

        data = self._recording(piece.experiment)
        path = run_folder(self.folder, piece.training, piece.seed)
        options = TrainOptions(data=data, device=self.options.device, on_progress=note, report=prepared)
        try:
            train(piece.experiment, path, options)
        except Interrupted:
            self.check_time()
            raise  # somebody else's wish
        except Diverged as error:
            self.diverged[piece.training.name, piece.seed] = f"{piece.name}: {error}"
            self.board.warn(f"{piece.name}: {error}")

    def _recording(self, experiment: Experiment) -> Path:
        """One recording for all trainings of a seed that ask for the same: methods differ, data does not."""
        config = experiment.recording
        asked = hashlib.sha256(repr(config).encode()).hexdigest()[:8]
        path = self.folder / "data" / f"{config.world}-{asked}-seed{experiment.seed}.h5"
        what = f"recording {config.world}, seed {experiment.seed}"
        # The file has its name only when it is whole; what a kill left aside is swept by the next who record.
        while not path.exists():
            with _claimed(path.with_suffix(".lock")) as mine:
                if mine and not path.exists():
                    for leftover in path.parent.glob(f".{path.name}.*.partial"):
                        leftover.unlink()
                    record_world(
                        path,
                        config.world,
                        config,
                        SeedTree(experiment.seed)["collect"] % 2**31,
                        lambda done, total: self.board.report(what, done, total),
                    )
                    self.board.drop(what)
            if not path.exists():
                self.check_time()
                time.sleep(WAIT_SECONDS)
        return path

    def _evaluate(self, piece: Piece, cell: Evaluation) -> None:
        def note(progress: EpisodeProgress) -> None:
            self.board.report(piece.name, progress.step, progress.steps, f"{progress.solved} solved")
            self.check_time()

        path = run_folder(self.folder, piece.training, piece.seed)
        outcomes = evaluate_cell(path, cell, self.options.device, note)
        write_json(
            outcome_file(self.folder, piece.training, piece.seed, cell),
            {"digest": digest(cell), "seed": piece.seed, **self._facts(cell, outcomes)},
        )

    def _facts(self, cell: Evaluation, outcomes: Outcomes) -> dict[str, object]:
        machine = provenance.hardware()
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
            "hardware": f"{machine['processor']}, {machine['threads']} threads, gpu {machine['gpu']}",
            "command": self.options.command,
        }


def _stop_training() -> None:
    """Let the training loop save what it has and stop, as it does when the system asks it to."""
    if threading.current_thread() is not threading.main_thread():
        raise TimeIsUp  # only the main thread hears signals; the last checkpoint has to do
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def _claimed(path: Path) -> Generator[bool]:
    """Whether this process holds the lock `path`; it is let go in the end, also when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
