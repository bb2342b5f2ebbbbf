"""Workers as jobs of a SLURM cluster, through submitit."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jepaplan.types import InputError


def submit(command: Sequence[str], workers: int, folder: Path, wanted: Mapping[str, int | str]) -> list[str]:
    """Submit `workers` jobs that run `command`, with logs in `folder`; the numbers of the jobs.

    Each job knows its number as RANK and their count as WORLD_SIZE, as torchrun would tell them.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError as error:
        raise InputError("--launcher slurm needs submitit: pip install 'jepaplan[slurm]'") from error
    # "local" runs the same jobs on this machine: how this is tested where there is no cluster.
    cluster = os.environ.get("JEPAPLAN_SUBMITIT_CLUSTER", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        executor.update_parameters(**wanted)
    except (RuntimeError, NameError, TypeError, ValueError) as error:  # as submitit refuses
        raise InputError(f"submitit cannot submit here: {error}") from error
    jobs = [
        executor.submit(
            submitit.helpers.CommandFunction(
                list(command),
                cwd=Path.cwd(),
                env={**os.environ, "RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": str(workers)},
            )
        )
        for number in range(workers)
    ]
    return [str(job.job_id) for job in jobs]


def settings(pairs: Sequence[str]) -> dict[str, int | str]:
    """`name=value` pairs, numbers as numbers."""
    found: dict[str, int | str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not (name and sign):
            raise InputError(f"--slurm {pair!r} is no setting; write name=value, such as timeout_min=600")
        found[name] = int(value) if value.isdigit() else value
    return found
