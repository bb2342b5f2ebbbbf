"""The predictor's calls of one search, written down, and a loop that makes the same calls and nothing else.

A call with gradient is a forward pass and, at the end of its path, a backward pass to latents and actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from measuring import Work
from setting import ACTION_DIM, PredictorWorld, Setting


@dataclass(frozen=True)
class Call:
    """One call of the predictor."""

    rows: int
    graded: bool
    follows: bool  # its latents are what the call before gave


class Listening(PredictorWorld):
    """Writes down how the predictor is called."""

    def __init__(self, setting: Setting) -> None:
        self.calls: list[Call] = []
        self._predictor = setting.predictor
        self._latest: torch.Tensor | None = None

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The predictor's answer."""
        after = self._predictor(latent, action)
        self.calls.append(Call(len(latent), after.requires_grad, latent is self._latest))
        self._latest = after
        return after


def bare_loop(setting: Setting, calls: Sequence[Call]) -> Work:
    """The same calls of the predictor, and nothing else."""
    predictor, width = setting.predictor, setting.size.latent
    sizes = {call.rows for call in calls}
    latents = {rows: torch.randn(rows, width) for rows in sizes}
    actions = {rows: torch.randn(rows, ACTION_DIM) for rows in sizes}

    def backward(after: torch.Tensor | None, leaves: list[torch.Tensor]) -> None:
        if after is not None:
            torch.autograd.grad(after, leaves, torch.ones_like(after))

    def run() -> None:
        path: torch.Tensor | None = None
        leaves: list[torch.Tensor] = []
        plain = latents[calls[0].rows]
        for call in calls:
            if not call.graded:
                plain = predictor(plain if call.follows else latents[call.rows], actions[call.rows])
                continue
            if not call.follows:
                backward(path, leaves)
                path = latents[call.rows].clone().requires_grad_(True)
                leaves = [path]
            leaves.append(actions[call.rows].clone().requires_grad_(True))
            with torch.enable_grad():
                path = predictor(path, leaves[-1])
        backward(path, leaves)

    return run
