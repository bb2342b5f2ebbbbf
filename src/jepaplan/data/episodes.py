"""Recorded episodes: flat columns in memory, one sealed HDF5 file on disk.

An episode is T actions and T+1 frames. All episodes lie one after the other in flat columns, with the first
frame and the number of actions of each episode beside them; action `k` of episode `e` is row `starts[e] - e +
k`.

On disk: `observations` (uint8, zlib chunks of one episode that any HDF5 reader opens), `actions`, `states`
and `proprioception` (float32), `rewards` (float32), `terminal` and `success` (bool), `starts`, `lengths`
(int64), a `manifest` (JSON text) and the `content_hash` of the columns. Only actions have to be there.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from jepaplan.data.sealed_file import BLOCK, aside, check_seal, mark_unfinished, seal
from jepaplan.types import InputError

CHUNK_BYTES = 16 << 20  # at most; an episode longer than this is cut into several chunks
OPTIONAL = ("states", "proprioception")
COLUMNS = ("actions", *OPTIONAL)
EARNED = ("rewards", "terminal", "success")  # one number a row, where the others have several
PER_ACTION = ("actions", "rewards", "terminal")  # the others are per frame
_STORED = {"rewards": (torch.float32, 1), "starts": (torch.int64, 1), "lengths": (torch.int64, 1)} | {
    name: (torch.bool, 1) for name in ("terminal", "success")
}


@dataclass(frozen=True, kw_only=True)
class Earned:
    """What a recording earned, as far as somebody told: columns beside its actions and frames."""

    rewards: Float[Tensor, "..."] | None = None  # of each action
    terminal: Bool[Tensor, "..."] | None = None  # of each action: nothing is earned after it
    success: Bool[Tensor, "..."] | None = None  # of each frame

    def columns(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        every = {name: getattr(self, name) for name in EARNED}
        return {name: column for name, column in every.items() if column is not None}


@dataclass(frozen=True)
class Episodes:
    """All frames and actions of a recording, flat. Nothing here may be written to."""

    path: Path
    manifest: Mapping[str, Any]  # what was recorded, how, and from which seed
    content_hash: str  # of the columns, whatever the manifest says
    observations: UInt8[Tensor, "F C height width"]
    actions: Float[Tensor, "K A"]  # environment units
    # Rows are counted in __post_init__, which says more than a shape error: hence no F here.
    states: Float[Tensor, "_ W"] | None  # the true state of each frame, for probes only
    proprioception: Float[Tensor, "_ P"] | None  # of each frame
    starts: Int[Tensor, " E"]  # first frame of each episode
    lengths: Int[Tensor, " E"]  # actions of each episode
    earned: Earned = field(default_factory=Earned)

    def __post_init__(self) -> None:
        """Refuse columns that do not fit together."""
        ends = (self.lengths + 1).cumsum(0)
        frames, actions = len(self.observations), len(self.actions)
        if (
            not len(ends)
            or int(self.lengths.min()) < 1
            or not torch.equal(ends - self.lengths - 1, self.starts)
        ):
            raise InputError(
                f"{self.path}: episodes must follow each other without gaps, each with an action or more"
            )
        if int(ends[-1]) != frames or int(self.lengths.sum()) != actions:
            raise InputError(
                f"{self.path}: {len(ends)} episodes of {int(self.lengths.sum())} actions need "
                f"{int(ends[-1])} frames; "
                f"the columns hold {actions} actions and {frames} frames. An episode of T actions has T + 1 "
                f"frames."
            )
        columns = {name: column for name in COLUMNS if (column := getattr(self, name)) is not None}
        for name, column in (columns | self.earned.columns()).items():
            if len(column) != (actions if name in PER_ACTION else frames):
                raise InputError(
                    f"{self.path}: {name} has {len(column)} rows for {frames} frames, {actions} actions"
                )
            if not bool(column.isfinite().all()):
                row = int((~column.isfinite()).nonzero()[0, 0])
                raise InputError(f"{self.path}: {name} holds a number that is not finite, first in row {row}")

    def __len__(self) -> int:
        """How many episodes there are."""
        return len(self.starts)


@dataclass
class EpisodeWriter:
    """Write episodes into one file that appears under its name only when it is whole.

        with EpisodeWriter(path, {"world": "WallSmall", "seed": 0}) as writer:
            writer.append(observations, actions)

    Memory: the small columns and one chunk of frames.
    """

    path: Path
    manifest: Mapping[str, Any]
    _columns: dict[str, list[np.ndarray]] = field(default_factory=dict, init=False, repr=False)
    _lengths: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the manifest is JSON before anything is recorded."""
        self.path = Path(self.path)
        try:
            self._text = json.dumps(dict(self.manifest), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as reason:
            raise InputError(
                f"the manifest of {self.path} must be JSON (text, numbers, lists): {reason}"
            ) from reason

    def __enter__(self) -> "EpisodeWriter":
        """Open a file aside, in the same folder."""
        self._aside = aside(self.path)
        self._hash = hashlib.sha256()
        self._pending: list[np.ndarray] = []
        self._frames = self._stored = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._aside, "w", libver=("v110", "v110"), userblock_size=BLOCK)
            mark_unfinished(self._aside)
        except OSError as reason:
            raise self._failure(reason) from reason
        return self

    def append(
        self,
        observations: Shaped[Tensor, "*frames C height width"],
        actions: Shaped[Tensor, "*steps A"],
        states: Shaped[Tensor, "*rows W"] | None = None,
        proprioception: Shaped[Tensor, "*lines P"] | None = None,
        earned: Earned | None = None,
    ) -> None:
        """Add one episode, or several of equal length stacked in front."""
        small = {"actions": actions, "states": states, "proprioception": proprioception}
        small = {name: column for name, column in small.items() if column is not None}
        small |= {} if earned is None else earned.columns()
        self._check(observations, small)
        frames, steps = observations.shape[-4], actions.shape[-2]
        for name, column in small.items():
            kind, axes = _STORED.get(name, (torch.float32, 2))
            flat = column.detach().cpu().reshape(-1, *column.shape[-1:][: axes - 1]).to(kind).numpy()
            self._columns.setdefault(name, []).append(flat.copy())
        flat = observations.detach().cpu().reshape(-1, *observations.shape[-3:]).numpy()
        self._lengths += [steps] * (len(flat) // frames)
        try:
            self._add_frames(flat, frames)
        except (OSError, RuntimeError) as reason:
            raise self._failure(reason) from reason

    def leave_out(self, name: str) -> None:
        """Forget a small column of all episodes, once the last was added: it turned out to say nothing."""
        self._columns.pop(name, None)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Seal and rename, or leave nothing behind if recording failed."""
        if kind is not None:
            self._discard()
            return
        if not self._lengths:
            self._discard()
            raise InputError(f"{self.path}: no episode was appended, so no file was written")
        try:
            self._finish()
        except (OSError, RuntimeError) as reason:
            raise self._failure(reason) from reason

    def _check(self, observations: Tensor, small: dict[str, Tensor]) -> None:
        actions = small["actions"]
        if observations.dtype != torch.uint8:
            raise InputError(f"observations must be uint8 images, C height width; got {observations.dtype}")
        if (
            observations.ndim not in (4, 5)
            or observations.shape[-4] != actions.shape[-2] + 1
            or actions.shape[-2] < 1
        ):
            raise InputError(
                f"an episode of T actions has T + 1 frames, T at least 1; got actions "
                f"{tuple(actions.shape)} and "
                f"observations {tuple(observations.shape)} (frames C height width, several episodes in front)"
            )
        if self._lengths and set(small) != set(self._columns):
            raise InputError(
                f"earlier episodes had columns {sorted(self._columns)}, this one has {sorted(small)}"
            )
        for name, column in small.items():
            rows = observations.shape[-4] - (name in PER_ACTION)
            leading = column.shape if name in EARNED else column.shape[:-1]
            if leading != (*observations.shape[:-4], rows):
                raise InputError(
                    f"{name} {tuple(column.shape)} do not fit observations {tuple(observations.shape)}"
                )
            if not bool(column.isfinite().all()):
                raise InputError(
                    f"{name} of episode {len(self._lengths)} or after hold a number that is not finite"
                )
            width = self._columns[name][0].shape[-1] if self._lengths else column.shape[-1]
            if name not in EARNED and width != column.shape[-1]:
                raise InputError(f"{name} had {width} components in earlier episodes, now {column.shape[-1]}")

    def _add_frames(self, flat: np.ndarray, episode_frames: int) -> None:
        """Keep whole chunks moving to the disk; what does not fill a chunk waits."""
        if not self._frames:
            self._per_chunk = max(1, min(episode_frames, CHUNK_BYTES // max(1, flat[0].nbytes)))
            self._images = self._file.create_dataset(
                "observations", (0, *flat.shape[1:]), np.uint8, maxshape=(None, *flat.shape[1:]),
                chunks=(self._per_chunk, *flat.shape[1:]), compression="gzip", compression_opts=1,
            )  # fmt: skip
        if flat.shape[1:] != self._images.shape[1:]:
            raise InputError(
                f"images were {self._images.shape[1:]} in earlier episodes, now {flat.shape[1:]}"
            )
        self._frames += len(flat)
        self._images.resize(self._frames, axis=0)
        held = np.concatenate([*self._pending, flat]) if self._pending else flat
        whole = len(held) - len(held) % self._per_chunk
        for first in range(0, whole, self._per_chunk):
            self._store_chunk(held[first : first + self._per_chunk])
        self._pending = [held[whole:].copy()] if whole < len(held) else []

    def _store_chunk(self, frames: np.ndarray) -> None:
        # Compressed here and stored as it is: HDF5 would do the same work more slowly, and the hash
        # needs the bytes.
        packed = zlib.compress(np.ascontiguousarray(frames).data, 1)
        self._images.id.write_direct_chunk((self._stored, 0, 0, 0), packed)
        self._hash.update(packed)
        self._stored += len(frames)

    def _finish(self) -> None:
        if self._pending:
            last = self._pending[0]
            missing = self._per_chunk - len(last)
            self._store_chunk(np.concatenate([last, np.zeros((missing, *last.shape[1:]), np.uint8)]))
        lengths = np.array(self._lengths, np.int64)
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        columns |= {"starts": np.cumsum(lengths + 1) - lengths - 1, "lengths": lengths}
        self._hash.update(repr((self._images.shape, self._per_chunk)).encode())
        for name, column in columns.items():
            self._hash.update(repr((name, column.shape, str(column.dtype))).encode() + column.tobytes())
            self._file.create_dataset(name, data=column)
        self._file.create_dataset("manifest", data=self._text)
        self._file.attrs["content_hash"] = self._hash.hexdigest()
        self._file.close()
        seal(self._aside, self.path)

    def _failure(self, reason: Exception) -> InputError:
        self._discard()
        return InputError(f"{self.path}: could not be written ({reason}); nothing was left behind")

    def _discard(self) -> None:
        self._aside.unlink(missing_ok=True)
        file = getattr(self, "_file", None)
        try:
            if file is not None and file:
                file.close()
        except (OSError, RuntimeError):
            pass  # the disk is full: HDF5 cannot flush a file that is gone anyway


def open_episodes(path: Path | str) -> Episodes:
    """Read a recording into memory, whole and checked, or say why not."""
    path = Path(path)
    check_seal(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            stored: Any = file  # h5py types every member as a group, a dataset or a type
            columns = {name: _column(stored, name) for name in (*COLUMNS, "starts", "lengths")}
            earned = Earned(**{name: _column(stored, name) for name in EARNED})
            manifest = json.loads(stored["manifest"][()])
            content_hash = str(file.attrs["content_hash"])
            observations = _unpack(stored["observations"])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, zlib.error) as reason:
        raise InputError(f"{path}: not a recording that this version reads ({reason})") from reason
    return Episodes(path, manifest, content_hash, observations, **columns, earned=earned)


def _column(file: Any, name: str) -> Any:
    """A small column; None where one that may be missing is."""
    if name not in file and name in (*OPTIONAL, *EARNED):
        return None
    column = torch.from_numpy(file[name][...])
    due = _STORED.get(name, (torch.float32, 2))
    if (column.dtype, column.ndim) != due:
        raise ValueError(f"{name} is {column.dtype} with {column.ndim} axes, expected {due[0]} with {due[1]}")
    return column


def _unpack(images: Any) -> UInt8[Tensor, "F C height width"]:
    """All frames. Chunks are inflated here, which is faster than through HDF5's cache."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.compression != "gzip":
        raise ValueError(f"observations are {images.dtype} {images.shape}, expected zlib-packed uint8 images")
    frames = torch.empty(images.shape, dtype=torch.uint8)
    chunk_bytes = math.prod(images.chunks)
    for first in range(0, len(frames), images.chunks[0]):
        _, packed = images.id.read_direct_chunk((first, 0, 0, 0))
        levels = np.frombuffer(zlib.decompress(packed, bufsize=chunk_bytes), np.uint8)
        part = frames[first : first + images.chunks[0]].numpy()
        part[...] = levels.reshape(images.chunks)[: len(part)]
    return frames
