"""`jepaplan doctor`: what this machine can do, and one line to mend each thing that is missing.

Nothing heavy is imported: packages are judged by their metadata, torch by whether its library loads.
"""

import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import tyro

from jepaplan import __version__
from jepaplan.commands.console import RESULTS, table

OLDEST_PYTHON = (3, 11)
MEMORY_WANTED = 2.0  # GB available; a recording of 1000 trajectories takes 0.5 of them
DISK_WANTED = 1.0  # GB free where the command is run
PURPOSES = {
    "maze": "the point maze",
    "slurm": "`jepaplan reproduce --launcher slurm`",
    "video": "video files: `jepaplan train video_nano`, `jepaplan probe`",
    "hf": "fetching released video weights",
    "track": "learning curves for TensorBoard",
    "dev": "`make test` and `make check`",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal[
        "fine", "note", "broken"
    ]  # broken: the base does not work; note: something is less than it could be
    found: str
    mend: str = ""  # what to type or do; empty where nothing is to be done


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to show it."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the findings as JSON on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Look at everything; 0 if the base works."""
    options = tyro.cli(Options, prog="jepaplan doctor", description=__doc__, args=arguments)
    findings = examine()
    broken = any(finding.state == "broken" for finding in findings)
    if options.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
        return int(broken)
    shown = {"fine": "[green]fine[/green]", "note": "[yellow]note[/yellow]", "broken": "[red]broken[/red]"}
    board = table(f"jepaplan {__version__} on this machine", ["what"], [])
    for column in ("state", "found"):
        board.add_column(column)
    for finding in findings:
        board.add_row(finding.name, shown[finding.state], finding.found)
    RESULTS.print(board)
    for finding in findings:
        if finding.mend:
            RESULTS.print(f"{finding.name}: {finding.mend}", highlight=False, markup=False)
    RESULTS.print("the base is broken" if broken else "the base works", highlight=False)
    return int(broken)


def examine() -> list[Finding]:
    """All findings, the base first."""
    return [python(), *base(), *devices(), memory(), disk(), *extras()]


def python() -> Finding:
    """The interpreter."""
    found = ".".join(str(number) for number in sys.version_info[:3])
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Finding(name="python", state="fine", found=found)
    return Finding(name="python", state="broken", found=found, mend="install Python 3.11 or newer")


def base() -> list[Finding]:
    """The packages without which nothing works, as one finding if all are there."""
    wanted = requirements().get("", {})
    bad = {name: found for name, floor in wanted.items() if (found := lacking(name, floor))}
    if not wanted:
        mend = "pip install -e . in the folder of the source"
        return [Finding(name="base packages", state="broken", found="jepaplan is not installed", mend=mend)]
    if not bad:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in wanted)
        return [Finding(name="base packages", state="fine", found=found)]
    return [
        Finding(
            name=name,
            state="broken",
            found=found,
            mend=f"pip install '{name}{wanted[name] and '>='}{wanted[name]}'",
        )
        for name, found in bad.items()
    ]


def extras() -> list[Finding]:
    """What more could be there."""
    made: list[Finding] = []
    for extra, wanted in requirements().items():
        if not extra:
            continue
        bad = [f"{name} {found}" for name, floor in wanted.items() if (found := lacking(name, floor))]
        use = f" (for {PURPOSES[extra]})" if extra in PURPOSES else ""
        if bad:
            mend = f"pip install 'jepaplan[{extra}]'"
            made.append(Finding(name=f"extra {extra}", state="note", found=", ".join(bad) + use, mend=mend))
        else:
            there = ", ".join(f"{name} {metadata.version(name)}" for name in wanted)
            made.append(Finding(name=f"extra {extra}", state="fine", found=there + use))
    return made


def requirements() -> dict[str, dict[str, str]]:
    """Lowest version of each package, by extra; the base is the extra without a name."""
    try:
        lines = metadata.requires("jepaplan") or []
    except metadata.PackageNotFoundError:
        lines = []
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        floor = re.search(r">=([\d.]+)", line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if name is not None:
            found.setdefault(extra[1] if extra else "", {})[name[0]] = floor[1] if floor else ""
    return found


def lacking(name: str, floor: str) -> str:
    """Why the package will not do; empty if it will."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is missing"
    return f"{version} is older than {floor}" if _numbers(version) < _numbers(floor) else ""


def devices() -> list[Finding]:
    """Whether torch works, and what it can compute on."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return []  # `base` has said that it is missing
    folder = Path(found.origin).parent
    if reason := _why_torch_fails(folder):
        mend = "pip install --force-reinstall torch"
        return [Finding(name="torch", state="broken", found=f"cannot be imported: {reason}", mend=mend)]
    built = re.search(r"^cuda\b.*?= '([\d.]+)'", (folder / "version.py").read_text(), re.MULTILINE)
    names = _cuda_devices() if built else []
    if sys.platform == "darwin" and platform.machine() == "arm64":
        names.append("mps")
    works = f"{metadata.version('torch')}, built {f'for CUDA {built[1]}' if built else 'without CUDA'}"
    return [
        Finding(name="torch", state="fine", found=works),
        Finding(
            name="accelerator", state="fine", found=", ".join(names) or "none; all runs on the processor"
        ),
        processor(),
    ]


def processor() -> Finding:
    """Cores that we may use, and whether something holds torch back from using them."""
    cores, asked = _cores(), os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) < cores:
        found = f"{cores} cores, but OMP_NUM_THREADS={asked}"
        mend = f"unset OMP_NUM_THREADS, or --threads {cores}, to use every core"
        return Finding(name="processor", state="note", found=found, mend=mend)
    return Finding(name="processor", state="fine", found=f"{cores} cores")


def _why_torch_fails(folder: Path) -> str:
    """Empty if torch's library loads, which takes a fifth of the time that importing torch takes."""
    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    name = f"{'' if ending == 'dll' else 'lib'}torch_cpu.{ending}"
    try:
        ctypes.CDLL(str(folder / "lib" / name))
    except OSError:
        try:
            import torch  # knows better where its libraries are
        except (ImportError, OSError) as error:
            return str(error)
        assert torch
    return ""


def _cuda_devices() -> list[str]:
    """Names of the graphics processors that the driver lists."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names: list[str] = []
    for number in range(count.value):
        driver.cuDeviceGetName(name, len(name), number)
        names.append(name.value.decode(errors="replace"))
    return names


def memory() -> Finding:
    """What is available, within the limit of a container."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        available = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        free = 1024 * int(available[1]) if available else free
    except (OSError, ValueError):
        return Finding(name="memory", state="fine", found="unknown on this system")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
        total, free = min(total, int(allowed)), min(free, int(allowed))
    found = f"{free / 1e9:.1f} GB available of {total / 1e9:.1f}"
    if free / 1e9 >= MEMORY_WANTED:
        return Finding(name="memory", state="fine", found=found)
    mend = f"close other programs: recordings are kept in memory, and {MEMORY_WANTED:g} GB are comfortable"
    return Finding(name="memory", state="note", found=found, mend=mend)


def disk() -> Finding:
    """What is free where the command is run."""
    free = shutil.disk_usage(".").free / 1e9
    found = f"{free:.1f} GB free here"
    if free >= DISK_WANTED:
        return Finding(name="disk", state="fine", found=found)
    mend = f"free some space, or run elsewhere: recordings and runs like {DISK_WANTED:g} GB"
    return Finding(name="disk", state="note", found=found, mend=mend)


def _cores() -> int:
    # In a container fewer cores may be allowed than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
