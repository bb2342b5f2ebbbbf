"""Batches of video clips: their masks, their normalisation, and the crops and mirrors they are seen through.

Random resized crops and mirrors as in V-JEPA 2 (arXiv:2506.09985; published code, facebookresearch/vjepa2,
MIT licence, c2963a47): one crop and one mirroring for all frames of a clip, no change of colours.

    there                           here
    random_resize_scale             AugmentationConfig.area      share of the frame's area
    random_resize_aspect_ratio      AugmentationConfig.aspect    width over height, drawn on a log scale
    ten attempts, then the centre   Views.area, Views.aspect     `attempts` columns; the first that fits

`draw_views` asks the generator only, so a batch can be drawn before a video is opened and sharded among
processes; `apply_views` needs the pixels. A mirror turns leftward motion into rightward and clockwise into
counter-clockwise: where such things are to be told apart, set `mirror=0`.

Departs from the published code: shrinking averages over all pixels that fall into one (antialiasing).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor, nn

from jepaplan.data.tubelet_masks import TubeletMasks
from jepaplan.types import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB levels over 255
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClipBatch:
    """Clips as recorded and one or more masks of their tokens."""

    clips: UInt8[Tensor, "B T C height width"]
    masks: tuple[TubeletMasks, ...]

    def __post_init__(self) -> None:
        items, frames, _, height, width = self.clips.shape
        for mask in self.masks:
            if len(mask.context) != items or len(mask.target) != items:
                raise InputError(
                    f"{items} clips came with masks of {len(mask.context)} items; draw one mask per clip: "
                    f"`draw_masks(grid, {items}, ...)`"
                )
            if any(length % parts for length, parts in zip((frames, height, width), mask.grid, strict=True)):
                raise InputError(
                    f"masks were drawn for a grid of {mask.grid} tubelets, rows and columns, which does not "
                    f"divide clips of {frames} frames of {height} x {width} pixels; draw them for the grid "
                    "of the encoder"
                )


class ClipNormaliser(nn.Module):
    """uint8 clips of any length and size to floats: over 255, less the mean, over the deviation of a channel.

    `PixelNormaliser` does the same for images of one size, which it knows by heart; clips change theirs in
    progressive training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(deviation > 0 for deviation in std):
            raise InputError(
                f"a mean and a positive deviation per channel are due; got means {tuple(mean)} and "
                f"deviations {tuple(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, clips: Shaped[Tensor, "B T C height width"]) -> Float[Tensor, "B T C height width"]:
        """Normalised clips in the precision of the statistics."""
        if clips.dtype != torch.uint8 or clips.shape[2] != len(self.mean):
            advice = "levels are 0 to 255"
            if clips.shape[-1] == len(self.mean):
                advice = "the channels come last: write `clips.movedim(-1, 2)`"
            raise InputError(
                f"clips of shape {tuple(clips.shape)} are {clips.dtype}; expected uint8 B T C height width "
                f"with C = {len(self.mean)}; {advice}"
            )
        scale = 1 / (255 * self.std)
        shift = self.mean / self.std
        return clips.to(self.mean.dtype) * scale[:, None, None] - shift[:, None, None]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Through which crops and mirrors clips are seen in training."""

    area: tuple[float, float] = (0.3, 1.0)  # of a crop, over the frame's area
    aspect: tuple[float, float] = (0.75, 1.35)  # width over height of a crop, in pixels
    mirror: float = 0.5  # probability; 0 where left and right mean something
    attempts: int = (
        10  # crops drawn for each clip; if none fits the frame, the largest in the middle is taken
    )

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise InputError(f"area is (lowest, highest), shares in (0, 1]; got {self.area}")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise InputError(f"aspect is (lowest, highest), both positive; got {self.aspect}")
        if not 0 <= self.mirror <= 1:
            raise InputError(f"mirror is a probability; got {self.mirror}")
        if self.attempts < 1:
            raise InputError(f"attempts counts crops, so it is at least 1; got {self.attempts}")


@dataclass(frozen=True)
class Views:
    """How each clip is cropped and mirrored; one view for all frames of a clip."""

    area: Float[Tensor, "B attempts"]  # share of the frame's
    aspect: Float[Tensor, "B attempts"]  # width over height, in pixels
    place: Float[Tensor, "B 2"]  # of the crop among its possible places, from the top and from the left
    mirrored: Bool[Tensor, " B"]
    aspects: tuple[float, float]  # lowest and highest, for frames that no crop fits


def draw_views(items: int, config: AugmentationConfig, generator: torch.Generator) -> Views:
    """Views of `items` clips, whatever their sizes."""
    area, aspect = torch.rand(2, items, config.attempts, generator=generator)
    low, high = (math.log(bound) for bound in config.aspect)
    return Views(
        area=config.area[0] + (config.area[1] - config.area[0]) * area,
        aspect=(low + (high - low) * aspect).exp(),
        place=torch.rand(items, 2, generator=generator),
        mirrored=torch.rand(items, generator=generator) < config.mirror,
        aspects=config.aspect,
    )


def apply_views(
    clips: Shaped[Tensor, "B T C height width"] | Sequence[Tensor], views: Views, size: tuple[int, int]
) -> Shaped[Tensor, "B T C size_height size_width"]:
    """Crop, resize to `size` (height, width) and mirror; a list of clips may mix sizes, not lengths.

    uint8 stays uint8 and floats stay floats.
    """
    if len(clips) != len(views.mirrored):
        raise InputError(f"{len(clips)} clips came with {len(views.mirrored)} views; draw one per clip")
    seen: list[Tensor] = []
    for item, clip in enumerate(clips):
        top, left, height, width = crop_box(views, item, clip.shape[-2], clip.shape[-1])
        crop = clip[..., top : top + height, left : left + width]
        resized = resize(crop, size)
        seen.append(resized.flip(-1) if views.mirrored[item] else resized)
    return torch.stack(seen)


def crop_box(views: Views, item: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of one view of frames of `height` x `width`."""
    area, aspect = views.area[item].double() * height * width, views.aspect[item].double()
    tall, wide = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    if not fits.any():
        return _central_box(views.aspects, height, width)
    first = int(fits.int().argmax())
    crop_height, crop_width = int(tall[first]), int(wide[first])
    down, right = views.place[item].tolist()
    # A place is below 1, so each of the possible pixels is equally likely.
    top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def resize(frames: Shaped[Tensor, "*frames C height width"], size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased; the last two axes become `size`, the type of numbers stays."""
    if frames.shape[-2:] == size:
        return frames
    flat = frames.reshape(-1, *frames.shape[-3:])
    numbers = flat if flat.is_floating_point() else flat.float()
    resized = F.interpolate(numbers, size, mode="bilinear", align_corners=False, antialias=True)
    if not frames.is_floating_point():
        resized = resized.round().clamp(0, 255).to(frames.dtype)
    return resized.view(*frames.shape[:-2], *size)


def _central_box(aspects: tuple[float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """The largest box in the middle of the frame whose aspect ratio is allowed."""
    aspect = min(max(width / height, aspects[0]), aspects[1])
    tall, wide = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
