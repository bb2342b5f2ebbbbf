"""Video files: which frames they hold and when, any of them decoded exactly, and new ones written.

A file is demultiplexed once when it is opened, which costs no decoding and yields the time of every frame in
the order of display. Frame `k` here is the k-th picture of that order: reading it seeks to a key frame before
it, decodes onwards and picks by time stamp, never by counting, so frames after a seek are the frames of a
full decode. Turns that a file only notes (phones do) and pixels that are not square are not applied.

PyAV (the extra `video`) decodes by default; torchcodec does where it is installed and asked for. The two
differ by rounding of colours, so name the one that was used beside a result.
"""

import functools
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from jepaplan.types import InputError

Backend = Literal["pyav", "torchcodec"]
Codec = Literal["h264", "mpeg4"]
# Every frame compressed by itself, at a quality that does not depend on the frames around it.
_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "veryfast", "qp": "18"}),
    "mpeg4": ("mpeg4", {"flags": "+qscale", "qmin": "2", "qmax": "2"}),
}


@runtime_checkable
class Video(Protocol):
    """An open video; safe to share between threads, which then take turns."""

    path: Path
    fps: float  # frames per second on average
    timestamps: Float[Tensor, " F"]  # seconds after the first frame, float64, rising
    height: int
    width: int

    def read(
        self, indices: Int[Tensor, " T"], size: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "T 3 h w"]:
        """The frames with these numbers, repeats allowed, scaled to `size` (height, width)."""
        ...

    def __enter__(self) -> "Video":
        """Closes at the end of the block."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        ...


def open_video(path: Path | str, backend: Backend = "pyav") -> Video:
    """Open a video file; refuses, with the reason, what holds no frames."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected a video")
    return PyAVVideo(path) if backend == "pyav" else TorchcodecVideo(path)


@dataclass(frozen=True)
class _Scan:
    """What a file holds, found without decoding; whole numbers are in the file's own unit of time."""

    times: Int[np.ndarray, " F"]  # of the frames, in order of display
    keys: Int[np.ndarray, " K"]  # numbers of the key frames
    finds: Int[np.ndarray, " K"]  # by which time the file finds each of them
    unit: float  # seconds
    fps: float  # on average
    height: int
    width: int


class PyAVVideo:
    """A video decoded by FFmpeg through PyAV, one thread per file: batches are parallel over files."""

    def __init__(self, path: Path) -> None:
        try:
            facts = path.stat()
        except OSError as reason:
            raise InputError(f"{path} cannot be read as a video ({reason})") from reason
        self.path, self._lock = path, threading.Lock()
        # A file that is opened for many windows is gone through once.
        self._facts = _remembered_scan(path, facts.st_size, facts.st_mtime_ns)
        self.fps, self.height, self.width = self._facts.fps, self._facts.height, self._facts.width
        times = torch.from_numpy(self._facts.times - self._facts.times[0])
        self.timestamps = times.double() * self._facts.unit
        self._container, self._stream = _open(path)

    def __enter__(self) -> "Video":
        """Closes at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._container.close()

    def read(
        self, indices: Int[Tensor, " T"], size: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "T 3 h w"]:
        """The frames with these numbers, repeats allowed, scaled to `size` (height, width)."""
        check_indices(self.path, indices, len(self.timestamps))
        numbers: list[int] = indices.tolist()
        with self._lock, _explained(self.path):
            frames = self._frames(set(numbers), size)
        lost = sorted(set(numbers) - set(frames))
        if lost:
            raise InputError(f"{self.path} cannot be decoded: frames {lost[:8]} are announced but damaged")
        pictures = np.stack([frames[number] for number in numbers])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()

    def _frames(self, wanted: set[int], size: tuple[int, int] | None) -> dict[int, np.ndarray]:
        """RGB pictures of these frames, height width 3."""
        facts = self._facts
        key = int(np.searchsorted(facts.keys, min(wanted), side="right")) - 1
        if key > 0:
            found = self._decode(int(facts.finds[key]), wanted, size)
            if len(found) == len(wanted):
                return found
        # The file seeks badly, or the first frames are asked for: from the beginning.
        return self._decode(int(facts.times[0]), wanted, size)

    def _decode(self, start: int, wanted: set[int], size: tuple[int, int] | None) -> dict[int, np.ndarray]:
        numbers = {int(self._facts.times[number]): number for number in wanted}
        last, found = max(numbers), dict[int, np.ndarray]()
        height, width = size or (self.height, self.width)
        how = "AREA" if height < self.height else "BICUBIC"
        scaler = require_av().video.reformatter.VideoReformatter()
        self._container.seek(start, stream=self._stream, backward=True, any_frame=False)
        for frame in self._container.decode(self._stream):
            if frame.pts in numbers:
                picture = scaler.reformat(frame, width, height, "rgb24", interpolation=how)
                found[numbers[frame.pts]] = picture.to_ndarray()
            if frame.pts is not None and frame.pts >= last:
                break
        return found


@functools.lru_cache(maxsize=2048)
def _remembered_scan(path: Path, size: int, changed: int) -> _Scan:
    """Go through a file as it is now; `size` and `changed` tell it from what it was before."""
    del size, changed
    with _explained(path):
        container, stream = _open(path)
        with container:
            return _scan(path, container, stream)


def _scan(path: Path, container: Any, stream: Any) -> _Scan:
    """Times of all frames, and where decoding can begin; nothing is decoded."""
    packets, untimed = list[tuple[int, int, bool]](), 0
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            untimed += 1
        else:
            packets.append((packet.pts, packet.pts if packet.dts is None else packet.dts, packet.is_keyframe))
    if untimed or not packets:
        raise InputError(
            f"{path} holds {len(packets)} frames with a time and {untimed} without; expected one or more, "
            "all with a time. Write it anew: ffmpeg -i FILE -c:v libx264 NEW.mp4"
        )
    times = np.unique(np.array([pts for pts, _, _ in packets], dtype=np.int64))
    keys = sorted((pts, dts) for pts, dts, key in packets if key)
    unit = float(stream.time_base)
    return _Scan(
        times=times,
        keys=np.searchsorted(times, np.array([pts for pts, _ in keys], dtype=np.int64)),
        finds=np.array([dts for _, dts in keys], dtype=np.int64),
        unit=unit,
        fps=float(stream.average_rate or 0) or _average_rate(times, unit),
        height=int(stream.height),
        width=int(stream.width),
    )


def _open(path: Path) -> tuple[Any, Any]:
    """The file and its first video stream."""
    with _explained(path):
        container: Any = require_av().open(str(path))
    if not container.streams.video:
        container.close()
        raise InputError(f"{path} holds no video stream")
    stream = container.streams.video[0]
    stream.thread_count = 1
    return container, stream


@contextmanager
def _explained(path: Path) -> Generator[None, None, None]:
    """Failures of FFmpeg as words about the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, require_av().FFmpegError) as reason:
        raise InputError(f"{path} cannot be read as a video ({reason})") from reason


class TorchcodecVideo:
    """A video whose frames torchcodec decodes; times and numbers are those that PyAV finds."""

    def __init__(self, path: Path) -> None:
        decoder = require_torchcodec()
        with PyAVVideo(path) as facts:
            self.path, self.fps, self.timestamps = path, facts.fps, facts.timestamps
            self.height, self.width = facts.height, facts.width
        self._lock = threading.Lock()
        try:
            self._decoder: Any = decoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
        except (OSError, ValueError, RuntimeError) as reason:
            raise InputError(f"{path} cannot be read as a video ({reason})") from reason
        if len(self._decoder) != len(self.timestamps):
            raise InputError(
                f"{path}: torchcodec finds {len(self._decoder)} frames, PyAV {len(self.timestamps)}, so "
                'their numbers would differ; read this file with backend="pyav"'
            )

    def __enter__(self) -> "Video":
        """Closes at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the file go."""
        self._decoder = None

    def read(
        self, indices: Int[Tensor, " T"], size: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "T 3 h w"]:
        """The frames with these numbers, repeats allowed, scaled to `size` (height, width)."""
        check_indices(self.path, indices, len(self.timestamps))
        with self._lock:
            try:
                frames = self._decoder.get_frames_at(indices.tolist()).data
            except (OSError, ValueError, RuntimeError) as reason:
                raise InputError(f"{self.path} cannot be decoded ({reason})") from reason
        if size is None or size == (self.height, self.width):
            return frames
        return functional.interpolate(frames, size=size, mode="bilinear", antialias=True)


def write_video(path: Path, clip: UInt8[Tensor, "T 3 height width"], fps: int, codec: Codec = "h264") -> None:
    """Write an mp4 of constant quality in which each frame is compressed by itself; sides must be even."""
    av = require_av()
    name, options = _ENCODERS[codec]
    if clip.shape[-1] % 2 or clip.shape[-2] % 2:
        raise InputError(
            f"{path}: compressed video halves its sides, so they must be even; got {list(clip.shape)}"
        )
    frames = clip.permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[-2:], "yuv420p"
        stream.gop_size, stream.thread_count = 1, 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _average_rate(times: Int[np.ndarray, " F"], unit: float) -> float:
    """Frames per second over the whole file; one frame alone counts as one per second."""
    return 1.0 if len(times) < 2 else (len(times) - 1) / (float(times[-1] - times[0]) * unit)


def check_indices(path: Path, indices: Int[Tensor, " T"], frames: int) -> None:
    """Refuse numbers of frames that the file does not have."""
    if not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= frames:
        raise InputError(
            f"{path} has frames 0 to {frames - 1}; asked for {indices.tolist()[:8]}. Windows that reach "
            "beyond the end repeat the last frame: `window_indices` does that"
        )


def require_av() -> Any:
    """PyAV; says what to install where it is missing."""
    try:
        import av
    except ImportError as reason:
        raise InputError(
            f"video files are read and written by PyAV, which cannot be imported here ({reason}); "
            "install it: pip install 'jepaplan[video]'"
        ) from reason
    return av


def require_torchcodec() -> Any:
    """Torchcodec's decoder; says what to do where it is missing."""
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore
    except (ImportError, RuntimeError, OSError) as reason:
        raise InputError(
            f'backend="torchcodec" was asked for, but it cannot be imported here ({reason}); install '
            'torchcodec with FFmpeg, or use backend="pyav"'
        ) from reason
    return VideoDecoder
