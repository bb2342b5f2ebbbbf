"""Deadlines on a machine whose time is counted, not measured: what a call costs is known exactly."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jepaplan.interfaces import Planner
from jepaplan.planners.cem import CEM
from jepaplan.planners.deadline import Deadline, Speeds, copied
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.shooting import RandomShooting
from jepaplan.types import InputError

INNER = [
    CEM(samples=200, elites=20, iterations=8, horizon=5),
    ICEM(samples=150, elites=10, iterations=6, horizon=5),
    MPPI(samples=400, horizon=5),
    RandomShooting(samples=300, horizon=5),
    MPPI(samples=5, iterations=3, horizon=5),
]


class Machine:
    """Each call takes `overhead` and, for every candidate's step of every problem, `rate` seconds."""

    def __init__(self, overhead: float, rate: float) -> None:
        self.now, self.overhead, self.rate = 100.0, overhead, rate
        self.asked: list[int] = []  # candidates' steps per problem, call by call

    def clock(self) -> float:
        return self.now

    def cost(self, actions: torch.Tensor) -> torch.Tensor:
        problems, samples, horizon, _ = actions.shape
        self.asked.append(samples * horizon)
        self.now += self.overhead + self.rate * problems * samples * horizon
        return (actions - 0.7).square().sum(dim=(-2, -1))

    def seconds(self, plan: Callable[[], Any]) -> float:
        before = self.now
        plan()
        return self.now - before


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def full_evaluations(planner: Planner) -> int:
    return planner.plan(Machine(0, 0).cost, planner.initial(1, 2), seeded(0)).evaluations


@settings(max_examples=25, deadline=None)
@given(
    inner=st.sampled_from(INNER),
    overhead=st.floats(0, 4e-3),
    rate=st.floats(1e-8, 1e-4),
    milliseconds=st.floats(20, 100),
)
def test_it_is_kept_and_the_budget_is_kept_and_what_was_used_is_reported(
    inner: Any, overhead: float, rate: float, milliseconds: float
):
    """On any machine on which a measurement and the least plan fit into the time."""
    machine = Machine(overhead, rate)
    planner = Deadline(planner=inner, milliseconds=milliseconds, clock=machine.clock)
    assume(overhead + rate * 2 * planner.least_samples * planner.horizon <= 0.9 * milliseconds / 1000)
    most = full_evaluations(inner)
    for seed in range(4):
        before = sum(machine.asked)
        started = machine.now
        found = planner.plan(machine.cost, planner.initial(2, 2), seeded(seed))
        assert machine.now - started <= 0.9 * milliseconds / 1000 + 1e-9
        assert found.evaluations == sum(machine.asked) - before
        assert found.evaluations <= most


@pytest.mark.parametrize("overhead", [0.0, 1e-3])
def test_it_comes_close_to_the_time_that_it_is_given(overhead: float):
    machine = Machine(overhead, 1e-6)
    inner = CEM(samples=4000, elites=40, iterations=10, horizon=5)
    planner = Deadline(planner=inner, milliseconds=30.0, margin=0.2, clock=machine.clock)
    for seed in range(12):
        used = machine.seconds(
            lambda: planner.plan(machine.cost, planner.initial(1, 2), seeded(seed))  # noqa: B023
        )
    assert 0.93 * 0.024 < used <= 0.024


@pytest.mark.parametrize("inner", INNER)
def test_with_time_to_spare_it_is_the_inner_planner_to_the_bit(inner: Any):
    """From the second plan on; the first measures, and pays for it with samples."""
    machine = Machine(1e-6, 1e-9)
    planner = Deadline(planner=inner, milliseconds=1000.0, clock=machine.clock)
    generators = [seeded(0), seeded(1)]
    first = planner.plan(machine.cost, planner.initial(2, 2), generators)
    assert 0 < first.evaluations <= full_evaluations(inner)
    generators = [seeded(5), seeded(6)]
    found = planner.plan(machine.cost, planner.initial(2, 2), generators)
    expected = inner.plan(machine.cost, inner.initial(2, 2), [seeded(5), seeded(6)])
    assert torch.equal(found.plan.mean, expected.plan.mean)
    assert torch.equal(found.costs, expected.costs)
    assert found.evaluations == expected.evaluations


def test_with_little_time_samples_go_first_and_then_iterations():
    inner = CEM(samples=200, elites=20, iterations=8, horizon=5)
    calls: dict[float, list[int]] = {}
    for milliseconds in (100.0, 20.0, 4.0, 0.8):
        machine = Machine(0.0, 1e-5)  # 50 microseconds per candidate
        planner = Deadline(planner=inner, milliseconds=milliseconds, margin=0.0, clock=machine.clock)
        planner.plan(machine.cost, planner.initial(1, 2), seeded(0))
        machine.asked.clear()
        planner.plan(machine.cost, planner.initial(1, 2), seeded(0))
        calls[milliseconds] = [steps // 5 for steps in machine.asked]
    assert len(calls[100.0]) == 8
    assert calls[100.0][0] >= 199
    assert len(calls[20.0]) == 8
    assert 48 <= calls[20.0][0] <= 50
    assert 4 <= len(calls[4.0]) <= 5
    assert calls[4.0][0] == 16
    assert calls[0.8] == [16]


def test_a_slow_moment_costs_one_late_plan_at_most_and_is_forgotten():
    machine = Machine(1e-4, 2e-6)
    inner = CEM(samples=2000, elites=40, iterations=10, horizon=5)
    planner = Deadline(planner=inner, milliseconds=50.0, clock=machine.clock)

    def plan() -> None:
        planner.plan(machine.cost, planner.initial(1, 2), seeded(0))

    used = [machine.seconds(plan) for _ in range(8)]
    machine.rate *= 5
    used += [machine.seconds(plan) for _ in range(3)]
    assert max(used) <= 0.045 + 1e-9  # ten iterations: even the surprise is over before the end
    machine.rate /= 5
    again = [machine.seconds(plan) for _ in range(8)]
    assert max(again) <= 0.045 + 1e-9
    assert again[-1] > 0.9 * used[7]


def test_fewer_problems_need_no_measurement_of_their_own():
    machine = Machine(1e-4, 1e-6)
    planner = Deadline(planner=MPPI(samples=400, horizon=5), milliseconds=50.0, clock=machine.clock)
    calls = []
    for problems in (8, 5, 5, 1, 9):
        machine.asked.clear()
        planner.plan(machine.cost, planner.initial(problems, 2), [seeded(i) for i in range(problems)])
        calls.append(len(machine.asked))
    assert calls == [2, 1, 1, 1, 2]


def test_every_answer_on_the_way_is_a_plan_and_the_last_is_returned():
    machine = Machine(1e-4, 1e-6)
    planner = Deadline(planner=INNER[0], milliseconds=200.0, clock=machine.clock)
    answers = list(planner.refinements(machine.cost, planner.initial(2, 2), seeded(0)))
    assert [each.evaluations for each in answers] == list(torch.tensor(machine.asked).cumsum(0))
    assert all(each.plan.mean.shape == (2, 5, 2) for each in answers)


def test_speeds_believe_slower_at_once_and_faster_by_half():
    speeds = Speeds()
    assert speeds.expected(1) is None
    speeds.learn(4, 8.0)
    speeds.learn(4, 4.0)
    assert speeds.expected(4) == speeds.expected(1) == 6.0
    speeds.learn(4, 10.0)
    assert speeds.expected(4) == 10.0
    assert speeds.expected(5) is None


def test_copied_generators_deal_the_same_and_leave_the_others_where_they_were():
    generators = [seeded(0), seeded(1)]
    twins = copied(generators)
    assert isinstance(twins, list)
    ahead = [torch.rand(3, generator=each) for each in twins]
    assert all(
        torch.equal(torch.rand(3, generator=own), seen) for own, seen in zip(generators, ahead, strict=True)
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"milliseconds": 0.0}, "milliseconds is the time for one plan"),
        ({"margin": 1.0}, "margin is a share"),
        ({"least_samples": 1}, "least_samples"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Deadline(**{"planner": MPPI(), "milliseconds": 20.0, **wrong})
