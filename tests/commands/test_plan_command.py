"""`jepaplan plan`: two pictures in, ranked candidates out."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from jepaplan.cli import main
from jepaplan.commands.plan import Options, decide, ties_in_words
from jepaplan.data.frames import frame_to_picture
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.tasks import load_instances
from jepaplan.models.value_heads import ValueHeadConfig
from jepaplan.recipes.run import load_run, train
from jepaplan.recipes.study import with_planner
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.types import InputError
from tiny_runs import tiny_experiment


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("pictures"), WallWorld(WALL_BIG)
    instance = load_instances("WallBig-demo").subset(1)
    for name, states in (("start", instance.starts), ("goal", instance.goals)):
        frame_to_picture(world.observe(states).frames[0]).save(folder / f"{name}.png")
    return folder


def arguments(run, folder, *more):
    return ["plan", str(run), "--start", str(folder / "start.png"), "--goal", str(folder / "goal.png"), *more]


def test_candidates_are_ranked_and_the_same_for_the_same_seed(tiny_run, pictures, capsys):
    found = []
    for seed in ("0", "0", "1"):
        assert main(arguments(tiny_run, pictures, "--json", "--candidates", "5", "--seed", seed)) == 0
        found.append(json.loads(capsys.readouterr().out))
    costs = [candidate["cost"] for candidate in found[0]["candidates"]]
    assert len(costs) == 5
    assert costs == sorted(costs)
    assert found[0]["candidates"][0]["tied"]
    assert found[0]["action"] == found[1]["action"] != found[2]["action"]
    assert found[0]["distance"] >= 0
    assert len(found[0]["action"]) == 2


def test_more_candidates_than_sampled_are_all_there_are(tiny_run, pictures, capsys):
    assert main(arguments(tiny_run, pictures, "--json", "--candidates", "100")) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 16


def test_a_budget_of_time_cuts_the_search_short(tiny_run, pictures):
    run = load_run(tiny_run)
    many = with_planner(run, planner=replace(run.experiment.planner, samples=200_000))
    options = Options(
        run=tiny_run, start=pictures / "start.png", goal=pictures / "goal.png", budget_ms=5.0, candidates=2
    )
    found = decide(many, options)
    # all of them would be 800,000 calls and take many times as long
    assert 0 < found["evaluations"] < 400_000
    # of one iteration, and none is left out of the count
    assert found["considered"] in (16, found["evaluations"] // 4, found["evaluations"] // 4 - 16)
    assert len(found["candidates"]) == 2


def test_a_budget_of_time_from_the_command_line(tiny_run, pictures, capsys):
    assert main(arguments(tiny_run, pictures, "--json", "--budget-ms", "60000")) == 0
    found = json.loads(capsys.readouterr().out)
    # a quarter of the sixteen measures
    assert (found["considered"], found["evaluations"]) == (12, 16 * 4)
    assert main(arguments(tiny_run, pictures, "--budget-ms", "0")) == 2
    assert "milliseconds is the time for one plan" in " ".join(capsys.readouterr().err.split())


def test_ties_are_named_only_where_there_are_some():
    assert ties_in_words(1) == "no other candidate is as good as the best"
    assert ties_in_words(3) == "the best 3 candidates are tied"


def test_people_see_a_table_and_the_action(tiny_run, pictures, capsys):
    before = set(tiny_run.rglob("*"))
    assert main(arguments(tiny_run, pictures)) == 0
    shown = capsys.readouterr().out
    assert "candidates of 16, cheapest first" in shown
    assert ("1 (tied)" in shown) == ("candidates are tied" in shown)
    assert "action to execute now, in the environment's units:" in shown
    assert set(tiny_run.rglob("*")) == before


def test_wrong_pictures_are_refused_in_words(tiny_run, pictures, tmp_path, capsys):
    def refused(picture):
        code = main(["plan", str(tiny_run), "--start", str(picture), "--goal", str(pictures / "goal.png")])
        said = capsys.readouterr()
        assert said.out == ""
        return code, said.err

    small = tmp_path / "small.png"
    Image.new("RGB", (32, 32)).save(small)
    code, said = refused(small)
    assert (code, "has 32 x 32 pixels; expected 64 x 64" in said) == (2, True)
    grey = tmp_path / "grey.png"
    Image.new("L", (64, 64)).save(grey)
    code, said = refused(grey)
    assert (code, "is a picture of kind L; expected RGB" in said) == (2, True)
    blue = tmp_path / "blue.png"
    Image.new("RGB", (64, 64), (0, 0, 9)).save(blue)
    code, said = refused(blue)
    assert (code, "the blue channel is not empty" in said) == (2, True)
    words = tmp_path / "words.png"
    words.write_text("not a picture")
    code, said = refused(words)
    assert (code, "cannot be read as a PNG" in said) == (2, True)
    code, said = refused(tmp_path / "none.png")
    assert (code, "there is no such file" in said) == (2, True)


def test_a_count_of_candidates_is_positive(tiny_run, pictures, capsys):
    assert main(arguments(tiny_run, pictures, "--candidates", "0")) == 2
    assert "--candidates" in capsys.readouterr().err


def test_a_run_that_feels_is_told_what_is_felt(tmp_path, capsys):
    pytest.importorskip("mujoco")
    run = tmp_path / "maze"
    train(tiny_experiment("maze_prediction_vcreg_cpu"), run)
    world, instance = find_world("Maze"), load_instances("Maze-tuning").subset(1)
    for name, states in (("start", instance.starts), ("goal", instance.goals)):
        frame_to_picture(world.observe(states).frames[0]).save(tmp_path / f"{name}.png")
    assert main(arguments(run, tmp_path)) == 2
    assert "--felt was given 0 numbers" in (said := capsys.readouterr().err)
    assert "Write --felt 0.0 0.0" in " ".join(said.split())
    found = []
    for felt in (("0", "0"), ("3", "-3")):
        assert main(arguments(run, tmp_path, "--json", "--felt", *felt)) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["distance"] != found[1]["distance"]


def test_a_run_that_feels_nothing_takes_no_numbers(tiny_run, pictures, capsys):
    assert main(arguments(tiny_run, pictures, "--felt", "1.0")) == 2
    assert "Write no --felt" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("small_report")
def test_a_head_that_values_actions_guides_plans_and_evaluations(pictures, tmp_path, capsys):
    """It knows no distance of a latent alone, so what needs one says so or leaves it out."""
    recipe, run = tiny_experiment("wall_big_prediction_vcreg_cpu"), tmp_path / "run"
    head = ValueHeadConfig(action=True, hidden=8)
    stage = ValueHeadStage(name="q", fit=recipe.stages[0].fit, head=head, steps=2)
    cost = replace(recipe.cost, value="q", over="terminal")
    train(replace(recipe, stages=(*recipe.stages, stage), cost=cost), run)
    assert main(arguments(run, pictures, "--json", "--candidates", "3")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["distance"] is None
    costs = [candidate["cost"] for candidate in found["candidates"]]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    assert main(arguments(run, pictures)) == 0
    assert "distance from start to goal: unknown to a value of actions" in capsys.readouterr().out
    small = ["--episodes", "2", "--no-references", "--threads", "1"]
    assert main(["evaluate", str(run), *small]) == 0
    assert "value-guided" in (run / "report.html").read_text()
    assert main(["evaluate", str(run), *small, "--no-report", "--planner", "beam"]) == 0
    capsys.readouterr()
    torn = load_run(run)
    with pytest.raises(InputError, match="there is no value head 'p'; this run has q"):
        torn.system.steps_to_go(replace(cost, value="p"))
