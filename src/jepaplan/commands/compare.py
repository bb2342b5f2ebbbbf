"""`jepaplan compare RUN RUN`: which of two runs succeeds more often on the same instances."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from jepaplan.commands.console import RESULTS
from jepaplan.recipes.serialise import experiment_from_json
from jepaplan.recipes.study import compare_runs
from jepaplan.training.runs import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Options:
    """Two runs that were evaluated on the same instances."""

    first: tyro.conf.Positional[Path]
    """Folder of a run."""
    second: tyro.conf.Positional[Path]
    """Folder of another run, or of the same one."""
    instances: str | None = None
    """The set on which both were evaluated; without it, that of the first run's recipe."""
    first_method: str | None = None
    """A method of the first run's table; without it, the first one."""
    second_method: str | None = None
    """A method of the second run's table; without it, the first one."""
    json: bool = False
    """Print the comparison as JSON on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Compare and say it in words."""
    options = tyro.cli(Options, prog="jepaplan compare", description=__doc__, args=arguments)
    instances = options.instances or recipe_instances(options.first)
    found = compare_runs(
        (options.first, options.first_method), (options.second, options.second_method), instances
    )
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
    else:
        RESULTS.print(found.words(), markup=False, highlight=False)
    return 0


def recipe_instances(run: Path) -> str:
    """The instances that belong to the recipe of a run."""
    card = RunDirectory(run).read_card()
    return experiment_from_json(card.get("configuration"), str(run / "card.json")).instances
