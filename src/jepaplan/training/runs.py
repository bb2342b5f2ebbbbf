"""A run is a folder: what was asked, what came out, and all that is needed to go on after a kill.

    config.json           the configuration, as asked for; a run keeps the one it began with
    card.json             recipe, configuration, data, commit, seeds, hardware, metrics, wall time
    weights.safetensors   the product after the last checkpoint
    best.safetensors      the product at its best held-out metric, where one was chosen
    metrics.jsonl         the learning curves, one JSON object a line
    state/<stage>/        checkpoints of the training itself, two generations
    events/               the curves for TensorBoard, when asked for

Nothing is written outside the folder, and one process at a time may write into it.
"""

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TextIO, cast

from torch import Tensor

from jepaplan.training import provenance
from jepaplan.training.checkpoint import PARTIAL, atomic_write, remove, save_weights
from jepaplan.training.distributed import barrier, processes
from jepaplan.types import InputError


def to_json(value: Any) -> Any:
    """Records, paths, tuples and enumerations as plain JSON values; numbers that JSON lacks become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [to_json(item) for item in cast(Any, value)]
        return sorted(items, key=repr) if isinstance(value, set | frozenset) else items
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The fields in which two JSON values differ, as `name: before -> now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        old, new = cast(dict[str, Any], before), cast(dict[str, Any], now)
        lines: list[str] = []
        for key in dict.fromkeys([*old, *new]):
            path = f"{name}.{key}" if name else key
            lines += differences(old.get(key, "(absent)"), new.get(key, "(absent)"), path)
        return lines
    return [] if before == now else [f"{name}: {json.dumps(before)} -> {json.dumps(now)}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run comes from; it is compared when the run is opened again."""

    recipe: str
    configuration: Any  # a frozen dataclass or a mapping
    data: str  # content hash of the recording
    seed: int


class RunDirectory:
    """The files of one run. Reading needs no more than the path; to write, use `open_run`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._opened = False
        self._writes = False
        self._metrics: TextIO | None = None
        self._boards: dict[str, Any] = {}
        self._known: dict[str, int] = {}
        self._tensorboard = False

    @property
    def config(self) -> Path:
        """The configuration as JSON."""
        return self.path / "config.json"

    @property
    def card(self) -> Path:
        """Where every number of the run comes from."""
        return self.path / "card.json"

    @property
    def weights(self) -> Path:
        """The product after the last checkpoint."""
        return self.path / "weights.safetensors"

    @property
    def best(self) -> Path:
        """The product at its best held-out metric."""
        return self.path / "best.safetensors"

    @property
    def metrics(self) -> Path:
        """The learning curves."""
        return self.path / "metrics.jsonl"

    def state(self, stage: str) -> Path:
        """The folder of a stage's checkpoints."""
        return self.path / "state" / stage

    def read_card(self) -> dict[str, Any]:
        """The card; an error says so where there is no run."""
        return _read_json(self.card)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of the learning curves; a line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def require_open(self) -> None:
        """Refuse to write into a run that nobody opened."""
        if not self._opened:
            raise InputError(
                f"{self.path} was not opened for training; write `with open_run({str(self.path)!r}, origin) "
                "as run:`"
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row of numbers to the learning curves."""
        self.require_open()
        if not self._writes:
            return
        if self._metrics is None:
            self._metrics = self.metrics.open("a")
        self._metrics.write(json.dumps(to_json(row)) + "\n")
        if self._tensorboard:
            self._log_events(row)

    def _log_events(self, row: Mapping[str, Any]) -> None:
        stage = row["stage"]
        if stage not in self._boards:
            folder, forgotten = str(self.path / "events" / stage), self._known.get(stage, 0) + 1
            self._boards[stage] = _summary_writer()(folder, purge_step=forgotten)
        for name, value in row.items():
            if isinstance(value, float) and name != "seconds":
                self._boards[stage].add_scalar(name, value, row["update"])

    def flush(self) -> None:
        """Bring the curves to the disk, so that a checkpoint never knows of updates that they lack."""
        if self._metrics is not None:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        for board in self._boards.values():
            board.flush()

    def rewind(self, stage: str, update: int) -> None:
        """Forget what `stage` wrote after `update`: it will be computed again."""
        self.require_open()
        self._known[stage] = update
        if not self._writes:
            return
        if update == 0:  # of an earlier stage; this one has not evaluated yet
            self.best.unlink(missing_ok=True)
        if not self.metrics.exists():
            return
        self._close_metrics()
        rows = [row for row in self.read_metrics() if row["stage"] != stage or row["update"] <= update]
        atomic_write(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def save_product(self, path: Path, tensors: Mapping[str, Tensor], **facts: Any) -> None:
        """Write a product's tensors with a card that says which run, stage and update they are from."""
        self.require_open()
        if self._writes:
            card = self.read_card()
            origin = {
                name: card[name] for name in ("recipe", "configuration", "data", "seed", "commit", "version")
            }
            save_weights(path, tensors, {**origin, **to_json(facts)})

    def update_card(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Note in the card what a stage has come to."""
        self.require_open()
        if self._writes:
            card = self.read_card()
            card["stages"] = {**card["stages"], stage: to_json(facts)}
            card["seconds"] = sum(known["seconds"] for known in card["stages"].values())
            write_json(self.card, card)

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def start(self, writes: bool, tensorboard: bool) -> None:
        """Allow writing; called by `open_run`, which holds the lock."""
        self._opened, self._writes, self._tensorboard = True, writes, tensorboard and writes

    def stop(self) -> None:
        """Close what is open."""
        self._close_metrics()
        for board in self._boards.values():
            board.close()
        self._opened, self._boards = False, {}


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all."""
    atomic_write(path, (json.dumps(to_json(value), indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Is {path.parent} the folder of a run?"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}); restore it or train into another folder.") from error


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "TensorBoard was asked for but is not installed: pip install 'jepaplan[track]', or leave it off; "
            "metrics.jsonl holds the same curves."
        ) from error
    return SummaryWriter


@contextmanager
def open_run(
    path: Path | str,
    origin: Origin,
    tensorboard: bool = False,
    complete: Callable[[Any], Any] | None = None,
) -> Generator[RunDirectory, None, None]:
    """Open a run for training, new or to be continued. Among several processes only the first writes.

    `complete` gives a stored configuration the fields that came after it was written, with their defaults.
    """
    run = RunDirectory(path)
    if tensorboard:
        _summary_writer()  # before hours of training, not after
    if not processes().writes:
        barrier()
        run.start(writes=False, tensorboard=False)
        yield run
        return
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the run folder {path}: {error.strerror}. Choose another path."
        ) from error
    with _locked(run.path):
        _compare_or_begin(run, origin, complete or (lambda configuration: configuration))
        for leftover in list(run.path.rglob(f".*{PARTIAL}")):
            remove(leftover)
        barrier()
        run.start(writes=True, tensorboard=tensorboard)
        try:
            yield run
        finally:
            run.stop()


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    # The kernel lets go of the lock when the process dies, however it dies: a lock never outlives its owner.
    with (path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InputError(
                f"{path} is in use by another process ({owner}). Wait for it, or train into another folder."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _compare_or_begin(run: RunDirectory, origin: Origin, complete: Callable[[Any], Any]) -> None:
    asked = to_json(origin)
    source = {
        "commit": provenance.commit(),
        "version": provenance.version(),
        "hardware": provenance.hardware(),
    }
    if not run.card.exists():
        if run.config.exists():
            raise InputError(
                f"{run.path} holds a config.json but no card.json, so it is not a run of ours and is left "
                "alone. "
                "Train into another folder."
            )
        write_json(run.card, {**asked, **source, "stages": {}, "seconds": 0.0})
    card = run.read_card()
    begun = {name: card.get(name) for name in asked}
    changed = differences({**begun, "configuration": complete(begun["configuration"])}, asked)
    if changed:
        raise InputError(
            f"{run.path} holds a run that was begun differently (begun -> asked now):\n  "
            + "\n  ".join(changed)
            + "\n"
            "Train into another folder, or ask for what the run was begun with to continue it."
        )
    if not run.config.exists():
        write_json(run.config, asked["configuration"])
    before = {name: card.get(name) for name in source}
    if before != source:  # a run continued elsewhere says where each part was made
        write_json(run.card, {**card, **source, "earlier": [*card.get("earlier", []), before]})
