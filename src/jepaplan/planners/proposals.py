"""Where candidate actions come from, where bounds are kept, and where the next search begins.

A `Proposal` deals candidates around the current plan; `propose` projects them step by step onto the allowed
actions, and nothing else does. Here is Gaussian noise; other noise is in `noise`, and what knows recorded
actions or a policy in `proposals_bank`.

    literature           here
    Sigma (covariance)   `std_from_variance(Sigma)`   the planners speak of standard deviations only
    U (nominal)          `Plan.mean`
    sigma * epsilon      `unit_noise` times `Plan.std`

Noise may be correlated in time. The sum of H independent steps grows like sqrt(H), so a planner that draws
them hardly ever imagines walking straight; a first-order autoregression e_t = c e_(t-1) + sqrt(1 - c^2) n_t
keeps the standard deviation of every single step and makes the sum larger by up to sqrt((1 + c) / (1 - c)).

Randomness is one generator for all problems, or a sequence with one generator per problem. With one per
problem, what a problem is dealt does not depend on who else is still in the batch; `control` always plans
that way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from jepaplan.interfaces import Bounds
from jepaplan.types import InputError, Plan

Randomness = torch.Generator | Sequence[torch.Generator]


@runtime_checkable
class Proposal(Protocol):
    """Where candidates come from."""

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """`samples` candidates for each problem of `current`, in a tensor of their own; bounds come later."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """The fields of a planner that say how it draws."""

    @property
    def proposal(self) -> Proposal | None:
        """None: Gaussian noise."""
        ...

    @property
    def correlation(self) -> float:
        """Of the Gaussian noise from one step to the next."""
        ...

    @property
    def bounds(self) -> Bounds | None:
        """Where actions may be."""
        ...


def std_from_variance(variance: float) -> float:
    """The deviation of noise of a given variance: PLDM's "noise_sigma: 12" is a variance, so 3.46 here."""
    if not variance > 0:
        raise InputError(f"a variance must be positive; got {variance}")
    return math.sqrt(variance)


@dataclass(frozen=True, kw_only=True)
class NormBound:
    """Each step's action vector is at most `max_norm` long; longer ones keep their direction."""

    max_norm: float  # Euclidean, in normalised action units

    def __post_init__(self) -> None:
        """Refuse a ball without inside."""
        if not self.max_norm > 0:
            raise InputError(
                f"max_norm is the largest length of an action, so it must be positive; got {self.max_norm}"
            )

    def project(self, actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """The nearest actions inside the ball."""
        norm = actions.square().sum(-1, keepdim=True).sqrt()
        # min before the division: actions of length zero stay what they are instead of becoming 0 / 0
        return actions * (self.max_norm / norm.clamp(min=self.max_norm))

    def uniform(self, like: Float[Tensor, "B S H A"], generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Actions spread evenly over the ball, as many as in `like`."""
        direction = deal(torch.empty_like(like), generator, fill_normal)
        volume = deal(torch.empty_like(like[..., :1]), generator, fill_uniform)
        length = direction.square().sum(-1, keepdim=True).sqrt().clamp(min=torch.finfo(like.dtype).tiny)
        return direction * (self.max_norm * volume.pow(1 / like.shape[-1]) / length)


@dataclass(frozen=True, kw_only=True)
class BoxBound:
    """Each component of an action lies in [low, high]: one number for all, or a tuple with one each."""

    low: float | tuple[float, ...] = -1.0  # in normalised action units
    high: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        low = self.low if isinstance(self.low, tuple) else (self.low,)
        high = self.high if isinstance(self.high, tuple) else (self.high,)
        if len(low) != len(high) and 1 not in (len(low), len(high)):
            raise InputError(
                f"low has {len(low)} components and high has {len(high)}; give as many of one as of the other"
            )
        pairs = zip(low * max(1, len(high) // len(low)), high * max(1, len(low) // len(high)), strict=True)
        if not all(bottom < top for bottom, top in pairs):
            raise InputError(
                f"a box needs low < high in every component; got low={self.low}, high={self.high}"
            )

    def project(self, actions: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch A"]:
        """The nearest actions inside the box."""
        return actions.clamp(*self._edges(actions))

    def uniform(self, like: Float[Tensor, "B S H A"], generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Actions spread evenly over the box, as many as in `like`."""
        low, high = self._edges(like)
        return low + (high - low) * deal(torch.empty_like(like), generator, fill_uniform)

    def _edges(self, actions: Float[Tensor, "*batch A"]) -> tuple[Tensor, Tensor]:
        for name, edge in (("low", self.low), ("high", self.high)):
            if isinstance(edge, tuple) and len(edge) not in (1, actions.shape[-1]):
                raise InputError(
                    f"actions have {actions.shape[-1]} components and {name} has {len(edge)}; "
                    "give one number for all components or one for each"
                )
        low = torch.as_tensor(self.low, dtype=actions.dtype, device=actions.device)
        high = torch.as_tensor(self.high, dtype=actions.dtype, device=actions.device)
        return low, high


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """The current plan and noise of its standard deviation."""

    correlation: float = 0.0  # of the noise from one step to the next

    def __post_init__(self) -> None:
        """Refuse what is no correlation."""
        _check_correlation(self.correlation)

    def sample(self, current: Plan, samples: int, generator: Randomness) -> Float[Tensor, "B S H A"]:
        """Candidates around the plan's mean."""
        return around(current, unit_noise(current, samples, self.correlation, generator))


def unit_noise(
    plan: Plan, samples: int, correlation: float, generator: Randomness
) -> Float[Tensor, "B S H A"]:
    """Noise of mean 0 and standard deviation 1 for `samples` candidates around `plan`, correlated in time."""
    problems, horizon, components = plan.mean.shape
    noise = deal(plan.mean.new_empty(problems, samples, horizon, components), generator, fill_normal)
    if correlation > 0:
        fresh = math.sqrt(1 - correlation**2)
        for step in range(1, horizon):
            noise[:, :, step].mul_(fresh).add_(noise[:, :, step - 1], alpha=correlation)
    return noise


def around(plan: Plan, noise: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S H A"]:
    """Noise of deviation 1 becomes candidates; `noise` is used up."""
    return noise.mul_(plan.std[:, None]).add_(plan.mean[:, None])


def own_proposal(sampler: Sampler) -> Proposal:
    """Where a planner takes its candidates from: its proposal, or Gaussian noise with its correlation."""
    return sampler.proposal or GaussianNoise(correlation=sampler.correlation)


def propose(
    sampler: Sampler, plan: Plan, samples: int, generator: Randomness, *, keep_nominal: bool
) -> Float[Tensor, "B S H A"]:
    """Allowed candidates around `plan`; with `keep_nominal` the first is the mean, without noise."""
    candidates = own_proposal(sampler).sample(plan, samples, generator)
    if keep_nominal:
        candidates[:, 0] = plan.mean
    return candidates if sampler.bounds is None else sampler.bounds.project(candidates)


def draw(
    plan: Plan,
    samples: int,
    generator: Randomness,
    *,
    bounds: Bounds | None,
    correlation: float = 0.0,
    keep_nominal: bool = True,
) -> Float[Tensor, "B S H A"]:
    """`propose` for planners that know Gaussian noise only."""
    gaussian = _Gaussian(bounds, correlation)
    return propose(gaussian, plan, samples, generator, keep_nominal=keep_nominal)


def within(bounds: Bounds | None, plan: Plan) -> Plan:
    """The plan with an allowed mean."""
    return plan if bounds is None else Plan(mean=bounds.project(plan.mean), std=plan.std)


def deal(
    numbers: Shaped[Tensor, "B *shape"],
    generator: Randomness,
    fill: Callable[[Tensor, torch.Generator], object],
) -> Shaped[Tensor, "B *shape"]:
    """`numbers`, filled by `fill`, all from one generator or each problem's from its own.

    Drawn where the generator lives, so a CPU generator deals the same to every device.
    """
    if isinstance(generator, torch.Generator):
        drawn = numbers.to(generator.device)
        fill(drawn, generator)
        return drawn.to(numbers.device)
    if len(generator) != len(numbers):
        raise InputError(
            f"got {len(generator)} generators for {len(numbers)} problems; give one in all, or one for each"
        )
    drawn = numbers.to(generator[0].device)
    for own, randomness in zip(drawn, generator, strict=True):
        fill(own, randomness)
    return drawn.to(numbers.device)


def fill_normal(numbers: Tensor, generator: torch.Generator) -> None:
    """Fill with normal numbers of mean 0 and deviation 1."""
    numbers.normal_(generator=generator)


def fill_uniform(numbers: Tensor, generator: torch.Generator) -> None:
    """Fill with numbers spread evenly over [0, 1)."""
    numbers.uniform_(generator=generator)


def shift(plan: Plan, executed: int | Int[Tensor, " B"], std: float) -> Plan:
    """The unexecuted tail of `plan`, padded with zeros to the same horizon: where the next search begins."""
    mean = shifted(plan.mean, executed)
    return Plan(mean=mean, std=torch.full_like(mean, std))


def keep(plan: Plan, std: float) -> Plan:
    """The same plan again, not shifted: what PLDM's planner begins with while its horizon is constant."""
    return Plan(mean=plan.mean, std=torch.full_like(plan.mean, std))


def shifted(mean: Float[Tensor, "B H A"], executed: int | Int[Tensor, " B"]) -> Float[Tensor, "B H A"]:
    """Move each plan `executed` steps towards the present; the far end becomes zeros (the mean action)."""
    problems, horizon, components = mean.shape
    ahead = torch.arange(horizon, device=mean.device) + torch.as_tensor(executed, device=mean.device).view(
        -1, 1
    )
    source = ahead.clamp(max=horizon - 1).expand(problems, horizon)[..., None].expand(-1, -1, components)
    return mean.gather(1, source) * (ahead < horizon)[..., None]


def check_sampling(
    *,
    samples: int,
    horizon: int,
    iterations: int,
    std: float,
    correlation: float = 0.0,
    proposal: Proposal | None = None,
) -> None:
    """Refuse what no sampling planner can use; each planner's `__post_init__` calls it."""
    for name, number in (("samples", samples), ("horizon", horizon), ("iterations", iterations)):
        if number < 1:
            raise InputError(f"{name} must be at least 1; got {number}")
    if not std > 0:
        raise InputError(f"std is the standard deviation of the noise, so it must be positive; got {std}")
    _check_correlation(correlation)
    if proposal is not None and correlation != 0:
        raise InputError(
            f"correlation={correlation} belongs to the Gaussian noise of a planner without a proposal; "
            f"leave it out, or write proposal=GaussianNoise(correlation={correlation}) instead of {proposal}"
        )


@dataclass(frozen=True)
class _Gaussian:
    """A `Sampler` without a proposal of its own."""

    bounds: Bounds | None
    correlation: float
    proposal: Proposal | None = None


def _check_correlation(correlation: float) -> None:
    if not 0 <= correlation < 1:
        raise InputError(
            f"correlation of the noise between steps lies in [0, 1): 0 for independent steps, 0.9 for "
            f"nearly held actions; got {correlation}"
        )
