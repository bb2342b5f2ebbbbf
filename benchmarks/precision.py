"""What a predictor of fewer bits, or a deadline, gives a planner and costs it: time of a replan, success.

    python benchmarks/precision.py RUN --out benchmarks/results/<date>_<hardware>_precision.md
    python benchmarks/precision.py RUN --budget-ms 20 --out benchmarks/results/<date>_<hardware>_deadline.md

    fp32    as trained
    bf16    what `--precision bf16` plans with
    int8    what `--precision int8` plans with: products of 8-bit integers, a scale for each row and output

Success is that of a trained run on its tuning instances, value-guided; of one step, the error is the mean
difference from float32 as a share of what the step changes. Times are of replans on random weights at the
sizes of `planning.py`, in paired rounds; medians with [least-greatest].

With `--budget-ms` the recipe's whole search is compared with what fits into so many milliseconds, in the
run's own precision: instance by instance in turn, one problem at a time as a robot would, after a rehearsal
that does not count. A replan's time is that of the controller's whole step, from the observation to the
action: encoder, search and bookkeeping. The budget is the search's alone, so a replan that is to take no
longer than 20 ms needs a smaller one: `--budget-ms 14 --within-ms 20`. `holds` means that the interval of
success less 95 % of the whole search's lies above zero, and that at least 95 of 100 replans took no longer
than `--within-ms`.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch

from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.control.record import Decision
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes
from jepaplan.evaluation.references import encode_states
from jepaplan.evaluation.statistics import SuccessRate, bootstrap_interval, compare
from jepaplan.evaluation.tasks import Instances, load_instances
from jepaplan.recipes.costs import Precision
from jepaplan.recipes.run import LoadedRun, load_run
from jepaplan.recipes.system import build_controller
from jepaplan.types import Observation, SeedTree
from measuring import origin, paired, ratios, rotating, save, spread, timed, turning
from planning import SIZES, ours
from setting import Setting

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
KEPT = 0.95  # share of the whole search's success that is to be kept, and of replans that are to be in time


@dataclass(frozen=True)
class Found:
    """What one precision gives a run."""

    success: str
    error: float  # of one step, as a share of the change


@torch.no_grad()
def judge(path: Path, precision: Precision, instances: Instances) -> Found:
    """Success of a run with its predictor in another precision."""
    run = load_run(path)
    experiment, model = run.experiment, run.system.world_model
    cost = replace(experiment.cost, precision=precision)
    world = find_world(instances.world)
    distance = run.system.steps_to_go(cost)
    controller = build_controller(replace(experiment, cost=cost), model, distance, world.episode_steps)
    options = EpisodeOptions(episode_steps=world.episode_steps)
    outcomes = run_episodes(world, instances, controller, SeedTree(0).torch("plan"), options)
    words = rate_words(outcomes.rate)
    latents = encode_states(world, model.encode, instances.starts)
    actions = torch.randn(len(latents), model.action_dim, generator=torch.Generator().manual_seed(0))
    true = model.step(latents, actions)
    held = latents.to(torch.bfloat16 if precision == "bf16" else latents.dtype)
    found = controller.world_model.step(held, actions.to(held.dtype)).float()
    return Found(words, float((found - true).abs().mean() / (true - latents).abs().mean()))


def rate_words(rate: SuccessRate) -> str:
    return f"{rate.rate:.3f} [{rate.low:.2f}, {rate.high:.2f}] ({rate.successes} of {rate.trials})"


class Watched:
    """A controller whose replans are timed, from the observation to the action."""

    def __init__(self, controller: RecedingHorizon) -> None:
        self.controller = controller
        self.seconds: list[float] = []

    @property
    def last(self) -> Decision | None:
        """The inner controller's."""
        return self.controller.last

    def reset(self, goal: Observation | torch.Tensor, generator: torch.Generator) -> None:
        """The inner controller's; goals are encoded here, and nobody waits for that."""
        self.controller.reset(goal, generator)

    def act(
        self, observation: Observation | torch.Tensor, active: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The inner controller's, timed where something was planned."""
        before, began = self.controller.last, time.perf_counter()
        action = self.controller.act(observation, active)
        if self.controller.last is not before:
            self.seconds.append(time.perf_counter() - began)
        return action


@dataclass
class Pursued:
    """What one budget achieved on the instances until now."""

    controller: Watched
    success: list[bool] = field(default_factory=list)
    evaluations: int = 0

    def pursue(self, instances: Instances, number: int) -> None:
        """One instance, with the noise that belongs to it."""
        world, one = find_world(instances.world), instances.select(torch.tensor([number]))
        options = EpisodeOptions(episode_steps=world.episode_steps)
        found = run_episodes(world, one, self.controller, SeedTree(0).torch("plan", number), options)
        self.success += found.success.tolist()
        self.evaluations += found.evaluations

    def forget(self) -> None:
        """What was a rehearsal; a deadline still knows how fast the machine is."""
        self.success, self.evaluations = [], 0
        self.controller.seconds.clear()

    def row(self, name: str) -> str:
        """Success, predictor calls a replan, and percentiles of its time."""
        rate = SuccessRate(sum(self.success), len(self.success))
        seconds = torch.tensor(self.controller.seconds, dtype=torch.float64)
        points = [*seconds.quantile(torch.tensor([0.5, 0.95, 0.99]).double()).tolist(), float(seconds.max())]
        times = " | ".join(f"{1000 * point:.1f}" for point in points)
        return f"| {name} | {rate_words(rate)} | {self.evaluations / len(seconds):,.0f} | {times} |"


@torch.no_grad()
def race(run: LoadedRun, instances: Instances, milliseconds: float) -> tuple[Pursued, Pursued]:
    """The whole search and what fits into so many milliseconds, instance by instance in turn."""
    experiment, world = run.experiment, find_world(instances.world)
    distance = run.system.steps_to_go(experiment.cost)
    found: dict[str, Pursued] = {}
    for name, budget in (("whole", None), ("in time", milliseconds)):
        controller = build_controller(
            experiment, run.system.world_model, distance, world.episode_steps, budget
        )
        found[name] = Pursued(Watched(controller))
        found[name].pursue(instances, 0)
        found[name].forget()
    for number in range(len(instances)):
        for name in turning(list(found), number):
            found[name].pursue(instances, number)
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {len(instances)} instances", file=sys.stderr, flush=True)
    return found["whole"], found["in time"]


def verdict(whole: Pursued, in_time: Pursued, budget: float, within: float) -> list[str]:
    """Whether a budget keeps success, and its replans end within so many milliseconds, in words."""
    name = f"{budget:g} ms"
    all_of_it, ours = torch.tensor(whole.success), torch.tensor(in_time.success)
    generator = SeedTree(0).torch("comparison")
    paired_words = compare((name, ours), ("the whole search", all_of_it), generator).words()
    gain = ours.double() - KEPT * all_of_it.double()
    low, high = bootstrap_interval(gain, SeedTree(0).torch("kept"))
    seconds = torch.tensor(in_time.controller.seconds)
    late = int((seconds > within / 1000).sum())
    holds = low > 0 and late <= (1 - KEPT) * len(seconds)
    return [
        f"- {paired_words}",
        f"- Success less {100 * KEPT:.0f} % of the whole search's: {100 * float(gain.mean()):+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]",
        f"- {late} of {len(seconds)} replans took longer than {within:g} ms",
        f"- {100 * KEPT:.0f} % of the success within {within:g} ms: {'holds' if holds else 'open'}",
    ]


def deadline_page(run: LoadedRun, instances: Instances, budget: float, within: float) -> list[str]:
    """The table of a deadline, as lines."""
    whole, in_time = race(run, instances, budget)
    return [
        f"# Replans within {within:g} ms",
        "",
        *origin(),
        f"- Success on `{instances.name}`, {len(instances)} instances, one problem at a time; milliseconds "
        "of a replan, from the observation to the action; `benchmarks/precision.py` says how to read it",
        "",
        "| search | success | predictor calls a replan | median | 95 % | 99 % | greatest |",
        f"|---|---|{'---|' * 5}",
        whole.row(f"whole ({type(run.experiment.planner).__name__})"),
        in_time.row(f"{budget:g} ms"),
        "",
        *verdict(whole, in_time, budget, within),
    ]


def replans(size_name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a replan by precision and round."""
    works = {precision: ours(Setting(SIZES[size_name], precision)) for precision in PRECISIONS}
    repeats = max(1, round(0.3 / timed(works["fp32"])))
    return paired(works, rounds, order=rotating, repeats=repeats)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        default=Path("runs/paths"),
        help="folder of a finished run of wall_big_paths",
    )
    parser.add_argument("--instances", default="WallBig-tuning", help="what success is measured on")
    parser.add_argument("--episodes", type=int, help="only the first of them")
    parser.add_argument("--budget-ms", type=float, help="compare with a deadline instead of fewer bits")
    parser.add_argument("--within-ms", type=float, help="what a replan may take; without it, the budget")
    parser.add_argument("--rounds", type=int, default=6, help="paired rounds; a finding needs six or more")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    instances = load_instances(options.instances)
    if options.episodes is not None:
        instances = instances.subset(options.episodes)
    if options.budget_ms is not None:
        within = options.within_ms or options.budget_ms
        page = "\n".join(deadline_page(load_run(options.run), instances, options.budget_ms, within))
        print(page)
        save(options.out, page)
        return
    columns = " | ".join(f"fp32 / it, {size}" for size in options.sizes)
    lines = [
        "# Weights of fewer bits",
        "",
        *origin(),
        f"- Success on `{options.instances}`; {options.rounds} paired rounds, median [least-greatest]; "
        "`benchmarks/precision.py` says how to read it",
        "",
        f"| precision | success | error of a step | {columns} |",
        f"|---|---|---|{'---|' * len(options.sizes)}",
    ]
    seconds = {size: replans(size, options.rounds) for size in options.sizes}
    for name in PRECISIONS:
        found = judge(options.run, name, instances)
        gains = [spread(ratios(times["fp32"], times[name])) for times in seconds.values()]
        lines.append(f"| {name} | {found.success} | {100 * found.error:.2f} % | {' | '.join(gains)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    save(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
