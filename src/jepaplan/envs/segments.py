"""Does a straight move touch a rectangle? Decided without division, so huge moves are judged right.

Separating axes (Gottschalk, Lin and Manocha, "OBBTree", SIGGRAPH 1996, in two dimensions): a segment and a
rectangle are apart exactly if their shadows are apart on x, on y, or on the line across the segment.

    symbol   here
    c        centre     middle of the rectangle
    h        half       half its width and height
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def crosses_rectangle(
    start: Float[Tensor, "*#batch 2"],
    end: Float[Tensor, "*#batch 2"],
    centre: Float[Tensor, "*#batch 2"],
    half: Float[Tensor, "*#batch 2"],
    margin: float,
) -> Bool[Tensor, "*batch"]:
    """True where the segment comes within `margin` of the rectangle; a negative margin forgives grazing.

    Pass float64: coordinates given in float32 then enter the test exactly.
    """
    move = end - start
    offset = centre - (start + end) / 2
    shadows_overlap = (offset.abs() - (move.abs() / 2 + half) <= margin).all(-1)
    across = offset[..., 0] * move[..., 1] - offset[..., 1] * move[..., 0]
    reach = half[..., 0] * move[..., 1].abs() + half[..., 1] * move[..., 0].abs()
    line_overlaps = across.abs() - reach <= margin * move.abs().sum(-1)
    return shadows_overlap & line_overlaps


def entry_fraction(
    start: Float[Tensor, "*#batch 2"],
    end: Float[Tensor, "*#batch 2"],
    centre: Float[Tensor, "*#batch 2"],
    half: Float[Tensor, "*#batch 2"],
) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Where along the segment (0 to 1) it enters the rectangle, infinity if never; and whether through x.

    The slab method (Kay and Kajiya, "Ray Tracing Complex Scenes", SIGGRAPH 1986).
    """
    move = end - start
    move = torch.where(move == 0, torch.full_like(move, 1e-12), move)
    one, other = (centre - half - start) / move, (centre + half - start) / move
    enter, leave = torch.minimum(one, other), torch.maximum(one, other)
    first, last = enter.amax(-1), leave.amin(-1)
    hit = (first <= last) & (first >= 0) & (first <= 1)
    return torch.where(hit, first, torch.full_like(first, torch.inf)), enter[..., 0] > enter[..., 1]
