"""`jepaplan report`: the page of a run, written again."""

import re
import shutil

from jepaplan.cli import main
from jepaplan.evaluation.results import read_rows


def test_the_report_is_written_again(tiny_run, tmp_path, small_report, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(["report", str(run), "--episodes", "3"]) == 0
    page = (run / "report.html").read_text()
    rows = read_rows(run / "results.json")
    assert len(rows) == 6
    assert all(row.success.trials == 3 and row.instance_file == "WallBig-demo" for row in rows)
    for row in rows:
        assert row.method in page
    for section in ("result", "episodes", "maps", "failures", "probes", "training", "provenance"):
        assert f'id="{section}"' in page
    assert "within 1.41 pixels of the goal" in page
    assert re.search(r"same room: <b>-?\d\.\d\d</b>", page)
    assert str(run / "report.html") in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "the folder of a run?" in " ".join(capsys.readouterr().err.split())
