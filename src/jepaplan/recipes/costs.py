"""What planning minimises: the record, what of it cannot be paid, and the sum of terms that it names.

    CostConfig           term
    over="n_step"        NStepCost: one for every step that begins away from the goal, then what remains
    over, otherwise      GoalDistance
    effort               ActionEffort
    smoothness           ActionSmoothness
    disagreement         ValueDisagreement, of the members of the head that `value` names

What cannot be paid is refused when it is written, before anything is trained.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from jepaplan.costs.compose import Term, WeightedSum
from jepaplan.costs.ensemble import ValueDisagreement, ValueMembers
from jepaplan.costs.steps import StepDistance, refuse_growing_discount
from jepaplan.costs.terms import ActionEffort, ActionSmoothness, GoalDistance
from jepaplan.costs.value import NotYetThere, NStepCost, RemainingCost, WithoutGoal
from jepaplan.interfaces import Distance, Planner
from jepaplan.models.value_heads import ReadBy, Reading, ReadValue
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.tree import TreeSearch
from jepaplan.recipes.value_learning import HeadStage, ValueLearning, head_key, heads_of
from jepaplan.types import InputError

Precision = Literal["fp32", "bf16", "int8"]
Over = Literal["sum", "terminal", "minimum", "discounted", "n_step"]


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What planning minimises."""

    over: Over = "sum"
    discount: float = 0.95  # per step, for "discounted" and "n_step", which wants that of the value
    reached: float = 1.0  # in units of the distance: a step from no further away is free, for "n_step"
    effort: float = 0.0  # weight of the squared length of actions, in normalised units
    smoothness: float = 0.0  # weight of the squared difference between an action and the one before it
    disagreement: float = 0.0  # weight of the standard deviation between the head's members, at every step
    value: str | None = None  # the head (its stage or own name) that counts the steps; None: the distance
    reading: ReadBy | None = None  # how the head's members are read; None: as its stage says
    caution: float = 1.0  # standard deviations below the mean, for "lower_confidence"
    # Of imagination while planning; costs are summed in fp32. int8 is for MLP predictors on a processor.
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        Reading(caution=self.caution)  # refuses what is no deviation
        if self.over in ("discounted", "n_step"):
            refuse_growing_discount(self.discount)
        if not 0 <= self.reached < math.inf:
            raise InputError(
                f"cost.reached is a distance, in steps where a value counts them; got {self.reached}"
            )
        for name in ("effort", "smoothness", "disagreement"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"cost.{name} is a weight, a finite number; got {getattr(self, name)}")
        if self.reading is not None and self.value is None:
            raise InputError(
                f"cost.reading={self.reading!r} says how the members of a value head are read, and no head "
                "is named; write cost.value too (--cost.value to train, --value to evaluate), or leave it out"
            )
        if self.disagreement and self.value is None:
            raise InputError(
                f"cost.disagreement={self.disagreement:g} weighs how far the members of a value head are "
                "apart, and no head is named; write cost.value too (--cost.value to train, --value to "
                "evaluate), or leave it out"
            )

    def without_value(self) -> "CostConfig":
        """The same for who knows no value, such as the baseline: it cannot tell when it is there.

        Who never is pays the same for every step, so an n-step cost ranks plans by where they end.
        """
        over = "terminal" if self.over == "n_step" else self.over
        return replace(self, over=over, disagreement=0.0, value=None, reading=None)


def refuse_unpayable(
    cost: CostConfig, planner: Planner, stages: Sequence[object], learns_value: bool
) -> None:
    """Refuse what this planner cannot be asked, and what these stages do not teach."""
    head = None if cost.value is None else _head(cost.value, stages)
    if cost.smoothness and isinstance(planner, BeamSearch | TreeSearch | Collocation):
        raise InputError(
            f"cost.smoothness={cost.smoothness:g} compares actions that follow each other, and "
            f"{type(planner).__name__} pays for every step by itself; plan with MPPI, CEM, ICEM, "
            "RandomShooting, GradientDescent or GradientCEM, or write smoothness 0 (effort is paid step by "
            "step)"
        )
    if cost.disagreement and head is not None and (head.members < 2 or head.head.action):
        what = "values actions, not places" if head.head.action else "has one member, with nobody to differ"
        raise InputError(
            f"cost.disagreement={cost.disagreement:g} weighs how far the members of a value head are apart; "
            f"{cost.value!r} {what}. Name a head of states with two members or more, or write disagreement 0"
        )
    if cost.over == "n_step":
        _refuse_uncounted_steps(head, learns_value)


def build_cost(
    cost: CostConfig, distance: Distance | StepDistance, dtype: torch.dtype | None = None
) -> WeightedSum:
    """The terms of `cost` around a distance; `dtype` is that of imagination, None: as encoded."""
    terms: dict[str, tuple[float, Term]] = {}
    if cost.over == "n_step":
        if isinstance(distance, StepDistance):
            raise InputError(_CANNOT_TELL)
        running = NotYetThere(distance=distance, threshold=cost.reached)
        steps = NStepCost(running=running, remaining=distance, discount=cost.discount)
        terms[steps.label] = (1.0, steps)
    else:
        discount = cost.discount if cost.over == "discounted" else 1.0
        goal = GoalDistance(distance=distance, over=cost.over, discount=discount)
        terms["distance to goal"] = (1.0, goal)
    if cost.effort:
        terms[ActionEffort.label] = (cost.effort, ActionEffort())
    if cost.smoothness:
        terms[ActionSmoothness.label] = (cost.smoothness, ActionSmoothness())
    if cost.disagreement:
        differing = ValueDisagreement(members=members_of(distance))
        terms[differing.label] = (cost.disagreement, differing)
    return WeightedSum(terms, dtype=dtype)


def members_of(distance: Distance | StepDistance) -> ValueMembers:
    """The value heads that `distance` reads, each for itself."""
    if isinstance(distance, RemainingCost):
        read = distance.value
        if isinstance(read, ReadValue):
            return read.ensemble
        if isinstance(read, WithoutGoal) and isinstance(read.value, ReadValue):
            return WithoutGoal(read.value.ensemble)
    raise InputError(
        f"cost.disagreement needs the members of a value head, and planning pays by a "
        f"{type(distance).__name__}, which has none; pass system.steps_to_go(cost), or plan with "
        "cost.without_value()"
    )


_CANNOT_TELL = (
    'cost.over="n_step" asks of every imagined latent whether it is at the goal, and a value of actions says '
    "nothing about a latent alone; name a head of states in cost.value, or write over terminal"
)


def _refuse_uncounted_steps(head: HeadStage | None, learns_value: bool) -> None:
    if not learns_value:
        raise InputError(
            'cost.over="n_step" adds steps to what remains of them, and nothing here learns how many remain: '
            "a distance of latents counts none. Name a value head in cost.value, train a distance, or write "
            "over terminal"
        )
    if head is not None and head.head.action:
        raise InputError(_CANNOT_TELL)
    if isinstance(head, ValueLearning) and head.reward == "recorded":
        raise InputError(
            f'cost.over="n_step" takes one for every step, and head {head.name!r} learned recorded rewards, '
            "which nobody foretells of imagined steps; write over terminal, or name a head with reward goal "
            "or success"
        )


def _head(value: str, stages: Iterable[object]) -> HeadStage:
    heads = {head_key(head.name): head for head in heads_of(stages)}
    if value not in heads:
        raise InputError(
            f"there is no value head {value!r} to plan with; this experiment has "
            f"{', '.join(heads) or 'none'}. To plan with the distance leave cost.value out, or evaluate "
            "with --value none"
        )
    return heads[value]
