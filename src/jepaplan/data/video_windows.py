"""Which frames of a video make up a clip, whatever the rate and the length of the video.

V-JEPA 2's code (facebookresearch/vjepa2), dataset of videos.

    theirs             here
    fps, frame_step    ClipConfig.fps; a step of ceil(file's fps) // fps frames
    frames_per_clip    ClipConfig.frames

Departs from theirs: windows are cut by an exact step. Their rounding of evenly spaced numbers, which
stretches the steps a little, is `resample="linspace"`. `resample="timestamps"` asks the clock instead.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.video import Backend
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How a clip is cut out of a video."""

    frames: int = 8
    fps: float | None = 4.0  # frames per second; none: every frame of the file
    size: int | None = None  # pixels of the shorter side after decoding; none: as the file has it
    resample: Literal["step", "linspace", "timestamps"] = "step"  # timestamps: for files of varying rate
    backend: Backend = "pyav"
    threads: int = 1  # that decode the items of a batch

    def __post_init__(self) -> None:
        if self.frames < 1 or self.threads < 1:
            raise InputError(
                f"need frames >= 1 and threads >= 1; got frames={self.frames}, threads={self.threads}"
            )
        if self.fps is not None and not self.fps > 0:
            raise InputError(f"fps is frames per second, positive, or None for every frame; got {self.fps}")
        if self.size is not None and self.size < 1:
            raise InputError(f"size is pixels of the shorter side, at least 1, or None; got {self.size}")


def window_indices(
    times: Float[Tensor, " F"],
    fps: float,
    config: ClipConfig,
    position: float,
    part: tuple[float, float] | None = None,
) -> Int[Tensor, " T"]:
    """Which frames of a file with these times (seconds) make up the window at `position` (0 to 1).

    Beyond the end the last frame is repeated. `part` keeps the window within these seconds.
    """
    first, end = 0, len(times)
    if part is not None:
        first = min(int(torch.searchsorted(times, part[0])), len(times) - 1)
        end = max(int(torch.searchsorted(times, part[1], right=True)), first + 1)
    count, frames = end - first, config.frames
    if config.resample == "timestamps" and config.fps is not None:
        return first + _by_time(times[first:end], fps, config, position)
    # A rate that is written as 29.999999 or 8.000001 is meant to be round.
    step = 1 if config.fps is None else max(1, int(math.ceil(fps - 1e-3) // config.fps))
    if config.resample == "linspace":
        return first + _by_rounding(count, frames, step, position)
    starts = max(count - (frames - 1) * step, 1)
    start = min(int(position * starts), starts - 1)
    return first + (start + step * torch.arange(frames)).clamp(max=count - 1)


def _by_rounding(count: int, frames: int, step: int, position: float) -> Int[Tensor, " T"]:
    """The rule of V-JEPA 2's code: evenly spaced numbers over `frames * step` frames, rounded down."""
    length = frames * step
    if count > length:
        start = min(int(position * (count - length)), count - length - 1)
        spaced = torch.linspace(start, start + length, frames, dtype=torch.float64)
        return spaced.clamp(start, start + length - 1).long()
    spaced = torch.linspace(0, count, count // step, dtype=torch.float64)
    padded = torch.cat([spaced, torch.full((frames - count // step,), count, dtype=torch.float64)])
    return padded.clamp(0, count - 1).long()


def _by_time(
    times: Float[Tensor, " F"], fps: float, config: ClipConfig, position: float
) -> Int[Tensor, " T"]:
    """The frame that is on show at each moment of a clock that ticks at the wanted rate."""
    ticks = torch.arange(config.frames, dtype=torch.float64) / (config.fps or fps)
    room = float(times[-1] - times[0] - ticks[-1])
    # The last frame stays on show for a while as well, so it may begin a tick.
    start = min(position * (room + 1 / fps), room) if room > 0 else 0.0
    moments = times[0] + start + ticks
    return (torch.searchsorted(times, moments + 1e-6, right=True) - 1).clamp(0, len(times) - 1)


def scaled_size(height: int, width: int, shorter: int | None) -> tuple[int, int]:
    """Height and width whose shorter side is `shorter`, in proportion."""
    if shorter is None:
        return height, width
    scale = shorter / min(height, width)
    return max(round(height * scale), shorter), max(round(width * scale), shorter)


def centre_crop(frames: UInt8[Tensor, "T 3 height width"]) -> UInt8[Tensor, "T 3 side side"]:
    """The square in the middle."""
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]
