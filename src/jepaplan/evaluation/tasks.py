"""Fixed, versioned files of instances: the same questions for every method, on every machine, in every year.

An instance is a start and a goal, both true states of one world with the layout inside. In the two rooms it
is the opposite-rooms task of PLDM (arXiv:2502.14819, "medium"), used by Destrade et al. (arXiv:2601.00844).
Split `tuning` is for choosing settings, `final` for reported numbers, `demo` for `make demo`.
`make_instances` made the files; a test makes them again.

    format   an instance is                         worlds
    1        wall_x, door_y, start and goal (x, y)  the two rooms, whose files are older than format 2
    2        start, goal: W numbers each            every other world; read for the two rooms, too
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

from jepaplan.envs.worlds import WORLDS, find_world
from jepaplan.interfaces import World
from jepaplan.types import InputError, SeedTree

ROOMS = ("WallSmall", "WallBig", "WallSmallFixed", "WallBigFixed")  # written in format 1
DECIMALS = 3
FIELDS = ("format", "world", "split", "seed", "instances")
INSTANCE_FIELDS: Mapping[int, tuple[str, ...]] = {
    1: ("wall_x", "door_y", "start", "goal"),
    2: ("start", "goal"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a packaged file is made from."""

    world: str
    split: str
    seed: int
    count: int


def _final_and_tuning(world: str, seed: int, count: int) -> tuple[Recipe, Recipe]:
    return (
        Recipe(world=world, split="final", seed=seed, count=count),
        Recipe(world=world, split="tuning", seed=seed + 1, count=count),
    )


PACKAGED: Mapping[str, Recipe] = {
    f"{recipe.world}-{recipe.split}": recipe
    for recipe in (
        *_final_and_tuning("WallSmall", seed=1, count=200),
        *_final_and_tuning("WallBig", seed=3, count=200),
        Recipe(world="WallBig", split="demo", seed=5, count=100),
        *_final_and_tuning("Maze", seed=6, count=80),
        *_final_and_tuning("MazeHard", seed=8, count=80),
        *_final_and_tuning("OpenRoom", seed=10, count=100),
        *_final_and_tuning("DeadEnd", seed=12, count=100),
        *_final_and_tuning("OneWayDoor", seed=14, count=100),
        *_final_and_tuning("Pits", seed=16, count=100),
        *_final_and_tuning("BreakingKeys", seed=18, count=100),
        *_final_and_tuning("Detour", seed=20, count=100),
        *_final_and_tuning("WallBigBounce", seed=22, count=100),
        *_final_and_tuning("WallBigSlips", seed=24, count=100),
    )
}


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Problems to solve: start and goal each, as true states of one world."""

    name: str
    world: str
    split: str
    seed: int
    starts: Float[Tensor, "B W"]
    goals: Float[Tensor, "B W"]

    def __len__(self) -> int:
        return len(self.starts)

    def subset(self, count: int) -> "Instances":
        """The first `count` instances, so that a smaller evaluation is paired with a larger one."""
        if not 1 <= count <= len(self):
            raise InputError(f"{self.name} has {len(self)} instances; ask for 1 to {len(self)}, not {count}.")
        return self.select(torch.arange(count))

    def select(self, index: Tensor) -> "Instances":
        """The instances numbered, or marked true, in `index`."""
        return replace(self, starts=self.starts[index], goals=self.goals[index])


def make_instances(world: World, split: str, seed: int, count: int) -> Instances:
    """Draw instances, rounded to the decimals of the files; draws that rounding blocked are dropped."""
    generator = SeedTree(seed).torch("instances", world.name, split)
    starts, goals = (
        states.double().mul(10**DECIMALS).round().div(10**DECIMALS).float()
        for states in world.sample_tasks(2 * count, generator)
    )
    free = world.is_possible(starts) & world.is_possible(goals)
    drawn = Instances(
        name=f"{world.name}-{split}", world=world.name, split=split, seed=seed, starts=starts, goals=goals
    )
    kept = drawn.select(free.nonzero()[:, 0])
    solvable = world.cost_to_go(kept.starts, kept.goals).isfinite().nonzero()[:count, 0]
    if len(solvable) < count:
        raise InputError(
            f"only {len(solvable)} of {2 * count} tasks drawn in {world.name} survive rounding to {DECIMALS} "
            f"decimals; its `sample_tasks` must keep clear of walls by more than that"
        )
    return kept.select(solvable)


def make_packaged(name: str) -> Instances:
    """Make the instances of a packaged file anew."""
    recipe = PACKAGED[name]
    return make_instances(find_world(recipe.world), recipe.split, recipe.seed, recipe.count)


def instances_text(instances: Instances) -> str:
    """The file's content: JSON, one instance per line, so that a difference shows which one moved."""
    starts, goals = ([_rounded(state) for state in states.tolist()] for states in _both(instances))
    version = 1 if instances.world in ROOMS else 2
    rows: list[dict[str, Any]] = [
        {"start": start, "goal": goal} for start, goal in zip(starts, goals, strict=True)
    ]
    if version == 1:
        rows = [
            {"wall_x": start[2], "door_y": start[3], "start": start[:2], "goal": goal[:2]}
            for start, goal in zip(starts, goals, strict=True)
        ]
    head = {"format": version, "world": instances.world, "split": instances.split, "seed": instances.seed}
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
    version = document["format"]
    if version not in INSTANCE_FIELDS:
        raise InputError(f"{name}: format {version!r}; this version reads formats 1 and 2.")
    if document["world"] not in WORLDS or (version == 1 and document["world"] not in ROOMS):
        known = ROOMS if version == 1 else WORLDS
        raise InputError(
            f"{name}: unknown world {document['world']!r}; known are {', '.join(known)}, in format {version}."
        )
    rows = document["instances"]
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{name}: `instances` must be a list of at least one instance.")
    world = find_world(document["world"])
    states = torch.tensor(
        [_states(row, version, world, f"{name}, instance {number}") for number, row in enumerate(rows)]
    )
    instances = Instances(
        name=Path(name).stem,
        world=document["world"],
        split=str(document["split"]),
        seed=int(document["seed"]),
        starts=states[:, 0].contiguous(),
        goals=states[:, 1].contiguous(),
    )
    _refuse_impossible(name, world, instances)
    return instances


def _states(row: Any, version: int, world: World, where: str) -> list[list[float]]:
    """Start and goal of one instance as whole states."""
    fields = INSTANCE_FIELDS[version]
    if not isinstance(row, dict) or set(row) != set(fields):
        raise InputError(f"{where}: expected the fields {', '.join(fields)}; found {row!r}.")
    width = 2 if version == 1 else world.state_width
    meaning = "[x, y] in pixels" if version == 1 else f"the {width} numbers of a state of {world.name}"
    for field in ("start", "goal"):
        if not isinstance(row[field], list) or len(row[field]) != width:
            raise InputError(f"{where}: `{field}` must be {meaning}; found {row[field]!r}.")
    layout = [row["wall_x"], row["door_y"]] if version == 1 else []
    found = [[*row["start"], *layout], [*row["goal"], *layout]]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for state in found for n in state):
        what = "a number of pixels" if version == 1 else "a number"
        raise InputError(f"{where}: every value must be {what}; found {row!r}.")
    return [[float(number) for number in state] for state in found]


def _refuse_impossible(name: str, world: World, instances: Instances) -> None:
    for what, states in zip(("start", "goal"), _both(instances), strict=True):
        blocked = (~world.is_possible(states)).nonzero()[:, 0]
        if len(blocked):
            first = int(blocked[0])
            x, y = world.positions(states[first]).tolist()
            things = "; ".join(
                f"{patch.kind} from ({patch.low[0]:g}, {patch.low[1]:g}) to ({patch.high[0]:g}, "
                f"{patch.high[1]:g})"
                for patch in world.scenery(states[first])
            )
            raise InputError(
                f"{name}, instance {first}: the {what} ({x:g}, {y:g}) is outside the free space of "
                f"{world.name} or in a wall. What is there, in pixels: {things}."
            )


def _both(instances: Instances) -> tuple[Tensor, Tensor]:
    return instances.starts, instances.goals


def _rounded(state: list[float]) -> list[float | int]:
    rounded = [round(number, DECIMALS) for number in state]
    return [int(number) if number == int(number) else number for number in rounded]
