"""`jepaplan reproduce NAME`: train and evaluate what a page of docs/results still lacks, and write it."""

import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from jepaplan.commands.console import NOTES, RESULTS, progress_board
from jepaplan.commands.train import choose_device
from jepaplan.recipes.catalogue import REPRODUCTIONS
from jepaplan.recipes.reproduction import Reproduction, WorkOptions, work
from jepaplan.recipes.reproduction_page import write_reproduction_page
from jepaplan.types import InputError

_UNITS: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is reproduced, at which size, for how long, and by how many."""

    name: tyro.conf.Positional[str]
    """Which page: see `jepaplan reproduce --list`."""
    scale: Literal["cpu", "full"] = "cpu"
    """cpu: the same science at a size that two cores finish in hours; full: the source's settings."""
    seeds: int = 3
    """Training seeds, from 0."""
    only: tuple[str, ...] = ()
    """Only trainings, methods or tasks whose name holds one of these words."""
    time_limit: str | None = None
    """Stop after this long, such as 90s, 9m or 2h, with everything saved; the same command goes on."""
    folder: Path | None = None
    """Where runs lie; without it runs/reproduce/NAME-SCALE."""
    page: Path | None = None
    """Write the page there (FILE.md, with FILE.json beside it); without it into the folder."""
    processes: int = 1
    """Workers on this machine, sharing the folder."""
    launcher: Literal["local", "slurm"] = "local"
    """slurm: submit `--processes` workers to a cluster through submitit instead of starting them here."""
    slurm: tuple[str, ...] = ()
    """Settings for submitit, such as slurm_partition=gpu gpus_per_node=1 timeout_min=600."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: an accelerator if there is one."""
    threads: int | None = None
    """Processor threads of each worker; without it, as many as the machine allows."""


def main(arguments: list[str]) -> int:
    """Work until nothing is left or time is up; exit code 0 if all is done, 3 if work is left."""
    if not arguments or arguments[0] == "--list":
        lines = [f"  {name:12s}{make('cpu').title}" for name, make in REPRODUCTIONS.items()]
        RESULTS.print("Reproductions:", *lines, sep="\n", markup=False, highlight=False)
        return 0
    options = tyro.cli(Options, prog="jepaplan reproduce", description=__doc__, args=arguments)
    reproduction = find_reproduction(options.name, options.scale).only(options.only)
    folder = options.folder or Path("runs/reproduce") / f"{options.name}-{options.scale}"
    command = shlex.join(["jepaplan", "reproduce", *arguments])
    if options.launcher == "slurm":
        return _submit(options, arguments, folder)
    if options.processes > 1:
        left = _share_out(options, arguments)
    else:
        left = _work_here(reproduction, folder, options, command)
    if os.environ.get("RANK", "0") == "0":
        page = options.page or folder / f"{options.name}.md"
        write_reproduction_page(reproduction, folder, options.seeds, page)
        RESULTS.print(f"page: {page}", markup=False, highlight=False)
    if left:
        NOTES.print(f"{left} pieces of work are left; the same command goes on", highlight=False)
    return 3 if left else 0


def find_reproduction(name: str, scale: Literal["cpu", "full"]) -> Reproduction:
    """The reproduction of that name."""
    if name not in REPRODUCTIONS:
        raise InputError(f"there is no reproduction {name!r}; known: {', '.join(REPRODUCTIONS)}")
    return REPRODUCTIONS[name](scale)


def seconds(limit: str | None) -> float | None:
    """`9m` and its like in seconds."""
    if limit is None:
        return None
    number, unit = limit[:-1], limit[-1:]
    try:
        return float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise InputError(
            f"--time-limit {limit!r} is no time; write a number and a unit, such as 90s, 9m or 2h"
        ) from None


def _work_here(reproduction: Reproduction, folder: Path, options: Options, command: str) -> int:
    began, limit = time.monotonic(), seconds(options.time_limit)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        device = f"cuda:{rank % torch.cuda.device_count()}"
    # Under torchrun every process is a worker of its own: none must wait for the others in a gradient.
    kept = {name: os.environ.pop(name) for name in _TORCHRUN if name in os.environ}
    try:
        with progress_board() as board:
            return work(
                reproduction,
                folder,
                WorkOptions(
                    seeds=options.seeds,
                    device=device,
                    deadline=None if limit is None else began + limit,
                    command=command,
                    report=board.report,
                ),
            )
    finally:
        os.environ.update(kept)


def _share_out(options: Options, arguments: list[str]) -> int:
    """Start workers with the same options and wait for them; how many were left with work to do."""
    single = [*arguments, "--processes", "1"]
    workers = [
        subprocess.Popen(
            [*_SELF, *single], env={**os.environ, "RANK": str(number + 1), "LOCAL_RANK": str(number)}
        )
        for number in range(options.processes)
    ]
    codes = [worker.wait() for worker in workers]
    broken = [code for code in codes if code not in (0, 3)]
    if broken:
        raise InputError(
            f"{len(broken)} of {len(workers)} workers failed (exit code {broken[0]}); their messages are "
            "above. What the others finished is kept"
        )
    return sum(code == 3 for code in codes)


_SELF = [sys.executable, "-c", "import sys; from jepaplan.cli import main; sys.exit(main())", "reproduce"]


def _submit(options: Options, arguments: list[str], folder: Path) -> int:
    """Workers as jobs of a cluster."""
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise InputError("--launcher slurm needs submitit: pip install 'jepaplan[slurm]'") from error
    cluster = os.environ.get("JEPAPLAN_SUBMITIT_CLUSTER")  # "local" runs the same jobs on this machine
    executor = submitit.AutoExecutor(folder=str(folder / "jobs"), cluster=cluster)
    executor.update_parameters(**_settings(options.slurm))
    single = [*arguments, "--processes", "1", "--launcher", "local"]
    jobs = [
        executor.submit(submitit.helpers.CommandFunction([*_SELF, *single])) for _ in range(options.processes)
    ]
    numbers = ", ".join(str(job.job_id) for job in jobs)
    RESULTS.print(
        f"submitted {len(jobs)} workers: {numbers}; logs in {folder / 'jobs'}",
        markup=False,
        highlight=False,
    )
    return 0


def _settings(pairs: tuple[str, ...]) -> dict[str, int | str]:
    settings: dict[str, int | str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise InputError(f"--slurm {pair!r} is no setting; write name=value, such as timeout_min=600")
        settings[name] = int(value) if value.isdigit() else value
    return settings
