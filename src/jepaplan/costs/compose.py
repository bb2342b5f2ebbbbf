"""A cost is a weighted sum of named terms, bound to a world model, latents and goals; it can explain itself.

    cost = 1.0 * GoalDistance(distance=head) + 0.01 * ActionEffort()
    sequence_cost = cost.bind(world_model, latent, goal)   # what planners see: actions B S H A -> costs B S
    sequence_cost.breakdown(actions)                       # {"goal": B S, "effort": B S}, before the sum

    0.7 * goal                   weighs a term, or every term of a sum
    goal + effort, sum([...])    a flat sum; the names come from the terms
    goal.named("far")            the same term under another name: two terms may not share one
    cost + 3.0                   a constant, under the name "constant"; it ranks no plan before another

`WeightedSum({"goal": (1.0, goal), "effort": (0.01, effort)})` is the same written out, and takes terms that
have no operators. A term has operators if it inherits `Summand`; `Additive` adds how step costs accumulate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.costs.steps import ImaginedStep, JointSteps, PathTerm, StepwiseTerm, Term, added_up
from jepaplan.costs.streaming import BoundSum
from jepaplan.interfaces import Prepared, WorldModel
from jepaplan.types import InputError

Option = TypeVar("Option", int, torch.dtype)


class Summand:
    """Operators that make a `WeightedSum` of a term; `label` is the term's name unless another is given."""

    label: ClassVar[str]

    def named(self, name: str) -> "WeightedSum":
        """This term alone, called `name`."""
        return _sum_of_one(name, self)

    def __mul__(self, weight: float | int) -> "WeightedSum":
        """This term alone, weighted."""
        return as_sum(self) * weight

    __rmul__ = __mul__

    def __add__(self, other: object) -> "WeightedSum":
        """This term and others."""
        return as_sum(self) + other

    def __radd__(self, other: object) -> "WeightedSum":
        """A constant and this term, so that `sum([...])` works."""
        return as_sum(self) + other


class Additive(Summand):
    """Adds up the shares of the steps: what a term with `step_cost` or `to_go` inherits."""

    def step_cost(self, step: ImaginedStep) -> Float[Tensor, "B S"] | None:
        """What this step adds; None for nothing."""
        return None

    def to_go(self, step: ImaginedStep) -> Float[Tensor, "B S"] | None:
        """What is expected beyond `step.latent`, if the path ends there; None for nothing."""
        return None

    def accumulate(
        self, total: Float[Tensor, "B S"] | None, step: ImaginedStep
    ) -> Float[Tensor, "B S"] | None:
        """Fold in one step."""
        return self.accumulate_jointly(total, JointSteps([step]))

    def accumulate_jointly(
        self, total: Float[Tensor, "B S"] | None, steps: JointSteps
    ) -> Float[Tensor, "B S"] | None:
        """Fold in steps that follow each other."""
        return added_up(self, total, steps)


@dataclass(frozen=True)
class Constant(Additive):
    """The same for every path, whatever its length."""

    value: float = 1.0
    label: ClassVar[str] = "constant"

    def to_go(self, step: ImaginedStep) -> Float[Tensor, "B S"]:
        """The constant, once per path."""
        dtype = torch.promote_types(step.action.dtype, torch.float32)
        return step.action.new_full(step.action.shape[:2], self.value, dtype=dtype)


@dataclass(frozen=True)
class WeightedSum:
    """Named terms with their weights; `bind` makes them a cost of action sequences."""

    terms: Mapping[str, tuple[float, Term]]
    chunk_rows: int | None = None  # problems x samples imagined at once; None: see `default_chunk_rows`
    dtype: torch.dtype | None = None  # of the imagined latents, thus of the predictor; None: as encoded

    def __post_init__(self) -> None:
        """Refuse an empty sum, weights that are no numbers, and terms that are none."""
        if not self.terms:
            raise InputError(
                'a cost needs at least one term, such as {"goal": (1.0, GoalDistance(distance=...))}'
            )
        for name, (weight, term) in self.terms.items():
            _refuse_other_than_terms(name, term)
            if not math.isfinite(weight):
                raise InputError(f"cost term '{name}' has weight {weight}; weights are finite numbers")
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise InputError(
                f"chunk_rows must be at least 1, or None to let the device decide; got {self.chunk_rows}"
            )

    def bind(
        self, world_model: WorldModel, latent: Float[Tensor, "B *latent"], goal: Float[Tensor, "B *goal"]
    ) -> BoundSum:
        """The cost of action sequences that start at `latent` and want `goal`."""
        unknown = latent.flatten(1).isnan().any(dim=1)
        if bool(unknown.any()):
            raise InputError(
                f"the latent that problem {int(unknown.nonzero()[0])} starts from holds NaN; look at what "
                "was observed, and at whether the encoder's training diverged"
            )
        return BoundSum(self.terms, world_model, latent.to(self.dtype or latent.dtype), goal, self.chunk_rows)

    def prepare(self, goal: Float[Tensor, "B *goal"]) -> int:
        """What the terms have to find out about goals; predictor calls that it took."""
        return sum(term.prepare(goal) for _, term in self.terms.values() if isinstance(term, Prepared))

    def __mul__(self, weight: float | int) -> "WeightedSum":
        """Every term weighted by `weight` more."""
        return replace(self, terms={name: (weight * own, term) for name, (own, term) in self.terms.items()})

    __rmul__ = __mul__

    def __add__(self, other: object) -> "WeightedSum":
        """The terms of both; a number joins as a constant."""
        if isinstance(other, int | float) and other == 0:
            return self
        theirs = as_sum(other)
        terms = dict(self.terms)
        for name, (weight, term) in theirs.terms.items():
            terms[name] = _joined(name, terms.get(name), (weight, term))
        return WeightedSum(
            terms,
            chunk_rows=_agreed("chunk_rows", self.chunk_rows, theirs.chunk_rows),
            dtype=_agreed("dtype", self.dtype, theirs.dtype),
        )

    __radd__ = __add__


def as_sum(given: object) -> WeightedSum:
    """A sum as it is; a term, or a number, as a sum of one."""
    if isinstance(given, WeightedSum):
        return given
    if isinstance(given, int | float):
        return _sum_of_one(Constant.label, Constant(float(given)))
    if isinstance(given, Summand):
        return _sum_of_one(given.label, given)
    raise InputError(
        f"a {type(given).__name__} cannot be added to a cost by itself; give it a weight and a name: "
        'WeightedSum({"name": (1.0, term)}), or let its class inherit Summand'
    )


def _sum_of_one(name: str, term: object) -> WeightedSum:
    return WeightedSum({name: (1.0, _refuse_other_than_terms(name, term))})


def _refuse_other_than_terms(name: str, term: object) -> Term:
    if not isinstance(term, StepwiseTerm | PathTerm):
        raise InputError(
            f"cost term '{name}' is a {type(term).__name__}, which has neither `accumulate` (stepwise) nor "
            "`over_path` (whole paths); a bare distance goes in as GoalDistance(distance=...)"
        )
    return term


def _joined(name: str, mine: tuple[float, Term] | None, theirs: tuple[float, Term]) -> tuple[float, Term]:
    if mine is None:
        return theirs
    if isinstance(mine[1], Constant) and isinstance(theirs[1], Constant):
        return 1.0, Constant(mine[0] * mine[1].value + theirs[0] * theirs[1].value)
    raise InputError(
        f"both sides of + have a term called '{name}', and a breakdown needs to tell them apart; "
        f"write term.named('another name') for one of them"
    )


def _agreed(name: str, mine: Option | None, theirs: Option | None) -> Option | None:
    if mine is not None and theirs is not None and mine != theirs:
        raise InputError(f"one cost has {name}={mine}, the other {name}={theirs}; a sum has one of them")
    return theirs if mine is None else mine
