"""`jepaplan train RECIPE --run DIRECTORY`: train all stages of a recipe, or go on with a run."""

import json
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from jepaplan.commands.console import NOTES, RESULTS, ProgressBoard, progress_board
from jepaplan.recipes.catalogue import LISTED, find_recipe
from jepaplan.recipes.experiment import Experiment
from jepaplan.recipes.run import TrainOptions, train
from jepaplan.recipes.video import VideoExperiment
from jepaplan.recipes.video_run import train_video
from jepaplan.training.distributed import distributed, processes
from jepaplan.training.stage import Progress
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where and on what to train; the fields of the recipe follow as options of their own."""

    run: Path
    """Folder of the run; an existing one is continued."""
    data: Path | None = None
    """What to learn from; without it the recipe's own, made into the run. A recording, as `jepaplan collect`
    writes them; for video recipes a folder of videos, a list of "path label" lines, or a mixture (.json)."""
    tensorboard: bool = False
    """Write learning curves for TensorBoard into RUN/events as well."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: an accelerator if there is one."""
    threads: int | None = None
    """Processor threads; without it, as many as the machine allows. The results of a CPU run depend on it in
    the last digits."""
    json: bool = False
    """Print the result as JSON on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Train and say where the run is."""
    if not arguments or arguments[0] in ("-h", "--help"):
        RESULTS.print(
            "usage: jepaplan train RECIPE --run DIRECTORY [options]\n\n"
            "`jepaplan train RECIPE --help` shows every field of a recipe with its unit and default.\n\n"
            "Recipes:",
            *(f"  {name:42s} {make().description}" for name, make in LISTED.items()),
            sep="\n",
            markup=False,
            highlight=False,
        )
        return 0
    recipe = find_recipe(arguments[0])
    options, experiment = read(recipe, arguments[1:])
    results = run_training(experiment, options)
    if results is None:
        return 0
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
    else:
        verb = "probe" if isinstance(experiment, VideoExperiment) else "evaluate"
        RESULTS.print(
            f"trained {experiment.recipe} into {options.run}; `jepaplan {verb} {options.run}` comes next",
            markup=False,
            highlight=False,
        )
    return 0


def read(
    recipe: Experiment | VideoExperiment, arguments: list[str]
) -> tuple[Options, Experiment | VideoExperiment]:
    """Options and the recipe with the fields that the command line sets."""
    # Made here, so that the recipe is the default of every field: a record that holds "missing" is no record.
    both = make_dataclass(
        "Arguments",
        [
            ("options", Annotated[Options, tyro.conf.arg(name="")]),
            ("experiment", Annotated[type(recipe), tyro.conf.arg(name="")], field(default=recipe)),
        ],
    )
    read: Any = tyro.cli(
        tyro.conf.configure(tyro.conf.AvoidSubcommands)(both),
        prog=f"jepaplan train {recipe.recipe}",
        description=recipe.description,
        args=arguments,
    )
    return read.options, read.experiment


def run_training(experiment: Experiment | VideoExperiment, options: Options) -> list[dict[str, Any]] | None:
    """Train, showing progress; under torchrun every process takes its share, and the first alone tells."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    with distributed(torch.device(device)), progress_board() as board:
        chosen = TrainOptions(
            data=options.data,
            tensorboard=options.tensorboard,
            device=device,
            on_progress=lambda progress: show(board, progress),
            report=board.report,
        )
        if isinstance(experiment, VideoExperiment):
            results = train_video(experiment, options.run, chosen)
        else:
            results = train(experiment, options.run, chosen)
        tells = processes().writes
        if tells:
            for result in results:
                resumed = f", continued from update {result.resumed_from}" if result.resumed_from else ""
                NOTES.print(
                    f"{result.stage}: {result.updates} updates, {result.seconds:.0f} s{resumed}",
                    highlight=False,
                )
    if not tells:
        return None
    return [
        {
            "stage": result.stage,
            "updates": result.updates,
            "seconds": result.seconds,
            "metrics": result.metrics,
        }
        for result in results
    ]


def show(board: ProgressBoard, progress: Progress) -> None:
    """One update on the board; warnings about the latent once each."""
    board.report(f"training {progress.stage}", progress.update, progress.updates, f"loss {progress.loss:.3g}")
    for words in progress.warnings:
        board.warn(words)


def choose_device(asked: str) -> str:
    """The device that was asked for, refused in words where the machine lacks it."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {asked} cannot be used here: {error}. Write --device cpu or --device auto"
        ) from error
    return asked
