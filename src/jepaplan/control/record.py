"""What a controller considered: enough to draw the fan of candidates and to account for the compute."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True)
class Decision:
    """One replan of n problems; `problems` says which of the batch they are."""

    problems: Int[Tensor, " n"]
    plan: Plan  # refined, in normalised action units; its first action is executed now
    predicted: dict[
        str, Float[Tensor, " n"]
    ]  # the plan's own cost, by term where the cost can tell, else under "cost"; empty if it was not asked
    candidates: Float[Tensor, "n K H A"]  # the K cheapest of the last iteration, cheapest first
    costs: Float[Tensor, "n K"]
    tied: Bool[Tensor, "n K"]  # no dearer than the cheapest plus `tie_tolerance`
    tie_tolerance: Float[Tensor, " n"]  # in units of the cost
    evaluations: int  # predictor calls per problem, those for `predicted` included
    seconds: float  # encoding, search and bookkeeping, for all n problems together

    @property
    def predicted_cost(self) -> Float[Tensor, " n"]:
        """What the refined plan costs in imagination; NaN where the controller does not explain."""
        if not self.predicted:
            return torch.full_like(self.costs[:, 0], torch.nan)
        return sum(self.predicted.values(), start=self.costs.new_zeros(len(self.costs)))


@dataclass(frozen=True)
class Shortlist:
    """The best candidates of a search, and which of them are as good as the best."""

    candidates: Float[Tensor, "n K H A"]
    costs: Float[Tensor, "n K"]
    tied: Bool[Tensor, "n K"]
    tolerance: Float[Tensor, " n"]


def shortlist(search: Search, count: int, tie_fraction: float) -> Shortlist:
    """The `count` cheapest; tied are those within `tie_fraction` standard deviations of the cheapest."""
    if count < 1:
        raise InputError(f"a record keeps at least the best candidate; got kept_candidates={count}")
    costs, order = search.costs.topk(min(count, search.costs.shape[1]), dim=-1, largest=False, sorted=True)
    index = order[:, :, None, None].expand(-1, -1, *search.candidates.shape[2:])
    tolerance = tie_fraction * search.costs.std(dim=-1, correction=0)
    tied = costs <= costs[:, :1] + tolerance[:, None]
    return Shortlist(search.candidates.gather(1, index), costs, tied, tolerance)
