"""`jepaplan demo`: record, train, plan, report, in one go and again."""

from jepaplan.cli import main
from jepaplan.commands import demo, evaluate
from jepaplan.evaluation.results import read_rows
from jepaplan.evaluation.tasks import load_instances
from tiny_runs import tiny_experiment


def test_from_nothing_to_a_report_and_a_plan(tmp_path, monkeypatch, small_report, capsys):
    run = tmp_path / "demo"
    monkeypatch.setattr(demo, "wall_big_ways", lambda: tiny_experiment("wall_big_ways", updates=2))
    monkeypatch.setattr(demo, "load_instances", lambda name: load_instances(name).subset(2))
    assert main(["demo", str(run), "--seed", "3", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "value-guided" in said
    assert "true dynamics, geodesic" in said
    rows = read_rows(run / "results.json")
    assert len(rows) == 6
    assert rows[0].training_seeds == (3,)
    assert rows[0].command == f"jepaplan demo {run} --seed 3 --threads 1"
    assert "<html" in (run / "report.html").read_text()
    # The line that comes next is one that works.
    following = said.split("next: jepaplan ")[1].split()
    assert following[0] == "plan"
    assert main(following) == 0
    monkeypatch.setattr(evaluate, "tell", lambda made, board, blamed: None)
    trained = (run / "weights.safetensors").read_bytes()
    assert main(["demo", str(run), "--seed", "3", "--threads", "1"]) == 0
    assert (run / "weights.safetensors").read_bytes() == trained
