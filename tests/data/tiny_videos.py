"""Tiny video files for tests: each frame tells its own number by its grey level."""

from fractions import Fraction

import av
import numpy as np
import torch

STEP = 8  # grey levels between one frame and the next


def numbered_clip(frames, height=16, width=16, first=0):
    """Flat grey frames; frame k is of level STEP * (k + first)."""
    levels = STEP * (torch.arange(frames) + first)
    assert int(levels.max()) < 256
    return levels.to(torch.uint8)[:, None, None, None].expand(frames, 3, height, width).contiguous()


def numbers_of(clips):
    """The numbers that decoded frames tell; colour conversion moves a level by two or so."""
    return (clips.float().mean((-3, -2, -1)) / STEP).round().long()


def encode(path, clip, codec, options, key_every, milliseconds=None):
    """Any codec, distance of key frames and times; what the library's own writer never makes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[-2:], "yuv420p"
        stream.gop_size = key_every
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(clip.permute(0, 2, 3, 1).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_sound(path):
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
