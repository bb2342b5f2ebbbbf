"""Implicit value learning on a distance: V(s, g) = -d(E(s), E(g)) obeys an optimistic Bellman equation.

Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", arXiv:2110.06169, in the
action-free, goal-conditioned form of arXiv:2601.00844, section 3: every step costs one until the goal is
reached,

    sum_n sum_t L_tau( -1[s_t != g_n] + gamma sg(V(s_{t+1}, g_n)) - V(s_t, g_n) ),    L_tau(x) = |tau - 1[x <
    0]| x^2.

    paper    here
    V        -distances      the sign stays in this file
    g_n      goals           the segment's own last state, and states of the whole batch
    gamma    discount
    tau      expectile       towards 1: the best outcome seen in the data
    sg       detach

As in the paper there is no target network, no ensemble and no terminal mask; a slowly moving copy may supply
`target_distances`. Where outcomes are random the paper's loss is biased, since it sees no actions;
`implicit_q_loss` sees them. Sums over t and n are means here: their counts do not change the weight of the
loss.

Goals of the batch come from other recordings, so where every recording has its own layout they cannot be
reached at all, and the best value is that of never arriving, -1 / (1 - gamma). The paper says "random goals
sampled from the training batches", so this is the default; `own_goals` with `batch_goals=0` keeps to goals of
the state's own layout.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.objectives.vcreg import Gather, alone
from jepaplan.types import InputError


@runtime_checkable
class PairwiseDistance(Protocol):
    """An `interfaces.Distance` that also compares all pairs without holding all pairs of latents."""

    def __call__(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches of latents."""
        ...

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem."""
        ...


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """The Bellman equation to satisfy; defaults of arXiv:2601.00844 for the Euclidean distance."""

    discount: float = 0.98  # per model step; 1 / (1 - discount) is the largest distance it can express
    expectile: float = 0.8  # 0.5 averages over the behaviour in the data, towards 1 takes its best
    batch_goals: int = 64  # goals from the batch, beside each segment's last state; 0 for none
    own_goals: bool = False  # every state of the segment itself is a goal as well
    action_values: bool = False  # values of actions in between, so that luck is not taken for skill

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or not 0 < self.expectile < 1:
            raise InputError(
                "discount lies in (0, 1] and expectile in (0, 1); got "
                f"discount={self.discount}, expectile={self.expectile}"
            )
        if self.batch_goals < 0:
            raise InputError(f"batch_goals counts goals, so it cannot be negative; got {self.batch_goals}")


def expectile_loss(error: Float[Tensor, "*batch"], expectile: float) -> Float[Tensor, ""]:
    """Squared error that weighs positive errors by `expectile`: 0.5 gives the mean, towards 1 the maximum."""
    weight = torch.where(error < 0, 1 - expectile, expectile)
    return (weight * error.square()).mean()


def value_loss(
    distances: Float[Tensor, "B frames G"],
    reached: Bool[Tensor, "B frames G"],
    *,
    discount: float,
    expectile: float,
    target_distances: Float[Tensor, "B T G"] | None = None,
) -> Float[Tensor, ""]:
    """The loss above for the distances of each state of each segment to each goal.

    `reached` is true where the state is the goal: the same recorded frame, not merely equal pixels.
    `target_distances`, where given, replaces the distances from the next state, for example by those of a
    target network.
    """
    following = distances[:, 1:] if target_distances is None else target_distances
    return expectile_loss(_outcome(following, reached, discount) + distances[:, :-1], expectile)


def implicit_q_loss(
    distances: Float[Tensor, "B frames G"],
    reached: Bool[Tensor, "B frames G"],
    action_values: Float[Tensor, "B T G"],
    *,
    discount: float,
    expectile: float,
) -> Float[Tensor, ""]:
    """The same by way of values of actions, as in implicit Q-learning proper (arXiv:2110.06169, section 4.2).

    Those learn the mean of what follows an action, V a high expectile of them: the best action, not the best
    outcome. Where outcomes are certain, both losses have the same solution.
    """
    chosen = expectile_loss(action_values.detach() + distances[:, :-1], expectile)
    return chosen + (action_values - _outcome(distances[:, 1:], reached, discount)).square().mean()


def _outcome(
    following: Float[Tensor, "B T G"], reached: Bool[Tensor, "B frames G"], discount: float
) -> Float[Tensor, "B T G"]:
    """-1[s_t != g] + gamma sg(V(s_{t+1}, g)): only the state's own value learns from the next one's."""
    return -(~reached[:, :-1]).to(following.dtype) - discount * following.detach()


def goals_for(
    latents: Float[Tensor, "B frames D"],
    frames: Int[Tensor, "B frames"],
    batch_goals: int,
    gather: Gather = alone,
    own_goals: bool = False,
) -> Float[Tensor, "B G D"]:
    """The goals of `distances_to_goals`, in its order."""
    goals = [latents[:, -1:], latents[:, :-1]] if own_goals else [latents[:, -1:]]
    if batch_goals > 0:
        of_batch, _ = goals_of_batch(latents, frames, batch_goals, gather)
        goals.append(of_batch.expand(len(latents), -1, -1))
    return torch.cat(goals, dim=1)


def distances_to_goals(
    latents: Float[Tensor, "B frames D"],
    frames: Int[Tensor, "B frames"],
    distance: PairwiseDistance,
    batch_goals: int,
    gather: Gather = alone,
    own_goals: bool = False,
) -> tuple[Float[Tensor, "B frames G"], Bool[Tensor, "B frames G"]]:
    """Distances of all states to their goals (goal 0: the segment's last), and who is at its goal."""
    to_goals = [distance(latents, latents[:, -1:])[..., None]]
    reached = [(frames == frames[:, -1:])[..., None]]
    if own_goals:
        to_goals.append(distance.pairwise(latents, latents[:, :-1]))
        reached.append(frames[:, :, None] == frames[:, None, :-1])
    if batch_goals > 0:
        goals, goal_frames = goals_of_batch(latents, frames, batch_goals, gather)
        to_batch = distance.pairwise(latents.flatten(0, 1)[None], goals[None])[0]
        to_goals.append(to_batch.unflatten(0, latents.shape[:2]))
        reached.append(frames[..., None] == goal_frames)
    return torch.cat(to_goals, dim=-1), torch.cat(reached, dim=-1)


def goals_of_batch(
    latents: Float[Tensor, "B frames D"], frames: Int[Tensor, "B frames"], count: int, gather: Gather = alone
) -> tuple[Float[Tensor, "G D"], Int[Tensor, " G"]]:
    """`count` random states of the batch of all processes, one per segment.

    Segments were drawn at random, so no further randomness is needed: each offers the state at position
    `first frame number modulo length`, which is the same whichever process holds it.
    """
    items = torch.arange(len(latents), device=latents.device)
    position = frames[:, 0] % frames.shape[1]
    goals, goal_frames = gather(latents[items, position]), gather(frames[items, position])
    if count > len(goals):
        raise InputError(
            f"{count} goals were asked of a batch of {len(goals)} segments, each of which offers one; "
            f"write batch_goals={len(goals)} or train on larger batches"
        )
    return goals[:count], goal_frames[:count]
