# %% [markdown]
# # 1. Record trajectories
#
# A model learns from recorded trajectories alone: pictures and actions. Here a dot walks through two rooms
# that a wall with a door divides; each walk has a new wall and a new door.

# %%
import os
from pathlib import Path

from jepaplan.data.episodes import open_episodes
from jepaplan.data.frames import frame_to_picture
from jepaplan.data.summary import summarise
from jepaplan.data.wall_walks import collect_wall
from jepaplan.envs.wall import WALL_BIG

TINY = os.environ.get("JEPAPLAN_EXAMPLE_SCALE") == "tiny"  # seconds instead of minutes; learns nothing
folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)

# %%
collect_wall(folder / "walks.h5", WALL_BIG, trajectories=12 if TINY else 1000, states=64, seed=0)

# %% [markdown]
# What was recorded, and what a careful colleague would point at.

# %%
episodes = open_episodes(folder / "walks.h5")
summary = summarise(episodes)
print(f"{len(episodes)} walks, {summary.frames} frames, mean step {summary.norm_mean:.2f} pixels")
for warning in summary.warnings:
    print("warning:", warning)

# %% [markdown]
# The first frame of the first walk as people see it: red is the dot, green the wall.

# %%
frame_to_picture(episodes.observations[0]).save(folder / "first.png")
