"""What planners are timed on: one random predictor, latents to start from, goals, and the cost between them.

The cost is the mean square distance to the goal, summed over the steps. Weights are random: a planner's time
does not depend on what they know.
"""

from dataclasses import dataclass

import torch

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.streaming import BoundSum
from jepaplan.costs.terms import GoalDistance, mean_square
from jepaplan.models.int8 import Int8Predictor
from jepaplan.models.predictors import MLPPredictor, PredictorConfig, to_bfloat16
from jepaplan.recipes.costs import Precision

ACTION_DIM = 2
MAX_ACTION = 2.45  # in normalised units: a norm for us, a box for peers that have no other bound


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is planned, and with how large a predictor."""

    problems: int
    samples: int  # per problem and iteration
    horizon: int
    latent: int
    hidden: int
    layers: int
    iterations: int = 1
    elites: int | None = None  # None: all samples


class Setting:
    """One predictor, the latents to start from and the goals."""

    predictor: torch.nn.Module

    def __init__(self, size: Size, precision: Precision = "fp32") -> None:
        torch.manual_seed(0)
        config = PredictorConfig(hidden=size.hidden, layers=size.layers)
        self.size = size
        self.predictor = MLPPredictor(size.latent, ACTION_DIM, config).eval().requires_grad_(False)
        self.latent = torch.randn(size.problems, size.latent)
        if precision == "bf16":
            self.latent = self.latent.bfloat16()
            to_bfloat16(self.predictor)
        elif precision == "int8":
            self.predictor = Int8Predictor(self.predictor)
        self.goal = torch.randn(size.problems, size.latent)

    def flat_step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The predictor on any leading axes."""
        return self.predictor(latent.flatten(0, -2), action.flatten(0, -2)).unflatten(0, latent.shape[:-1])

    def cost(self, problems: slice = slice(None), world: "PredictorWorld | None" = None) -> BoundSum:
        """The cost of the problems, imagined by `world`."""
        terms = WeightedSum({"goal": (1.0, GoalDistance(distance=mean_square))})
        return terms.bind(world or PredictorWorld(self.predictor), self.latent[problems], self.goal[problems])


class PredictorWorld:
    """The part of a world model that a cost uses."""

    action_dim = ACTION_DIM
    stride = 1

    def __init__(self, predictor: MLPPredictor) -> None:
        self.step = predictor
