"""Descent on action sequences through a differentiable cost; gradient planners differ only in their starts.

Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015; decoupled decay as in Loshchilov &
Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    paper            here
    alpha            learning_rate    in normalised action units
    beta_1, beta_2   Adam.betas
    m_t, v_t, t      Moments.mean, Moments.square, Moments.steps
    lambda           Adam.weight_decay

A gradient is counted as `GRADIENT_EVALUATIONS` = 3 evaluations per model step: the forward pass, and a
backward pass of about twice its work. Departs from the papers: actions are projected onto their bounds after
every step, and what comes out is each sequence's cheapest iterate, which need not be the last.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.interfaces import Bounds, SequenceCost
from jepaplan.planners.plan import evaluate
from jepaplan.types import InputError

GRADIENT_EVALUATIONS = 3  # per model step: one forward, two for the backward pass


@dataclass(frozen=True)
class Moments:
    """What an optimiser remembers from step to step."""

    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def none(cls, values: Tensor) -> "Moments":
        """Nothing seen yet."""
        return cls(torch.zeros_like(values), torch.zeros_like(values))


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Plain steps against the gradient: their length follows the unit of the cost."""

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        """Refuse steps that lead nowhere or uphill."""
        check_learning_rate(self.learning_rate)

    def step(self, values: Tensor, gradient: Tensor, moments: Moments) -> tuple[Tensor, Moments]:
        """The next values; nothing is remembered."""
        return values - self.learning_rate * gradient, moments


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, or AdamW with a `weight_decay`: steps whose length does not follow the unit of the cost."""

    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # share of an action lost per step and unit of learning rate
    epsilon: float = 1e-8  # in units of the gradient

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        check_learning_rate(self.learning_rate)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are shares of the past, each in [0, 1); got {self.betas}")
        if self.weight_decay < 0 or self.epsilon <= 0:
            raise InputError(
                f"weight_decay must not be negative and epsilon must be positive; got {self.weight_decay} "
                f"and {self.epsilon}"
            )

    def step(self, values: Tensor, gradient: Tensor, moments: Moments) -> tuple[Tensor, Moments]:
        """The next values and what to remember."""
        slow, slower = self.betas
        steps = moments.steps + 1
        mean = torch.lerp(gradient, moments.mean, slow)
        square = moments.square.mul(slower).addcmul_(gradient, gradient, value=1 - slower)
        # moments begin at zero; the divisions undo what that zero still weighs
        spread = square.sqrt().div_(math.sqrt(1 - slower**steps)).add_(self.epsilon)
        decayed = values * (1 - self.learning_rate * self.weight_decay) if self.weight_decay else values
        rate = self.learning_rate / (1 - slow**steps)
        return decayed.addcdiv(mean, spread, value=-rate), Moments(mean=mean, square=square, steps=steps)


Optimiser = SGD | Adam


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How many steps, of what kind."""

    steps: int = 30
    optimiser: Optimiser = field(default_factory=Adam)
    gradient_clip: float | None = None  # largest Euclidean length of one sequence's gradient
    sequences_per_backward: int | None = None  # per problem; None: all at once, which takes the most memory

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        if self.steps < 1:
            raise InputError(f"steps of descent must be at least 1; got {self.steps}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise InputError(f"gradient_clip must be positive, or None; got {self.gradient_clip}")
        if self.sequences_per_backward is not None and self.sequences_per_backward < 1:
            raise InputError(
                f"sequences_per_backward must be at least 1, or None; got {self.sequences_per_backward}"
            )


@dataclass(frozen=True)
class Descended:
    """The cheapest iterate of each sequence so far, and what finding it has cost per problem."""

    actions: Float[Tensor, "B S H A"]
    costs: Float[Tensor, "B S"]
    evaluations: int


def descend(
    cost: SequenceCost, actions: Float[Tensor, "B S H A"], descent: Descent, bounds: Bounds | None
) -> Iterator[Descended]:
    """Each sequence's cheapest iterate, after every gradient and once more after the last step."""
    current, moments = actions, Moments.none(actions)
    best = Descended(actions, actions.new_full(actions.shape[:2], torch.inf), 0)
    per_look = actions.shape[1] * actions.shape[2]
    for _ in range(descent.steps):
        costs, gradient = _differentiate(cost, current, descent.sequences_per_backward)
        best = _cheaper(best, current, costs, GRADIENT_EVALUATIONS * per_look)
        yield best
        with torch.no_grad():
            gradient = clipped(gradient, descent.gradient_clip)
            current, moments = descent.optimiser.step(current, gradient, moments)
            current = current if bounds is None else bounds.project(current)
    with torch.no_grad():
        costs = evaluate(cost, current)
    yield _cheaper(best, current, costs, per_look)


def descended(
    cost: SequenceCost, actions: Float[Tensor, "B S H A"], descent: Descent, bounds: Bounds | None
) -> Descended:
    """`descend` to its end."""
    (found,) = deque(descend(cost, actions, descent, bounds), maxlen=1)
    return found


def clipped(gradient: Float[Tensor, "B S *rest"], largest: float | None) -> Float[Tensor, "B S *rest"]:
    """Each sequence's gradient at most `largest` long, and zero where it is undefined."""
    flat = gradient.flatten(2)
    # a sequence of infinite cost has no direction to go: it stays where it is and the others go on
    flat = flat.where(flat.isfinite().all(dim=-1, keepdim=True), 0.0)
    if largest is not None:
        flat = flat * (largest / flat.norm(dim=-1, keepdim=True).clamp(min=largest))
    return flat.view_as(gradient)


def check_learning_rate(learning_rate: float) -> None:
    """Refuse steps that lead nowhere or uphill."""
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be positive; got {learning_rate}")


def gradients(costs: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The derivative of the summed costs, so each sequence's own, with respect to each of `inputs`."""
    if not costs.requires_grad:
        raise InputError(
            "the cost has no gradient with respect to the actions, which a gradient planner needs: it was "
            "detached, rounded, or computed in torch.inference_mode. Write the cost in differentiable torch "
            "operations and plan under torch.no_grad at most, or use a sampling planner such as CEM."
        )
    return torch.autograd.grad(costs.where(costs.isfinite(), 0.0).sum(), inputs)


def _differentiate(
    cost: SequenceCost, actions: Float[Tensor, "B S H A"], at_once: int | None
) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S H A"]]:
    parts = [actions] if at_once is None else actions.split(at_once, dim=1)
    costs: list[Tensor] = []
    slopes: list[Tensor] = []
    for part in parts:
        # whoever plans has usually switched gradients off
        with torch.enable_grad():
            leaf = part.detach().requires_grad_(True)
            answer = evaluate(cost, leaf)
            slopes += gradients(answer, [leaf])
        costs.append(answer.detach())
    return torch.cat(costs, dim=1), torch.cat(slopes, dim=1)


def _cheaper(
    best: Descended, actions: Float[Tensor, "B S H A"], costs: Float[Tensor, "B S"], evaluations: int
) -> Descended:
    better = costs < best.costs
    return Descended(
        actions=actions.where(better[:, :, None, None], best.actions),
        costs=costs.where(better, best.costs),
        evaluations=best.evaluations + evaluations,
    )
