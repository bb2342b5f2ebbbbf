"""`jepaplan evaluate`: rows for machines, a table for people, one page that needs nothing else."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from jepaplan.cli import main
from jepaplan.commands import console
from jepaplan.commands.evaluate import Options
from jepaplan.commands.search_options import PLANNERS, changed, same_kind
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.results import markdown_table, read_rows
from jepaplan.evaluation.tasks import load_instances
from jepaplan.models.int8 import products_are_right
from jepaplan.planners.cem import CEM
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.recipes.run import load_run, train
from jepaplan.recipes.study import with_planner
from jepaplan.recipes.system import build_controller, in_bfloat16
from tiny_runs import tiny_experiment


def test_everything_is_inside_the_run(evaluated):
    beside = sorted(path.name for path in evaluated.parent.iterdir())
    assert beside == [evaluated.name]
    inside = {path.name for path in evaluated.iterdir() if not path.name.startswith(".")}
    known = {"card.json", "config.json", "data.h5", "metrics.jsonl", "state", "weights.safetensors"}
    assert inside == known | {"results.json", "outcomes", "report.html"}
    rows = read_rows(evaluated / "results.json")
    assert [row.method for row in rows] == ["value-guided", "prediction only"]
    assert all(row.success.trials == 4 and row.command.startswith("jepaplan evaluate") for row in rows)


def test_the_report_needs_nothing_from_outside(evaluated):
    page = (evaluated / "report.html").read_text()
    assert "value-guided" in page
    # Names of XML languages look like addresses; nothing fetches them.
    assert not [found for found in re.findall(r"""https?://[^\s"'<>)]*""", page) if "www.w3.org" not in found]
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "@import" not in page


def test_json_is_all_there_is_on_standard_output(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    options = ["--episodes", "4", "--no-references", "--no-report", "--json", "--seed", "1"]
    assert main(["evaluate", str(run), *options]) == 0
    printed = tmp_path / "rows.json"
    printed.write_text(capsys.readouterr().out)
    assert read_rows(printed) == read_rows(run / "results.json")
    assert not (run / "report.html").exists()


def test_a_page_shows_the_rows_of_its_twin(tiny_run, tmp_path, capsys):
    run, page = shutil.copytree(tiny_run, tmp_path / "run"), tmp_path / "results" / "page.md"
    small = ["--episodes", "2", "--no-references", "--no-report", "--precision", "bf16"]
    assert main(["evaluate", str(run), *small, "--page", str(page)]) == 0
    rows = read_rows(page.with_suffix(".json"))
    assert rows == read_rows(run / "results.json")
    text = page.read_text()
    assert markdown_table(rows).strip() in text
    assert f"`{rows[0].command}`" in text


def test_bfloat16_imagines_nearly_the_same(tiny_run):
    model = load_run(tiny_run).system.world_model
    twin = in_bfloat16(model)
    latent, action = torch.randn(8, 48), torch.randn(8, 2)
    with torch.no_grad():
        exact, rough = model.step(latent, action), twin.step(latent.bfloat16(), action)
    assert rough.dtype == torch.bfloat16
    assert 0 < float((exact - rough.float()).abs().max()) < 0.05


@pytest.mark.skipif(not products_are_right(), reason="this processor has no exact 8-bit products")
def test_int8_plans_and_planners_with_gradients_refuse_it(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    small = ["--episodes", "2", "--no-references", "--no-report", "--precision", "int8", "--device", "cpu"]
    assert main(["evaluate", str(run), *small]) == 0
    assert "--precision int8" in read_rows(run / "results.json")[0].command
    before = (run / "results.json").read_bytes()
    capsys.readouterr()
    assert main(["evaluate", str(run), *small, "--planner", "gradient"]) != 0
    assert "integers have no gradients" in " ".join(capsys.readouterr().err.split())
    assert (run / "results.json").read_bytes() == before


def test_references_are_rows_too(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    small = ["--episodes", "2", "--no-report", "--json"]
    assert main(["evaluate", str(run), *small]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6
    assert {row["method"] for row in rows} >= {"random actions", "true dynamics, geodesic"}


def test_options_change_the_search_and_nothing_else(tiny_run):
    run = load_run(tiny_run)
    planner = run.experiment.planner
    asked = Options(run=tiny_run, planner="cem", samples=20, horizon=3, cost="terminal")
    found = changed(run, asked).experiment
    assert found.planner == CEM(samples=20, horizon=3, elites=10, std=planner.std, bounds=planner.bounds)
    assert found.cost.over == "terminal"
    assert changed(run, Options(run=tiny_run)).experiment == run.experiment
    assert changed(run, Options(run=tiny_run, samples=8)).experiment.planner == replace(planner, samples=8)


@pytest.fixture(scope="module")
def run_with_heads(tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "run"
    train(tiny_experiment("wall_big_heads", updates=2), path)
    return path


def test_a_value_head_and_its_reading_are_chosen_when_planning(run_with_heads):
    run = load_run(run_with_heads)
    latent, goal = torch.randn(5, 48), torch.randn(5, 48)

    def paid(**asked):
        found = changed(run, Options(run=run_with_heads, **asked))
        return found.system.steps_to_go(found.experiment.cost)(latent, goal)

    for name in ("pairs", "expectile", "paths"):
        costs = -run.system.values[name].ensemble(latent, goal)
        assert costs.shape == (5, 3)
        assert (costs.std(dim=-1) > 0).all()
        torch.testing.assert_close(paid(value=name), costs.mean(-1))
        torch.testing.assert_close(paid(value=name, reading="minimum"), costs.amax(-1))
        torch.testing.assert_close(
            paid(value=name, reading="lower_confidence", caution=2.0),
            costs.mean(-1) + 2 * costs.std(-1, unbiased=False),
        )
    torch.testing.assert_close(paid(), paid(value="paths"))
    torch.testing.assert_close(paid(reading="minimum"), paid(value="paths", reading="minimum"))
    torch.testing.assert_close(paid(value="none"), (latent - goal).norm(dim=-1))


def test_heads_that_are_not_there_are_refused_in_words(run_with_heads, tiny_run, capsys):
    def refused(run, *arguments):
        code = main(["evaluate", str(run), "--episodes", "1", *arguments])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        return " ".join(said.err.split())

    assert "no value head 'pears' to plan with; this experiment has pairs" in refused(
        run_with_heads, "--value", "pears"
    )
    assert "this experiment has none" in refused(tiny_run, "--value", "pairs")
    assert "no head is named; write cost.value too" in refused(tiny_run, "--reading", "minimum")
    assert "--caution 1 belongs to --reading lower_confidence" in refused(run_with_heads, "--caution", "1")


def test_terms_of_the_cost_are_chosen_when_planning(run_with_heads):
    run = load_run(run_with_heads)
    assert run.experiment.cost.value == "paths"

    def asked(**options):
        return changed(run, Options(run=run_with_heads, **options)).experiment.cost

    own = run.experiment.cost
    weights = {"effort": 0.1, "smoothness": 0.2, "disagreement": 0.3}
    assert asked(**weights) == replace(own, **weights)
    assert asked(cost="n_step", reached=2.0, discount=0.9) == replace(
        own, over="n_step", reached=2.0, discount=0.9
    )
    assert asked(cost="discounted", discount=0.5) == replace(own, over="discounted", discount=0.5)
    wary = with_planner(run, cost=replace(own, disagreement=0.3))
    assert changed(wary, Options(run=run_with_heads, disagreement=0.0)).experiment.cost == own
    # who leaves the head leaves its members as well
    assert changed(wary, Options(run=run_with_heads, value="none")).experiment.cost == replace(
        own, value=None
    )


def test_every_term_is_paid_and_the_baseline_pays_what_it_knows(run_with_heads, small_report, tmp_path):
    run = shutil.copytree(run_with_heads, tmp_path / "run")
    costs = ["--cost", "n_step", "--smoothness", "0.1", "--disagreement", "0.5", "--effort", "0.1"]
    assert main(["evaluate", str(run), "--episodes", "2", "--threads", "1", *costs]) == 0
    page = (run / "report.html").read_text()
    assert all(name in page for name in ("n-step cost", "smoothness", "value disagreement", "effort"))
    methods = [row.method for row in read_rows(run / "results.json")]
    assert methods[:2] == ["value-guided", "prediction only"]
    assert "true dynamics, geodesic" in methods


def test_costs_that_cannot_be_paid_are_refused_in_words(run_with_heads, tiny_run, capsys):
    def refused(run, *arguments):
        code = main(["evaluate", str(run), "--episodes", "1", *arguments])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        return " ".join(said.err.split())

    assert "no head is named; write cost.value too" in refused(tiny_run, "--disagreement", "0.1")
    assert "BeamSearch pays for every step by itself" in refused(
        tiny_run, "--smoothness", "0.1", "--planner", "beam"
    )
    assert "--reached 2 belongs to --cost n_step; the cost is sum" in refused(tiny_run, "--reached", "2")
    assert "--discount 0.9 belongs to --cost discounted or n_step" in refused(tiny_run, "--discount", "0.9")
    assert "a distance of latents counts none" in refused(
        run_with_heads, "--value", "none", "--cost", "n_step"
    )


def test_rows_of_a_head_and_of_the_same_latents_alone(run_with_heads, small_report, capsys):
    small = ["--episodes", "2", "--no-references", "--no-report", "--json"]
    for asked, methods in (
        (("--value", "pairs", "--reading", "minimum"), ["value-guided", "prediction only"]),
        (("--value", "none"), ["prediction only"]),
    ):
        assert main(["evaluate", str(run_with_heads), *small, *asked]) == 0
        assert [row["method"] for row in json.loads(capsys.readouterr().out)] == methods


@pytest.mark.parametrize("name", list(PLANNERS))
def test_every_planner_takes_the_bounds_and_the_horizon_of_the_run(tiny_run, name):
    run = load_run(tiny_run)
    own = replace(run.experiment.planner, std=0.7)
    found = changed(with_planner(run, planner=own), Options(run=tiny_run, planner=name)).experiment.planner
    assert same_kind(found, PLANNERS[name])
    assert (found.std, found.bounds, found.horizon) == (0.7, own.bounds, own.horizon)


def test_both_trees_can_be_asked_for_whichever_the_run_has(tiny_run):
    run = with_planner(load_run(tiny_run), planner=TreeSearch(horizon=3))
    found = changed(run, Options(run=tiny_run, planner="gumbel-tree")).experiment.planner
    assert isinstance(found.rule, GumbelHalving)
    assert changed(run, Options(run=tiny_run, planner="tree")).experiment == run.experiment


def test_a_budget_of_time_cuts_searches_short_and_is_for_each_instance_alone(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    small = ["--episodes", "2", "--no-references", "--no-report", "--horizon", "2", "--json"]
    assert main(["evaluate", str(run), *small, "--samples", "500000", "--budget-ms", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["success"]["trials"] for row in rows] == [2, 2]
    # one plan of all 500,000 would be a million calls and take many times as long
    assert all(2 < row["evaluations_per_step"] < 500_000 for row in rows)


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_every_planner_takes_a_budget_of_time(tiny_run, name):
    run = changed(load_run(tiny_run), Options(run=tiny_run, planner=name))
    assert run.experiment.learns_value
    world_model, distance = run.system.world_model, run.system.steps_to_go(run.experiment.cost)
    controller = build_controller(run.experiment, world_model, distance, milliseconds=3.0)
    instance, world = load_instances("WallBig-demo").subset(1), find_world("WallBig")
    controller.reset(world.observe(instance.goals), torch.Generator().manual_seed(0))
    for _ in range(3):
        assert controller.act(world.observe(instance.starts)).isfinite().all()
    assert controller.last is not None
    assert controller.last.evaluations > 0


def test_a_budget_of_no_time_is_refused(tiny_run, capsys):
    small = ["--episodes", "1", "--no-references", "--no-report", "--planner", "beam"]
    assert main(["evaluate", str(tiny_run), *small, "--budget-ms", "0"]) == 2
    assert "positive; got 0" in " ".join(capsys.readouterr().err.split())


def test_wrong_input_is_refused_in_words(tiny_run, tmp_path, capsys):
    def refused(*arguments):
        code = main(["evaluate", *map(str, arguments)])
        said = capsys.readouterr()
        assert said.out == ""
        return code, " ".join(said.err.split())

    code, said = refused(tmp_path)
    assert (code, "Is" in said and "the folder of a run?" in said) == (2, True)
    code, said = refused(tiny_run, "--instances", "WallBig-dmo")
    assert (code, "there are no instances named 'WallBig-dmo'" in said) == (2, True)
    code, said = refused(tiny_run, "--episodes", "0")
    assert (code, "ask for 1 to 60" in said or "ask for 1 to" in said) == (2, True)
    code, said = refused(tiny_run, "--horizn", "3")
    assert (code, "--horizon" in said) == (2, True)
    code, said = refused(tiny_run, "--samples", "0")
    assert code == 2
    damaged = shutil.copytree(tiny_run, tmp_path / "run")
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    code, said = refused(damaged)
    assert (code, "weights.safetensors is refused" in said) == (2, True)


def test_tables_keep_names_and_numbers_whole_in_a_narrow_window(capsys):
    columns = ["method", "success, 95 % interval", "planning per step", "model calls per step"]
    rows = [["true dynamics, pixel distance", "0.00 [0.00, 0.49] (0/4)", "1.97 ms", "18,432"]]
    Console(width=80).print(console.table("a [b]", columns, rows))
    shown = capsys.readouterr().out
    assert "a [b]" in shown
    assert all(cell in shown for cell in rows[0])


def test_paths_are_not_cut_into_lines(capsys):
    path = Path("/folder", *["deep"] * 40, "report.html")
    console.RESULTS.print(f"report: {path}", markup=False)
    assert capsys.readouterr().out == f"report: {path}\n"


def test_a_device_that_is_not_there_is_refused(tiny_run, capsys):
    assert main(["evaluate", str(tiny_run), "--device", "abacus"]) == 2
    assert "--device abacus cannot be used here" in " ".join(capsys.readouterr().err.split())


def test_a_video_run_is_sent_to_probe(tiny_video_run, capsys):
    assert main(["evaluate", str(tiny_video_run)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "pretraining of a video encoder, which has no actions to plan with" in said.err
    assert "`jepaplan probe RUN --data VIDEOS`" in said.err
