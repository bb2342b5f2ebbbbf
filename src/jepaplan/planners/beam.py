"""Beam search: at every depth keep the few most promising paths and continue each of them in several ways.

Lowerre, "The HARPY Speech Recognition System", 1976; here over continuous actions or recorded chunks of them.

    literature        here
    beam width W      width
    branching K       branches
    f = g + h         score = cost so far + `to_go` of the last latent

All continuations of all kept paths of all problems are one call of the model per step. Paths of one depth are
compared with each other only, so `to_go` need not be in the unit of what was paid so far. Departs from the
textbook: kept paths lie at least `apart` from each other in latent distance, else a beam fills with copies of
its best path; and the path of the plan to start from is always kept, so the answer is never dearer than it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepaplan.interfaces import SequenceCost, StepwiseCost
from jepaplan.planners.plan import last, uninformed
from jepaplan.planners.proposals import BoxBound, NormBound, Randomness, check_sampling
from jepaplan.planners.stepwise import (
    NodeActions,
    as_stepwise,
    at_once,
    cheapest,
    check_bank,
    edges_available,
    expand_chunk,
    refuse_dead_ends,
    roots,
    take,
)
from jepaplan.types import InputError, Plan, Search


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Configuration and planner at once; needs a `StepwiseCost`."""

    width: int = 32  # paths kept per problem and depth
    branches: int = 16  # continuations of each; at the root width * branches
    horizon: int = 16  # model steps
    apart: float = 0.0  # smallest distance between kept latents, in their units; 0: all may be alike
    std: float = 1.0  # of sampled actions around the plan, in normalised action units
    bounds: NormBound | BoxBound | None = None
    keep_nominal: bool = True  # continue as the plan would, among other ways, and keep its path
    bank: Float[Tensor, "n C A"] | None = field(default=None, repr=False, compare=False)  # recorded chunks
    bank_weights: Float[Tensor, " n"] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_sampling(samples=self.width, horizon=self.horizon, iterations=1, std=self.std)
        if self.branches < 1 + self.keep_nominal:
            raise InputError(
                f"branches must be at least {1 + self.keep_nominal}, "
                f"{'one of them the plan itself' if self.keep_nominal else 'or no path goes on'}; "
                f"got {self.branches}"
            )
        if not self.apart >= 0:
            raise InputError(f"apart is a distance between latents, 0 or more; got {self.apart}")
        check_bank(self.bank, self.bank_weights)

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        return uninformed(problems, self.horizon, action_dim, self.std, device)

    def schedule(self, horizon: int) -> list[int]:
        """Evaluations of each refinement."""
        return self._schedule(self.width, self.branches, horizon)

    def fitting(self, evaluations: int, horizon: int) -> "BeamSearch":
        """The same planner with at most so many evaluations, if it can: fewer paths, then fewer branches."""
        fits = bisect_right(
            range(1, self.width + 1),
            evaluations,
            key=lambda width: sum(self._schedule(width, self.branches, horizon)),
        )
        if fits > 0:
            return replace(self, width=fits)
        branches = range(1 + self.keep_nominal, self.branches + 1)
        fits = bisect_right(branches, evaluations, key=lambda number: sum(self._schedule(1, number, horizon)))
        return replace(self, width=1, branches=branches[max(0, fits - 1)])

    def _schedule(self, width: int, branches: int, horizon: int) -> list[int]:
        chunk = 1 if self.bank is None else self.bank.shape[1]
        paths, found = 1, list[int]()
        for depth in range(0, horizon, chunk):
            wanted = branches if depth else branches * width
            children = paths * edges_available(wanted, self.bank, self.keep_nominal)
            found.append(children * min(chunk, horizon - depth))
            paths = min(width, children)
        return found

    @torch.no_grad()
    def refinements(
        self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness
    ) -> Iterator[Search]:
        """What is known at every depth; the rest of a path is the mean action until it has been searched."""
        stepwise = as_stepwise(cost, "BeamSearch")
        source = NodeActions(start, generator, self.bounds, self.bank, self.bank_weights, self.keep_nominal)
        beam = Beam(
            latents=roots(stepwise, 1),
            paid=start.mean.new_zeros(len(start.mean), 1),
            paths=torch.zeros_like(start.mean)[:, None],
        )
        spent = 0
        for depth in range(0, start.mean.shape[1], source.length):
            wanted = self.branches if depth else self.branches * self.width
            beam, score, used = self._deepen(stepwise, beam, source, depth, source.available(wanted))
            spent += used
            paths = beam.paths if self.bounds is None else self.bounds.project(beam.paths)
            refuse_dead_ends(score)
            yield Search(Plan(cheapest(paths, score), start.std), paths, score, spent)

    def plan(self, cost: SequenceCost | StepwiseCost, start: Plan, generator: Randomness) -> Search:
        """Search as deep as `start` is long; sampled actions deviate from it by its std."""
        return last(self.refinements(cost, start, generator))

    def _deepen(
        self, cost: StepwiseCost, beam: "Beam", source: NodeActions, depth: int, branches: int
    ) -> tuple["Beam", Float[Tensor, "B W"], int]:
        problems, nodes, horizon = beam.paths.shape[:3]
        at = torch.full((problems, nodes), depth, device=beam.paths.device)
        chunks, _ = source.draw(at, branches)
        # beyond the horizon nothing is imagined, so the last chunk may be cut
        chunks = chunks[:, :, :, : horizon - depth].flatten(1, 2)
        parents = torch.arange(nodes, device=at.device).repeat_interleave(branches).expand(problems, -1)
        some = at_once(beam.latents)
        steps = [
            expand_chunk(cost, take(beam.latents, part), chunk, take(at, part), horizon)
            for part, chunk in zip(parents.split(some, dim=1), chunks.split(some, dim=1), strict=True)
        ]
        paid = take(beam.paid, parents) + torch.cat([step.step_cost for step in steps], dim=1)
        score = paid + torch.cat([step.to_go for step in steps], dim=1)
        kept = self._select(score, [step.latents for step in steps])
        paths = take(beam.paths, take(parents, kept))
        paths[:, :, depth : depth + chunks.shape[2]] = take(chunks, kept)
        deeper = Beam(taken([step.latents for step in steps], kept), take(paid, kept), paths)
        return deeper, take(score, kept), chunks.shape[1] * chunks.shape[2]

    def _select(
        self, score: Float[Tensor, "B N"], latents: Sequence[Float[Tensor, "B _ *latent"]]
    ) -> Int[Tensor, "B W"]:
        """The most promising first; child 0 of path 0 is the plan itself, and is kept in that place."""
        count = min(self.width, score.shape[1])
        rank = score.clone()
        if self.keep_nominal:
            rank[:, 0] = -torch.inf
        if self.apart == 0:
            return rank.topk(count, dim=-1, largest=False).indices
        return spread_out(rank, torch.cat([block.flatten(2) for block in latents], dim=1), count, self.apart)


@dataclass(frozen=True)
class Beam:
    """The paths kept at one depth."""

    latents: Float[Tensor, "B W *latent"]
    paid: Float[Tensor, "B W"]  # the cost so far, nothing to go included
    paths: Float[Tensor, "B W H A"]  # zeros where not yet searched


def taken(
    blocks: Sequence[Float[Tensor, "B _ *latent"]], kept: Int[Tensor, "B W"]
) -> Float[Tensor, "B W *latent"]:
    """`take` from nodes that lie in blocks, one after the other."""
    if len(blocks) == 1:
        return take(blocks[0], kept)
    found, first = blocks[0].new_empty(*kept.shape, *blocks[0].shape[2:]), 0
    for block in blocks:
        problem, place = ((kept >= first) & (kept < first + block.shape[1])).nonzero(as_tuple=True)
        found[problem, place] = block[problem, kept[problem, place] - first]
        first += block.shape[1]
    return found


def spread_out(
    rank: Float[Tensor, "B N"], points: Float[Tensor, "B N D"], count: int, apart: float
) -> Int[Tensor, "B W"]:
    """The `count` of lowest rank that lie `apart` from each other; if they run out, the best of the rest."""
    free = torch.ones_like(rank, dtype=torch.bool)  # not yet chosen
    alone = free.clone()  # nor too close to what was chosen
    chosen: list[Tensor] = []
    for _ in range(count):
        candidates = alone.where(alone.any(dim=-1, keepdim=True), free)
        # a forbidden path costs infinity and may still have to be chosen: order first, then cost
        order = torch.where(candidates, rank.nan_to_num(posinf=torch.finfo(rank.dtype).max), torch.inf)
        index = order.argmin(dim=-1, keepdim=True)
        chosen.append(index)
        free = free.scatter(1, index, False)
        distance = torch.linalg.vector_norm(points - take(points, index), dim=-1)
        alone = alone & free & (distance >= apart)
    return torch.cat(chosen, dim=1)
