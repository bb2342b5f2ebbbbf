"""`jepaplan compare RUN RUN`: which of two runs succeeds more often on the same instances."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from jepaplan.commands.console import RESULTS
from jepaplan.recipes.study import compare_runs


@dataclass(frozen=True, kw_only=True)
class Options:
    """Two runs that were evaluated on the same instances."""

    first: tyro.conf.Positional[Path]
    """Folder of a run."""
    second: tyro.conf.Positional[Path]
    """Folder of another run, or of the same one."""
    instances: str = "WallBig-demo"
    """The set on which both were evaluated."""
    first_method: str | None = None
    """A method of the first run's table; without it, the first one."""
    second_method: str | None = None
    """A method of the second run's table; without it, the first one."""
    json: bool = False
    """Print the comparison as JSON on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Compare and say it in words."""
    options = tyro.cli(Options, prog="jepaplan compare", description=__doc__, args=arguments)
    found = compare_runs(
        (options.first, options.first_method), (options.second, options.second_method), options.instances
    )
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
    else:
        RESULTS.print(found.words(), markup=False, highlight=False)
    return 0
