"""Plan within so many milliseconds: as large a search as the measured speed allows, cut short if it must be.

    any-time planning                  here
    contract (time known in advance)   sampling: `with_budget`, fewer samples, then fewer iterations;
                                       gradients, beams and trees: `fitting`, what each can do with less of
    interruption                       no phase begins that would not end in time

The first plan begins with a small search that measures; later plans know. Time is taken to be proportional to
the evaluations. A phase also has a fixed price, so the estimate errs on the slow side after a small one
and comes closer with every larger one: it approaches the deadline from below, and stays farther below it
where the fixed price is most of a search, as of a beam or a tree of few evaluations. Slower counts at once,
faster by half. What was begun is ended: the least there is may be late, and it is an answer.

With time to spare the answer is the inner planner's, bit for bit (after the first plan, whose samples pay for
the measurement). Otherwise it depends on the clock: not for numbers that somebody must be able to repeat.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from jepaplan.interfaces import SequenceCost
from jepaplan.planners.plan import last
from jepaplan.planners.proposals import Proposal, Randomness
from jepaplan.planners.proposals_bank import TakesProposals
from jepaplan.types import InputError, Plan, Search


@runtime_checkable
class Refiner(Protocol):
    """A planner that can be cut short and made smaller: every sampling planner."""

    @property
    def horizon(self) -> int:
        """Model steps that a fresh plan looks ahead."""
        ...

    @property
    def samples(self) -> int:
        """Candidates of an iteration, at most."""
        ...

    @property
    def iterations(self) -> int:
        """Of a plan with its full budget."""
        ...

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        ...

    def with_budget(self, samples: int, iterations: int) -> "Refiner":
        """The same planner with fewer samples and iterations."""
        ...

    def with_proposal(self, proposal: Proposal, share: float) -> "Refiner":
        """The same planner, of whose candidates the share comes from `proposal`."""
        ...

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """One answer after the other, each with the evaluations until then."""
        ...


@runtime_checkable
class Phased(Protocol):
    """A planner that says beforehand what it will ask, phase by phase: by gradients, beams or trees."""

    @property
    def horizon(self) -> int:
        """Model steps that a fresh plan looks ahead."""
        ...

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The plan to start from when nothing is known."""
        ...

    def schedule(self, horizon: int) -> list[int]:
        """Evaluations of each refinement of a plan of `horizon` steps, at most."""
        ...

    def fitting(self, evaluations: int, horizon: int) -> "Phased":
        """The same planner with at most so many evaluations in all, if it can; else the smallest there is."""
        ...

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """One answer after the other, each with the evaluations until then."""
        ...


@dataclass
class Speeds:
    """Seconds per evaluation (a candidate's step, for all problems together), by the number of problems."""

    known: dict[int, float] = field(default_factory=dict[int, float])

    def expected(self, problems: int) -> float | None:
        """From the next larger batch that was measured: fewer problems do not take longer."""
        larger = [batch for batch in self.known if batch >= problems]
        return self.known[min(larger)] if larger else None

    def learn(self, problems: int, measured: float) -> None:
        """Believe slower at once and faster by half."""
        before = self.expected(problems)
        if before is not None and measured < before:
            measured = (before + measured) / 2
        self.known[problems] = measured


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """A planner in its own right. `Search.evaluations` says what was used, the measurement included."""

    planner: Refiner | Phased  # its size is the most that will be used
    milliseconds: float  # for one plan of all problems, from the call to the answer
    margin: float = 0.1  # share of the time that is not planned with
    least_samples: int = 16  # a plan takes one iteration of so many, however late; or one phase
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)  # in seconds
    speeds: Speeds = field(default_factory=Speeds, repr=False, compare=False)  # what was measured so far

    def __post_init__(self) -> None:
        """Refuse deadlines that have passed."""
        if not self.milliseconds > 0:
            raise InputError(f"milliseconds is the time for one plan, positive; got {self.milliseconds}")
        if not 0 <= self.margin < 1:
            raise InputError(f"margin is a share of the time, in [0, 1); got {self.margin}")
        if self.least_samples < 2:
            raise InputError(f"least_samples must be 2 or more; got {self.least_samples}")

    @property
    def horizon(self) -> int:
        """The inner planner's."""
        return self.planner.horizon

    def initial(self, problems: int, action_dim: int, device: torch.device | str = "cpu") -> Plan:
        """The inner planner's."""
        return self.planner.initial(problems, action_dim, device)

    def with_proposal(self, proposal: Proposal, share: float) -> "Deadline":
        """The same deadline, with the same measurements, for the inner planner with this proposal."""
        return replace(self, planner=leadable(self.planner).with_proposal(proposal, share))

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start` until the time is up or the inner planner's budget used."""
        return last(self.refinements(cost, start, generator))

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """The same, one answer after the other; what the caller does in between counts as time, too."""
        end = self.clock() + self.milliseconds / 1000 * (1 - self.margin)
        if isinstance(self.planner, Refiner):
            yield from self._made_smaller(self.planner, cost, start, generator, end)
        else:
            yield from self._cut_short(self.planner, cost, start, generator, end)

    def _made_smaller(
        self, planner: Refiner, cost: SequenceCost, start: Plan, generator: Randomness, end: float
    ) -> Iterator[Search]:
        problems, horizon = start.mean.shape[:2]
        least = _least(planner.samples, self.least_samples)
        room, spent = planner.samples, 0
        if self.speeds.expected(problems) is None:
            # its noise is dealt again, so that the answer with time to spare is the inner planner's
            probe = planner.with_budget(least, 1).refinements(cost, start, copied(generator))
            for found, _ in self._timed(probe, problems):
                spent = found.evaluations
                yield found
            room -= least
        affordable = self._affordable(end, problems) // horizon
        if spent > 0 and min(room, affordable) < least:
            return
        inner = planner.with_budget(*_size(planner, affordable, room, least))
        for found, seconds in self._timed(inner.refinements(cost, start, generator), problems):
            yield replace(found, evaluations=found.evaluations + spent)
            if self.clock() + seconds > end:
                return

    def _cut_short(
        self, planner: Phased, cost: SequenceCost, start: Plan, generator: Randomness, end: float
    ) -> Iterator[Search]:
        problems, horizon = start.mean.shape[:2]
        room, spent = sum(planner.schedule(horizon)), 0
        least = min(self.least_samples * horizon, room // 4)
        if self.speeds.expected(problems) is None:
            probe = planner.fitting(least, horizon)
            for found in self._until(end, probe, cost, start, copied(generator)):
                spent = found.evaluations
                yield found
            room -= spent
        size = min(room, self._affordable(end, problems))
        if spent > 0 and size < least:
            return
        inner = planner.fitting(max(least, size), horizon)
        if inner.schedule(horizon)[0] > size:
            inner = planner.fitting(size, horizon)
        for found in self._until(end, inner, cost, start, generator):
            yield replace(found, evaluations=found.evaluations + spent)

    def _until(
        self, end: float, planner: Phased, cost: SequenceCost, start: Plan, generator: Randomness
    ) -> Iterator[Search]:
        """One phase, and those after it that will end in time if they are as fast as the one before."""
        problems, horizon = start.mean.shape[:2]
        before, upcoming = 0, planner.schedule(horizon)[1:]
        searches = self._timed(planner.refinements(cost, start, generator), problems)
        for number, (found, seconds) in enumerate(searches):
            yield found
            # a tree that has been seen to its end asks for nothing
            done, before = max(1, found.evaluations - before), found.evaluations
            if number < len(upcoming) and self.clock() + seconds * upcoming[number] / done > end:
                return

    def _affordable(self, end: float, problems: int) -> int:
        """Evaluations until `end`, at the speed that is expected."""
        return max(0, int((end - self.clock()) / max(1e-12, self.speeds.expected(problems) or 0.0)))

    def _timed(self, searches: Iterator[Search], problems: int) -> Iterator[tuple[Search, float]]:
        """Each `Search` with the seconds that it took, from which `speeds` learns."""
        evaluations = 0
        while True:
            # an accelerator's work is done when `next` returns: the costs were looked at
            before = self.clock()
            found = next(searches, None)
            if found is None:
                return
            seconds = self.clock() - before
            if found.evaluations > evaluations:
                self.speeds.learn(problems, seconds / (found.evaluations - evaluations))
            evaluations = found.evaluations
            yield found, seconds


def leadable(planner: object) -> TakesProposals:
    """The planner, if it can be given candidates, in a deadline or not; refuses others in words."""
    if isinstance(planner, Deadline):
        leadable(planner.planner)
        return planner
    if not isinstance(planner, TakesProposals):
        raise InputError(
            f"{type(planner).__name__} takes no candidates from a prior; plan with MPPI, CEM, ICEM or "
            "RandomShooting (--planner mppi, cem, icem, shooting), or without a prior (--prior none)"
        )
    return planner


def _least(samples: int, least_samples: int) -> int:
    # a quarter at most, as the first plan's samples pay for the measurement
    return min(samples, least_samples, max(2, samples // 4))


def _size(planner: Refiner, affordable: int, room: int, least: int) -> tuple[int, int]:
    """Samples and iterations: fewer samples first, as an iteration that cannot rank teaches nothing."""
    iterations = planner.iterations
    if affordable // iterations >= least:
        return min(room, affordable // iterations), iterations
    return least, min(iterations, max(1, affordable // least))


def copied(generator: Randomness) -> Randomness:
    """Generators that deal what these will deal, without moving them."""
    if isinstance(generator, torch.Generator):
        return generator.clone_state()
    return [own.clone_state() for own in generator]
