"""Is a value any good? Three questions to ask of it before planning with it, and none about its loss.

    question                                                         here
    does it order states as the true cost to go does?                rank_correlation
    how much does it lose when it picks one of K candidate states?   candidate_regret
    does "20 steps" mean 20 steps?                                   calibration

Everything is a table of predicted and true costs to go, K candidate states in each of G problems: row by row,
because each goal and each layout is a problem of its own, and planning compares states within one only.
Both are costs: a value enters with a minus sign (`costs_to_go`). True costs are infinite where there is no
way. Intervals are 95 %, by the bootstrap over problems (`statistics.bootstrap_interval`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.evaluation.statistics import bootstrap_interval, spearman
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over problems with its interval; prints as `0.93 [0.91, 0.95]`."""

    mean: float
    low: float
    high: float
    count: int  # problems

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What choosing by a value costs beside choosing by the truth."""

    steps: Estimate  # true cost of the pick minus that of the best candidate, in the unit of the true cost
    share: Estimate  # of what blind choice loses: 0 is perfect, 1 as good as blind
    stranded: float  # share of problems in which the pick has no way to the goal although another has


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """States of similar predicted cost, and what they truly cost."""

    predicted: float  # mean
    true: float  # mean
    low: float  # interval of the true mean
    high: float
    count: int  # states


@dataclass(frozen=True, kw_only=True)
class ValueDiagnosis:
    """All three answers."""

    rank_correlation: Estimate
    regret: Regret
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float  # mean of |predicted - true| over bins, weighted by their counts


@torch.no_grad()
def costs_to_go(
    value: Callable[[Tensor, Tensor], Tensor],
    candidates: Float[Tensor, "G K D"],
    goals: Float[Tensor, "G D"],
) -> Float[Tensor, "G K"]:
    """What a value of (latent, goal) expects each candidate to pay."""
    return -value(candidates, goals[:, None])


def diagnose(
    predicted: Float[Tensor, "G K"], true: Float[Tensor, "G K"], generator: torch.Generator, bins: int = 10
) -> ValueDiagnosis:
    """Ask all three questions."""
    table = calibration(predicted, true, generator, bins)
    total = sum(one.count for one in table)
    return ValueDiagnosis(
        rank_correlation=rank_correlation(predicted, true, generator),
        regret=candidate_regret(predicted, true, generator),
        calibration=table,
        calibration_error=sum(one.count * abs(one.predicted - one.true) for one in table) / total,
    )


def rank_correlation(
    predicted: Float[Tensor, "G K"], true: Float[Tensor, "G K"], generator: torch.Generator
) -> Estimate:
    """Spearman's rank correlation within problems, averaged over them; infinite costs share the last rank.

    A prediction that is the same for all candidates ranks nothing and counts as 0; problems in which all true
    costs are equal ask nothing and are left out.
    """
    _check(predicted, true)
    asks = (true != true[:, :1]).any(dim=1)
    found = [spearman(ours, theirs) for ours, theirs in zip(predicted[asks], true[asks], strict=True)]
    if not found:
        raise InputError(f"in all {len(true)} problems all candidates truly cost the same: nothing to rank")
    return _estimate(torch.tensor([0.0 if math.isnan(rank) else rank for rank in found]), generator)


def candidate_regret(
    predicted: Float[Tensor, "G K"], true: Float[Tensor, "G K"], generator: torch.Generator
) -> Regret:
    """How much worse the candidate with the smallest prediction is than the truly best.

    Equal predictions share the pick, so a constant does as well as blind choice. Candidates without a way
    count as the worst one that has one, and beside it in `stranded`; problems without any way are left out.
    """
    _check(predicted, true)
    solvable = torch.isfinite(true).any(dim=1)
    if not bool(solvable.any()):
        raise InputError(f"none of the {len(true)} problems has a candidate with a way to the goal")
    predicted, true = predicted[solvable].double(), true[solvable].double()
    lost = torch.isinf(true)
    worst = true.masked_fill(lost, -math.inf).amax(dim=1, keepdim=True)
    filled = torch.where(lost, worst, true)
    picked = (predicted == predicted.amin(dim=1, keepdim=True)).double()
    picked = picked / picked.sum(dim=1, keepdim=True)
    best = filled.amin(dim=1)
    regret = (picked * filled).sum(dim=1) - best
    blind = filled.mean(dim=1) - best
    asks = blind > 0
    if not bool(asks.any()):
        raise InputError(f"in all {len(true)} problems all candidates truly cost the same: nothing to choose")
    return Regret(
        steps=_estimate(regret, generator),
        share=_share(regret[asks], blind[asks], generator),
        stranded=float((picked * lost).sum(dim=1).mean()),
    )


def calibration(
    predicted: Float[Tensor, "G K"], true: Float[Tensor, "G K"], generator: torch.Generator, bins: int = 10
) -> tuple[CalibrationBin, ...]:
    """Mean true costs of states of similar predicted cost, `bins` of them with equally many states each.

    Infinite true costs are left out. Intervals resample problems, whose states are alike, not states.
    """
    _check(predicted, true)
    problem, _ = torch.nonzero(torch.isfinite(true), as_tuple=True)
    known = torch.isfinite(true)
    ours, theirs = predicted[known].double(), true[known].double()
    if bins < 1 or len(ours) < bins:
        raise InputError(
            f"{len(ours)} states with a finite true cost do not fill {bins} bins; write fewer bins"
        )
    found: list[CalibrationBin] = []
    for some in ours.argsort(stable=True).tensor_split(bins):
        _, row, counts = torch.unique(problem[some], return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), dtype=torch.double).index_add_(0, row, theirs[some])
        interval = _ratio_interval(sums, counts.double(), generator)
        found.append(
            CalibrationBin(
                predicted=float(ours[some].mean()),
                true=float(theirs[some].mean()),
                low=interval[0],
                high=interval[1],
                count=len(some),
            )
        )
    return tuple(found)


def _share(regret: Tensor, blind: Tensor, generator: torch.Generator) -> Estimate:
    """Total regret beside the total of blind choice: problems in which little is at stake weigh little."""
    low, high = _ratio_interval(regret, blind, generator)
    return Estimate(mean=float(regret.sum() / blind.sum()), low=low, high=high, count=len(regret))


def _ratio_interval(
    above: Float[Tensor, " G"], below: Float[Tensor, " G"], generator: torch.Generator
) -> tuple[float, float]:
    """Interval of sum(above) / sum(below) over problems: that of the mean of its linearised parts."""
    ratio = above.sum() / below.sum()
    parts = ratio + (above - ratio * below) / below.mean()
    return bootstrap_interval(parts, generator)


def _estimate(values: Float[Tensor, " G"], generator: torch.Generator) -> Estimate:
    low, high = bootstrap_interval(values, generator)
    return Estimate(mean=float(values.mean()), low=low, high=high, count=len(values))


def _check(predicted: Tensor, true: Tensor) -> None:
    if predicted.shape != true.shape or predicted.numel() == 0:
        raise InputError(
            "predicted and true costs are tables of the same problems and candidates; got "
            f"{tuple(predicted.shape)} and {tuple(true.shape)}"
        )
    if not bool(torch.isfinite(predicted).all()) or bool(torch.isnan(true).any()):
        raise InputError("predicted costs must be finite, and true ones numbers or infinite; some are not")
