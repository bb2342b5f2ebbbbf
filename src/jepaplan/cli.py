"""`jepaplan COMMAND ...`: find the command, run it, and turn what goes wrong into words.

Commands are modules of `jepaplan.commands`, imported when asked for: `--version` and `--help` answer without
torch. The exit code is 0 when all is well, 2 for wrong input, 130 when stopped, 1 otherwise.
"""

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from jepaplan import __version__

WRONG_INPUT = 2
STOPPED = 130  # what shells expect of a program that Ctrl-C ended
READER_GONE = 141  # what shells expect of a program whose reader closed the pipe
BASE = (
    "torch",
    "numpy",
    "gymnasium",
    "h5py",
    "safetensors",
    "jaxtyping",
    "tyro",
    "rich",
    "PIL",
    "matplotlib",
    "jinja2",
)


@dataclass(frozen=True)
class Command:
    """Where a command lives and what it is for."""

    module: str  # of `jepaplan.commands`; its `main(arguments)` returns the exit code
    help: str  # one line


COMMANDS: Mapping[str, Command] = {
    "demo": Command("demo", "record, train, plan through a door and report, in minutes"),
    "collect": Command("collect", "record trajectories into an HDF5 file"),
    "inspect": Command("inspect", "health card and pictures of a recording, or what a run is"),
    "train": Command("train", "train a recipe into a run folder, or go on with a run"),
    "evaluate": Command("evaluate", "success of a run beside its references, with intervals"),
    "probe": Command("probe", "what a frozen video encoder knows of labelled videos, with an interval"),
    "plan": Command("plan", "two pictures in, ranked candidates out"),
    "reproduce": Command("reproduce", "make a page of results: resumable, shared by any number of workers"),
    "compare": Command("compare", "two runs on the same instances, paired"),
    "report": Command("report", "write a run's report again"),
    "doctor": Command("doctor", "what this machine can do, and how to mend what is missing"),
    "cite": Command("cite", "BibTeX of everything that a recipe touches"),
}

USAGE = (
    "usage: jepaplan COMMAND [options]\n\n"
    + "\n".join(f"  {name:10s}{command.help}" for name, command in COMMANDS.items())
    + "\n\n`jepaplan COMMAND --help` shows every option with its unit; `jepaplan --version`, the version.\n"
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    if argv is not None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _run(sys.argv[1:] if argv is None else argv)
    # One of several processes. torch keeps the threads of a group that sharded something, and one that lets
    # go of a tensor while Python ends aborts the process (docs/lab_notes.md): it ends before that.
    code = _run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # here, so that a reader who left is noticed here
        return code
    except SystemExit as asked:  # of tyro: --help, or an option that it refused and explained
        return asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BrokenPipeError:
        # The interpreter flushes once more at its end: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return STOPPED
    except Exception as error:
        code, words = _explain(error)
        _say(words)
        return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        sys.stdout.write(f"jepaplan {__version__}\n")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean `jepaplan {near[0]}`?" if near else ""
        _say(f"there is no command {name!r}.{meant} Known: {', '.join(COMMANDS)}")
        return WRONG_INPUT
    return import_module(f"jepaplan.commands.{command.module}").main(rest)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and words for what a person can mend; anything else is a fault of ours and goes on up."""
    if isinstance(error, ModuleNotFoundError) and error.name in BASE:
        return 1, f"the package {error.name} is missing; `pip install jepaplan` brings all that is needed"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return 1, f"{place}{error.strerror or error}"
    from jepaplan.types import InputError

    if isinstance(error, InputError):
        return WRONG_INPUT, str(error)
    from jepaplan.training.stage import Diverged, Interrupted

    if isinstance(error, Interrupted):
        return STOPPED, str(error)
    if isinstance(error, Diverged):
        return 1, str(error)
    raise error


def _say(words: str) -> None:
    """One error on standard error."""
    from rich.console import Console
    from rich.text import Text

    # Text, not markup: a path or a list in the message may hold brackets.
    Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(words))
