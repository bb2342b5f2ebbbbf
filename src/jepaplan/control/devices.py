"""Where things are computed: what is seen goes to the world model, actions come back to the world.

    on the CPU             worlds, instances, recordings; generators, so that noise is the same everywhere
    where the model is     goals, latents, plans, costs

A model without parameters, such as true dynamics, computes wherever it is given something.
"""

import torch
from torch import Tensor, nn

from jepaplan.types import Observation


def home_of(model: object) -> torch.device | None:
    """Where the parameters of `model` are; None if it has none."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return None if parameter is None else parameter.device


def at_home(tensor: Tensor, model: object) -> Tensor:
    """`tensor` where `model` computes."""
    home = home_of(model)
    return tensor if home is None else tensor.to(home)


def seen_at_home(seen: Observation, model: object) -> Observation:
    """An observation where `model` computes."""
    felt = seen.proprioception
    return Observation(at_home(seen.frames, model), None if felt is None else at_home(felt, model))
