"""What every planner does around its own idea: begin without knowledge, ask the cost, refuse nonsense."""

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.types import InputError, Plan


def uninformed(problems: int, horizon: int, action_dim: int, std: float, device: torch.device | str) -> Plan:
    """The plan of someone who knows nothing: the mean action at every step, and `std` around it."""
    mean = torch.zeros(problems, horizon, action_dim, device=device)
    return Plan(mean=mean, std=torch.full_like(mean, std))


def evaluate(cost: SequenceCost, candidates: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
    """The candidates' costs, one each: no NaN, and at least one finite number per problem."""
    costs = cost(candidates)
    if costs.shape != candidates.shape[:2]:
        raise InputError(
            f"the cost answered with shape {tuple(costs.shape)} to actions of shape "
            f"{tuple(candidates.shape)} (B S H A); it must give one number per problem and sample: "
            f"{tuple(candidates.shape[:2])}"
        )
    undefined = costs.isnan()
    if undefined.any():
        raise InputError(
            f"the cost is NaN for {int(undefined.sum())} of {costs.numel()} candidates, "
            "and NaN cannot be ranked; look at the predicted latents, or "
            "return a large number where the cost is undefined"
        )
    if costs.amin(dim=-1).isinf().any():
        raise InputError(
            "every candidate of some problem costs infinity, so there is nothing to choose from. "
            "Use a large finite number for what must not happen, or a wider proposal."
        )
    return costs
