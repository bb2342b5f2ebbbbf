"""Reproductions at the size of a test, and how a process of its own meets them.

`python tests/tiny_reproductions.py ARGUMENTS` is `jepaplan ARGUMENTS` with "tiny" among the reproductions.
With STALL=stage in the environment it stops for ever at that stage's third update and says so on standard
error, the moment to be killed; with PACE=seconds, it waits so long at every update.
"""

import json
import os
import sys
import time
from dataclasses import replace

import torch

from jepaplan.envs import wall
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.projects import Grid
from jepaplan.recipes.reproduction import Claim, Evaluation, Reproduction, Training
from jepaplan.recipes.reproduction_work import work_on
from tiny_runs import tensor_hashes, tiny_experiment

SHORT = replace(wall.WALL_BIG, episode_steps=6)
INSTANCES = 4
VARIANTS = {"distance": False, "value": True}


def left_open(reproduction, folder, seeds):
    """The pieces that are not done, by whomever."""
    return [piece for piece in Grid(reproduction).pieces(seeds) if not piece.done(folder)]


def work(reproduction, folder, options):
    """Do what is missing, as the command does."""
    return work_on(Grid(reproduction).pieces(seeds=1), folder, options)


def tiny_evaluation(experiment, method="MPPI", variant="distance", **changes):
    return Evaluation(
        name=f"{method}-{variant}",
        method=method,
        variant=variant,
        task="WallBig",
        instances="WallBig-demo",
        experiment=replace(experiment, cost=CostConfig(over="terminal")),
        guided=VARIANTS.get(variant, True),
        episodes=INSTANCES,
        **changes,
    )


def tiny_training(name, **changes):
    experiment = tiny_experiment(name)
    # Checkpoints now and then, so that a stop has something to save and a kill something to lose.
    stages = tuple(
        replace(stage, fit=replace(stage.fit, save_every=2, health_every=100)) for stage in experiment.stages
    )
    experiment = replace(experiment, stages=stages)
    cells = tuple(tiny_evaluation(experiment, method=name, variant=variant) for variant in VARIANTS)
    return Training(name=name, experiment=replace(experiment, **changes), evaluations=cells)


def tiny_reproduction(*names):
    """Trainings that ask for the same recording, each evaluated in two variants."""
    names = names or ("wall_big_paths", "wall_big_value_quasimetric_cpu")
    return Reproduction(
        name="tiny",
        title="A tiny page",
        introduction="Two trainings by two variants.",
        trainings=tuple(tiny_training(name) for name in names),
        claims=tuple(
            Claim(words=f"{name} guides", better=f"{name}, value", worse=f"{name}, distance")
            for name in names
        ),
    )


def weights_of(folder):
    """sha256 of every tensor of every run, by run."""
    runs = [path.parent for path in folder.rglob("weights.safetensors")]
    return {str(run.relative_to(folder)): tensor_hashes(run) for run in runs}


def outcomes_of(folder):
    """What every evaluation found, by file; without how long it took."""
    files = {
        str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("outcomes/*")
    }
    for found in files.values():
        del found["seconds_per_step"], found["command"]
    return files


def report(self, what, done, total, note=""):
    stage, comma, _ = note.partition(",")
    if comma:
        time.sleep(float(os.environ.get("PACE", "0")))
    if comma and stage == os.environ.get("STALL") and done == 3:
        print("stalled", file=sys.stderr, flush=True)
        time.sleep(600)


def main(arguments):
    from jepaplan.cli import main as jepaplan
    from jepaplan.commands import console, reproduce
    from jepaplan.recipes import reproduction_work
    from jepaplan.recipes.catalogue import REPRODUCTIONS

    torch.set_num_threads(1)
    wall.CONFIGS["WallBig"] = SHORT  # type: ignore[index]
    REPRODUCTIONS["tiny"] = lambda scale: tiny_reproduction()
    reproduction_work.WAIT_SECONDS = 0.05
    reproduce._SELF = [sys.executable, __file__, "reproduce"]
    if {"STALL", "PACE"} & set(os.environ):
        console.ProgressBoard.report = report
    return jepaplan(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
