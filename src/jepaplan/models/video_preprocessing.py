"""What was done to the clips that weights were trained on, so that new clips can be treated alike.

V-JEPA 2 (arXiv:2506.09985) is evaluated on clips whose shorter side is resized to int(crop * 256 / 224)
pixels, of which the central crop x crop are kept and normalised by the mean and standard deviation of
ImageNet; `VJEPA2VideoProcessor` of transformers does the same. Resizing is bilinear with antialiasing, on
uint8, as torchvision does it on a CPU: rounded to whole grey levels after each of the two directions, before
it is normalised. On an accelerator it is rounded once: pixels may differ by one grey level.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from jepaplan.types import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RECORDS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")
_LEVELS = 255.0
_BILINEAR = 2  # as Pillow and transformers number their filters


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From uint8 RGB clips of any size to what an encoder was trained on; travels with its weights."""

    resize: int = 292  # pixels of the shorter side before cropping
    crop: int = 256  # pixels per side of what is kept
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of pixels in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise InputError(
                f"cannot cut {self.crop} x {self.crop} pixels from clips whose shorter side is "
                f"{self.resize}; write resize={resize_for(self.crop)} or more"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                "mean and std have one number for each of red, green and blue, std positive; got "
                f"{self.mean} and {self.std}"
            )

    def prepare(self, clips: UInt8[Tensor, "B T C height width"]) -> Float[Tensor, "B T C crop crop"]:
        """Resized, cropped and normalised clips."""
        _refuse_other_than_rgb(clips)
        frames = clips.flatten(0, 1)
        height, width = _shorter_side_to(self.resize, clips.shape[-2], clips.shape[-1])
        if (height, width) != tuple(clips.shape[-2:]):
            frames = _resized(frames, height, width)
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        frames = frames[:, :, top : top + self.crop, left : left + self.crop]
        return self.normalise(frames.unflatten(0, clips.shape[:2]))

    def normalise(self, clips: UInt8[Tensor, "B T C height width"]) -> Float[Tensor, "B T C height width"]:
        """Pixels as they are, normalised only: for clips that were resized and cropped before."""
        _refuse_other_than_rgb(clips)
        mean = _LEVELS * torch.tensor(self.mean, device=clips.device).view(3, 1, 1)
        std = _LEVELS * torch.tensor(self.std, device=clips.device).view(3, 1, 1)
        return (clips.float() - mean) / std

    def refuse_other_sizes(self, clips: Shaped[Tensor, "B T C height width"]) -> None:
        """Clips that are not crop x crop are not what the weights know."""
        height, width = clips.shape[-2:]
        if (height, width) != (self.crop, self.crop):
            raise InputError(
                f"clips are {height} x {width} pixels; these weights were trained on {self.crop} x "
                f"{self.crop}. Write `encoder(preprocessing.prepare(clips))` with uint8 clips "
                f"`B T C height width` of any size: it makes the shorter side {self.resize}, keeps the centre"
            )


def released_preprocessing(crop: int) -> Preprocessing:
    """What the released weights of this crop were evaluated with."""
    return Preprocessing(resize=resize_for(crop), crop=crop)


def resize_for(crop: int) -> int:
    """The shorter side before cropping: 292 for 256, 438 for 384."""
    return int(crop * 256 / 224)


def read_preprocessing(folder: Path, crop: int) -> Preprocessing:
    """The record beside the weights of a folder; the released one for `crop` where there is none."""
    for name in RECORDS:
        path = folder / name
        if path.is_file():
            record = _json(path)
            return _from_record(path, record.get("video_processor", record), crop)
    return released_preprocessing(crop)


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}. Expected a JSON object") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} holds a JSON {type(record).__name__}; expected an object")
    return record


def _from_record(path: Path, record: Mapping[str, Any], crop: int) -> Preprocessing:
    for key, due in {
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": _BILINEAR,
        "rescale_factor": 1 / 255,
    }.items():
        if record.get(key, due) != due:
            raise InputError(
                f"{path} says {key}: {record[key]!r}; only {due!r} is known here. Build the record yourself: "
                "`Preprocessing(resize=..., crop=..., mean=..., std=...)`"
            )
    kept = _side(record.get("crop_size", crop), "height")
    resize = resize_for(kept)
    # transformers' own processor derives the resize from the crop, whatever size its file says
    if record.get("video_processor_type", "VJEPA2VideoProcessor") != "VJEPA2VideoProcessor":
        resize = _side(record.get("size", resize), "shortest_edge")
    return Preprocessing(
        resize=resize,
        crop=kept,
        mean=tuple(record.get("image_mean", IMAGENET_MEAN)),
        std=tuple(record.get("image_std", IMAGENET_STD)),
    )


def _side(size: Any, key: str) -> int:
    """A side in pixels, which files write as a number or as {"height": ..., "width": ...}."""
    side = size.get(key) if isinstance(size, dict) else size
    other = size.get("width", side) if isinstance(size, dict) else side
    if not isinstance(side, int) or side != other:
        raise InputError(f"a preprocessing record gives the size {size!r}; expected one number of pixels")
    return side


def _shorter_side_to(due: int, height: int, width: int) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    if short < 1:
        raise InputError(f"clips are {height} x {width} pixels; expected at least one")
    scaled = int(due * long / short)
    return (due, scaled) if height <= width else (scaled, due)


def _resized(frames: UInt8[Tensor, "N C h w"], height: int, width: int) -> UInt8[Tensor, "N C height width"]:
    size = (height, width)
    if frames.device.type == "cpu":
        return F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=True)
    # accelerators have no kernel for whole numbers
    exact = F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return exact.round().clamp(0, 255).to(torch.uint8)


def _refuse_other_than_rgb(clips: Tensor) -> None:
    if clips.dtype != torch.uint8 or clips.shape[2] != 3:
        raise InputError(
            f"clips are {clips.dtype} with {clips.shape[2]} channels; expected uint8 RGB "
            "`B T C height width` with 3 channels, values 0 to 255"
        )
