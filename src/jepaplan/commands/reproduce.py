"""`jepaplan reproduce NAME`: train and evaluate what a page of results still lacks, and write the page.

Stop it whenever you like: the same command goes on. Any number of workers may share the folder.
"""

import difflib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
import tyro

from jepaplan.commands.console import NOTES, RESULTS, progress_board
from jepaplan.commands.submit import settings, submit
from jepaplan.commands.train import choose_device
from jepaplan.evaluation.results import rows_text
from jepaplan.recipes.catalogue import REPRODUCTIONS
from jepaplan.recipes.projects import Project, project_of
from jepaplan.recipes.reproduction_work import WorkOptions, adopt, publish, work_on
from jepaplan.types import InputError

PAGES = Path("docs/results")  # of a checkout, whose root is where the command runs
WORK_LEFT = 3  # exit code: nothing is wrong, the same command goes on
_UNITS: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SELF = [sys.executable, "-c", "import sys; from jepaplan.cli import main; sys.exit(main())", "reproduce"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is reproduced, at which size, for how long, and by how many."""

    name: tyro.conf.Positional[str]
    """Which page: `jepaplan reproduce --list` shows them."""
    scale: Literal["cpu", "full"] = "cpu"
    """cpu: the same science at a size that two cores finish in hours; full: the source's settings."""
    seeds: int = 3
    """Training seeds of each recipe, from its own on."""
    only: tuple[str, ...] = ()
    """Work only on trainings, methods or tasks whose name holds one of these words; the page shows all."""
    time_limit: str | None = None
    """Stop after this long, such as 90s, 9m or 2h. A training goes on from the update where it stopped, an
    evaluation begins again."""
    folder: Path | None = None
    """Where runs lie, and the page with them where --page names no other place; without it
    runs/reproduce/NAME-SCALE."""
    page: Path | None = None
    """Write the page there (FILE.md; FILE.json, FILE.svg, FILE.outcomes.jsonl and perhaps FILE_maps_TASK.png
    beside it). Without it, and without --folder, at the root of a checkout docs/results/NAME.md (NAME-full.md
    at full scale), where no page of another command has that name; else into the folder. What lies in
    FILE.outcomes.jsonl is not done again: any machine can continue a page."""
    processes: int = 1
    """Workers on this machine, sharing the folder. Those that torchrun starts anywhere share it as well."""
    launcher: Literal["local", "slurm"] = "local"
    """slurm: submit the workers to a cluster through submitit instead of starting them here."""
    slurm: tuple[str, ...] = ()
    """Settings for submitit, such as slurm_partition=gpu gpus_per_node=1 timeout_min=600."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: an accelerator if there is one. With several, workers take turns."""
    threads: int | None = None
    """Processor threads of each worker; without it, its share of the machine. The results of a CPU run depend
    on it in the last digits."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the page's rows as JSON on standard output, and nothing else there."""

    def __post_init__(self) -> None:
        for name in ("seeds", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1; got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads must be at least 1; got {self.threads}")
        if self.page is not None and self.page.suffix != ".md":
            raise InputError(f"--page names a file of markdown, such as {self.page.with_suffix('.md')}")
        if self.json and self.launcher == "slurm":
            raise InputError(
                "--json shows results, and jobs have none yet: leave it out with --launcher slurm"
            )
        seconds(self.time_limit)
        settings(self.slurm)

    @property
    def place(self) -> Path:
        """Where runs lie."""
        return self.folder or Path("runs/reproduce") / f"{self.name}-{self.scale}"

    @cached_property  # it looks at what lies there, which the command then changes
    def page_file(self) -> Path:
        """Where the page is written."""
        if self.page is not None:
            return self.page
        if self.folder is None and PAGES.is_dir() and Path("src/jepaplan").is_dir():
            page = PAGES / f"{self.name}{'' if self.scale == 'cpu' else f'-{self.scale}'}.md"
            if page.with_suffix(".outcomes.jsonl").exists() or not page.exists():
                return page
        return self.place / f"{self.name}.md"

    @property
    def outcomes_file(self) -> Path:
        """What was found, instance by instance, beside the page."""
        return self.page_file.with_suffix(".outcomes.jsonl")

    @property
    def makes(self) -> str:
        """The command that makes these numbers anywhere: how long and by how many does not matter."""
        words = ["jepaplan", "reproduce", self.name, "--scale", self.scale, "--seeds", str(self.seeds)]
        return shlex.join(words)


def main(arguments: list[str]) -> int:
    """Work until nothing is left or time is up; exit code 0 if all is done, 3 if work is left."""
    if not arguments or "--list" in arguments:
        lines = [f"  {name:12s}{make('cpu').title}" for name, make in REPRODUCTIONS.items()]
        RESULTS.print("Reproductions:", *lines, sep="\n", markup=False, highlight=False)
        return 0
    options = tyro.cli(Options, prog="jepaplan reproduce", description=__doc__, args=arguments)
    project = find_project(options.name, options.scale)
    wanted = project.only(options.only)
    tells = os.environ.get("RANK", "0") == "0"
    taken = adopt(project.pieces(options.seeds), options.place, options.outcomes_file)
    if taken and tells:
        NOTES.print(
            f"{taken} outcomes of {options.outcomes_file} are taken as they are; to make them anew, name a "
            "new --folder, and no --page",
            markup=False,
            highlight=False,
        )
    if options.launcher == "slurm":
        worker = [*_SELF, *arguments, "--processes", "1", "--launcher", "local"]
        numbers = submit(worker, options.processes, options.place / "jobs", settings(options.slurm))
        RESULTS.print(
            f"submitted {len(numbers)} workers: {', '.join(numbers)}; logs in {options.place / 'jobs'}. The "
            "first writes the page when all is done; `jepaplan reproduce` here writes it, too",
            markup=False,
            highlight=False,
        )
        return 0
    sound = _share_out(options, arguments) if options.processes > 1 else _work_here(wanted, options)
    left = _tell(project, wanted, options) if tells else _left(wanted, options)
    if not sound:
        return 1
    # torchrun and job schedulers would take any other code for a failure, and end the other workers.
    return WORK_LEFT if left and "WORLD_SIZE" not in os.environ else 0


def find_project(name: str, scale: Literal["cpu", "full"]) -> Project:
    """The reproduction of that name; an unknown name is refused with the nearest one."""
    if name not in REPRODUCTIONS:
        near = difflib.get_close_matches(name, REPRODUCTIONS, n=1, cutoff=0.4)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"there is no reproduction {name!r}.{meant} Known: {', '.join(REPRODUCTIONS)}")
    return project_of(REPRODUCTIONS[name](scale))


def seconds(limit: str | None) -> float | None:
    """`9m` and its like in seconds."""
    if limit is None:
        return None
    try:
        found = float(limit[:-1]) * _UNITS[limit[-1:]]
    except (ValueError, KeyError):
        found = math.nan
    if not 0 < found < math.inf:
        raise InputError(
            f"--time-limit {limit!r} is no time; write a number and a unit, such as 90s, 9m or 2h"
        )
    return found


def _work_here(wanted: Project, options: Options) -> bool:
    """Work in this process; whether all trainings were sound."""
    began, limit = time.monotonic(), seconds(options.time_limit)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    with progress_board() as board:
        result = work_on(
            wanted.pieces(options.seeds),
            options.place,
            WorkOptions(
                device=device,
                deadline=None if limit is None else began + limit,
                command=options.makes,
                board=board,
            ),
        )
    return not result.diverged


def _left(wanted: Project, options: Options) -> int:
    """How many of the wanted pieces are not done."""
    return sum(not piece.done(options.place) for piece in wanted.pieces(options.seeds))


def _tell(project: Project, wanted: Project, options: Options) -> int:
    """Write the page and say where it is; how many of the wanted pieces are left."""
    publish(project.pieces(options.seeds), options.place, options.outcomes_file)
    rows = project.write(options.place, options.seeds, options.page_file)
    if options.json:
        sys.stdout.write(rows_text(rows))
    else:
        RESULTS.print(f"page: {options.page_file}", markup=False, highlight=False)
    left = _left(wanted, options)
    if left:
        NOTES.print(f"{left} pieces of work are left; the same command goes on", highlight=False)
    return left


def _share_out(options: Options, arguments: list[str]) -> bool:
    """Start workers with the same options and wait for them; whether all of them were sound."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = options.threads or max(1, cores // options.processes)
    command = [*_SELF, *arguments, "--processes", "1", "--threads", str(threads)]
    workers: list[subprocess.Popen[bytes]] = []
    with _stopping_together(workers):
        for number in range(options.processes):
            # No worker is of rank 0, so none writes the page; several moving bars would garble the terminal.
            own = {"RANK": str(number + 1), "LOCAL_RANK": str(number), "TTY_COMPATIBLE": "0"}
            workers.append(subprocess.Popen(command, env={**os.environ, **own}))
        codes = [worker.wait() for worker in workers]
    broken = [code for code in codes if code not in (0, WORK_LEFT)]
    if broken:
        NOTES.print(
            f"{len(broken)} of {len(workers)} workers failed (exit code {broken[0]}); their messages are "
            "above. What was finished is kept",
            highlight=False,
        )
    return not broken


@contextmanager
def _stopping_together(workers: list[subprocess.Popen[bytes]]) -> Generator[None]:
    """Who stops us stops the workers: each saves what it has, and we wait for that."""
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for worker in workers:
            worker.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
