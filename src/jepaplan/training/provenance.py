"""Where a number was made: the commit, the package version and the machine.

Every field has a value on every machine: what cannot be known is "unknown", never an error.
"""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

UNKNOWN = "unknown"
CPUINFO = Path("/proc/cpuinfo")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


@functools.cache
def commit(folder: Path | None = None) -> str:
    """The git commit of the source in `folder` (this package by default), `-modified` where it differs.

    A package installed inside somebody else's repository must not borrow their commit, so only tracked
    files count; and only those of the folder, or the first page that a command writes would mark the next.
    """
    folder = folder or Path(__file__).parents[1]
    if not _git(folder, "ls-files", "."):
        return UNKNOWN
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return UNKNOWN
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{head}-modified" if changed else head


def version() -> str:
    """The version of the installed package."""
    try:
        return metadata.version("jepaplan")
    except metadata.PackageNotFoundError:
        return UNKNOWN


def _told_by_the_system(name: str, information: Path) -> str | None:
    """The first line of that name in Linux's description of its processors."""
    lines = information.read_text(errors="replace").splitlines() if information.exists() else ()
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), None)


def _processor() -> str:
    model = _told_by_the_system("model name", CPUINFO)
    return model or platform.processor() or platform.machine() or UNKNOWN


def processor_family(information: Path = CPUINFO) -> str:
    """`AuthenticAMD family 25`: families that share a model name were seen to differ by half in speed."""
    named = [_told_by_the_system(name, information) for name in ("vendor_id", "cpu family")]
    return " family ".join(part for part in named if part) or platform.machine() or UNKNOWN


def _cores() -> int:
    # In a container fewer cores may be allowed than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware() -> dict[str, str | int]:
    """The machine that a time was measured on: processor, cores, threads, accelerator, and their torch."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "processor": _processor(),
        "family": processor_family(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if gpus else "none",
        "gpus": gpus,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def machine() -> str:
    """The same in one line, as tables name it."""
    found = hardware()
    return f"{found['processor']} ({found['family']}), {found['threads']} threads, gpu {found['gpu']}"
