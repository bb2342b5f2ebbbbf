"""`jepaplan cite RECIPE`: BibTeX of everything that a recipe touches, and of nothing else."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import tyro

from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.experiment import Experiment, PredictionStage, StageConfig

# Worlds, their recordings and tasks; those that are not here are our own.
_ROOMS = ("destrade2026value", "sobal2025learning")
WORLDS: Mapping[str, tuple[str, ...]] = {
    name: _ROOMS for name in ("WallSmall", "WallBig", "WallSmallFixed", "WallBigFixed", "Maze", "MazeHard")
}

# What a part of a recipe takes from where; the sources are those that the modules themselves name.
SOURCES: Mapping[str, tuple[str, ...]] = {
    "KeypointConfig": ("finn2016deep",),
    "CompactConfig": (),
    "ImpalaConfig": ("espeholt2018impala",),
    "euclidean": ("destrade2026value",),
    "iqe": ("wang2022improved",),
    "euclidean_head": ("destrade2026value",),
    "quasimetric_head": ("wang2022improved", "wang2023optimal"),
    "PredictionStage": ("bardes2022vicreg", "sobal2025learning"),
    "ValueStage": ("kostrikov2022offline", "destrade2026value"),
    "JointStage": ("bardes2022vicreg", "kostrikov2022offline", "destrade2026value"),
    "PredictorStage": ("destrade2026value",),
    "ImaginedValueStage": ("eysenbach2019search", "gonzalez1985clustering"),
    "scene_contrast": ("oord2018representation",),
    "MPPI": ("williams2017information",),
    "CEM": ("rubinstein1999cross", "deboer2005tutorial"),
    "adam": ("kingma2015adam",),
    "adamw": ("loshchilov2019decoupled",),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which recipe."""

    recipe: tyro.conf.Positional[str]
    """Name of a recipe, as `jepaplan train --help` lists them."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a list of objects with key and bibtex on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Print the entries."""
    options = tyro.cli(Options, prog="jepaplan cite", description=__doc__, args=arguments)
    known = entries()
    cited = {key: known[key] for key in keys_of(find_recipe(options.recipe))}
    if options.json:
        rows = [{"key": key, "bibtex": text} for key, text in cited.items()]
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        sys.stdout.write("\n\n".join(cited.values()) + "\n")
    return 0


def keys_of(experiment: Experiment) -> list[str]:
    """Keys of what `experiment` touches, each once, in the order in which it does."""
    parts = [type(experiment.encoder).__name__, experiment.distance.kind]
    for stage in experiment.stages:
        parts += _parts_of(stage)
    parts.append(type(experiment.planner).__name__)
    worlds = WORLDS.get(experiment.recording.world, ())
    return list(dict.fromkeys([*worlds, *(key for part in parts for key in SOURCES[part])]))


def entries() -> dict[str, str]:
    """The packaged bibliography, by key."""
    text = (resources.files("jepaplan") / "references.bib").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for entry in re.split(r"\n\s*\n", text.strip()):
        opening = re.match(r"@\w+\{([^,\s]+),", entry)
        if opening is None:
            raise ValueError(f"references.bib holds an entry without a key: {entry[:60]!r}")
        found[opening[1]] = entry
    return found


def _parts_of(stage: StageConfig) -> list[str]:
    parts = [type(stage).__name__, stage.fit.optimiser]
    if isinstance(stage, PredictionStage) and stage.scene_contrast > 0:
        parts.append("scene_contrast")
    return parts
