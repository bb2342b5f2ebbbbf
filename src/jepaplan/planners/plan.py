"""What every planner does around its own idea: begin without knowledge, ask the cost, refuse nonsense.

A sampling planner is two functions, and `refine` is the loop around them:

    propose(plan, iteration) -> candidates       where to look next
    refit(candidates, costs, plan) -> plan       what was learned from it

The loop is a generator of `Search`, one per iteration, so that a progress display can look on and whoever
runs out of time can stop: each `Search` is a complete answer, and its `evaluations` count all until then.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import SequenceCost
from jepaplan.types import InputError, Plan, Search

Propose = Callable[[Plan, int], Tensor]  # the current plan and the iteration, from 0, to candidates B S H A
Refit = Callable[[Tensor, Tensor, Plan], Plan]  # candidates B S H A, costs B S and the current plan


def uninformed(problems: int, horizon: int, action_dim: int, std: float, device: torch.device | str) -> Plan:
    """The plan of someone who knows nothing: the mean action at every step, and `std` around it."""
    mean = torch.zeros(problems, horizon, action_dim, device=device)
    return Plan(mean=mean, std=torch.full_like(mean, std))


def evaluate(cost: SequenceCost, candidates: Float[Tensor, "B S H A"]) -> Float[Tensor, "B S"]:
    """The candidates' costs, one each: no NaN, and at least one finite number per problem."""
    costs = cost(candidates)
    if costs.shape != candidates.shape[:2]:
        raise InputError(
            f"the cost answered with shape {tuple(costs.shape)} to actions of shape "
            f"{tuple(candidates.shape)} (B S H A); it must give one number per problem and sample: "
            f"{tuple(candidates.shape[:2])}"
        )
    undefined = costs.isnan()
    if undefined.any():
        raise InputError(
            f"the cost is NaN for {int(undefined.sum())} of {costs.numel()} candidates, "
            "and NaN cannot be ranked; look at the predicted latents, or "
            "return a large number where the cost is undefined"
        )
    if costs.amin(dim=-1).isinf().any():
        raise InputError(
            "every candidate of some problem costs infinity, so there is nothing to choose from. "
            "Use a large finite number for what must not happen, or a wider proposal."
        )
    return costs


def refine(
    cost: SequenceCost, start: Plan, iterations: int, propose: Propose, refit: Refit, kept: int = 0
) -> Iterator[Search]:
    """Propose, evaluate, refit, over and over; nothing of it is differentiated.

    The `kept` cheapest of one iteration stay in the running in the next, at the price they had: a cost is a
    function, so nothing is gained by asking twice, and they do not count as evaluations again.
    """
    # nothing was asked yet: no candidates, no costs
    found = Search(start, start.mean[:, None][:, :0], start.mean[:, :0, 0], evaluations=0)
    for iteration in range(iterations):
        # not a decorator: whoever looks on between two iterations may want gradients
        with torch.no_grad():
            candidates = propose(found.plan, iteration)
            costs = evaluate(cost, candidates)
            evaluations = found.evaluations + candidates.shape[1] * candidates.shape[2]
            if kept > 0 and iteration > 0:
                chosen = found.costs.topk(kept, dim=-1, largest=False).indices
                candidates = torch.cat([candidates, gathered(found.candidates, chosen)], dim=1)
                costs = torch.cat([costs, found.costs.gather(1, chosen)], dim=1)
            found = Search(refit(candidates, costs, found.plan), candidates, costs, evaluations)
        yield found


def best_so_far(searches: Iterator[Search]) -> Iterator[Search]:
    """The same searches, each answering with the cheapest candidate that was evaluated until then."""
    best: Search | None = None  # one candidate per problem
    for found in searches:
        index = found.costs.argmin(dim=-1, keepdim=True)
        winner = replace(
            found, candidates=gathered(found.candidates, index), costs=found.costs.gather(1, index)
        )
        if best is not None:
            better = winner.costs < best.costs
            winner = replace(
                winner,
                candidates=winner.candidates.where(better[:, :, None, None], best.candidates),
                costs=winner.costs.where(better, best.costs),
            )
        best = winner
        yield replace(found, plan=Plan(mean=winner.candidates[:, 0], std=found.plan.std))


def last(searches: Iterator[Search]) -> Search:
    """Run a search to its end."""
    (found,) = deque(searches, maxlen=1)
    return found


def fit_elites(
    candidates: Float[Tensor, "B S H A"],
    costs: Float[Tensor, "B S"],
    current: Plan,
    *,
    elites: int,
    momentum: float,
    std_min: float,
) -> Plan:
    """The Gaussian of the cheapest few, mixed with the current one: `momentum` is the current one's share."""
    best = costs.topk(elites, dim=-1, largest=False, sorted=False).indices
    chosen = gathered(candidates, best)
    mean = torch.lerp(chosen.mean(dim=1), current.mean, momentum)
    std = torch.lerp(chosen.std(dim=1), current.std, momentum).clamp(min=std_min)
    return Plan(mean=mean, std=std)


def gathered(candidates: Float[Tensor, "B S H A"], index: Tensor) -> Float[Tensor, "B few H A"]:
    """The candidates with these numbers, a few per problem."""
    return candidates.gather(1, index[:, :, None, None].expand(-1, -1, *candidates.shape[2:]))


def check_elites(elites: int, samples: int, *, std: float, std_min: float, momentum: float) -> None:
    """Refuse what no fit to elites can use."""
    if not 2 <= elites <= samples:
        raise InputError(
            f"elites are the samples kept for the fit, between 2 and samples={samples}; got {elites}"
        )
    if not 0 <= std_min <= std:
        raise InputError(f"std_min must lie in [0, std={std}]; got {std_min}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum is the share of the previous fit, in [0, 1); got {momentum}")


def scaled_elites(elites: int, samples: int, of: int) -> int:
    """As large a share of `samples` as `elites` are of `of`, and two at least: a fit needs that many."""
    return min(samples, max(2, round(elites * samples / of)))
