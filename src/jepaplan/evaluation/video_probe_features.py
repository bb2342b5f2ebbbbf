"""Features for probes of video: a frozen encoder's, and those it has to beat.

    encode_clips             tokens of a frozen encoder
    fresh_module             the same architecture before any training: what the architecture alone gives
    pixel_features           levels of shrunken clips, principal components of the training split
    middle_frame_repeated    clips without motion: what one frame tells
    shuffled_time            clips with their frames in another order: what frames tell without their order

Everything is kept in memory; half precision halves it (1500 clips of 256 tokens of width 128: 98 MB).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from jepaplan.data.clips import ClipNormaliser, resize
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How clips are encoded and features kept."""

    batch: int = 32  # clips encoded at once
    precision: Literal["float32", "bfloat16"] = "float32"  # of the encoder
    kept: Literal["float32", "float16"] = "float16"  # in memory

    def __post_init__(self) -> None:
        """Refuse empty batches."""
        if self.batch < 1:
            raise InputError(f"at least one clip is encoded at once; got batch={self.batch}")


@torch.no_grad()
def encode_clips(
    encode: Callable[[Tensor], Tensor],
    clips: UInt8[Tensor, "items *views T C height width"],
    config: FeatureConfig,
    normaliser: nn.Module | None = None,
) -> Float[Tensor, "items *views N D"]:
    """Tokens of every clip; `encode` reads normalised clips, on the device on which `normaliser` lies.

    The normaliser defaults to ImageNet's statistics on the CPU; pass the one the encoder was trained with.
    """
    prepare = normaliser or ClipNormaliser()
    device = next(prepare.buffers()).device
    flat, half = clips.flatten(0, clips.dim() - 5), getattr(torch, config.kept)
    kept: Tensor | None = None
    for start in range(0, len(flat), config.batch):
        some = prepare(flat[start : start + config.batch].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            tokens = encode(some)
        if kept is None:
            kept = torch.empty(len(flat), *tokens.shape[1:], dtype=half)
        kept[start : start + config.batch] = tokens.to("cpu", half)
    if kept is None:
        raise InputError(f"there is no clip to encode; got clips of shape {tuple(clips.shape)}")
    if not bool(kept.isfinite().all()):
        raise InputError(
            f"some features do not fit {config.kept} or are not finite; write FeatureConfig(kept='float32')"
        )
    return kept.unflatten(0, clips.shape[: clips.dim() - 4])


def fresh_module(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """What `build` makes, its random weights drawn from `generator` and frozen."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def pixel_features(
    clips: UInt8[Tensor, "items T C height width"],
    train: Int[Tensor, " train"],
    size: int = 16,
    width: int = 256,
) -> Float[Tensor, "items 1 features"]:
    """One token per clip: the first `width` principal components of its levels, shrunk to `size` x `size`.

    Components are those of the training split, which has fewer of them than clips.
    """
    small = resize(clips, (size, size)).flatten(1).float() / 255
    known = small[train]
    centre = known.mean(dim=0)
    width = min(width, len(train) - 1, small.shape[1])
    if width < 1:
        raise InputError(f"principal components need at least two training clips; got {len(train)}")
    _, _, components = torch.linalg.svd(known - centre, full_matrices=False)
    return ((small - centre) @ components[:width].T)[:, None]


def middle_frame_repeated(
    clips: UInt8[Tensor, "*items T C height width"],
) -> UInt8[Tensor, "*items T C height width"]:
    """Every frame is the middle one."""
    frames = clips.shape[-4]
    return clips.narrow(-4, frames // 2, 1).expand_as(clips)


def shuffled_time(
    clips: UInt8[Tensor, "items *views T C height width"], generator: torch.Generator
) -> UInt8[Tensor, "items *views T C height width"]:
    """The frames of every clip in an order of its own."""
    flat = clips.flatten(0, clips.dim() - 5)
    order = torch.rand(len(flat), flat.shape[1], generator=generator).argsort(dim=1)
    return flat[torch.arange(len(flat))[:, None], order.to(flat.device)].view_as(clips)
