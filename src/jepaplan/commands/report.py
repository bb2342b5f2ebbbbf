"""`jepaplan report RUN`: write RUN/report.html again, from the run's weights and the recipe's instances."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from jepaplan.commands import evaluate


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which run."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    instances: str | None = None
    """A packaged set or a file; without it, the recipe's."""
    episodes: int | None = None
    """How many instances, from the first; without it, all."""


def main(arguments: list[str]) -> int:
    """Evaluate with pictures and write the page."""
    options = tyro.cli(Options, prog="jepaplan report", description=__doc__, args=arguments)
    passed = [str(options.run)]
    if options.instances is not None:
        passed += ["--instances", options.instances]
    if options.episodes is not None:
        passed += ["--episodes", str(options.episodes)]
    return evaluate.main(passed)
