"""Decoded frames of a small set of videos, kept as bytes on disk and mapped into memory.

The name of a cache is the hash of its content's origin: each file's path, size and time of change, and how
frames are decoded. Another list, a changed file or another size therefore makes another cache. Two files:

    KEY.bytes   the frames of all files one after the other, uint8, T 3 height width
    KEY.json    where each file's frames lie, their times and rates, or why a file is unreadable

Both are written aside and renamed, the index last: a cache is there whole or not at all. One whose length is
not what its index says is refused.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.sealed_file import aside
from jepaplan.data.video import open_video
from jepaplan.data.video_sets import VideoSet
from jepaplan.data.video_windows import ClipConfig, scaled_size
from jepaplan.types import InputError

FORMAT = "jepaplan decoded video 1"
BLOCK = 64  # files decoded before their frames are written
Progress = Callable[[int, int], None]  # called with the files decoded and the files in all


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index says of one file; frames, height and width are 0 where it is unreadable."""

    path: str
    offset: int = 0  # of the first byte
    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    times: tuple[float, ...] = ()  # seconds
    reason: str | None = None  # why it is unreadable


class VideoCache:
    """Frames at hand for `VideoClips`; safe to share between threads. Make one with `cache_videos`."""

    def __init__(self, entries: Iterable[Entry], frames: np.ndarray) -> None:
        self._entries = {entry.path: entry for entry in entries}
        self._frames = np.asarray(frames)  # flat bytes; a plain array is cut faster than a map

    def timing(self, path: Path) -> tuple[float, Float[Tensor, " F"]]:
        """Frames per second and the time of each frame; InputError where the file is unreadable."""
        entry = self._entry(path)
        return entry.fps, torch.tensor(entry.times, dtype=torch.float64)

    def read(self, path: Path, indices: Int[Tensor, " T"]) -> UInt8[Tensor, "T 3 h w"]:
        """A copy of these frames."""
        entry = self._entry(path)
        shape = (entry.frames, 3, entry.height, entry.width)
        whole = self._frames[entry.offset : entry.offset + int(np.prod(shape))].reshape(shape)
        return torch.from_numpy(whole[indices.numpy()])

    def _entry(self, path: Path) -> Entry:
        entry = self._entries.get(str(path))
        if entry is None:
            raise InputError(f"{path} is not in this cache; make it from the sets that are read")
        if entry.reason is not None:
            raise InputError(entry.reason)
        return entry


def cache_videos(
    folder: Path | str,
    sets: Sequence[VideoSet],
    config: ClipConfig,
    progress: Progress | None = None,
) -> VideoCache:
    """The decoded frames of all files of `sets`: opened where they exist, else decoded into `folder`."""
    folder = Path(folder)
    paths = list(dict.fromkeys(path for one in sets for path in one.paths))
    key = _key(paths, config)
    index, data = folder / f"{key}.json", folder / f"{key}.bytes"
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(index, data, paths, config, progress)
    return _open(index, data)


def _key(paths: Sequence[Path], config: ClipConfig) -> str:
    """The hash of names, sizes, times of change and the way of decoding."""
    digest = hashlib.sha256(f"{FORMAT}\n{config.size} {config.backend}\n".encode())
    for path in paths:
        try:
            facts = path.stat()
            digest.update(f"{path}\n{facts.st_size} {facts.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\nmissing\n".encode())
    return digest.hexdigest()[:24]


def _write(
    index: Path, data: Path, paths: Sequence[Path], config: ClipConfig, progress: Progress | None
) -> None:
    partial, partial_index = aside(data), aside(index)
    entries: list[Entry] = []
    try:
        with partial.open("wb") as file, ThreadPoolExecutor(config.threads) as pool:
            for first in range(0, len(paths), BLOCK):
                for entry, frames in pool.map(
                    lambda path: _decode(path, config), paths[first : first + BLOCK]
                ):
                    entries.append(replace(entry, offset=file.tell()))
                    file.write(frames.numpy().tobytes())
                if progress is not None:
                    progress(len(entries), len(paths))
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        facts = {"format": FORMAT, "bytes": size, "files": [asdict(entry) for entry in entries]}
        partial_index.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(partial, data)
        os.replace(partial_index, index)
    finally:
        partial.unlink(missing_ok=True)
        partial_index.unlink(missing_ok=True)


def _decode(path: Path, config: ClipConfig) -> tuple[Entry, UInt8[Tensor, "F 3 h w"]]:
    """All frames of a file, and what the index will say of it but for the place."""
    try:
        with open_video(path, config.backend) as video:
            times, fps = video.timestamps, video.fps
            size = scaled_size(video.height, video.width, config.size)
            frames = video.read(torch.arange(len(times)), size)
    except InputError as reason:
        return Entry(path=str(path), reason=str(reason)), torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    facts: dict[str, Any] = {"frames": len(frames), "height": frames.shape[-2], "width": frames.shape[-1]}
    return Entry(path=str(path), fps=fps, times=tuple(times.tolist()), **facts), frames


def _open(index: Path, data: Path) -> VideoCache:
    """Refuse what is not whole."""
    remedy = f"delete {index} and {data}, and the cache is made again"
    try:
        facts = json.loads(index.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise InputError(f"{index} is of the format {facts['format']!r}, not {FORMAT!r}; {remedy}")
        entries = [_entry(one) for one in facts["files"]]
        due = int(facts["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as reason:
        if isinstance(reason, InputError):
            raise
        raise InputError(f"{index} is damaged ({reason!r}); {remedy}") from reason
    size = data.stat().st_size if data.is_file() else 0
    if size != due:
        raise InputError(f"{data} has {size} bytes where its index says {due}: it was cut short; {remedy}")
    return VideoCache(entries, np.memmap(data, np.uint8, "r") if due else np.empty(0, np.uint8))


def _entry(facts: dict[str, Any]) -> Entry:
    """An entry as JSON gives it back."""
    fields: dict[str, Any] = {**facts, "times": tuple(facts["times"])}
    return Entry(**fields)
