"""The options of every command that plans with a trained run: which search, which cost, which prior.

What is not said stays as the run has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jepaplan.models.value_heads import ReadBy
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.recipes.costs import CostConfig, Over, Precision
from jepaplan.recipes.experiment import PlannerConfig
from jepaplan.recipes.run import LoadedRun
from jepaplan.recipes.study import with_planner
from jepaplan.recipes.system import samples_of
from jepaplan.types import InputError

PlannerName = Literal[
    "shooting",
    "mppi",
    "cem",
    "icem",
    "gradient",
    "gradient-cem",
    "collocation",
    "beam",
    "tree",
    "gumbel-tree",
]
PLANNERS: Mapping[PlannerName, PlannerConfig] = {
    "shooting": RandomShooting(),
    "mppi": MPPI(),
    "cem": CEM(),
    "icem": ICEM(),
    "gradient": GradientDescent(),
    "gradient-cem": GradientCEM(),
    "collocation": Collocation(),
    "beam": BeamSearch(),
    "tree": TreeSearch(),
    "gumbel-tree": TreeSearch(rule=GumbelHalving()),
}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search, and for what."""

    planner: PlannerName | None = None
    """Without it, the recipe's planner with the recipe's budget; another one begins with its own defaults
    and the recipe's horizon, bounds and noise. docs/choosing_a_planner.md helps to choose."""
    samples: int | None = None
    """Action sequences per problem and iteration."""
    horizon: int | None = None
    """Model steps that a plan looks ahead."""
    cost: Over | None = None
    """How the distance along the imagined path becomes a cost. n_step: one for every step that begins away
    from the goal, and what remains after the last."""
    discount: float | None = None
    """Per step, for --cost discounted and n_step, which wants that of the value; without it, the recipe's."""
    reached: float | None = None
    """Where the goal is reached, in units of the distance, for --cost n_step; without it, the recipe's."""
    effort: float | None = None
    """Weight of the squared length of actions, in normalised units; without it, the recipe's."""
    smoothness: float | None = None
    """Weight of the squared difference between an action and the one before it, for planners that score whole
    plans; without it, the recipe's."""
    disagreement: float | None = None
    """Weight of the standard deviation between the members of the head that --value names, at every imagined
    step; without it, the recipe's."""
    value: str | None = None
    """The value head that counts the steps to go, by the name of its stage or its own, or `none` for the
    distance; without it, the recipe's."""
    reading: ReadBy | None = None
    """How the members of that head become one value; without it, as it was trained to be read."""
    caution: float | None = None
    """Standard deviations below the mean, for --reading lower_confidence; without it, the recipe's."""
    precision: Precision | None = None
    """Of imagination while planning; without it, the recipe's. int8: the predictor's products are those of
    8-bit integers, on a processor (not an accelerator) that has instructions for them (VNNI)."""
    prior: str | None = None
    """The stage of the run whose action prior leads the search, such as action_prior; none: nothing leads it.
    Without it, the recipe's."""
    prior_share: float | None = None
    """Of the candidates that come from the prior; without it, the recipe's."""


def changed(run: LoadedRun, options: SearchOptions) -> LoadedRun:
    """The run with the search that was asked for."""
    planner = run.experiment.planner
    known = samples_of(planner)
    if options.planner is not None and not same_kind(planner, PLANNERS[options.planner]):
        own = PLANNERS[options.planner]
        planner = replace(own, std=planner.std, bounds=planner.bounds, horizon=planner.horizon)
    if options.samples is not None and samples_of(planner) is None:
        raise InputError(
            f"{type(planner).__name__} does not sample sequences, so --samples does not belong to it; leave "
            "it out, or choose --planner mppi, cem, icem, gradient-cem or shooting"
        )
    samples = known if known is not None else samples_of(planner)
    samples = samples if options.samples is None else options.samples
    horizon = planner.horizon if options.horizon is None else options.horizon
    if isinstance(planner, CEM | ICEM | GradientCEM) and samples is not None:
        # few samples have few elites
        planner = replace(planner, samples=samples, elites=max(2, min(planner.elites, samples // 2)))
    elif isinstance(planner, MPPI | RandomShooting) and samples is not None:
        planner = replace(planner, samples=samples)
    planner = replace(planner, horizon=horizon)
    control = run.experiment.control
    if options.prior is not None:
        control = replace(control, prior=None if options.prior == "none" else options.prior)
    if options.prior_share is not None:
        if control.prior is None:
            raise InputError(
                f"--prior-share {options.prior_share:g} belongs to a search that a prior leads; write "
                "--prior with the stage that trained one, or leave it out"
            )
        control = replace(control, prior_share=options.prior_share)
    return with_planner(
        run, planner=planner, cost=changed_cost(run.experiment.cost, options), control=control
    )


def changed_cost(cost: CostConfig, options: SearchOptions) -> CostConfig:
    """The cost that was asked for."""
    reading = options.reading or cost.reading
    if options.caution is not None and reading != "lower_confidence":
        raise InputError(
            f"--caution {options.caution:g} belongs to --reading lower_confidence; the reading is "
            f"{reading or 'that of the recipe'}. Write both, or leave it out"
        )
    over = options.cost or cost.over
    for name, given, belongs in (
        ("discount", options.discount, ("discounted", "n_step")),
        ("reached", options.reached, ("n_step",)),
    ):
        if given is not None and over not in belongs:
            raise InputError(
                f"--{name} {given:g} belongs to --cost {' or '.join(belongs)}; the cost is {over}. Write "
                "both, or leave it out"
            )
    asked = {
        "over": options.cost,
        "discount": options.discount,
        "reached": options.reached,
        "effort": options.effort,
        "smoothness": options.smoothness,
        "disagreement": options.disagreement,
        "value": options.value,
        "reading": options.reading,
        "caution": options.caution,
        "precision": options.precision,
    }
    changes: dict[str, Any] = {name: given for name, given in asked.items() if given is not None}
    if options.value == "none":
        # what is asked of a head belongs to the one that was named
        changes |= {"value": None, "reading": options.reading, "disagreement": options.disagreement or 0.0}
    return replace(cost, **changes)


def same_kind(planner: PlannerConfig, other: PlannerConfig) -> bool:
    """The same class, and for tree search the same kind of rule."""
    if isinstance(planner, TreeSearch) and isinstance(other, TreeSearch):
        return type(planner.rule) is type(other.rule)
    return type(planner) is type(other)
