"""Variance and covariance regularisation: latents stay spread out and their numbers stay uncorrelated.

VICReg, Bardes et al., arXiv:2105.04906, equations 1-4, with PLDM's (arXiv:2502.14819, appendix) variants
along time.

    paper         here
    gamma         target                     least standard deviation of each number
    epsilon       _EPSILON                   inside the root
    v(Z), c(Z)    variance, covariance       samples are the items of the batch
    std_t, cov_t  time_variance, time_covariance    samples are the frames of one segment; mean over segments
    sim_t         time_similarity            successive latents stay close

Departs from VICReg where PLDM does: the covariance term divides by D (D - 1), the number of pairs, instead
of D. Batch statistics take a `gather` that collects the rows of all processes, so two processes minimise
what one would.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepaplan.types import InputError

Gather = Callable[[Tensor], Tensor]
"""Rows of this process to the rows of all processes, in order of rank, differentiable."""

_EPSILON = 1e-4


def alone(own: Tensor) -> Tensor:
    """The `gather` of a process that trains alone."""
    return own


def variance(
    latents: Float[Tensor, "samples D"], *, target: float = 1.0, gather: Gather = alone
) -> Float[Tensor, ""]:
    """How far the standard deviation of each number over the batch falls short of `target`, on average."""
    return _hinge(gather(latents), target)


def covariance(latents: Float[Tensor, "samples D"], *, gather: Gather = alone) -> Float[Tensor, ""]:
    """Mean square of the covariances between different numbers of the latent, over the batch."""
    return _off_diagonal(gather(latents))


def time_variance(latents: Float[Tensor, "B frames D"], *, target: float = 1.0) -> Float[Tensor, ""]:
    """`variance` with the frames of each segment as samples."""
    return _hinge(latents, target)


def time_covariance(latents: Float[Tensor, "B frames D"]) -> Float[Tensor, ""]:
    """`covariance` with the frames of each segment as samples."""
    return _off_diagonal(latents)


def time_similarity(latents: Float[Tensor, "B frames D"]) -> Float[Tensor, ""]:
    """Mean squared change of the latent from one frame to the next."""
    return (latents[:, 1:] - latents[:, :-1]).square().mean()


def _hinge(latents: Float[Tensor, "*batch samples D"], target: float) -> Float[Tensor, ""]:
    _refuse_single_sample(latents)
    # The epsilon inside the root keeps the gradient finite where all samples coincide.
    std = (latents.var(dim=-2) + _EPSILON).sqrt()
    return F.relu(target - std).mean()


def _off_diagonal(latents: Float[Tensor, "*batch samples D"]) -> Float[Tensor, ""]:
    _refuse_single_sample(latents)
    samples, width = latents.shape[-2:]
    if width == 1:
        return latents.sum() * 0.0
    centred = latents
    centred = (centred - centred.mean(dim=-2, keepdim=True)) / (samples - 1) ** 0.5
    # Under autocast this product would be rounded to bf16; the difference of two nearly equal sums below
    # needs fp32.
    with torch.autocast(latents.device.type, enabled=False):
        # |X'X|^2 = |XX'|^2: of the two symmetric products, take the smaller.
        product = centred @ centred.mT if samples < width else centred.mT @ centred
    variances = centred.square().sum(dim=-2)
    energy = product.square().sum(dim=(-2, -1)) - variances.square().sum(dim=-1)
    return (energy / (width * (width - 1))).mean()


def _refuse_single_sample(latents: Tensor) -> None:
    if latents.shape[-2] < 2:
        raise InputError(
            f"a variance needs two samples or more; latents of shape {tuple(latents.shape)} have "
            f"{latents.shape[-2]}. Use larger batches, or set the weight of this term to 0."
        )
