"""Reproductions at the size of a test, and how a process of its own meets them.

`python tests/tiny_reproductions.py ARGUMENTS` is `jepaplan ARGUMENTS` with "tiny" among the reproductions. With
STALL=stage in the environment it stops for ever after that stage's second update, and says so on standard
error: the moment to be killed.
"""

import os
import sys
import time
from dataclasses import replace

import torch

from jepaplan.envs import wall
from jepaplan.recipes.experiment import CostConfig
from jepaplan.recipes.reproduction import Claim, Evaluation, Reproduction, Training
from tiny_runs import tiny_experiment

SHORT = replace(wall.WALL_BIG, episode_steps=6)
INSTANCES = 4
VARIANTS = {"distance": False, "value": True}


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
    cells = tuple(tiny_evaluation(experiment, method=name, variant=variant) for variant in VARIANTS)
    return Training(name=name, experiment=replace(experiment, **changes), evaluations=cells)


def tiny_reproduction(*names):
    """Trainings that ask for the same recording, each evaluated in two variants."""
    names = names or ("wall_big_demo", "wall_big_value_quasimetric_cpu")
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
    """The bytes of every run's weights, by run."""
    return {
        str(path.parent.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("weights.safetensors")
    }


def stall_in(stage):
    from jepaplan.recipes import reproduction_work

    def report(self, what, done, total, note=""):
        if note.startswith(f"{stage},") and done == 2:
            print("stalled", file=sys.stderr, flush=True)
            time.sleep(600)

    reproduction_work.Silent.report = report


def main(arguments):
    from jepaplan.cli import main as jepaplan
    from jepaplan.commands import console
    from jepaplan.recipes import reproduction_work
    from jepaplan.recipes.catalogue import REPRODUCTIONS

    torch.set_num_threads(1)
    wall.CONFIGS["WallBig"] = SHORT  # type: ignore[index]
    REPRODUCTIONS["tiny"] = lambda scale: tiny_reproduction()
    reproduction_work.WAIT_SECONDS = 0.05
    if "STALL" in os.environ:
        stall_in(os.environ["STALL"])
        console.ProgressBoard.report = reproduction_work.Silent.report
    return jepaplan(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
