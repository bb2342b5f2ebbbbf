"""Work on what a page of results stands on: do what is missing, until nothing is left or time is up.

    Piece    what is done in one go, such as a training of one seed or an evaluation of it
    lock     a claim on a piece, or on what pieces share; the system lets it go when its holder dies

So any number of workers may share a folder, under torchrun, on a cluster or in two terminals; none does what
another does or has done. A training that was stopped or killed goes on from its last checkpoint and ends with
the same weights; whatever else was stopped is begun again.

What was found travels with a page, outcome by outcome (`publish`), so that another machine goes on where one
stopped (`adopt`). `reproduction_pieces` and `video_pieces` say what the pieces are.
"""

import fcntl
import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jepaplan.recipes.run import TrainOptions
from jepaplan.training.checkpoint import atomic_write
from jepaplan.training.runs import write_json
from jepaplan.training.stage import Diverged, Interrupted, Progress
from jepaplan.types import InputError

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

    device: str = "cpu"
    deadline: float | None = None  # of time.monotonic(); None: until all is done
    command: str = ""  # that makes these numbers, for the page
    board: Board = field(default_factory=Silent)


@runtime_checkable
class Piece(Protocol):
    """One thing to do, known by its name; it lies in a folder that workers share."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def key(self) -> tuple[str, int, str]:
        """For machines: the training it belongs to, its seed, and what of it; no other piece has the same."""
        ...

    def lock(self, folder: Path) -> Path:
        """The file whose holder works on it."""
        ...

    def outcome(self, folder: Path) -> Path | None:
        """The file with what was found; None where the piece finds nothing, such as a training."""
        ...

    @property
    def digest(self) -> str:
        """Changes with everything that decides the outcome, but for the seed and the code."""
        ...

    def done(self, folder: Path) -> bool:
        """Whether its result lies in the folder, made as it is described now."""
        ...

    def ready(self, folder: Path) -> bool:
        """Whether what it stands on is done."""
        ...

    def carry_out(self, shop: "Shop") -> None:
        """Do it, and leave the result in the shop's folder."""
        ...


@dataclass(frozen=True, kw_only=True)
class Left:
    """What was not done."""

    pieces: int  # because time was up, or because their training diverged
    diverged: tuple[str, ...] = ()  # trainings, each with what to try


class TimeIsUp(Exception):
    """The deadline has passed; what was begun can be continued."""


def work_on(todo: Sequence[Piece], folder: Path, options: WorkOptions) -> Left:
    """Do what is missing, beside other workers, until all is done or time is up.

    A training that diverges is left alone, with what stands on it: one bad cell does not stop a grid.
    """
    shop = Shop(folder, options)
    try:
        while remaining := shop.still_open(todo):
            if not any([shop.attempt(piece) for piece in remaining]):
                time.sleep(WAIT_SECONDS)
    except TimeIsUp:
        pass
    return Left(pieces=sum(not piece.done(folder) for piece in todo), diverged=tuple(shop.diverged.values()))


def read_outcome(file: Path | None, digest: str) -> dict[str, Any] | None:
    """What lies in the file, if it was found as things are described now."""
    if file is None or not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is not JSON ({error}); delete it, and it will be made again") from error
    return found if found.get("digest") == digest else None


def publish(pieces: Sequence[Piece], folder: Path, file: Path) -> None:
    """All that was found, one outcome a line: for `adopt`, and for whoever counts again.

    What the file says of seeds that are not asked for stays in it.
    """
    asked = {piece.key[:2] for piece in pieces}
    found = [read_outcome(piece.outcome(folder), piece.digest) for piece in pieces]
    others = [one for one in _published(file) if (one["training"], one["seed"]) not in asked]
    lines = [f"{json.dumps(one)}\n" for one in [*found, *others] if one is not None]
    atomic_write(file, "".join(lines).encode())


def adopt(pieces: Sequence[Piece], folder: Path, file: Path) -> int:
    """Take over what was published of these pieces and is not in the folder; how much that was."""
    places = {
        (piece.key[0], piece.key[1], piece.digest): place
        for piece in pieces
        if (place := piece.outcome(folder)) is not None
    }
    taken = 0
    for found in _published(file):
        place = places.get((found["training"], found["seed"], found["digest"]))
        if place is not None and read_outcome(place, found["digest"]) is None:
            write_json(place, found)
            taken += 1
    return taken


def _published(file: Path) -> list[dict[str, Any]]:
    """The file's outcomes; none where there is no file."""
    outcomes: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else (), 1):
        try:
            found = json.loads(line)
            kinds = {"training": str, "seed": int, "digest": str}
            outcomes.append(found | {name: kind(found[name]) for name, kind in kinds.items()})
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file}, line {number}, is no outcome ({error!r}); restore it, or delete it to begin anew"
            ) from error
    return outcomes


class Shop:
    """Does single pieces in one folder."""

    def __init__(self, folder: Path, options: WorkOptions) -> None:
        self.folder, self.options, self.board = folder, options, options.board
        self.diverged: dict[tuple[str, int], str] = {}
        self._done: set[tuple[str, int, str]] = set()  # what was done stays done while we work

    def done(self, piece: Piece) -> bool:
        """Whether the piece is done, by whomever."""
        if piece.key not in self._done and piece.done(self.folder):
            self._done.add(piece.key)
        return piece.key in self._done

    def still_open(self, todo: Sequence[Piece]) -> list[Piece]:
        """What can still be done, by us or by others."""
        undone = [piece for piece in todo if not self.done(piece)]
        self.board.report("all pieces", len(todo) - len(undone), len(todo))
        return [piece for piece in undone if piece.key[:2] not in self.diverged]

    def attempt(self, piece: Piece) -> bool:
        """Do the piece, unless another worker has it or it waits for another piece; whether we did it."""
        self.check_time()
        if not piece.ready(self.folder):
            return False
        with claimed(piece.lock(self.folder)) as mine:
            if not mine or self.done(piece):
                return False
            try:
                piece.carry_out(self)
            finally:
                self.board.drop(piece.name)
        return True

    def check_time(self) -> None:
        """Stop here if time is up."""
        if self._is_late():
            raise TimeIsUp

    def train(self, piece: Piece, data: Path, run: Callable[[TrainOptions], Any]) -> None:
        """Let `run` train on `data`: tell how far it is, stop it in time, and note it if it diverges."""

        def note(progress: Progress) -> None:
            words = f"{progress.stage}, loss {progress.loss:.3g}"
            self.board.report(piece.name, progress.update, progress.updates, words)
            for warning in progress.warnings:
                self.board.warn(f"{piece.name}: {warning}")
            if self._is_late():
                _stop_training()

        def prepared(what: str, done: int, total: int) -> None:
            self.board.report(piece.name, done, total, what)
            self.check_time()

        try:
            run(TrainOptions(data=data, device=self.options.device, on_progress=note, report=prepared))
        except Interrupted:
            self.check_time()
            raise  # somebody else's wish
        except Diverged as error:
            name, seed, _ = piece.key
            self.diverged[name, seed] = f"{piece.name}: {error}"
            self.board.warn(f"{piece.name}: {error}")

    def make_once(self, path: Path, make: Callable[[], Any]) -> None:
        """Let one of the workers make the file or folder `path`, and wait until it is there.

        It has its name only when it is whole; what a kill left aside is swept by the next who makes it.
        """
        while not path.exists():
            with claimed(path.with_suffix(".lock")) as mine:
                if mine and not path.exists():
                    for leftover in path.parent.glob(f".{path.name}.*.partial"):
                        leftover.unlink()
                    make()
            if not path.exists():
                self.check_time()
                time.sleep(WAIT_SECONDS)

    def _is_late(self) -> bool:
        return self.options.deadline is not None and time.monotonic() > self.options.deadline


def _stop_training() -> None:
    """Let the training loop save what it has and stop, as it does when the system asks it to."""
    if threading.current_thread() is not threading.main_thread():
        raise TimeIsUp  # only the main thread hears signals; the last checkpoint has to do
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def claimed(path: Path) -> Generator[bool]:
    """Whether this process holds the lock `path`; it is let go in the end, also when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
