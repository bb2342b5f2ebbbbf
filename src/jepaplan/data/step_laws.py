"""The laws of a recorded step: how far it goes and how much it turns from the one before.

PLDM (arXiv:2502.14819), appendix on data, with the numbers of arXiv:2601.00844. Both laws are drawn by
inverting their distribution function, so a draw takes one uniform number however narrow the law is.

    paper                  here
    von Mises, kappa       heading_turns       turn from one step to the next
    clipped normal norm    truncated_normal    truncated, as PLDM's code does, not clipped
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def heading_turns(
    shape: tuple[int, ...], concentration: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Von Mises angles around 0, by inverting a finely tabulated distribution function."""
    angle = torch.linspace(-math.pi, math.pi, 8193, dtype=torch.float64)
    density = torch.exp(concentration * (angle.cos() - 1))
    cumulative = torch.cumulative_trapezoid(density, angle)
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), cumulative / cumulative[-1]])
    draw = torch.rand(shape, generator=generator, dtype=torch.float64)
    right = torch.searchsorted(cumulative, draw.flatten()).clamp(1, len(angle) - 1).view(shape)
    low, high = cumulative[right - 1], cumulative[right]
    part = (draw - low) / (high - low).clamp(min=1e-300)
    return (angle[right - 1] + part * (angle[right] - angle[right - 1])).float()


def truncated_normal(
    shape: tuple[int, ...], law: tuple[float, float, float, float], generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Normal numbers of `law` = (mean, std, lowest, highest), by inverting the distribution function."""
    mean, std, lowest, highest = law
    bounds = torch.tensor([(lowest - mean) / std, (highest - mean) / std], dtype=torch.float64)
    low, high = torch.special.ndtr(bounds)
    draw = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (mean + std * torch.special.ndtri(low + (high - low) * draw)).clamp(lowest, highest).float()
