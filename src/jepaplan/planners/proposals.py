"""Where candidate actions come from, where bounds are kept, and where the next search begins.

Candidates are Gaussian around the current plan, projected step by step onto the allowed actions.

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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.interfaces import Bounds
from jepaplan.types import InputError, Plan

Randomness = torch.Generator | Sequence[torch.Generator]


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
        for name, edge in (("low", self.low), ("high", self.high)):
            if isinstance(edge, tuple) and len(edge) not in (1, actions.shape[-1]):
                raise InputError(
                    f"actions have {actions.shape[-1]} components and {name} has {len(edge)}; "
                    "give one number for all components or one for each"
                )
        low = torch.as_tensor(self.low, dtype=actions.dtype, device=actions.device)
        high = torch.as_tensor(self.high, dtype=actions.dtype, device=actions.device)
        return actions.clamp(low, high)


def unit_noise(
    plan: Plan, samples: int, correlation: float, generator: Randomness
) -> Float[Tensor, "B S H A"]:
    """Noise of mean 0 and standard deviation 1 for `samples` candidates around `plan`, correlated in time."""
    problems, horizon, components = plan.mean.shape
    shape = (samples, horizon, components)
    if isinstance(generator, torch.Generator):
        noise = _normal((problems, *shape), generator, plan.mean)
    else:
        if len(generator) != problems:
            raise InputError(
                f"got {len(generator)} generators for {problems} problems; give one in all, or one for each"
            )
        noise = torch.stack([_normal(shape, own, plan.mean) for own in generator])
    if correlation > 0:
        fresh = math.sqrt(1 - correlation**2)
        for step in range(1, horizon):
            noise[:, :, step].mul_(fresh).add_(noise[:, :, step - 1], alpha=correlation)
    return noise


def draw(
    plan: Plan,
    samples: int,
    generator: Randomness,
    *,
    bounds: Bounds | None,
    correlation: float = 0.0,
    keep_nominal: bool = True,
) -> Float[Tensor, "B S H A"]:
    """Allowed candidates around `plan`; with `keep_nominal` the first is the mean, without noise."""
    noise = unit_noise(plan, samples, correlation, generator)
    if keep_nominal:
        noise[:, 0] = 0
    candidates = noise.mul_(plan.std[:, None]).add_(plan.mean[:, None])
    return candidates if bounds is None else bounds.project(candidates)


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


def check_sampling(*, samples: int, horizon: int, iterations: int, std: float, correlation: float) -> None:
    """Refuse what no sampling planner can use; each planner's `__post_init__` calls it."""
    for name, number in (("samples", samples), ("horizon", horizon), ("iterations", iterations)):
        if number < 1:
            raise InputError(f"{name} must be at least 1; got {number}")
    if not std > 0:
        raise InputError(f"std is the standard deviation of the noise, so it must be positive; got {std}")
    if not 0 <= correlation < 1:
        raise InputError(
            f"correlation of the noise between steps lies in [0, 1): 0 for independent steps, 0.9 for "
            f"nearly held actions; got {correlation}"
        )


def _normal(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    # drawn where the generator lives, so a CPU generator deals the same noise to every device
    return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
