"""Fixed, versioned files of instances: the same questions for every method, on every machine, in every year.

The task is the opposite-rooms task of PLDM (arXiv:2502.14819, "medium"), used by Destrade et al.
(arXiv:2601.00844): a start in one room, a goal in the other. Split `tuning` is for choosing settings, `final`
for reported numbers, `demo` for `make demo`. `make_wall_instances` made the files; a test makes them again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepaplan.envs.wall import (
    WALL_BIG,
    WALL_BIG_FIXED,
    WALL_SMALL,
    WALL_SMALL_FIXED,
    WallConfig,
    WallLayouts,
    WallWorld,
)
from jepaplan.types import InputError, SeedTree

FORMAT_VERSION = 1
DECIMALS = 3
WORLDS: Mapping[str, WallConfig] = {
    config.name: config for config in (WALL_SMALL, WALL_BIG, WALL_SMALL_FIXED, WALL_BIG_FIXED)
}
FIELDS = ("format", "world", "split", "seed", "instances")
INSTANCE_FIELDS = ("wall_x", "door_y", "start", "goal")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a packaged file is made from."""

    world: str
    split: str
    seed: int
    count: int


PACKAGED: Mapping[str, Recipe] = {
    f"{recipe.world}-{recipe.split}": recipe
    for recipe in (
        Recipe(world="WallSmall", split="final", seed=1, count=200),
        Recipe(world="WallSmall", split="tuning", seed=2, count=200),
        Recipe(world="WallBig", split="final", seed=3, count=200),
        Recipe(world="WallBig", split="tuning", seed=4, count=200),
        Recipe(world="WallBig", split="demo", seed=5, count=100),
    )
}


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Problems to solve: one layout, start and goal each."""

    name: str
    world: str
    split: str
    seed: int
    layouts: WallLayouts
    starts: Float[Tensor, "B 2"]
    goals: Float[Tensor, "B 2"]

    def __len__(self) -> int:
        return len(self.starts)

    def subset(self, count: int) -> "Instances":
        """The first `count` instances, so that a smaller evaluation is paired with a larger one."""
        if not 1 <= count <= len(self):
            raise InputError(f"{self.name} has {len(self)} instances; ask for 1 to {len(self)}, not {count}.")
        return self.select(torch.arange(count))

    def select(self, index: Tensor) -> "Instances":
        """The instances numbered, or marked true, in `index`."""
        return replace(
            self, layouts=self.layouts.select(index), starts=self.starts[index], goals=self.goals[index]
        )


def make_wall_instances(config: WallConfig, split: str, seed: int, count: int) -> Instances:
    """Draw instances, rounded to the decimals of the files; draws that rounding blocked are dropped."""
    world, generator = WallWorld(config), SeedTree(seed).torch("instances", config.name, split)
    layouts = world.sample_layouts(2 * count, generator)
    starts, goals = (
        positions.double().mul(10**DECIMALS).round().div(10**DECIMALS).float()
        for positions in world.sample_tasks(layouts, generator)
    )
    free = world.is_free(starts, layouts) & world.is_free(goals, layouts)
    drawn = Instances(
        name=f"{config.name}-{split}",
        world=config.name,
        split=split,
        seed=seed,
        layouts=layouts,
        starts=starts,
        goals=goals,
    )
    return drawn.select(free.nonzero()[:count, 0])


def make_packaged(name: str) -> Instances:
    """Make the instances of a packaged file anew."""
    recipe = PACKAGED[name]
    return make_wall_instances(WORLDS[recipe.world], recipe.split, recipe.seed, recipe.count)


def instances_text(instances: Instances) -> str:
    """The file's content: JSON, one instance per line, so that a difference shows which one moved."""
    rows = [
        {
            "wall_x": _rounded(wall_x),
            "door_y": _rounded(door_y),
            "start": [_rounded(number) for number in start],
            "goal": [_rounded(number) for number in goal],
        }
        for wall_x, door_y, start, goal in zip(
            instances.layouts.wall_x.tolist(),
            instances.layouts.door_y.tolist(),
            instances.starts.tolist(),
            instances.goals.tolist(),
            strict=True,
        )
    ]
    head = {
        "format": FORMAT_VERSION,
        "world": instances.world,
        "split": instances.split,
        "seed": instances.seed,
    }
    opening = json.dumps(head)[:-1]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return f'{opening}, "instances": [\n{lines}\n]}}\n'


def load_instances(name: str | Path) -> Instances:
    """Instances of a packaged file by name (`WallBig-final`) or of a file of yours by path."""
    if str(name) in PACKAGED:
        source = resources.files("jepaplan.evaluation") / "instances" / f"{name}.json"
        text = source.read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise InputError(
            f"there are no instances named {str(name)!r} and no such file; "
            f"packaged instances are {', '.join(PACKAGED)}."
        )
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON ({error}); `instances_text` writes such files.") from error
    return _checked(str(name), document)


def _checked(name: str, document: Any) -> Instances:
    if not isinstance(document, dict) or set(document) != set(FIELDS):
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{name}: an instance file has the fields {', '.join(FIELDS)}; found {found}.")
    if document["format"] != FORMAT_VERSION:
        raise InputError(
            f"{name}: format {document['format']!r}; this version reads format {FORMAT_VERSION}."
        )
    if document["world"] not in WORLDS:
        raise InputError(f"{name}: unknown world {document['world']!r}; known are {', '.join(WORLDS)}.")
    rows = document["instances"]
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{name}: `instances` must be a list of at least one instance.")
    numbers = torch.tensor([_numbers(row, f"{name}, instance {i}") for i, row in enumerate(rows)])
    instances = Instances(
        name=Path(name).stem,
        world=document["world"],
        split=str(document["split"]),
        seed=int(document["seed"]),
        layouts=WallLayouts(numbers[:, 0], numbers[:, 1]),
        starts=numbers[:, 2:4],
        goals=numbers[:, 4:6],
    )
    _refuse_impossible(name, instances)
    return instances


def _numbers(row: Any, where: str) -> list[float]:
    if not isinstance(row, dict) or set(row) != set(INSTANCE_FIELDS):
        raise InputError(f"{where}: expected the fields {', '.join(INSTANCE_FIELDS)}; found {row!r}.")
    flat = [row["wall_x"], row["door_y"]]
    for field in ("start", "goal"):
        if not isinstance(row[field], list) or len(row[field]) != 2:
            raise InputError(f"{where}: `{field}` must be [x, y] in pixels; found {row[field]!r}.")
        flat += row[field]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in flat):
        raise InputError(f"{where}: every value must be a number of pixels; found {row!r}.")
    return [float(number) for number in flat]


def _refuse_impossible(name: str, instances: Instances) -> None:
    config = WORLDS[instances.world]
    world = WallWorld(config)
    for what, positions in (("start", instances.starts), ("goal", instances.goals)):
        blocked = (~world.is_free(positions, instances.layouts)).nonzero()[:, 0]
        if len(blocked):
            first = int(blocked[0])
            x, y = positions[first].tolist()
            wall, door = float(instances.layouts.wall_x[first]), float(instances.layouts.door_y[first])
            raise InputError(
                f"{name}, instance {first}: the {what} ({x:g}, {y:g}) is outside the box or in a wall. Free "
                f"positions lie strictly between {config.low:g} and {config.high:g} and off the wall at "
                f"x = {wall:g} +- {config.wall_half_width}, whose door is at y = {door:g} +- "
                f"{config.door_half_width}."
            )


def _rounded(number: float) -> float | int:
    rounded = round(number, DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded
