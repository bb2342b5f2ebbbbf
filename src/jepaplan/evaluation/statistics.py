"""Success rates and differences with honest uncertainty, for few trials and for rates near 0 and 1.

Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927: score interval.
McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12,
1947: only instances on which two methods disagree speak about their difference; here with the exact law.
Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7, 1979: percentile intervals.

    paper     here
    n, k      trials, successes
    z         NORMAL_QUANTILE   of a two-sided 95 % interval
    b, c      wins, losses      instances that only one of two methods solves
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.types import InputError

NORMAL_QUANTILE = 1.959963984540054
RESAMPLES = 10_000


@dataclass(frozen=True)
class SuccessRate:
    """Successes out of trials; prints as `1.00 [0.93, 1.00] (50/50)`.

    The interval is Wilson's unless one is given, as when several training seeds were aggregated.
    """

    successes: int
    trials: int
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or not 0 <= self.successes <= self.trials:
            raise InputError(
                f"a success rate needs 0 <= successes <= trials and at least one trial; got successes="
                f"{self.successes}, trials={self.trials}. Count one trial per instance."
            )

    @property
    def rate(self) -> float:
        """Share of the trials that succeeded."""
        return self.successes / self.trials

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.interval[0] if self.interval else wilson_interval(self.successes, self.trials)[0]

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.interval[1] if self.interval else wilson_interval(self.successes, self.trials)[1]

    def __str__(self) -> str:
        return f"{self.rate:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.successes}/{self.trials})"


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much more often the first of two methods succeeded on the same instances."""

    first: str
    second: str
    difference: float
    low: float  # 95 % interval of the difference
    high: float
    wins: int  # instances that only the first method solved
    losses: int  # instances that only the second method solved
    ties: int
    p: float  # exact McNemar, two-sided

    def words(self) -> str:
        """The comparison as a sentence that a reader who knows no test can use."""
        size = f"{abs(100 * self.difference):.0f} percentage points"
        interval = f"95% interval {100 * self.low:+.0f} to {100 * self.high:+.0f}"
        counts = (
            f"{self.first} alone solved {_instances(self.wins)}, {self.second} alone {self.losses}, "
            f"and on {self.ties} they agreed"
        )
        if self.p >= 0.05:
            return (
                f"{self.first} and {self.second} cannot be told apart on these instances (difference "
                f"{100 * self.difference:+.0f} points, {interval}, p = {self.p:.2g}): {counts}."
            )
        direction = "more" if self.difference > 0 else "less"
        return (
            f"{self.first} succeeds {size} {direction} often than {self.second} ({interval}, "
            f"p = {self.p:.2g}): {counts}."
        )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion: never empty at 0 or 1, never outside [0, 1]."""
    rate, spread = successes / trials, NORMAL_QUANTILE**2 / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4)) / (1 + spread)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided probability of a split at least as uneven as this one, were both methods equally good."""
    decided = wins + losses
    tail = sum(math.comb(decided, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**decided)


def bootstrap_interval(
    values: Float[Tensor, " B"], generator: torch.Generator, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile 95 % interval of the mean of `values`, resampling them with replacement."""
    draws = _resample(len(values), resamples, generator)
    return _central(values.double()[draws].mean(dim=1))


def compare(
    first: tuple[str, Bool[Tensor, " B"]],
    second: tuple[str, Bool[Tensor, " B_other"]],
    generator: torch.Generator,
) -> PairedDifference:
    """Compare two named runs on the same instances, in the same order."""
    (first_name, ours), (second_name, theirs) = first, second
    if ours.shape != theirs.shape:
        raise InputError(
            f"a paired comparison needs outcomes of the same instances: {first_name} has {len(ours)}, "
            f"{second_name} has {len(theirs)}. Evaluate both with the same instance file and --episodes."
        )
    gain = ours.double() - theirs.double()
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    low, high = bootstrap_interval(gain, generator)
    return PairedDifference(
        first=first_name,
        second=second_name,
        difference=float(gain.mean()),
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        ties=len(gain) - wins - losses,
        p=mcnemar_exact(wins, losses),
    )


def over_seeds(
    outcomes: Bool[Tensor, "seeds B"], generator: torch.Generator, resamples: int = RESAMPLES
) -> SuccessRate:
    """Mean success over training seeds, with an interval that holds for new seeds and new instances.

    Both seeds and instances are resampled. All seeds met the same instances, so one draw of instances serves
    all the seeds of a resample: an instance that is hard for every seed then widens the interval as it
    should. Where all outcomes agree the bootstrap would claim certainty; there the Wilson interval of one
    seed's instances is given.
    """
    seeds, instances = outcomes.shape
    rate = SuccessRate(int(outcomes.sum()), outcomes.numel())
    if bool((outcomes == outcomes[0, 0]).all()):
        return SuccessRate(rate.successes, rate.trials, wilson_interval(rate.successes // seeds, instances))
    table = outcomes.double()
    seed_draws = _resample(seeds, resamples, generator)
    instance_draws = _resample(instances, resamples, generator)
    means = torch.stack(
        [table[rows][:, columns].mean() for rows, columns in zip(seed_draws, instance_draws, strict=True)]
    )
    return SuccessRate(rate.successes, rate.trials, _central(means))


@dataclass(frozen=True, kw_only=True)
class SeedsDifference:
    """Mean difference in success of two methods over common seeds and instances, with its 95 % interval."""

    mean: float
    low: float
    high: float


def compare_over_seeds(
    first: Bool[Tensor, "seeds B"],
    second: Bool[Tensor, "seeds B"],
    generator: torch.Generator,
    resamples: int = RESAMPLES,
) -> SeedsDifference:
    """How much more often the first method succeeds; row by row the same seed, column by column an instance.

    Seeds and instances are both resampled, as in `over_seeds`. With one seed only instances are, and the
    interval says nothing about other seeds.
    """
    if first.shape != second.shape:
        raise InputError(
            f"a paired comparison needs the same seeds and instances: got outcomes of shape "
            f"{tuple(first.shape)} and {tuple(second.shape)} (seeds, instances)"
        )
    gain = first.double() - second.double()
    seed_draws = _resample(len(gain), resamples, generator)
    instance_draws = _resample(gain.shape[1], resamples, generator)
    means = torch.stack(
        [gain[rows][:, columns].mean() for rows, columns in zip(seed_draws, instance_draws, strict=True)]
    )
    low, high = _central(means)
    return SeedsDifference(mean=float(gain.mean()), low=low, high=high)


def average_ranks(values: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Ranks from 1 upwards; equal values share the mean of the ranks they occupy."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    return (last - (sizes.double() - 1) / 2)[group]


def spearman(first: Float[Tensor, " B"], second: Float[Tensor, " B"]) -> float:
    """Rank correlation: 1 where one value is an increasing function of the other; nan if one is constant."""
    ranks = torch.stack([average_ranks(first), average_ranks(second)])
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    scale = centred.square().sum(dim=1).prod().sqrt()
    return float(centred.prod(dim=0).sum() / scale) if scale > 0 else math.nan


def _instances(count: int) -> str:
    return f"{count} instance" if count == 1 else f"{count} instances"


def _resample(items: int, resamples: int, generator: torch.Generator) -> Int[Tensor, "resamples items"]:
    return torch.randint(items, (resamples, items), generator=generator)


def _central(values: Float[Tensor, " resamples"]) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
