"""Plan within so many milliseconds: as many samples and iterations as the measured speed allows.

    any-time planning                  here
    contract (time known in advance)   `with_budget`: fewer samples, then fewer iterations
    interruption                       no iteration begins that would not end in time

The first plan begins with a small call that measures; later plans know. Time is taken to be proportional to
the evaluations. An iteration also has a fixed price, so the estimate errs on the slow side after a small one
and comes closer with every larger one: it approaches the deadline from below. Slower counts at once,
faster by half.

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

    planner: Refiner  # its samples and iterations are the most that will be used
    milliseconds: float  # for one plan of all problems, from the call to the answer
    margin: float = 0.1  # share of the time that is not planned with
    least_samples: int = 16  # a plan takes one iteration of so many, however late
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
        return replace(self, planner=self.planner.with_proposal(proposal, share))

    def plan(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Search:
        """Refine `start` until the time is up or the inner planner's budget used."""
        return last(self.refinements(cost, start, generator))

    def refinements(self, cost: SequenceCost, start: Plan, generator: Randomness) -> Iterator[Search]:
        """The same, one answer after the other; what the caller does in between counts as time, too."""
        end = self.clock() + self.milliseconds / 1000 * (1 - self.margin)
        problems, horizon = start.mean.shape[:2]
        room, spent = self.planner.samples, 0
        if self.speeds.expected(problems) is None:
            # its noise is dealt again, so that the answer with time to spare is the inner planner's
            probe = self.planner.with_budget(self._least(), 1).refinements(cost, start, copied(generator))
            for found, _ in self._timed(probe, problems):
                spent = found.evaluations
                yield found
            room -= self._least()
        affordable = int((end - self.clock()) / max(1e-12, self.speeds.expected(problems) or 0.0)) // horizon
        if spent > 0 and min(room, affordable) < self._least():
            return
        inner = self.planner.with_budget(*self._size(affordable, room))
        for found, seconds in self._timed(inner.refinements(cost, start, generator), problems):
            yield replace(found, evaluations=found.evaluations + spent)
            if self.clock() + seconds > end:
                return

    def _least(self) -> int:
        # a quarter at most, as the first plan's samples pay for the measurement
        return min(self.planner.samples, self.least_samples, max(2, self.planner.samples // 4))

    def _size(self, affordable: int, room: int) -> tuple[int, int]:
        """Samples and iterations: fewer samples first, as an iteration that cannot rank teaches nothing."""
        least, iterations = self._least(), self.planner.iterations
        if affordable // iterations >= least:
            return min(room, affordable // iterations), iterations
        return least, min(iterations, max(1, affordable // least))

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
            self.speeds.learn(problems, seconds / (found.evaluations - evaluations))
            evaluations = found.evaluations
            yield found, seconds


def copied(generator: Randomness) -> Randomness:
    """Generators that deal what these will deal, without moving them."""
    if isinstance(generator, torch.Generator):
        return generator.clone_state()
    return [own.clone_state() for own in generator]
