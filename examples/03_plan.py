# %% [markdown]
# # 3. Plan from pixels, with and without the learned value
#
# The same world model and the same search twice: once the learned distance says how far the goal is, once the
# plain distance of latents does. The difference is what the value adds.

# %%
import os
from pathlib import Path

import torch

from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes
from jepaplan.evaluation.tasks import load_instances
from jepaplan.recipes.run import load_run
from jepaplan.recipes.system import baseline_distance, build_controller

TINY = os.environ.get("JEPAPLAN_EXAMPLE_SCALE") == "tiny"  # seconds instead of minutes
run = load_run(Path("runs/examples/run"))
model = run.system.world_model

# %% [markdown]
# Instances that nobody trained on: start and goal in different rooms, success judged by the world.

# %%
world = WallWorld(WALL_BIG)
instances = load_instances("WallBig-demo").subset(2 if TINY else 20)
options = EpisodeOptions(episode_steps=4 if TINY else WALL_BIG.episode_steps)
print(world.reached.__doc__)

# %%
distances = {"value-guided": run.system.distance, "prediction only": baseline_distance(run.experiment)}
for name, distance in distances.items():
    controller = build_controller(run.experiment, model, distance)
    outcomes = run_episodes(world, instances, controller, torch.Generator().manual_seed(0), options)
    print(f"{name}: {outcomes.rate}, {1000 * outcomes.seconds_per_step:.0f} ms per step")

# %% [markdown]
# What the last controller considered in its last decision, cheapest first.

# %%
decision = controller.last
print([f"{cost:.2f}" for cost in decision.costs[0, :5].tolist()])
