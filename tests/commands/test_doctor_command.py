"""What the machine can do: fine here, and each thing missing with a line that mends it."""

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from jepaplan import cli
from jepaplan.commands import doctor


def test_the_base_works_here(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"python", "base packages", "torch", "accelerator", "processor", "memory", "disk"} <= set(findings)
    assert metadata.version("torch") in findings["torch"]["found"]
    assert cli.main(["doctor"]) == 0
    assert "the base works" in capsys.readouterr().out


def test_torch_is_not_imported():
    program = "import sys; from jepaplan.cli import main; main(['doctor']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_missing_and_old_packages_are_mended_by_a_line(monkeypatch, capsys):
    lines = ["rich>=14.0", "nonesuch-package>=2.0", "numpy>=999", 'nonesuch-board>=1; extra == "track"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert cli.main(["doctor"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "nonesuch-package: pip install 'nonesuch-package>=2.0'" in out
    assert "numpy: pip install 'numpy>=999'" in out
    assert "extra track: pip install 'jepaplan[track]'" in out
    assert "the base is broken" in out


def test_a_missing_extra_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "requires", lambda name: ["rich", "nonesuch; extra == 'maze'"])
    assert cli.main(["doctor"]) == 0
    assert "pip install 'jepaplan[maze]'" in " ".join(capsys.readouterr().out.split())


def test_what_the_maze_and_clusters_need_is_there_or_mended(monkeypatch, capsys):
    lines = ["rich", "mujoco>=4.0; extra == 'maze'", "submitit>=1.5; extra == 'slurm'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    real = metadata.version

    def version(name):
        if name == "mujoco":
            return "4.0.0"
        if name == "submitit":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert cli.main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["extra maze"]["found"] == "mujoco 4.0.0 (for the point maze)"
    assert (findings["extra maze"]["state"], findings["extra maze"]["mend"]) == ("fine", "")
    assert findings["extra slurm"]["found"].startswith("submitit is missing (for `jepaplan reproduce")
    assert findings["extra slurm"]["mend"] == "pip install 'jepaplan[slurm]'"


def test_every_extra_says_what_it_is_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == set(doctor.PURPOSES)


def test_versions_compare_as_numbers(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor.lacking("torch", "2.9") == ""
    assert doctor.lacking("torch", "2.13") == ""
    assert doctor.lacking("torch", "2.14") == "2.13.0+cpu is older than 2.14"


def test_threads_held_back_are_noted(monkeypatch):
    monkeypatch.setattr(doctor, "_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "unset OMP_NUM_THREADS" in doctor.processor().mend
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert doctor.processor().mend == ""


def test_without_the_extras_for_video_one_line_each_mends_it(monkeypatch, capsys):
    lines = ["rich", "nonesuch-av>=14.0; extra == 'video'", "nonesuch-hub>=1.0; extra == 'hf'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("extra video: ")] == [
        "extra video: pip install 'jepaplan[video]'"
    ]
    assert [line for line in out if line.startswith("extra hf: ")] == ["extra hf: pip install 'jepaplan[hf]'"]
    assert "(for video files: `jepaplan train video_nano`" in " ".join(" ".join(out).split())
