"""Losses that make a quasimetric of latents count steps.

Quasimetric reinforcement learning: Wang et al., "Optimal Goal-Reaching Reinforcement Learning via
Quasimetric Learning", arXiv:2304.01203, equations 9-13. Push the distances of random pairs up, while one
step never costs more than one; with the triangle inequality built into d, the largest such function is the
optimal cost to go.

    paper       here
    phi         spread_loss                 phi(x) = -softplus(offset - x, beta), so far pairs stop mattering
    lambda      softplus(raw_multiplier)
    epsilon     tolerance                   the constraint is E[relu(d(s, s') - 1)^2] <= epsilon^2

Pair regression: along a trajectory, the elapsed time bounds the steps needed, and a lower expectile of it
over all data estimates the least. It needs no constraint and no bootstrap.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.objectives.iql import expectile_loss
from jepaplan.types import InputError


def spread_loss(
    distances: Float[Tensor, "*pairs"], *, offset: float = 15.0, beta: float = 0.1
) -> Float[Tensor, ""]:
    """Falls while distances of random pairs grow; flattens beyond `offset` steps over about 1 / beta."""
    return F.softplus(offset - distances, beta=beta).mean()


def step_excess(distances: Float[Tensor, "*transitions"], *, step: float = 1.0) -> Float[Tensor, ""]:
    """Mean square of what successive states are further apart than one step."""
    return F.relu(distances - step).square().mean()


def constrained_loss(
    spread: Float[Tensor, ""],
    excess: Float[Tensor, ""],
    raw_multiplier: Float[Tensor, ""],
    *,
    tolerance: float = 0.25,
) -> Float[Tensor, ""]:
    """Lagrangian of "minimise `spread` subject to `excess` <= tolerance^2", for one descent on everything.

    The model descends on spread + lambda (excess - tolerance^2) and the multiplier ascends on it: each sees
    the other as a constant, and the multiplier's share has the opposite sign. `raw_multiplier` is a learned
    number; softplus keeps lambda >= 0.
    """
    multiplier = F.softplus(raw_multiplier)
    violation = excess - tolerance**2
    return spread + multiplier.detach() * violation - multiplier * violation.detach()


def ordered_pairs(
    frames: int, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """All positions (earlier, later) of a segment of `frames` frames."""
    if frames < 2:
        raise InputError(
            f"a segment of {frames} frames has no ordered pair; segments need two frames or more"
        )
    earlier, later = torch.triu_indices(frames, frames, offset=1, device=device)
    return earlier, later


def pair_regression_loss(
    distances: Float[Tensor, "*batch pairs"], elapsed: Int[Tensor, " pairs"], *, expectile: float = 0.1
) -> Float[Tensor, ""]:
    """Regress distances of ordered pairs on a lower expectile of the steps between them.

    Below 0.5, a distance larger than a witnessed path costs more than one smaller: towards 0 the shortest
    path wins.
    """
    return expectile_loss(elapsed.to(distances.dtype) - distances, expectile)
