"""Success rates and differences with honest uncertainty, for few trials and for rates near 0 and 1.

Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927: score interval.
McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12,
1947: only instances on which two methods disagree speak about their difference; here with the exact law.
Fisher, "The Design of Experiments", 1935, section 21: the randomisation test of paired differences.
Student, "The probable error of a mean", Biometrika 6, 1908: the test of a few seeds.
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
    return SuccessRate(rate.successes, rate.trials, seeds_interval(outcomes.double(), generator, resamples))


def seeds_interval(
    values: Float[Tensor, "seeds B"], generator: torch.Generator, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile 95 % interval of the mean of `values`, resampling seeds and instances with replacement."""
    # How often each seed and each instance was drawn weighs the values: no resample is ever laid out.
    seeds, instances = (_times_drawn(count, resamples, generator) for count in values.shape)
    return _central((seeds @ values * instances).sum(dim=1) / values.numel())


@dataclass(frozen=True, kw_only=True)
class SeedsDifference:
    """How much more often the first of two methods succeeds, over common seeds and instances."""

    mean: float
    low: float  # 95 % interval of the mean
    high: float
    p: float  # two-sided; the larger one of a test over instances and a test over seeds

    @property
    def verdict(self) -> str:
        """What interval and tests say together: of few seeds or instances the interval alone is too sure."""
        if self.p >= 0.05 or self.low <= 0 <= self.high:
            return "open"
        return "holds" if self.mean > 0 else "the opposite"


def compare_over_seeds(
    first: Bool[Tensor, "seeds B"],
    second: Bool[Tensor, "seeds_other B_other"],
    generator: torch.Generator,
    resamples: int = RESAMPLES,
) -> SeedsDifference:
    """Compare two methods; row by row they have the seed in common, column by column the instance.

    The interval is for new seeds and new instances, as in `over_seeds`. `p` asks whether the difference could
    be one of these instances alone (with one seed: McNemar's test), or one of these seeds alone: where seeds
    differ much, a bootstrap of three of them takes one in five for a difference when there is none. One seed
    says nothing about others.
    """
    if first.shape != second.shape:
        raise InputError(
            f"a paired comparison needs the same seeds and instances: got outcomes of shape "
            f"{tuple(first.shape)} and {tuple(second.shape)} (seeds, instances)"
        )
    gain = first.long() - second.long()
    low, high = seeds_interval(gain.double(), generator, resamples)
    p = max(sign_flip_test(gain.sum(dim=0)), t_test(gain.double().mean(dim=1)) if len(gain) > 1 else 0.0)
    return SeedsDifference(mean=float(gain.double().mean()), low=low, high=high, p=p)


def sign_flip_test(gains: Int[Tensor, " B"]) -> float:
    """Two-sided probability of a sum at least as far from zero, were each gain as likely with either sign.

    Exact: the law of the sum is built gain by gain.
    """
    reach = int(gains.abs().sum())
    law = torch.zeros(2 * reach + 1, dtype=torch.float64)  # of the sums -reach..reach
    law[reach] = 1.0
    for gain in gains[gains != 0].tolist():
        # No sum so far is near enough to an end to be rolled around it.
        law = (law.roll(gain) + law.roll(-gain)) / 2
    sums = torch.arange(-reach, reach + 1)
    return min(1.0, float(law[sums.abs() >= abs(int(gains.sum()))].sum()))


def t_test(differences: Float[Tensor, " seeds"]) -> float:
    """Two-sided probability of a mean at least as far from zero, were it zero and differences normal."""
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std()) / math.sqrt(count)
    if error == 0:
        return float(mean == 0)
    # With t = sqrt(n) tan(angle), Student's density of n degrees of freedom is cos(angle)^(n - 1).
    degrees = count - 1
    angle = math.atan(abs(mean) / error / math.sqrt(degrees))
    beyond, half = (
        torch.trapezoid(torch.linspace(low, math.pi / 2, 4001, dtype=torch.float64).cos() ** (degrees - 1))
        * (math.pi / 2 - low)
        for low in (angle, 0.0)
    )
    return float(beyond / half)


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


def _times_drawn(items: int, resamples: int, generator: torch.Generator) -> Float[Tensor, "resamples items"]:
    draws = _resample(items, resamples, generator)
    counts = torch.zeros(resamples, items, dtype=torch.float64)
    return counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))


def _central(values: Float[Tensor, " resamples"]) -> tuple[float, float]:
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
