"""Deadlines of planners by gradients, beams and trees, on a machine whose time is counted, not measured."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from linear_quadratic import planar

from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.deadline import Deadline, Phased, Speeds
from jepaplan.planners.descent import Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.types import Expansion, Plan, Search

BANK = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(4))
SHORT = Descent(steps=2)
INNER: list[Any] = [
    GradientDescent(starts=6, horizon=5, descent=Descent(steps=9)),
    GradientCEM(samples=40, elites=6, iterations=5, horizon=5, descent=SHORT),
    Collocation(starts=4, horizon=5, steps=20, synchronise_every=6, shooting=SHORT),
    Collocation(starts=4, horizon=5, steps=12, synchronise_every=4, stop_gradient=True, shooting=None),
    BeamSearch(width=12, branches=4, horizon=5),
    BeamSearch(width=9, branches=4, horizon=5, bank=BANK, keep_nominal=False),
    TreeSearch(simulations=200, leaves=4, branches=8, horizon=5),
    TreeSearch(simulations=90, leaves=3, branches=4, horizon=5, bank=BANK),
    TreeSearch(simulations=150, leaves=4, branches=8, horizon=5, rule=GumbelHalving()),
]
NAMES = [f"{type(planner).__name__}-{number}" for number, planner in enumerate(INNER)]
every_planner = pytest.mark.parametrize("inner", INNER, ids=NAMES)


class Machine:
    """A linear system to plan in: a call takes `overhead` and, for each step of each problem, `rate` seconds.

    A gradient takes as long as three steps.
    """

    def __init__(self, overhead: float, rate: float, problems: int = 2) -> None:
        self.now, self.overhead, self.rate = 100.0, overhead, rate
        self.system = planar(problems, dtype=torch.float32, final_weight=1.0)
        self.latent = self.system.latent

    def clock(self) -> float:
        return self.now

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        return self._taken(self.system(actions))

    def expand(self, latents: torch.Tensor, actions: torch.Tensor, depth: Any, horizon: int) -> Expansion:
        return self._taken(self.system.expand(latents, actions, depth, horizon))

    @property
    def asked(self) -> int:
        """Steps of each problem until now."""
        return sum(self.system.rows)

    def _taken(self, answer: Any) -> Any:
        self.now += self.overhead + self.rate * len(self.latent) * self.system.rows[-1]
        return answer


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refinements(planner: Any, machine: Machine, seed: int = 0) -> Iterator[Search]:
    return planner.refinements(machine, planner.initial(len(machine.latent), 2), seeded(seed))


def planned(planner: Deadline, machine: Machine, seed: int = 0) -> Search:
    return planner.plan(machine, planner.initial(len(machine.latent), 2), seeded(seed))


@every_planner
@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_schedules_are_what_refinements_ask(inner: Phased, horizon: int):
    machine = Machine(0, 0)
    fresh = inner.initial(2, 2)
    start = Plan(fresh.mean[:, :horizon], fresh.std[:, :horizon])
    asked = [0, *(found.evaluations for found in inner.refinements(machine, start, seeded(0)))]
    taken = [after - before for before, after in pairwise(asked)]
    schedule = inner.schedule(horizon)
    assert asked[-1] == machine.asked
    if isinstance(inner, TreeSearch) and (inner.bank is not None or horizon == 1):
        # so few ways are seen to their end
        assert len(taken) == len(schedule)
        assert all(few <= most for few, most in zip(taken, schedule, strict=True))
    else:
        assert taken == schedule


@settings(max_examples=150, deadline=None)
@given(inner=st.sampled_from(INNER), evaluations=st.integers(0, 4000), horizon=st.integers(1, 7))
def test_what_fits_is_as_large_as_it_can_be(inner: Phased, evaluations: int, horizon: int):
    found, full = inner.fitting(evaluations, horizon), sum(inner.schedule(horizon))
    size, least = sum(found.schedule(horizon)), sum(inner.fitting(0, horizon).schedule(horizon))
    assert least <= size <= max(least, min(evaluations, full))
    assert inner.fitting(full, horizon) == inner
    assert sum(inner.fitting(evaluations + 1, horizon).schedule(horizon)) <= max(least, evaluations + 1)
    if evaluations >= full:
        assert found == inner
    else:
        # a third fits, or it is the least there is
        assert size >= min(evaluations, full) / 3 or size <= 2 * least


@settings(max_examples=15, deadline=None)
@given(
    inner=st.sampled_from(INNER),
    overhead=st.floats(0, 2e-4),
    rate=st.floats(1e-8, 2e-5),
    milliseconds=st.floats(20, 100),
)
def test_it_is_kept_and_what_was_used_is_reported(
    inner: Any, overhead: float, rate: float, milliseconds: float
):
    """On any machine on which the smallest search fits into the time; a phase of fewer calls errs by one."""
    machine, trial = Machine(overhead, rate), Machine(overhead, rate)
    planner = Deadline(planner=inner, milliseconds=milliseconds, clock=machine.clock)
    least = inner.fitting(16 * 5, 5)
    list(refinements(least, trial))
    assume(trial.now - 100.0 <= 0.4 * milliseconds / 1000)
    full = sum(inner.schedule(5))
    for seed in range(4):
        before, began = machine.asked, machine.now
        found = planned(planner, machine, seed)
        assert machine.now - began <= 0.9 * milliseconds / 1000 + 2 * overhead + 1e-9
        assert found.evaluations == machine.asked - before
        assert 0 < found.evaluations <= full


@every_planner
def test_with_time_to_spare_it_is_the_inner_planner_to_the_bit(inner: Any):
    """From the second plan on; the first measures, and pays for it with evaluations."""
    machine = Machine(1e-6, 1e-9)
    planner = Deadline(planner=inner, milliseconds=1000.0, clock=machine.clock)
    assert 0 < planned(planner, machine).evaluations <= sum(inner.schedule(5))
    found = planned(planner, machine, seed=7)
    *_, expected = refinements(inner, Machine(0, 0), seed=7)
    assert torch.equal(found.plan.mean, expected.plan.mean)
    assert torch.equal(found.costs, expected.costs)
    assert found.evaluations == expected.evaluations


@every_planner
def test_on_a_machine_slower_than_it_was_it_answers_with_the_last_phase_that_ends_in_time(inner: Any):
    schedule, rate = inner.schedule(5), 1e-4
    until, asked = [], 0
    for number in schedule:
        asked += number
        until.append(2 * rate * asked)
    known = list(refinements(inner, Machine(0, 0)))
    for phases in range(1, len(schedule)):
        machine = Machine(0, rate)
        ends = (until[phases - 1] + until[phases]) / 2  # one phase more would be too late
        planner = Deadline(
            planner=inner,
            milliseconds=1000 * ends,
            margin=0.0,
            clock=machine.clock,
            speeds=Speeds({2: 1e-9}),
        )
        found = planned(planner, machine)
        expected = known[phases - 1]
        assert found.evaluations == machine.asked == expected.evaluations
        assert torch.equal(found.plan.mean, expected.plan.mean)
        assert torch.equal(found.costs, expected.costs)
        assert torch.equal(found.candidates, expected.candidates)


@every_planner
def test_late_as_it_may_be_there_is_an_answer(inner: Any):
    machine = Machine(1.0, 1e-3)
    planner = Deadline(planner=inner, milliseconds=1e-3, clock=machine.clock)
    first = planned(planner, machine)
    probe = inner.fitting(min(16 * 5, sum(inner.schedule(5)) // 4), 5)
    expected = next(refinements(probe, Machine(0, 0)))
    assert torch.equal(first.plan.mean, expected.plan.mean)
    assert first.evaluations == machine.asked == expected.evaluations > 0
    # now it is known to be hopeless, and the smallest search's first phase is all there is
    again = planned(planner, machine)
    assert again.evaluations == inner.fitting(0, 5).schedule(5)[0]
    assert again.plan.mean.isfinite().all()


def used(inner: Any, evaluations: int) -> int:
    """What is asked when exactly so many evaluations fit."""
    machine = Machine(0, 1e-4, problems=1)
    planner = Deadline(
        planner=inner,
        milliseconds=0.1 * evaluations + 0.05,
        margin=0.0,
        least_samples=2,
        clock=machine.clock,
        speeds=Speeds({1: 1e-4}),
    )
    found = planned(planner, machine)
    assert found.evaluations == machine.asked
    return found.evaluations


def test_the_size_is_chosen_beforehand_from_what_was_measured():
    assert used(TreeSearch(simulations=256, leaves=4, horizon=5), 100) == 100
    assert used(TreeSearch(simulations=256, leaves=4, horizon=5, rule=GumbelHalving()), 100) == 100
    descent = GradientDescent(starts=4, horizon=5, descent=Descent(steps=30))
    assert used(descent, 270) == 4 * 5 * (4 * 3 + 1)  # four steps
    assert used(descent, 47) == 2 * 5 * (3 + 1)  # one step of two starts
    beam = BeamSearch(width=32, branches=4, horizon=5)
    assert used(beam, 130) == 6 * 4 * 5  # six paths to the end, rather than 32 of them to the first step
    assert used(beam, 17) == 1 * 3 * 5
    several = GradientCEM(samples=40, elites=4, iterations=5, horizon=5, descent=SHORT)
    assert used(several, 800) == 2 * (40 + 4 * 7) * 5
    assert used(several, 180) == (22 + 2 * 7) * 5  # 22 samples, two elites
    lifted = Collocation(starts=4, horizon=5, steps=200, synchronise_every=50, shooting=None)
    assert used(lifted, 4 * 5 * (1 + 151 + 31)) == 4 * 5 * (1 + 151 + 31)  # 60 steps


def test_all_sizes_of_a_tree_search_in_one_memory():
    tree = TreeSearch(simulations=64, horizon=5)
    smaller = tree.fitting(16, 5)
    assert smaller.simulations == 16
    *_, alone = refinements(TreeSearch(simulations=16, horizon=5), Machine(0, 0))
    list(refinements(tree, Machine(0, 0), seed=3))
    *_, found = refinements(smaller, Machine(0, 0))
    assert smaller._left is tree._left
    assert torch.equal(found.plan.mean, alone.plan.mean)
