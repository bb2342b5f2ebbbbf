"""Candidates from experience: recorded chunks of actions, a policy's opinion, and mixtures of proposals.

When a search fails with true dynamics, it is nearly always because no candidate reached the goal (IMWM,
arXiv:2606.01626), so what is proposed matters as much as what is imagined. Nothing here knows of latents or
goals: whoever does binds them into the callable of an `ActionPrior` before planning.

    literature                             here
    bank, anchor                           RecordedChunks.chunks, one of them
    residual                               RecordedChunks.residual
    pi(s), inverse dynamics (s, g) -> a    ActionPrior.prior, with state and goal already bound
    N(mu_t, sigma_t), step by step         AroundPlan.plan
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.interfaces import Planner
from jepaplan.planners.proposals import Proposal, Randomness, around, deal, unit_noise
from jepaplan.types import InputError, Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedChunks:
    """Chunks of recorded actions, some as they were and the others with a little noise.

    They ignore the current plan; in a planner that refines, mix them with noise around it (`Mixture`).
    """

    chunks: Float[
        Tensor, "n L A"
    ]  # normalised units, see `action_chunks`; plans of fewer steps take the beginning
    residual: float = 0.1  # standard deviation of the noise on top, in normalised action units
    exact: float = 0.5  # share of the candidates without noise

    def __post_init__(self) -> None:
        """Refuse an empty bank."""
        if self.chunks.shape[0] < 1 or self.chunks.shape[1] < 1:
            raise InputError(
                f"a bank needs a chunk of one step or more; got shape {tuple(self.chunks.shape)}"
            )
        if not self.residual >= 0 or not 0 <= self.exact <= 1:
            raise InputError(
                f"residual is a standard deviation and exact a share; got {self.residual} and {self.exact}"
            )

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Chunks drawn with replacement, the exact ones first."""
        problems, horizon, components = current.mean.shape
        count, length, width = self.chunks.shape
        if horizon > length or components != width:
            raise InputError(
                f"the bank holds chunks of {length} steps with {width} components, and the plan has "
                f"{horizon} steps with {components}; build it with action_chunks(..., horizon={horizon})"
            )
        index = torch.empty(problems, samples, dtype=torch.long, device=current.mean.device)
        index = deal(index, generator, lambda numbers, own: numbers.random_(0, count, generator=own))
        anchors = self.chunks[:, :horizon].to(current.mean)[index]
        noise = unit_noise(current, samples, 0.0, generator).mul_(self.residual)
        noise[:, : round(self.exact * samples)] = 0
        return noise.add_(anchors)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionPrior:
    """What a policy or a goal-conditioned inverse-dynamics network would do, with noise around it.

    `prior(horizon)` gives its action sequences in normalised units, one for each problem of the plan; it is
    asked once per iteration. The problems are those for which it was bound:

        prior = partial(network, latent, goal)
        replace(planner, proposal=ActionPrior(prior=prior)).plan(cost, start, generators)
    """

    prior: Callable[[int], Tensor]  # horizon -> B H A
    std: float = 0.3  # in normalised action units
    exact: bool = True  # the first candidate has no noise

    def __post_init__(self) -> None:
        """Refuse a deviation that is none."""
        if not self.std > 0:
            raise InputError(f"std is the standard deviation around the prior, positive; got {self.std}")

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Candidates around the prior's sequences."""
        mean = self.prior(current.mean.shape[1])
        led = AroundPlan(plan=Plan(mean=mean, std=torch.full_like(mean, self.std)), exact=self.exact)
        return led.sample(current, samples, generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class AroundPlan:
    """Noise around a plan that was known before the search, whatever the current one is.

    Its deviation may be another at every step, as a learned prior's is.
    """

    plan: Plan  # of the problems that are searched now, with their horizon
    exact: bool = True  # the first candidate has no noise

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Candidates around `plan`."""
        if self.plan.mean.shape != current.mean.shape:
            raise InputError(
                f"the prior gave actions of shape {tuple(self.plan.mean.shape)} for plans of shape "
                f"{tuple(current.mean.shape)} (B H A); bind it to the problems that are planned now"
            )
        noise = unit_noise(current, samples, 0.0, generator)
        if self.exact:
            noise[:, 0] = 0
        led = Plan(mean=self.plan.mean.to(current.mean), std=self.plan.std.to(current.mean))
        return around(led, noise)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A share of the candidates from each of several proposals, in this order; rounding is the last one's."""

    parts: tuple[Proposal, ...]
    shares: tuple[float, ...]  # of the candidates; they sum to one

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if len(self.parts) != len(self.shares) or not self.parts:
            raise InputError(
                f"got {len(self.parts)} proposals and {len(self.shares)} shares; give one for each"
            )
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise InputError(f"shares are not negative and sum to one; got {self.shares}")

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Candidates of all parts, one part after the other."""
        ends = [round(samples * sum(self.shares[: part + 1])) for part in range(len(self.parts) - 1)]
        counts = [end - begin for begin, end in zip([0, *ends], [*ends, samples], strict=True)]
        drawn = [
            part.sample(current, count, generator)
            for part, count in zip(self.parts, counts, strict=True)
            if count > 0
        ]
        return torch.cat(drawn, dim=1)


@runtime_checkable
class TakesProposals(Protocol):
    """A planner that can be given candidates of another origin: every sampling planner."""

    def with_proposal(self, proposal: Proposal, share: float) -> Planner:
        """The same planner, of whose candidates the share comes from `proposal` and the rest as before."""
        ...


def beside(own: Proposal, other: Proposal, share: float) -> Mixture:
    """A share of the candidates from `other`. It comes last: the first candidate may be the plan's mean."""
    return Mixture(parts=(own, other), shares=(1 - share, share))


def action_chunks(
    actions: Float[Tensor, "K A"],
    lengths: Int[Tensor, " E"],
    horizon: int,
    *,
    limit: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n horizon A"]:
    """All runs of `horizon` consecutive actions that lie within one episode, or `limit` of them at random.

    `actions` are those of all episodes one after the other, `lengths` how many each has. Normalise them:
    `action_chunks(units.normalise(episodes.actions), episodes.lengths, planner.horizon)`.
    """
    if int(lengths.sum()) != len(actions) or horizon < 1:
        raise InputError(
            f"got {len(actions)} actions of episodes with {int(lengths.sum())} in all, and a horizon of "
            f"{horizon}: the lengths must add up to the actions, and a chunk has one step or more"
        )
    ends = lengths.cumsum(0)
    rows = torch.arange(len(actions), device=actions.device)
    left = (
        ends.to(rows.device).repeat_interleave(lengths.to(rows.device)) - rows
    )  # of the episode, from this row on
    begins = rows[left >= horizon]
    if len(begins) == 0:
        raise InputError(
            f"no episode has {horizon} actions (the longest has {int(lengths.max())}); "
            "plan with a shorter horizon"
        )
    if limit is not None and len(begins) > limit:
        if generator is None:
            raise InputError(f"to choose {limit} of {len(begins)} chunks at random, give a generator")
        order = torch.randperm(len(begins), generator=generator, device=generator.device)
        begins = begins[order[:limit].to(begins.device).sort().values]
    return actions[begins[:, None] + torch.arange(horizon, device=actions.device)]
