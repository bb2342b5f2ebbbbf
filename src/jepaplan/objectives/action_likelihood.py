"""How likely the recorded actions are under a prior that was told where the recording went.

L = mean_b sum_i  (a_bi - mu_bi)^2 / (2 sigma_bi^2) + log sigma_bi + log(2 pi) / 2
"""

import math

from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.objectives.td import ReturnBatch
from jepaplan.types import InputError


def gaussian_nll(
    mean: Float[Tensor, "*batch A"], log_std: Float[Tensor, "*batch A"], actions: Float[Tensor, "*batch A"]
) -> Float[Tensor, ""]:
    """The loss above: minus the log density of an action, in nats."""
    error = (actions - mean) * (-log_std).exp()
    return (error.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1).mean()


class ActionLikelihoodObjective(nn.Module):
    """Negative log likelihood of the recorded action, given its latent and a goal of its recording."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior  # (latent, goal) -> mean, log_std

    def forward(self, batch: ReturnBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, the squared error of the mean (1: nothing is known) and the mean deviation."""
        if batch.goals is None or batch.actions is None:
            raise InputError(
                "a prior of actions learns from batches with goals and actions; got "
                f"goals={'none' if batch.goals is None else 'some'}, "
                f"actions={'none' if batch.actions is None else 'some'}. Pass both"
            )
        mean, log_std = (part.float() for part in self.prior(batch.latents, batch.goals))
        metrics = {"squared_error": (mean - batch.actions).square().mean(), "std": log_std.exp().mean()}
        return gaussian_nll(mean, log_std, batch.actions), metrics
