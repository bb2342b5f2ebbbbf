"""Successive states close, random pairs of states apart: the simplest way to shape a distance.

The baseline "Contrastive" of arXiv:2601.00844, section 3: successive states of the recorded trajectories are
positive examples, random pairs of states negative ones. The paper gives no formula; both usual ones are here.

    info_nce    van den Oord et al., arXiv:1807.03748, equation 4, with f = exp(-||z - z'|| / temperature)
                L = -mean_{b,t} log( f(z_{b,t}, z_{b,t+1}) / sum_{b'} f(z_{b,t}, z_{b',t+1}) )
    margin      Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006,
                equation 4 without its factor one half; positive and negative pairs weigh the same
                L = mean_{b,t} ||z_{b,t} - z_{b,t+1}||^2
                    + mean_{b,t,b' != b} max(0, margin - ||z_{b,t} - z_{b',t+1}||)^2

Negatives are the states at the same place of the other segments of the batch. Segments are drawn uniformly,
so these are random states, and never a near neighbour in time of the state itself.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError

ContrastForm = Literal["info_nce", "margin"]


def contrastive_loss(
    latents: Float[Tensor, "B frames D"],
    *,
    form: ContrastForm = "info_nce",
    scale: float = 1.0,
    gather: Gather = alone,
) -> Float[Tensor, ""]:
    """The loss above; `scale` is the temperature of "info_nce" or the margin of "margin", in latent units."""
    # Every process contrasts all rows, so the mean over processes is what one process would compute.
    distances = successor_distances(gather(latents))
    segments = distances.shape[-1]
    if segments < 2:
        raise InputError(
            "a contrast needs two segments or more, since each offers the negatives of the others; the batch "
            f"has {segments}. Use larger batches, or set the weight of this term to 0"
        )
    if form == "info_nce":
        partner = torch.arange(segments, device=latents.device).expand(len(distances), -1)
        return F.cross_entropy(-distances.flatten(0, 1) / scale, partner.flatten())
    positive = distances.diagonal(dim1=-2, dim2=-1).square().mean()
    short = F.relu(scale - distances).square()
    others = short.sum() - short.diagonal(dim1=-2, dim2=-1).sum()
    return positive + others / (len(distances) * segments * (segments - 1))


def successor_distances(latents: Float[Tensor, "B frames D"]) -> Float[Tensor, "T B B"]:
    """Entry (t, b, c): from state t of segment b to state t + 1 of segment c; successors on the diagonal."""
    now, following = latents[:, :-1].transpose(0, 1), latents[:, 1:].transpose(0, 1)
    # Differences, not |u|^2 + |v|^2 - 2uv: successive states are close, where that form loses all digits.
    return torch.cdist(now, following, compute_mode="donot_use_mm_for_euclid_dist")
