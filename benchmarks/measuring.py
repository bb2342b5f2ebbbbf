"""What every benchmark does: paired rounds, medians with their range, and where the numbers come from.

Machines drift by more than the differences of interest, so everything that is compared runs in one process,
in rounds: a round times each contestant once, and ratios are formed within rounds. A finding needs six rounds
or more.
"""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from jepaplan.training.provenance import processor_family

Work = Callable[[], object]
Order = Callable[[list[str], int], list[str]]  # names and the number of the round, from 0


def as_given(names: list[str], number: int) -> list[str]:
    """The same order in every round."""
    return names


def turning(names: list[str], number: int) -> list[str]:
    """Forwards and backwards in turn."""
    return names if number % 2 else names[::-1]


def rotating(names: list[str], number: int) -> list[str]:
    """Everybody begins once."""
    first = number % len(names)
    return names[first:] + names[:first]


def timed(work: Work, repeats: int = 1) -> float:
    """Seconds that one call takes, averaged over a few calls in a row."""
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - began) / repeats


def paired(
    works: Mapping[str, Work],
    rounds: int,
    *,
    order: Order = turning,
    warm_up: bool = True,
    repeats: Mapping[str, int] | int = 1,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; `warm_up` is a round before, of which nothing is kept."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1 if warm_up else 0, rounds):
        for name in order(list(works), number):
            times = repeats if isinstance(repeats, int) else repeats[name]
            taken = timed(works[name], 1 if number < 0 else times)
            if number >= 0:
                seconds[name].append(taken)
        if number >= 0 and on_round is not None:
            on_round(number + 1)
    return seconds


def ratios(dividends: Sequence[float], divisors: Sequence[float]) -> list[float]:
    """Round by round."""
    return [dividend / divisor for dividend, divisor in zip(dividends, divisors, strict=True)]


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """The median, and the least and greatest of all rounds."""
    low, high = min(numbers), max(numbers)
    return f"{median(numbers):,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"


def hardware() -> str:
    """Cores and processor family; nothing that names the machine."""
    threads = torch.get_num_threads()
    used = "one core" if threads == 1 else f"{threads} cores"
    return f"{os.cpu_count()} cores, {processor_family()}; {used} used"


def commit() -> str:
    """The commit measured, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def origin() -> list[str]:
    """Where the numbers come from, as the first lines of a page."""
    return [
        f"- Command: `python {shlex.join(sys.argv)}`",
        f"- Commit: {commit()}; torch {torch.__version__}, Python {platform.python_version()}",
        f"- Hardware: {hardware()}",
    ]


def save(page: Path | None, text: str) -> None:
    """Write a page whole or not at all; `None` was not asked for one."""
    if page is None:
        return
    page.parent.mkdir(parents=True, exist_ok=True)
    partial = page.with_suffix(".partial")
    partial.write_text(text.rstrip("\n") + "\n")
    os.replace(partial, page)
