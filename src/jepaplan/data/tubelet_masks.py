"""Which tokens of a clip are shown and which are to be predicted: blocks of space that last through time.

V-JEPA (Bardes et al., arXiv:2404.08471, section 3) and V-JEPA 2 (arXiv:2506.09985, section 2). Sizes, bounds
and rounding are those of the published training code (facebookresearch/vjepa2, MIT licence, c2963a47); the
text is ours.

    there                      here
    mask generator             MaskConfig           one of them gives one mask per clip and one context pass
    num_blocks                 blocks
    masks_enc, masks_pred      TubeletMasks.context, .target
    block size                 once per configuration and batch
    block position             once per item and block; blocks may overlap

The target is the union of the blocks and the context its complement. Attention wants items of equal length,
so a batch is cut to its shortest context and its shortest target:

    "first"     keeps the first ids, as published; ids run through time first, so the latest frames are lost
    "random"    keeps any of them (the default), which leaves no place and no time out

Departs from the published code: a block has at least one token, also on grids where its area rounds to none;
blocks that leave no context on a grid are refused instead of drawn for ever.

Whoever trains with several processes draws the masks of all items at once and shards them afterwards, so all
processes have contexts of one length. The shortest of many items is short: on 16 x 16 places, contexts of
the long range keep 0.066 of the tokens in a batch of 24 (published, per process) and 0.044 in one of 3072.
`MaskConfig.least_context` sets a floor.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.types import InputError

Grid = tuple[int, int, int]
"""Tubelets, rows and columns of a clip's tokens; ids run through columns first, tubelets last."""

_ATTEMPTS = 1000  # draws for an item whose context is too small, before its blocks are called impossible


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How one mask is drawn: that many blocks of one size, at any place."""

    blocks: int
    spatial_scale: float  # area of a block over that of the frame
    temporal_scale: float = 1.0  # length of a block over that of the clip
    aspect_ratio: tuple[float, float] = (0.75, 1.5)  # height over width of a block, drawn between these
    least_context: float = 0.0  # share of the tokens shown at least; items below are drawn again

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise InputError(f"a mask hides one block or more; got blocks={self.blocks}")
        for name in ("spatial_scale", "temporal_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is a share in (0, 1]; got {getattr(self, name)}")
        low, high = self.aspect_ratio
        if not 0 < low <= high < math.inf:
            raise InputError(
                f"aspect_ratio is (lowest, highest), both positive; got {self.aspect_ratio}, "
                "write for example (0.75, 1.5)"
            )
        if not 0 <= self.least_context < 1:
            raise InputError(f"least_context is a share in [0, 1); got {self.least_context}")


SHORT_RANGE = MaskConfig(blocks=8, spatial_scale=0.15)
LONG_RANGE = MaskConfig(blocks=2, spatial_scale=0.70)
BOTH_RANGES = (SHORT_RANGE, LONG_RANGE)
"""What V-JEPA and V-JEPA 2 train with."""


@dataclass(frozen=True)
class TubeletMasks:
    """Ids of the tokens shown and of those to be predicted, in rising order; none is in both."""

    context: Int[Tensor, "B K"]
    target: Int[Tensor, "B M"]
    grid: Grid

    @property
    def context_ratio(self) -> float:
        """Share of the clip's tokens that are shown."""
        return self.context.shape[1] / math.prod(self.grid)

    @property
    def target_ratio(self) -> float:
        """Share of the clip's tokens that are to be predicted."""
        return self.target.shape[1] / math.prod(self.grid)


def draw_masks(
    grid: Grid,
    items: int,
    configs: tuple[MaskConfig, ...],
    generator: torch.Generator,
    equalise: Literal["random", "first"] = "random",
) -> tuple[TubeletMasks, ...]:
    """Masks of `items` clips under each of `configs`; within a configuration all are of one length."""
    if min(grid) < 1 or items < 1 or not configs:
        raise InputError(
            "masks need a grid of one token or more, one item or more and one configuration or more; got "
            f"grid={grid}, items={items} and {len(configs)} configurations"
        )
    return tuple(_draw(grid, items, config, generator, equalise) for config in configs)


def block_size(grid: Grid, config: MaskConfig, generator: torch.Generator) -> Grid:
    """Tubelets, rows and columns of a block: the area is fixed, the aspect ratio is drawn."""
    tubelets, rows, columns = grid
    low, high = config.aspect_ratio
    ratio = low + (high - low) * torch.rand((), generator=generator).item()
    area = int(rows * columns * config.spatial_scale)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return (
        max(1, int(tubelets * config.temporal_scale)),
        min(max(1, height), rows),
        min(max(1, width), columns),
    )


def _draw(
    grid: Grid,
    items: int,
    config: MaskConfig,
    generator: torch.Generator,
    equalise: Literal["random", "first"],
) -> TubeletMasks:
    size = block_size(grid, config, generator)
    hidden = _union(grid, size, config.blocks, items, generator)
    least = max(1, math.ceil(config.least_context * math.prod(grid)))
    for _ in range(_ATTEMPTS):
        short = (~hidden).sum(1) < least
        if not short.any():
            break
        hidden[short] = _union(grid, size, config.blocks, int(short.sum()), generator)
    else:
        raise InputError(
            f"{config.blocks} blocks of {size} tokens (tubelets, rows, columns) leave {least} or more tokens "
            f"of a grid of {grid} in less than one of {_ATTEMPTS} draws; use fewer or smaller blocks, or a "
            f"lower least_context than {config.least_context}"
        )
    if equalise == "first":
        return TubeletMasks(_first(~hidden), _first(hidden), grid)
    # One order serves both: the two sets have no token in common.
    order = torch.rand(hidden.shape, generator=generator, device=hidden.device)
    return TubeletMasks(_lowest(~hidden, order), _lowest(hidden, order), grid)


def _union(
    grid: Grid, size: Grid, blocks: int, items: int, generator: torch.Generator
) -> Bool[Tensor, "B N"]:
    """Whether each token is in one of an item's blocks."""
    inside: list[Tensor] = []  # per axis: item, block, place
    for places, length in zip(grid, size, strict=True):
        start = torch.randint(places - length + 1, (items, blocks, 1), generator=generator)
        place = torch.arange(places)
        inside.append((place >= start) & (place < start + length))
    hidden = torch.zeros(items, *grid, dtype=torch.bool)
    # Block after block: all at once would hold `blocks` times as much as the result.
    for tubelets, rows, columns in zip(*(axis.unbind(1) for axis in inside), strict=True):
        area = rows[:, :, None] & columns[:, None, :]
        hidden |= tubelets[:, :, None, None] & area[:, None]
    return hidden.flatten(1)


def _first(chosen: Bool[Tensor, "B N"]) -> Int[Tensor, "B K"]:
    """The first ids of each item, as many as the item with fewest has."""
    count = int(chosen.sum(1).min())
    kept = chosen & (chosen.cumsum(1) <= count)
    return kept.nonzero()[:, 1].view(len(chosen), count)


def _lowest(chosen: Bool[Tensor, "B N"], order: Float[Tensor, "B N"]) -> Int[Tensor, "B K"]:
    """The ids of each item that come first in `order`, as many as the item with fewest has."""
    count = int(chosen.sum(1).min())
    ids = order.masked_fill(~chosen, 2.0).topk(count, dim=1, largest=False, sorted=False).indices
    return ids.sort(dim=1).values
