"""Linear systems with quadratic costs for B problems at once, and their exact optima by Riccati.

    x_t = x_(t-1) move' + u_t push'
    cost of a path = sum over t = 1..H of state_weight |x_t - goal|^2 + effort |u_t|^2
                     + final_weight |x_H - goal|^2 + offset

The last line is the `to_go` of `expand`, the rest its `step_cost`.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.types import Expansion


@dataclass(frozen=True, kw_only=True)
class LinearQuadratic:
    """A `SequenceCost` and a `StepwiseCost`.

    `rows` gets one entry per call: the model steps asked for each problem, thrice as many under autograd.
    """

    move: Float[Tensor, "D D"]
    push: Float[Tensor, "D A"]
    latent: Float[Tensor, "B D"]
    goal: Float[Tensor, "B D"]
    state_weight: float = 1.0
    effort: float = 0.1
    final_weight: float = 0.0
    offset: float = 0.0  # added to what every path costs
    rows: list[int] = field(default_factory=list)

    def __call__(self, actions: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
        """The cost of whole sequences."""
        self._count(actions.shape[1] * actions.shape[2], actions)
        state = self.latent[:, None].expand(-1, actions.shape[1], -1)
        total = actions.new_zeros(actions.shape[:2])
        for action in actions.unbind(dim=2):
            state = state @ self.move.T + action @ self.push.T
            total = total + self._step_cost(state, action)
        return total + self._to_go(state)

    def expand(
        self,
        latents: Float[Tensor, "B N D"],
        actions: Float[Tensor, "B N A"],
        depth: Int[Tensor, "B N"] | int,
        horizon: int,
    ) -> Expansion:
        """One step from every node."""
        self._count(actions.shape[1], actions, latents)
        after = latents @ self.move.T + actions @ self.push.T
        return Expansion(after, self._step_cost(after, actions), self._to_go(after))

    def optimum(self, horizon: int) -> tuple[Float[Tensor, " B"], Float[Tensor, "B H A"]]:
        """The least cost of each problem and the only actions that reach it, by dynamic programming."""
        one = torch.ones_like(self.latent[:, :1])
        state = torch.cat([self.latent, one], dim=-1).double()
        move, push, stage, final = self._augmented()
        effort = self.effort * torch.eye(push.shape[1], dtype=torch.float64)
        ahead, gains = final, []
        for _ in range(horizon):
            worth = stage + ahead
            gain = torch.linalg.solve(effort + push.T @ worth @ push, push.T @ worth @ move)
            ahead = move.T @ worth @ (move - push @ gain)
            gains.append(gain)
        least = torch.einsum("bi,bij,bj->b", state, ahead, state) + self.offset
        actions = []
        for gain in reversed(gains):
            actions.append(-torch.einsum("bij,bj->bi", gain, state))
            state = state @ move.T + actions[-1] @ push.T
        return least.to(self.latent.dtype), torch.stack(actions, dim=1).to(self.latent.dtype)

    def only(self, problems: slice) -> "LinearQuadratic":
        """The same for some of the problems."""
        return replace(self, latent=self.latent[problems], goal=self.goal[problems], rows=[])

    def _count(self, steps: int, *inputs: Tensor) -> None:
        differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        self.rows.append(3 * steps if differentiated else steps)

    def _step_cost(self, state: Tensor, action: Tensor) -> Tensor:
        away = (state - self.goal[:, None]).square().sum(dim=-1)
        return self.state_weight * away + self.effort * action.square().sum(dim=-1)

    def _to_go(self, state: Tensor) -> Tensor:
        return self.final_weight * (state - self.goal[:, None]).square().sum(dim=-1) + self.offset

    def _augmented(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # a constant 1 joins the state, so that the distance to any goal is a quadratic form of it
        width = len(self.move)
        move = torch.eye(width + 1, dtype=torch.float64)
        move[:width, :width] = self.move
        push = torch.zeros(width + 1, self.push.shape[1], dtype=torch.float64)
        push[:width] = self.push
        away = torch.cat(
            [
                torch.eye(width, dtype=torch.float64).expand(len(self.goal), -1, -1),
                -self.goal[:, :, None].double(),
            ],
            dim=-1,
        )
        square = away.mT @ away
        return move, push, self.state_weight * square, self.final_weight * square


def double_integrator(
    problems: int = 3, *, dtype: torch.dtype = torch.float64, **changes: float
) -> LinearQuadratic:
    """Position and speed pushed by one force, from different starts to different goals."""
    numbers = torch.Generator().manual_seed(5)
    latent, goal = (torch.randn(problems, 2, generator=numbers, dtype=dtype) for _ in range(2))
    move = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=dtype)
    push = torch.tensor([[0.0], [0.5]], dtype=dtype)
    return LinearQuadratic(move=move, push=push, latent=latent, goal=goal, **changes)


def planar(problems: int = 3, *, dtype: torch.dtype = torch.float64, **changes: float) -> LinearQuadratic:
    """A slightly turning plane pushed in both directions: well conditioned, two action components."""
    numbers = torch.Generator().manual_seed(6)
    latent, goal = (torch.randn(problems, 2, generator=numbers, dtype=dtype) for _ in range(2))
    move = torch.tensor([[0.9, 0.2], [-0.2, 0.9]], dtype=dtype)
    return LinearQuadratic(
        move=move, push=0.5 * torch.eye(2, dtype=dtype), latent=latent, goal=goal, **changes
    )
