"""`jepaplan evaluate RUN`: success of a run beside its baseline and references, with intervals."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.markup import escape

from jepaplan.commands.console import NOTES, RESULTS, ProgressBoard, progress_board, table
from jepaplan.commands.train import choose_device
from jepaplan.data.episodes import open_episodes
from jepaplan.evaluation.episodes import Progress
from jepaplan.evaluation.report import duration, write_report
from jepaplan.evaluation.results import rows_text, write_page
from jepaplan.evaluation.tasks import load_instances
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
from jepaplan.recipes.run import LoadedRun, find_recording, load_run
from jepaplan.recipes.story import Storyteller
from jepaplan.recipes.study import Study, StudyOptions, save_study, study, with_planner
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
class Options:
    """What to evaluate, on what, and with which search."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    instances: str | None = None
    """A packaged set such as WallBig-tuning, or a file; without it, the recipe's."""
    episodes: int | None = None
    """How many instances, from the first; without it, all."""
    planner: PlannerName | None = None
    """Without it, the recipe's planner with the recipe's budget; another one begins with its own defaults
    and the recipe's horizon, bounds and noise. docs/choosing_a_planner.md helps to choose."""
    samples: int | None = None
    """Action sequences per problem and iteration."""
    horizon: int | None = None
    """Model steps that a plan looks ahead."""
    budget_ms: float | None = None
    """Milliseconds for each search: instances are pursued one at a time, each search as large as fits and cut
    short if it must be. Encoding comes on top; outcomes depend on the machine."""
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
    8-bit integers, with --device cpu on processors that have instructions for them (VNNI)."""
    prior: str | None = None
    """The stage of the run whose action prior leads the search, such as action_prior; none: nothing leads it.
    Without it, the recipe's."""
    prior_share: float | None = None
    """Of the candidates that come from the prior; without it, the recipe's."""
    references: bool = True
    """Evaluate the four references as well."""
    report: bool = True
    """Write RUN/report.html."""
    seed: int = 0
    """Of the planner's noise."""
    processes: int | None = None
    """Share the instances among so many processes, in batches of ten and with one thread each: outcomes do
    not depend on how many. Without it, one large batch, whose sums may round differently."""
    device: str = "auto"
    """Where plans are searched for: cpu, cuda, cuda:1, or auto: an accelerator if there is one. Worlds and
    references stay on the CPU; noise is the same everywhere, sums may round differently."""
    threads: int | None = None
    """Processor threads; without it, as many as the machine allows."""
    page: Path | None = None
    """Write the table as a page there (FILE.md), with FILE.json beside it: how docs/results is made."""
    json: bool = False
    """Print the rows of results.json on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Evaluate and print the table."""
    options = tyro.cli(Options, prog="jepaplan evaluate", description=__doc__, args=arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    run = changed(load_run(options.run), options)
    run.system.to(device)
    instances = load_instances(options.instances or run.experiment.instances)
    if options.episodes is not None:
        instances = instances.subset(options.episodes)
    command = shlex.join(["jepaplan", "evaluate", *arguments])
    with progress_board() as board:
        made = study(
            run,
            instances,
            StudyOptions(
                references=options.references,
                keep_decisions=options.report,
                seed=options.seed,
                processes=options.processes,
                milliseconds=options.budget_ms,
                command=command,
                on_progress=lambda name, progress: show(board, name, progress),
            ),
        )
        save_study(made, options.run, instances.name)
        run.system.cpu()  # the report looks into worlds, which are there
        if options.report:
            tell(made, board)
    if options.page is not None:
        comparison = made.comparison()
        title = f"{run.experiment.recipe} on {instances.name}"
        write_page(options.page, title, made.rows(), () if comparison is None else (comparison.words(),))
    if options.json:
        sys.stdout.write(rows_text(made.rows()))
    else:
        print_study(made)
        if options.report:
            RESULTS.print(f"report: {options.run / 'report.html'}", markup=False, highlight=False)
    return 0


def changed(run: LoadedRun, options: Options) -> LoadedRun:
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


def changed_cost(cost: CostConfig, options: Options) -> CostConfig:
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


def tell(made: Study, board: ProgressBoard, blamed: int = 6) -> None:
    """Write the report of a study into its run, with `blamed` failures taken apart."""
    recording = find_recording(made.run)
    try:
        episodes = open_episodes(recording) if recording is not None else None
        storyteller = Storyteller(made, episodes, board.report, blamed)
        write_report(made.run.path / "report.html", storyteller.tell())
    except InputError as error:
        NOTES.print(f"[yellow]no report:[/yellow] {escape(str(error))}", highlight=False)


def print_study(made: Study) -> None:
    """The table, and the paired difference in words."""
    rows = []
    for method in made.methods:
        outcomes = made.outcomes[method.name]
        rows.append(
            [
                method.name,
                str(outcomes.rate),
                duration(float(outcomes.seconds_per_step)),
                f"{outcomes.evaluations_per_step:,.0f}",
            ]
        )
    title = f"{made.run.experiment.recipe} on {made.instances.name} ({len(made.instances)} instances)"
    columns = ["method", "success, 95 % interval", "time/step", "calls/step"]
    RESULTS.print(table(title, columns, rows))
    comparison = made.comparison()
    if comparison is not None:
        RESULTS.print(comparison.words(), markup=False, highlight=False)


def show(board: ProgressBoard, name: str, progress: Progress) -> None:
    """One step of all episodes on the board."""
    # Episodes that succeed leave the batch, so steps get cheaper: the bar's estimate is an upper bound.
    done = progress.steps if progress.running == 0 else progress.step
    board.report(f"evaluating {name}", done, progress.steps, f"{progress.solved} solved")
