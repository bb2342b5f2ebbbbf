"""A reproduction is a grid of trainings and evaluations: interrupted at will, shared out, never done twice.

    Reproduction    what a page of docs/results stands on: trainings by seed, evaluations of each
    Training        an experiment; its runs lie in FOLDER/<training>/seed<k>, its recordings in FOLDER/data
    Evaluation      a search and a cost for the run of a training, on one set of instances
    work            does what is missing, one piece after the other, until nothing is left or time is up

Pieces are claimed by a lock on a file, which the system lets go when its holder dies: any number of workers
may share a folder, under torchrun, on a cluster or in two terminals, and one that is killed leaves nothing
but a run to be continued. A finished evaluation is known by the digest of all that decides it.
"""

import fcntl
import hashlib
import json
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from jepaplan.data.collect import record_world
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, Outcomes, run_episodes
from jepaplan.evaluation.episodes import Progress as EpisodeProgress
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.run import TrainOptions, is_finished, load_run, train
from jepaplan.recipes.serialise import experiment_to_json
from jepaplan.recipes.system import baseline_distance, build_controller
from jepaplan.training import provenance
from jepaplan.training.runs import write_json
from jepaplan.training.stage import Progress
from jepaplan.types import InputError, SeedTree

WAIT_SECONDS = 1.0  # between looks for work that another worker still holds


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One cell of a table: with which search and cost the run of a training meets which instances."""

    name: str  # of the file with its outcomes
    method: str  # row of the table
    task: str  # column of the table
    instances: str
    experiment: Experiment  # planner, cost and control that are used; the models come from the run
    guided: bool = True  # by what was learned as value; without it by the plain distance of latents
    episodes: int | None = None  # the first of the instances; None: all
    paper: float | None = None  # success that the source reports


@dataclass(frozen=True, kw_only=True)
class Training:
    """One experiment and what is evaluated of it."""

    name: str
    experiment: Experiment
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a source says and a paired test can answer: `better` succeeds more often than `worse`."""

    words: str
    better: str  # method
    worse: str  # method


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """All that a page of results stands on."""

    name: str
    title: str
    introduction: str
    trainings: tuple[Training, ...]
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        names = [training.name for training in self.trainings]
        if len(set(names)) != len(names):
            raise InputError(f"trainings of {self.name} need different names, since each has a folder")

    def only(self, words: Sequence[str]) -> "Reproduction":
        """The trainings whose name, and the evaluations whose method or task, hold one of `words`."""
        if not words:
            return self
        kept: list[Training] = []
        for training in self.trainings:
            chosen = tuple(
                cell
                for cell in training.evaluations
                if any(word in name for word in words for name in (training.name, cell.method, cell.task))
            )
            if chosen:
                kept.append(replace(training, evaluations=chosen))
        if not kept:
            methods = sorted({cell.method for training in self.trainings for cell in training.evaluations})
            raise InputError(
                f"nothing of {self.name} holds {' or '.join(words)}; its methods are {', '.join(methods)}"
            )
        return replace(self, trainings=tuple(kept))


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How long, on what, and who is told."""

    seeds: int = 1
    device: str = "cpu"
    deadline: float | None = None  # of time.monotonic(); None: until all is done
    command: str = ""
    report: Callable[[str, int, int, str], None] = field(default=lambda what, done, total, words: None)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One thing to do: a training of one seed, or one evaluation of it."""

    training: Training
    seed: int
    evaluation: Evaluation | None = None

    @property
    def name(self) -> str:
        """For people."""
        cell = "" if self.evaluation is None else f", {self.evaluation.name}"
        return f"{self.training.name} seed {self.seed}{cell}"


class TimeIsUp(Exception):
    """The deadline has passed; what was begun can be continued."""


def pieces(reproduction: Reproduction, seeds: int) -> list[Piece]:
    """All pieces, seed by seed, so that an interrupted reproduction has whole columns of the first seeds."""
    found: list[Piece] = []
    for seed in range(seeds):
        for training in reproduction.trainings:
            found.append(Piece(training=training, seed=seed))
            found += [Piece(training=training, seed=seed, evaluation=cell) for cell in training.evaluations]
    return found


def work(reproduction: Reproduction, folder: Path, options: WorkOptions) -> int:
    """Do what is missing; the number of pieces still open, because of the deadline or other workers."""
    todo = pieces(reproduction, options.seeds)
    shop = _Shop(folder, options)
    while True:
        open_before = [piece for piece in todo if not shop.done(piece)]
        if not open_before:
            return 0
        try:
            worked = any([shop.attempt(piece, len(todo)) for piece in open_before])
        except TimeIsUp:
            return sum(not shop.done(piece) for piece in todo)
        if not worked:
            shop.check_time()
            time.sleep(WAIT_SECONDS)


def run_folder(folder: Path, training: Training, seed: int) -> Path:
    """Where the run of a training lies."""
    return folder / training.name / f"seed{seed}"


def outcome_file(folder: Path, training: Training, seed: int, cell: Evaluation) -> Path:
    """Where the outcomes of an evaluation lie."""
    return run_folder(folder, training, seed) / "outcomes" / f"{cell.name}.json"


def digest(cell: Evaluation) -> str:
    """Changes with everything that decides an evaluation's outcome, but for the weights."""
    decides = [experiment_to_json(cell.experiment), cell.instances, cell.guided, cell.episodes]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


class _Shop:
    """Does single pieces in one folder."""

    def __init__(self, folder: Path, options: WorkOptions) -> None:
        self.folder, self.options = folder, options

    def done(self, piece: Piece) -> bool:
        path = run_folder(self.folder, piece.training, piece.seed)
        experiment = replace(piece.training.experiment, seed=piece.seed)
        if piece.evaluation is None:
            return is_finished(path, experiment)
        file = outcome_file(self.folder, piece.training, piece.seed, piece.evaluation)
        if not file.is_file():
            return False
        return json.loads(file.read_text()).get("digest") == digest(piece.evaluation)

    def attempt(self, piece: Piece, total: int) -> bool:
        """Do the piece, unless another worker has it or it waits for its training."""
        self.check_time()
        if piece.evaluation is not None and not self.done(replace(piece, evaluation=None)):
            return False
        cell = "training" if piece.evaluation is None else piece.evaluation.name
        path = run_folder(self.folder, piece.training, piece.seed)
        with _claimed(path / f".{cell}.lock") as mine:
            if not mine or self.done(piece):
                return False
            if piece.evaluation is None:
                self._train(piece)
            else:
                self._evaluate(piece, piece.evaluation)
        return True

    def check_time(self) -> None:
        if self.options.deadline is not None and time.monotonic() > self.options.deadline:
            raise TimeIsUp

    def _train(self, piece: Piece) -> None:
        experiment = replace(piece.training.experiment, seed=piece.seed)
        data = self._recording(experiment)
        late = False

        def note(progress: Progress) -> None:
            nonlocal late
            words = f"{progress.stage}, loss {progress.loss:.3g}"
            self.options.report(f"{piece.name}", progress.update, progress.updates, words)
            deadline = self.options.deadline
            if deadline is not None and time.monotonic() > deadline and not late:
                late = True
                signal.raise_signal(signal.SIGINT)  # the loop saves what it has, then stops

        try:
            train(
                experiment,
                run_folder(self.folder, piece.training, piece.seed),
                TrainOptions(
                    data=data,
                    device=self.options.device,
                    on_progress=note,
                    report=lambda what, done, total: self._prepared(piece, what, done, total),
                ),
            )
        except KeyboardInterrupt:
            if late:
                raise TimeIsUp from None
            raise

    def _prepared(self, piece: Piece, what: str, done: int, count: int) -> None:
        self.options.report(f"{piece.name}: {what}", done, count, "")
        self.check_time()

    def _recording(self, experiment: Experiment) -> Path:
        """One recording for all trainings of a seed that ask for the same: methods differ, data does not."""
        config = experiment.recording
        asked = hashlib.sha256(repr(config).encode()).hexdigest()[:8]
        path = self.folder / "data" / f"{config.world}-{asked}-seed{experiment.seed}.h5"
        with _claimed(path.with_suffix(".lock"), wait=True):
            if not path.exists():
                record_world(
                    path,
                    config.world,
                    config,
                    SeedTree(experiment.seed)["collect"] % 2**31,
                    lambda done, total: self.options.report(f"recording {path.stem}", done, total, ""),
                )
        return path

    def _evaluate(self, piece: Piece, cell: Evaluation) -> None:
        def note(progress: EpisodeProgress) -> None:
            self.options.report(piece.name, progress.step, progress.steps, f"{progress.solved} solved")
            self.check_time()

        outcomes = evaluate_cell(
            run_folder(self.folder, piece.training, piece.seed), cell, self.options.device, note
        )
        machine = provenance.hardware()
        file = outcome_file(self.folder, piece.training, piece.seed, cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            file,
            {
                "digest": digest(cell),
                "method": cell.method,
                "task": cell.task,
                "instances": cell.instances,
                "split": outcomes.instances.split,
                "seed": piece.seed,
                "success": outcomes.success.tolist(),
                "final_distance": [round(left, 3) for left in outcomes.final_distance.tolist()],
                "evaluations_per_step": float(outcomes.evaluations_per_step),
                "seconds_per_step": float(outcomes.seconds_per_step),
                "commit": provenance.commit(),
                "hardware": f"{machine['processor']}, {machine['threads']} threads, gpu {machine['gpu']}",
                "command": self.options.command,
            },
        )


def evaluate_cell(
    path: Path, cell: Evaluation, device: str, note: Callable[[EpisodeProgress], None] | None = None
) -> Outcomes:
    """Meet the cell's instances with the run's models and the cell's search."""
    run = load_run(path)
    instances = load_instances(cell.instances)
    if cell.episodes is not None:
        instances = instances.subset(cell.episodes)
    world, system = find_world(instances.world), run.system.to(device)
    distance = system.steps_to_go(cell.experiment.cost) if cell.guided else baseline_distance(cell.experiment)
    controller = build_controller(cell.experiment, system.world_model, distance, world.episode_steps)
    options = EpisodeOptions(episode_steps=world.episode_steps, on_progress=note)
    return run_episodes(world, instances, controller, SeedTree(0).torch("plan"), options)


def read_outcomes(folder: Path, training: Training, seed: int, cell: Evaluation) -> dict[str, Any] | None:
    """What an evaluation found, if it was done as it is described now."""
    file = outcome_file(folder, training, seed, cell)
    found = json.loads(file.read_text()) if file.is_file() else None
    return found if found is not None and found.get("digest") == digest(cell) else None


@contextmanager
def _claimed(path: Path, wait: bool = False) -> Generator[bool]:
    """Whether this process holds the lock `path`; it is let go in the end, also when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def stacked(found: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Successes of several seeds on the same instances, `seeds B`."""
    return torch.tensor([one["success"] for one in found])
