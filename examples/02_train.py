# %% [markdown]
# # 2. Train a world model and its value
#
# The recipe is a frozen record. Every variant derives from it by `replace`, and a run remembers which it was.

# %%
import os
from dataclasses import replace
from pathlib import Path

from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.run import TrainOptions, train
from jepaplan.training.stage import Progress

TINY = os.environ.get("JEPAPLAN_EXAMPLE_SCALE") == "tiny"  # seconds instead of minutes; learns nothing
folder = Path("runs/examples")

# %%
experiment = find_recipe("wall_big_paths")
if TINY:
    short = tuple(replace(stage, fit=replace(stage.fit, updates=5)) for stage in experiment.stages)
    experiment = replace(experiment, stages=short)
print(experiment.description)


# %% [markdown]
# Stopped at any time, the same call goes on where it was. Learning curves are in `metrics.jsonl`.


# %%
def show(progress: Progress) -> None:
    if progress.update % 100 == 0:
        print(f"{progress.stage}: {progress.update} of {progress.updates}, loss {progress.loss:.3f}")


options = TrainOptions(data=folder / "walks.h5", on_progress=show)
for result in train(experiment, folder / "run", options):
    print(f"{result.stage}: {result.updates} updates in {result.seconds:.0f} s")
