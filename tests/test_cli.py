"""The command line's front door: quick without torch, helpful about names, errors in words."""

import errno
import os
import subprocess
import sys
from importlib import import_module

import pytest

from jepaplan import __version__, cli
from jepaplan.training.stage import Diverged, Interrupted
from jepaplan.types import InputError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from jepaplan.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("argument", ["--version", "--help", "nonsense"])
def test_answers_without_torch(argument):
    program = (
        "import sys\nfrom jepaplan.cli import main\n"
        f"main([{argument!r}])\nsys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jepaplan {__version__}\n"
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in cli.COMMANDS)


def test_every_command_exists_and_helps(capsys):
    for name, command in cli.COMMANDS.items():
        assert callable(import_module(f"jepaplan.commands.{command.module}").main)
        assert cli.main([name, "--help"]) == 0
        assert "usage" in capsys.readouterr().out.lower()


def test_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["colect"]) == 2
    said = capsys.readouterr()
    assert "Did you mean `jepaplan collect`?" in said.err
    assert said.out == ""


def test_unknown_option_suggests_the_nearest(capsys):
    assert cli.main(["inspect", "walks.h5", "--fames", "there"]) == 2
    assert "--frames" in capsys.readouterr().err


def test_wrong_input_is_exit_two_on_standard_error():
    done = run("inspect", "no [bold]such[/bold] file.h5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no [bold]such[/bold] file.h5: there is no such file")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "raised, code, words",
    [
        (InputError("this came, that was due"), 2, "error: this came, that was due\n"),
        (Interrupted("stopped; go on with the same line"), 130, "error: stopped; go on with the same line\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (Diverged("the loss is nan"), 1, "error: the loss is nan\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/a"),
            1,
            "error: run/a: No space left on device\n",
        ),
        (
            ModuleNotFoundError("no torch", name="torch"),
            1,
            "error: the package torch is missing; `pip install",
        ),
    ],
)
def test_what_a_person_can_mend_is_said_in_words(monkeypatch, capsys, raised, code, words):
    def fail(arguments):
        raise raised

    monkeypatch.setattr(import_module("jepaplan.commands.cite"), "main", fail)
    assert cli.main(["cite", "anything"]) == code
    assert capsys.readouterr().err.startswith(words)


def test_our_own_faults_keep_their_traceback(monkeypatch):
    def fail(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(import_module("jepaplan.commands.cite"), "main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["cite", "anything"])


def test_a_reader_who_leaves_is_no_error():
    program = "import sys; from jepaplan.cli import main; sys.exit(main())"
    pipe = subprocess.Popen(
        [sys.executable, "-c", program, "cite", "wall_big_paths"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert pipe.stdout is not None
    pipe.stdout.close()
    assert pipe.stderr is not None
    said = pipe.stderr.read()
    assert pipe.wait(60) == 141
    assert said == b""


def test_one_of_several_processes_ends_without_taking_python_apart():
    """A thread of torch's that lets go of a tensor meanwhile would abort it, with all its work done."""
    program = "import atexit; atexit.register(print, 'taken apart'); "
    program += "import sys; from jepaplan.cli import main; sys.exit(main())"
    for count, taken_apart in (("1", True), ("2", False)):
        for arguments, code in ((["--version"], 0), (["trian"], 2)):
            done = subprocess.run(
                [sys.executable, "-c", program, *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "WORLD_SIZE": count},
            )
            assert done.returncode == code
            assert ("taken apart" in done.stdout) == taken_apart
            assert done.stdout.startswith("jepaplan") or "did you mean" in done.stderr.lower()
