"""Frames as pictures for people, and pictures as frames for models; the one place that knows the colours.

    channels    PNG
    1           grey
    2           red is channel 0, green is channel 1, blue is nothing
    3           red, green, blue

PNG only: it is lossless, so a frame that was written is read back to the bit.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from jepaplan.types import InputError

_MODES = {1: "L", 2: "RGB", 3: "RGB"}  # Pillow's names of the kinds of picture


def frame_to_picture(frame: UInt8[Tensor, "C height width"]) -> Image.Image:
    """`frame` as a picture; save it as PNG."""
    channels = len(frame)
    _mode(channels)
    levels = frame.cpu().movedim(0, -1)
    if channels == 1:
        return Image.fromarray(np.ascontiguousarray(levels[..., 0].numpy()))
    if channels == 2:
        levels = torch.cat([levels, torch.zeros_like(levels[..., :1])], dim=-1)
    return Image.fromarray(np.ascontiguousarray(levels.numpy()))


def picture_to_frame(path: Path | str, channels: int, size: int) -> UInt8[Tensor, "C height width"]:
    """The frame in a PNG, which must have `channels` channels and `size` x `size` pixels."""
    mode = _mode(channels)
    levels = _read(Path(path), mode, channels, size)
    frame = levels[None] if channels == 1 else levels.movedim(-1, 0).contiguous()
    if channels == 2:
        if bool(frame[2].any()):
            raise InputError(
                f"{path}: the blue channel is not empty, so this is not a picture of 2 channels (red is "
                "channel 0, green is channel 1, blue is nothing). `jepaplan inspect FILE.h5 --frames "
                "DIRECTORY` writes such pictures"
            )
        return frame[:2].contiguous()
    return frame


def _mode(channels: int) -> str:
    if channels not in _MODES:
        raise InputError(
            f"a frame of {channels} channels has no picture; frames of 1, 2 or 3 channels, first axis, do"
        )
    return _MODES[channels]


def _read(path: Path, mode: str, channels: int, size: int) -> UInt8[Tensor, "height width *colours"]:
    """Levels of a picture that is what was expected; size and kind are checked before it is decoded."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected a PNG of {size} x {size} pixels")
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.size != (size, size):
                width, height = picture.size
                raise InputError(
                    f"{path} has {width} x {height} pixels; expected {size} x {size}, the size that the "
                    "model was trained on. Scale or cut it first"
                )
            if picture.mode != mode:
                kind = "grey, 8 bits" if mode == "L" else "red, green and blue, 8 bits each, no transparency"
                raise InputError(
                    f"{path} is a picture of kind {picture.mode}; expected {mode} ({kind}) for {channels} "
                    "channels. Save it again in that kind"
                )
            return torch.from_numpy(np.array(picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as reason:
        if isinstance(reason, InputError):
            raise
        raise InputError(
            f"{path} cannot be read as a PNG ({reason}); expected a PNG of {size} x {size} pixels"
        ) from reason
