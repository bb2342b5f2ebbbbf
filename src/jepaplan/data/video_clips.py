"""Which windows of which video files an update sees, and how they become clips.

V-JEPA 2 (arXiv:2506.09985), section on data: sets are mixed by weight, so a file is drawn with weight over
the length of its set, with replacement. `Epochs` goes through all files in a shuffled order instead.

A sample is drawn from the generator alone and holds tensors only, so processes can cut it; what it says is
decoded later, each process its own share. A file that cannot be read is replaced by another, drawn from the
item's own seed, and named with the reason by `VideoClips.unreadable`.
"""

import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.clips import AugmentationConfig, apply_views, draw_views
from jepaplan.data.video import open_video
from jepaplan.data.video_sets import VideoSet
from jepaplan.data.video_windows import ClipConfig, centre_crop, scaled_size, window_indices
from jepaplan.types import InputError, SeedTree

ATTEMPTS = 20  # files tried for one item before giving up: by then the set is mostly broken

Augment = Callable[[UInt8[Tensor, "T 3 height width"], torch.Generator], UInt8[Tensor, "T 3 h w"]]


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """What a batch shall be: tensors only, and the first axis counts the items."""

    file: Int[Tensor, " B"]  # over all sets, one after the other
    position: Float[Tensor, " B"]  # 0 is the first window that fits, 1 the last
    seed: Int[Tensor, " B"]  # of what is drawn while loading: augmentation, replacements


@dataclass(frozen=True, kw_only=True)
class VideoBatch:
    """What was decoded."""

    clips: UInt8[Tensor, "B T 3 height width"]
    labels: Mapping[str, Int[Tensor, " B"]]  # of the kinds that every set has
    file: Int[Tensor, " B"]  # which file it truly was; differs from the sample's where that was unreadable


@runtime_checkable
class Frames(Protocol):
    """Decoded frames of files kept at hand, such as `data.video_cache.VideoCache`."""

    def timing(self, path: Path) -> tuple[float, Float[Tensor, " F"]]:
        """Frames per second and the time of each frame; InputError where the file is unreadable."""
        ...

    def read(self, path: Path, indices: Int[Tensor, " T"]) -> UInt8[Tensor, "T 3 h w"]:
        """These frames, shorter side as in the configuration."""
        ...


def random_views(config: AugmentationConfig, size: tuple[int, int]) -> Augment:
    """Random crops and mirrors, drawn anew for each clip and the same for all of its frames."""

    def augment(
        frames: UInt8[Tensor, "T 3 height width"], generator: torch.Generator
    ) -> UInt8[Tensor, "T 3 h w"]:
        return apply_views(frames[None], draw_views(1, config, generator), size)[0]

    return augment


class VideoClips:
    """Clips from one or several sets, as `training.stage.Stage` wants them: `sample` draws, `load` decodes.

    `augment` gets the whole frames of a clip and a generator of its own; without it clips are cut to the
    square in the middle. `cache` serves decoded frames.
    """

    def __init__(
        self,
        sets: Sequence[VideoSet],
        config: ClipConfig,
        weights: Sequence[float] | None = None,
        augment: Augment | None = None,
        cache: Frames | None = None,
    ) -> None:
        lengths = [len(one) for one in sets]
        if not sets:
            raise InputError("clips need at least one set of videos")
        if weights is not None and (
            len(weights) != len(sets) or any(not w >= 0 for w in weights) or not math.fsum(weights) > 0
        ):
            raise InputError(
                f"weights are numbers >= 0, one for each of {len(sets)} sets, not all 0; got {list(weights)}"
            )
        self.sets, self.config, self.augment, self.cache = tuple(sets), config, augment, cache
        # Without weights every file is equally likely.
        self.weights = torch.tensor(lengths if weights is None else list(weights), dtype=torch.float64)
        self._lengths = torch.tensor(lengths)
        self._starts = self._lengths.cumsum(0) - self._lengths
        self._first: list[int] = self._starts.tolist()
        kinds = set(sets[0].labels).intersection(*(one.labels for one in sets[1:]))
        self.labels = {kind: torch.cat([one.labels[kind] for one in sets]) for kind in sorted(kinds)}
        self._unreadable: dict[Path, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many files there are in all sets."""
        return int(self._lengths.sum())

    def sample(self, generator: torch.Generator, items: int) -> ClipSample:
        """Windows drawn with replacement: a set by its weight, a file of it, a position, all uniform."""
        return self._noise(self._draw(items, generator), generator)

    def sample_epoch(self, update: int, items: int, seed: int) -> ClipSample:
        """The windows of an update that goes through all files in a shuffled order, again and again.

        The update's number and the seed decide, so a run that resumes has nothing to restore. Weights play
        no part: every file comes once an epoch.
        """
        epoch, place = divmod(update * items, len(self))
        files: list[Tensor] = []
        missing = items
        while missing:
            order = torch.randperm(len(self), generator=SeedTree(seed).torch("epoch", epoch))
            part = order[place : place + missing]
            files.append(part)
            missing, epoch, place = missing - len(part), epoch + 1, 0
        return self._noise(torch.cat(files), SeedTree(seed).torch("windows", update))

    def at(self, file: Int[Tensor, " B"], position: float | Float[Tensor, " B"]) -> ClipSample:
        """Windows at a given position of given files, for evaluation: 0 is the first, 1 the last."""
        where = torch.as_tensor(position, dtype=torch.float32).expand(len(file)).clone()
        return ClipSample(file=file, position=where, seed=file.clone())

    def views(self, file: Int[Tensor, " B"], count: int) -> ClipSample:
        """`count` windows spread evenly over each file; the views of a file follow each other."""
        position = torch.full((1,), 0.5) if count == 1 else torch.linspace(0, 1, count)
        return self.at(file.repeat_interleave(count), position.repeat(len(file)))

    def load(self, sample: ClipSample) -> VideoBatch:
        """Decode what a sample says; the order of threads changes nothing."""
        items = list(
            zip(*(part.tolist() for part in (sample.file, sample.position, sample.seed)), strict=True)
        )
        if self.config.threads == 1 or len(items) < 2:
            loaded = [self._item(*item) for item in items]
        else:
            with ThreadPoolExecutor(min(self.config.threads, len(items))) as pool:
                loaded = list(pool.map(lambda item: self._item(*item), items))
        shapes = {clip.shape for clip, _ in loaded}
        if len(shapes) > 1:
            raise InputError(
                f"clips of one batch have different shapes: {sorted(map(tuple, shapes))}; set `size` in "
                "ClipConfig, or let `augment` return one size"
            )
        file = torch.tensor([number for _, number in loaded])
        labels = {kind: labels[file] for kind, labels in self.labels.items()}
        return VideoBatch(clips=torch.stack([clip for clip, _ in loaded]), labels=labels, file=file)

    def unreadable(self) -> Mapping[Path, str]:
        """The files that this process could not read so far, each with the reason."""
        with self._lock:
            return dict(sorted(self._unreadable.items()))

    def path(self, file: int) -> Path:
        """The path of a file number."""
        which, row = self._where(file)
        return self.sets[which].paths[row]

    def _draw(self, items: int, generator: torch.Generator) -> Int[Tensor, " B"]:
        which = torch.multinomial(self.weights, items, replacement=True, generator=generator)
        part = torch.rand(items, generator=generator, dtype=torch.float64)
        return self._starts[which] + (part * self._lengths[which]).long()

    def _noise(self, file: Int[Tensor, " B"], generator: torch.Generator) -> ClipSample:
        position = torch.rand(len(file), generator=generator)
        seed = torch.randint(2**62, (len(file),), generator=generator)
        return ClipSample(file=file, position=position, seed=seed)

    def _where(self, file: int) -> tuple[int, int]:
        """The set and the row in it of a file number."""
        which = bisect_right(self._first, file) - 1
        return which, file - self._first[which]

    def _item(self, file: int, position: float, seed: int) -> tuple[UInt8[Tensor, "T 3 h w"], int]:
        """A clip and the number of the file it is from, which is another where the first is unreadable."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(ATTEMPTS):
            path = self.path(file)
            if path not in self._unreadable:
                try:
                    return self._fit(self._read(file, position), generator), file
                except InputError as reason:
                    with self._lock:
                        self._unreadable[path] = str(reason)
            file = int(self._draw(1, generator))
        some = next(iter(self._unreadable.values()))
        raise InputError(
            f"none of {ATTEMPTS} files drawn for one item could be read; {len(self._unreadable)} of "
            f"{len(self)} are unreadable so far, one because: {some}"
        )

    def _read(self, file: int, position: float) -> UInt8[Tensor, "T 3 height width"]:
        which, row = self._where(file)
        path, segments = self.sets[which].paths[row], self.sets[which].segments
        part = None if segments is None else (float(segments[row, 0]), float(segments[row, 1]))
        if self.cache is not None:
            fps, times = self.cache.timing(path)
            return self.cache.read(path, window_indices(times, fps, self.config, position, part))
        with open_video(path, self.config.backend) as video:
            indices = window_indices(video.timestamps, video.fps, self.config, position, part)
            return video.read(indices, scaled_size(video.height, video.width, self.config.size))

    def _fit(
        self, frames: UInt8[Tensor, "T 3 height width"], generator: torch.Generator
    ) -> UInt8[Tensor, "T 3 h w"]:
        if self.augment is not None:
            return self.augment(frames, generator)
        return frames if self.config.size is None else centre_crop(frames)


class Epochs:
    """All files in a shuffled order, again and again: `before_update` and `sample` of a `Stage`."""

    def __init__(self, clips: VideoClips, seed: int) -> None:
        self.clips, self.seed, self.update = clips, seed, 0

    def before_update(self, update: int) -> None:
        """Note how many updates are done, which is all there is to know after a resume."""
        self.update = update

    def sample(self, generator: torch.Generator, items: int) -> ClipSample:
        """The windows of the coming update; the generator plays no part."""
        del generator
        return self.clips.sample_epoch(self.update, items, self.seed)
