# %% [markdown]
# # 4. What every planner does on the same problem
#
# Two rooms, a start, a goal, and a door that the straight line misses. Dynamics are the world's own, so what
# is seen is the search and nothing else. Every step that a planner imagined is drawn: its candidates, its
# search tree, the states between which collocation optimises. The pictures of docs/choosing_a_planner.md are
# made by `python examples/04_planners.py docs/pictures`.

# %%
import os
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from PIL import Image

from jepaplan.costs.terms import GoalDistance
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.references import HOPELESS, GeodesicDistance, PositionDistance, TrueDynamics
from jepaplan.interfaces import Distance, Planner
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import Adam, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.types import Search

TINY = os.environ.get("JEPAPLAN_EXAMPLE_SCALE") == "tiny"  # one picture instead of ten
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/planners")
folder.mkdir(parents=True, exist_ok=True)
matplotlib.use("Agg")

# %% [markdown]
# The problem: a state is (x, y, wall, door). One normalised unit of action is 2.5 pixels, none is longer than
# 4.5 pixels, and plans are 16 steps long.

# %%
world = WallWorld(WALL_BIG)
start = torch.tensor([[18.0, 20.0, 32.0, 38.0]])
goal = torch.tensor([[46.0, 20.0, 32.0, 38.0]])
units = ActionNormaliser(torch.zeros(2), torch.full((2,), 2.5))
costs: dict[str, Distance] = {
    "straight line to the goal": PositionDistance(world),
    "way around the wall": GeodesicDistance(world, unreachable=HOPELESS),
}


# %% [markdown]
# What was imagined is written down. The world's own step has no gradient (a move into the wall does not
# happen), and neither has the way around the wall. Planners that descend are given the gradient of a step in
# free space, which is what a smooth model would tell them anywhere but at the wall, and of the way that of
# four neighbours half a pixel away.


# %%
class Watched(TrueDynamics):
    """True dynamics with a gradient and a memory."""

    def __init__(self) -> None:
        super().__init__(world, units)
        self.imagined: list[torch.Tensor] = []  # steps x 2 ends x 2

    def step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        # whatever a search changes of a state, wall and door are where they are
        latent = torch.cat([latent[:, :2], start[:, 2:].expand(len(latent), -1)], dim=1)
        after = super().step(latent, action)
        self.imagined.append(torch.stack([latent[:, :2], after[:, :2]], dim=1).detach())
        free = latent + torch.nn.functional.pad(self.action_units.inverse(action), (0, 2))
        return after + free - free.detach()


class WithSlope:
    """A distance of places with a gradient, from differences."""

    def __init__(self, distance: Distance) -> None:
        self.distance = distance

    def __call__(self, source: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            here = self.distance(source, goal)
            beside = 0.5 * torch.eye(4)[:2]
            slope = [self.distance(source + ds, goal) - self.distance(source - ds, goal) for ds in beside]
            # a neighbour inside the wall has no way to anywhere
            downhill = torch.stack(slope, dim=-1).clamp(-1, 1)
        return here + (downhill * (source - source.detach())[..., :2]).sum(-1)


# %% [markdown]
# The planners, each with about 1,500 evaluations; a gradient counts as three.

# %%
STEPS = 16
bounds = NormBound(max_norm=1.8)
planners: dict[str, Planner] = {
    "random shooting": RandomShooting(samples=96, horizon=STEPS, bounds=bounds, correlation=0.8),
    "MPPI": MPPI(samples=32, iterations=3, temperature=0.1, horizon=STEPS, bounds=bounds, correlation=0.8),
    "CEM": CEM(samples=24, elites=5, iterations=4, horizon=STEPS, bounds=bounds, correlation=0.8),
    "iCEM": ICEM(samples=32, elites=5, iterations=4, horizon=STEPS, bounds=bounds),
    "gradient descent": GradientDescent(
        starts=4,
        horizon=STEPS,
        descent=Descent(steps=8, optimiser=Adam(learning_rate=0.3)),
        bounds=bounds,
        correlation=0.8,
    ),
    "CEM with gradients": GradientCEM(
        samples=12,
        elites=3,
        iterations=3,
        descent=Descent(steps=2, optimiser=Adam(learning_rate=0.2)),
        horizon=STEPS,
        bounds=bounds,
        correlation=0.8,
    ),
    "collocation": Collocation(
        starts=1,
        steps=30,
        synchronise_every=15,
        penalty=0.1,
        stop_gradient=True,
        latent_noise=0.1,
        latent_optimiser=Adam(learning_rate=0.5),
        optimiser=Adam(learning_rate=0.4),
        shooting=None,
        horizon=STEPS,
        bounds=bounds,
    ),
    "beam search": BeamSearch(width=8, branches=12, apart=2.0, horizon=STEPS, bounds=bounds),
    "tree search, PUCT": TreeSearch(simulations=1536, leaves=16, horizon=STEPS, bounds=bounds),
    "tree search, Gumbel": TreeSearch(
        simulations=1536, leaves=16, rule=GumbelHalving(noise_scale=0.0), horizon=STEPS, bounds=bounds
    ),
}
if TINY:
    planners = {"CEM": replace(planners["CEM"], samples=8, elites=2, iterations=2)}


# %% [markdown]
# One search: what was imagined, and the plan.


# %%
def searched(planner: Planner, distance: Distance) -> tuple[Search, Watched]:
    watched = Watched()
    cost = GoalDistance(distance=WithSlope(distance)).named("goal").bind(watched, start, goal)
    found = planner.plan(cost, planner.initial(1, 2), torch.Generator().manual_seed(0))
    return found, watched


def draw(axes: Axes, found: Search, watched: Watched) -> None:
    """Steps from the earliest, pale, to the latest, dark; the plan thick, with a dot for every step."""
    for patch in world.scenery(start[0]):
        (left, top), (right, bottom) = patch.low, patch.high
        border = patch.kind == "border"
        style = {"fill": False, "lw": 1.5} if border else {"color": "0.25"}
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
    steps = torch.cat(watched.imagined)
    darkness = torch.linspace(0.2, 0.8, len(steps))
    colours = [(0.20, 0.40, 0.65, float(dark)) for dark in darkness]
    axes.add_collection(LineCollection(steps.numpy(), colors=colours, linewidths=0.7))
    path = TrueDynamics(world, units).rollout(start, found.plan.mean[:, None])[0, 0, :, :2]
    axes.plot(*path.T, color="black", lw=2.2, marker="o", ms=3.2, zorder=4)
    for place, name, mark in ((start, "start", "o"), (goal, "goal", "X")):
        x, y = place[0, :2].tolist()
        axes.plot(x, y, marker=mark, ms=10, mfc="white", mec="#c2410c", mew=1.8, zorder=5)
        axes.annotate(name, (x, y), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xlim=(3, 60), ylim=(60, 3), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)


def ending(found: Search) -> str:
    """Where the plan ends, in pixels still to go."""
    last = TrueDynamics(world, units).rollout(start, found.plan.mean[:, None])[:, 0, -1]
    return f"ends {float(world.cost_to_go(last, goal)):.0f} pixels from the goal, around the wall"


# %%
for name, planner in planners.items():
    figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 4.3), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    for axes, (cost, distance) in zip(panels, costs.items(), strict=True):
        found, watched = searched(planner, distance)
        draw(axes, found, watched)
        axes.set_title(f"cost: {cost}", fontsize=10)
        axes.set_xlabel(ending(found), fontsize=9)
        print(f"{name}, {cost}: {ending(found)}, {found.evaluations} evaluations")
    figure.suptitle(name, fontsize=12, fontweight="bold")
    picture = folder / f"{name.replace(',', '').replace(' ', '_').lower()}.png"
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
    # few colours make small files
    Image.open(picture).convert("RGB").quantize(48).save(picture, optimize=True)
