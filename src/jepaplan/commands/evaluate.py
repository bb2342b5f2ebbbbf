"""`jepaplan evaluate RUN`: success of a run beside its baseline and references, with intervals."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.markup import escape

from jepaplan.commands.console import NOTES, RESULTS, ProgressBoard, progress_board, table
from jepaplan.commands.search_options import SearchOptions, changed
from jepaplan.commands.train import choose_device
from jepaplan.data.episodes import open_episodes
from jepaplan.evaluation.episodes import Progress
from jepaplan.evaluation.report import duration, write_report
from jepaplan.evaluation.results import rows_text, write_page
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes.run import find_recording, load_run
from jepaplan.recipes.story import Storyteller
from jepaplan.recipes.study import Study, StudyOptions, save_study, study
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class Options(SearchOptions):
    """What to evaluate, on what, and with which search."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    instances: str | None = None
    """A packaged set such as WallBig-tuning, or a file; without it, the recipe's."""
    episodes: int | None = None
    """How many instances, from the first; without it, all."""
    budget_ms: float | None = None
    """Milliseconds for each search: instances are pursued one at a time, each search as large as fits and cut
    short if it must be. Encoding comes on top; outcomes depend on the machine."""
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
