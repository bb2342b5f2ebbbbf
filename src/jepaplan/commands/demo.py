"""`jepaplan demo [RUN]`: record, train, plan through the door, report. What `make demo` runs."""

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from jepaplan.commands import evaluate
from jepaplan.commands.console import NOTES, RESULTS, progress_board
from jepaplan.commands.train import Options as TrainingOptions
from jepaplan.commands.train import run_training
from jepaplan.data.frames import frame_to_picture
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes.local import wall_big_ways
from jepaplan.recipes.run import load_run
from jepaplan.recipes.study import Study, StudyOptions, save_study, study

_INSTANCES = "WallBig-demo"  # not the ones that results are reported on


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to, and how many threads."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """Folder of the run; an existing one is continued, a finished one is only evaluated again."""
    seed: int = 0
    """Of everything: recording, weights, batches."""
    threads: int | None = None
    """Processor threads; without it, as many as the machine allows."""


def main(arguments: list[str]) -> int:
    """Record, train, evaluate, report."""
    options = tyro.cli(Options, prog="jepaplan demo", description=__doc__, args=arguments)
    began = time.monotonic()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    experiment = replace(wall_big_ways(), seed=options.seed, instances=_INSTANCES)
    NOTES.print(f"{experiment.recipe}: {experiment.description}", highlight=False)
    run_training(experiment, TrainingOptions(run=options.run, device="cpu"))
    run = load_run(options.run)
    with progress_board() as board:
        made = study(
            run,
            load_instances(experiment.instances),
            StudyOptions(
                command=shlex.join(["jepaplan", "demo", *arguments]),
                on_progress=lambda name, progress: evaluate.show(board, name, progress),
            ),
        )
        save_study(made, options.run, made.instances.name)
        evaluate.tell(made, board, blamed=2)
    start, goal = write_examples(made, options.run)
    evaluate.print_study(made)
    RESULTS.print(
        f"report: {options.run / 'report.html'}   ({time.monotonic() - began:.0f} s in all)\n"
        f"next: jepaplan plan {options.run} --start {start} --goal {goal}",
        markup=False,
        highlight=False,
    )
    return 0


def write_examples(made: Study, run: Path) -> tuple[Path, Path]:
    """Start and goal of the first instance as PNG, for `jepaplan plan`."""
    instance = made.instances.subset(1)
    paths = (run / "start.png", run / "goal.png")
    for path, states in zip(paths, (instance.starts, instance.goals), strict=True):
        frame_to_picture(made.world.observe(states).frames[0]).save(path)
    return paths
