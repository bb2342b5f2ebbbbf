"""`jepaplan reproduce`: by one worker or several, here, under torchrun or as jobs, one page."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny_reproductions
from jepaplan.cli import main
from jepaplan.commands import reproduce
from jepaplan.envs import wall
from jepaplan.evaluation.results import read_rows, rows_text
from jepaplan.recipes import catalogue
from jepaplan.recipes.reproduction_work import WorkOptions
from jepaplan.types import InputError
from tiny_reproductions import SHORT, outcomes_of, tiny_reproduction, weights_of, work
from tiny_video_studies import tiny_video_study

SCRIPT = Path(tiny_reproductions.__file__)
COMMAND = ["reproduce", "tiny", "--seeds", "1", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def tiny(monkeypatch):
    """The tiny reproduction among the others."""
    monkeypatch.setitem(catalogue.REPRODUCTIONS, "tiny", lambda scale: tiny_reproduction("wall_big_paths"))
    monkeypatch.setitem(wall.CONFIGS, "WallBig", SHORT)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one worker makes of both trainings."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wall.CONFIGS, "WallBig", SHORT)
        assert work(tiny_reproduction(), folder, WorkOptions()).pieces == 0
    return folder


@pytest.fixture
def start():
    """Starts `jepaplan reproduce tiny` in a process of its own, which ends with the test at the latest."""
    started = []

    def starting(folder, *more, launcher=(), **environment):
        started.append(
            subprocess.Popen(
                [sys.executable, *launcher, str(SCRIPT), *COMMAND, "--folder", str(folder), *more],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield starting
    for worker in started:
        if worker.poll() is None:
            worker.terminate()


def told(worker):
    out, err = worker.communicate(timeout=240)
    return worker.returncode, out, err


def shared_fairly(folder, alone, words):
    """Nothing was done twice, and the result is that of one worker."""
    assert weights_of(folder) == weights_of(alone)
    assert outcomes_of(folder) == outcomes_of(alone)
    finished = re.findall(r"^(recording .*|.* seed \d.*): (\d+)/\2 ?(\w*)", words, re.MULTILINE)
    assert len(finished) == len(set(finished)), finished
    assert sum(what.startswith("recording") for what, _, _ in finished) == 1
    assert len(read_rows(folder / "tiny.json")) == 4


def test_one_worker_writes_page_picture_and_rows_and_the_next_call_only_tells(tmp_path, tiny, capsys):
    command = [*COMMAND, "--folder", str(tmp_path / "runs"), "--page", str(tmp_path / "docs" / "page.md")]
    assert main([*command, "--time-limit", "0.001s"]) == reproduce.WORK_LEFT
    said = capsys.readouterr()
    assert "3 pieces of work are left; the same command goes on" in said.err
    assert "Nothing was measured yet" in (tmp_path / "docs" / "page.md").read_text()
    assert main(command) == 0
    assert f"page: {tmp_path / 'docs' / 'page.md'}" in capsys.readouterr().out
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "Made by `jepaplan reproduce tiny --scale cpu --seeds 1` at commit" in text
    assert str(tmp_path) not in text
    assert "](page.svg)" in text
    assert "2 of 2 cells are measured" in text
    before = outcomes_of(tmp_path)
    assert main([*command, "--json"]) == 0
    rows = read_rows(tmp_path / "docs" / "page.json")
    assert capsys.readouterr().out == rows_text(rows)
    assert [row.method for row in rows] == ["wall_big_paths, distance", "wall_big_paths, value"]
    assert outcomes_of(tmp_path) == before
    elsewhere = ["--folder", str(tmp_path / "elsewhere"), "--page", str(tmp_path / "docs" / "page.md")]
    assert main([*COMMAND, *elsewhere]) == 0  # another machine continues the page
    assert f"2 outcomes of {tmp_path / 'docs' / 'page.outcomes.jsonl'} are taken as they are" in " ".join(
        capsys.readouterr().err.split()
    )


def test_in_a_checkout_the_page_lies_with_the_results(tmp_path, tiny, monkeypatch, capsys):
    """The line of a page, `jepaplan reproduce NAME`, then makes that page, and no other command's."""
    monkeypatch.chdir(tmp_path)
    runs, results = Path("runs/reproduce/tiny-cpu"), Path("docs/results")
    assert reproduce.Options(name="tiny").page_file == runs / "tiny.md"
    results.mkdir(parents=True)
    assert reproduce.Options(name="tiny").page_file == runs / "tiny.md"  # somebody else's results
    Path("src/jepaplan").mkdir(parents=True)
    assert reproduce.Options(name="tiny").page_file == results / "tiny.md"
    assert reproduce.Options(name="tiny", scale="full").page_file == results / "tiny-full.md"
    assert reproduce.Options(name="tiny", folder=Path("mine")).page_file == Path("mine/tiny.md")
    assert reproduce.Options(name="tiny", page=Path("mine.md")).page_file == Path("mine.md")
    command = [*COMMAND, "--time-limit", "0.001s"]
    for _ in range(2):
        assert main(command) == reproduce.WORK_LEFT
        assert f"page: {results / 'tiny.md'}" in capsys.readouterr().out
    assert sorted(file.name for file in results.iterdir()) == ["tiny.json", "tiny.md", "tiny.outcomes.jsonl"]
    (results / "tiny.outcomes.jsonl").unlink()  # a page that `jepaplan evaluate` has written
    assert reproduce.Options(name="tiny").page_file == runs / "tiny.md"


def test_a_video_study_has_its_page_as_well(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(catalogue.REPRODUCTIONS, "tiny-videos", lambda scale: tiny_video_study())
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    page = tmp_path / "docs" / "videos.md"
    command = ["reproduce", "tiny-videos", "--seeds", "1", "--threads", "1", "--device", "cpu"]
    command += ["--folder", str(tmp_path / "runs"), "--page", str(page)]
    assert main([*command, "--time-limit", "0.001s"]) == reproduce.WORK_LEFT
    assert "13 pieces of work are left" in capsys.readouterr().err
    assert "Nothing was measured yet" in page.read_text()
    assert main([*command, "--only", "pixels", "constant"]) == 0
    said = capsys.readouterr()
    assert f"page: {page}" in said.out
    assert "video_nano seed 0, training" in said.err
    text = page.read_text()
    assert "Made by `jepaplan reproduce tiny-videos --scale cpu --seeds 1` at commit" in text
    assert str(tmp_path) not in text
    assert "| pretrained | not yet |" in text
    assert main([*command, "--only", "pixels", "--json"]) == 0
    rows = read_rows(page.with_suffix(".json"))
    assert capsys.readouterr().out == rows_text(rows)
    assert {row.method for row in rows} == {"pixels", "constant velocity (anticipation)"}
    assert main([*command, "--only", "smell"]) == 2
    assert "nothing of tiny-videos holds smell" in capsys.readouterr().err
    assert main(["reproduce", "--list"]) == 0
    assert "vjepa2" in capsys.readouterr().out


def test_only_some_work_and_the_whole_page(tmp_path, tiny, capsys):
    command = [*COMMAND, "--folder", str(tmp_path), "--only", "paths, value"]
    assert main(command) == 0  # nothing that was asked for is left
    said = capsys.readouterr()
    assert "left" not in said.err.splitlines()[-1]
    assert "1 of 2 cells are measured" in (tmp_path / "tiny.md").read_text()
    assert "| wall_big_paths | not yet |" in (tmp_path / "tiny.md").read_text()


def test_lists_what_there_is(capsys):
    for arguments in ([], ["--list"]):
        assert main(["reproduce", *arguments]) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in catalogue.REPRODUCTIONS)


def test_every_option_is_explained(capsys):
    assert main(["reproduce", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in reproduce.Options.__dataclass_fields__:
        if field != "name":
            assert f"--{field.replace('_', '-')} " in shown
    for words in ("90s, 9m or 2h", "jepaplan reproduce --list", "torchrun", "slurm_partition=gpu"):
        assert words in shown


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["tinny"], "there is no reproduction 'tinny'. Did you mean tiny?"),
        (["xyzzy"], "there is no reproduction 'xyzzy'. Known: "),
        (["tiny", "--time-limit", "9"], "--time-limit '9' is no time; write a number and a unit"),
        (["tiny", "--time-limit", "m"], "--time-limit 'm' is no time"),
        (["tiny", "--time-limit", "0m"], "--time-limit '0m' is no time"),
        (["tiny", "--time-limit", "-5m"], "--time-limit"),
        (["tiny", "--time-limit", "nanh"], "--time-limit 'nanh' is no time"),
        (["tiny", "--time-limit", "3 days"], "--time-limit '3 days' is no time"),
        (["tiny", "--seeds", "0"], "--seeds must be at least 1; got 0"),
        (["tiny", "--processes", "0"], "--processes must be at least 1; got 0"),
        (["tiny", "--threads", "0"], "--threads must be at least 1; got 0"),
        (["tiny", "--page", "here"], "--page names a file of markdown, such as here.md"),
        (["tiny", "--slurm", "gpu"], "--slurm 'gpu' is no setting; write name=value"),
        (["tiny", "--launcher", "slurm", "--json"], "leave it out with --launcher slurm"),
        (["tiny", "--only", "abacus"], "nothing of tiny holds abacus"),
        (["tiny", "--seed", "3"], "--seeds"),
    ],
)
def test_wrong_input_is_refused_in_words(arguments, words, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    said = capsys.readouterr()
    plain = " ".join((said.err + said.out).replace("│", " ").split())
    assert words in plain
    assert not list(tmp_path.iterdir())


def test_times_are_read():
    assert [reproduce.seconds(text) for text in (None, "90s", "9m", "1.5h")] == [None, 90, 540, 5400]
    with pytest.raises(InputError, match="such as 90s, 9m or 2h"):
        reproduce.seconds("")


def test_without_submitit_a_cluster_is_refused_in_words(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*COMMAND, "--folder", str(tmp_path), "--launcher", "slurm"]) == 2
    assert "pip install 'jepaplan[slurm]'" in capsys.readouterr().err


def test_without_a_cluster_submitting_is_refused_in_words(tiny, monkeypatch, tmp_path, capsys):
    pytest.importorskip("submitit", reason="submits jobs (extra `slurm`)")
    monkeypatch.delenv("JEPAPLAN_SUBMITIT_CLUSTER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [*COMMAND, "--folder", str(tmp_path / "runs"), "--launcher", "slurm"]
    assert main(command) == 2
    assert "submitit cannot submit here: " in capsys.readouterr().err
    monkeypatch.setenv("JEPAPLAN_SUBMITIT_CLUSTER", "local")
    assert main([*command, "--slurm", "timeout_mim=3"]) == 2
    assert "timeout_mim" in capsys.readouterr().err


def test_time_up_is_no_failure_for_torchrun(tmp_path, tiny, monkeypatch, capsys):
    """It would take another exit code for one, and end the workers that are still saving."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        assert not (tmp_path / "tiny.md").exists()
        monkeypatch.setenv("RANK", rank)
        assert main([*COMMAND, "--folder", str(tmp_path), "--time-limit", "0.001s"]) == 0
    assert "3 pieces of work are left" in capsys.readouterr().err
    assert "Nothing was measured yet" in (tmp_path / "tiny.md").read_text()


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path, alone, start):
    code, out, err = told(start(tmp_path, "--processes", "2", "--json"))
    assert code == 0, err[-3000:]
    shared_fairly(tmp_path, alone, err)
    assert out == rows_text(read_rows(tmp_path / "tiny.json"))


@pytest.mark.slow
def test_workers_of_torchrun_share_the_work_and_the_first_writes_the_page(tmp_path, alone, start):
    """With the variables that torchrun sets, and nobody at MASTER_ADDR: workers do not wait to meet."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    second = start(tmp_path, RANK="1", LOCAL_RANK="1", **meeting)
    code, out, err = told(second)  # the first has not even begun
    assert (code, out) == (0, ""), err[-3000:]
    assert not list(tmp_path.glob("tiny.*"))
    first, out, more = told(start(tmp_path, RANK="0", LOCAL_RANK="0", **meeting))
    assert (first, out) == (0, f"page: {tmp_path / 'tiny.md'}\n")
    shared_fairly(tmp_path, alone, err + more)


@pytest.mark.slow
def test_torchrun_itself_starts_workers(tmp_path, alone, start):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    code, out, err = told(start(tmp_path, launcher=launcher))
    assert code == 0, err[-3000:]
    assert out.count("page: ") == 1
    shared_fairly(tmp_path, alone, err)


@pytest.mark.slow
def test_who_stops_the_parent_stops_its_workers_with_everything_saved(tmp_path, alone, start):
    parent = start(tmp_path, "--processes", "2", PACE="0.5")
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)
    code, _, err = told(parent)  # ends at all: no worker holds the other end of its pipes
    assert code == 130, err[-3000:]
    assert "stopped" in err
    assert work(tiny_reproduction(), tmp_path, WorkOptions()).pieces == 0
    assert weights_of(tmp_path) == weights_of(alone)


@pytest.mark.slow
def test_jobs_share_the_work(tmp_path, alone, start):
    submitit = pytest.importorskip("submitit", reason="submits jobs (extra `slurm`)")
    worker = start(
        tmp_path,
        *("--processes", "2", "--launcher", "slurm", "--slurm", "timeout_min=5"),
        JEPAPLAN_SUBMITIT_CLUSTER="local",
    )
    code, out, err = told(worker)
    assert code == 0, err[-3000:]
    numbers = re.search(r"submitted 2 workers: (\d+), (\d+); logs in (.*?)\. ", out)
    assert numbers is not None
    jobs = [submitit.LocalJob(folder=tmp_path / "jobs", job_id=numbers[place]) for place in (1, 2)]
    said = [job.result() for job in jobs]
    assert sorted("page:" in words for words in said) == [False, True]
    logs = "".join(job.stderr() or "" for job in jobs)
    shared_fairly(tmp_path, alone, logs)
