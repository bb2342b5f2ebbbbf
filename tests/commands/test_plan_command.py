"""`jepaplan plan`: two pictures in, ranked candidates out."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from jepaplan.cli import main
from jepaplan.commands.plan import Options, decide, ties_in_words
from jepaplan.data.episodes import Earned, EpisodeWriter, open_episodes
from jepaplan.data.frames import frame_to_picture
from jepaplan.data.wall_walks import collect_wall
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.position_probe import ProbeConfig
from jepaplan.evaluation.tasks import load_instances
from jepaplan.models.value_heads import ValueHeadConfig
from jepaplan.recipes import state_probe
from jepaplan.recipes.run import TrainOptions, load_run, train
from jepaplan.recipes.state_probe import fit_state_probe
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


@pytest.fixture
def quick_probe(monkeypatch):
    monkeypatch.setattr(state_probe, "PROBE", ProbeConfig(kind="network", hidden=64, updates=200, batch=128))


def said_to(run, folder, capsys, *goal):
    """What `plan` answers to a goal that is no picture."""
    assert main(["plan", str(run), "--start", str(folder / "start.png"), "--json", *goal]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("quick_probe")
def test_distances_to_places_are_those_of_what_the_probe_reads(tiny_run, pictures, capsys):
    run = load_run(tiny_run)
    probe = fit_state_probe(run, open_episodes(tiny_run / "data.h5"))
    world, instance = WallWorld(WALL_BIG), load_instances("WallBig-demo").subset(1)
    seen = world.observe(instance.starts).frames
    place = probe.read(run.system.world_model.encode(seen))[0]
    # the probe was fitted, if only a little: half of what a constant would be off by
    assert probe.error.mean < 10
    far = float((place - torch.tensor([20.0, 30.0])).norm())
    found = said_to(tiny_run, pictures, capsys, "--goal-state", "20", "30")
    assert found["distance"] == pytest.approx(far, rel=1e-4)
    assert found["unit"] == "pixels, along a straight line"
    assert found["note"] == "the learned value cannot read places and does not count"
    assert found["probe"]["mean"] == pytest.approx(probe.error.mean)
    assert found["probe"]["unit"] == "pixels"
    ball = said_to(tiny_run, pictures, capsys, "--goal-centre", "20", "30", "--goal-radius", "2.5")
    assert ball["distance"] == pytest.approx(max(0.0, far - 2.5), rel=1e-4)
    box = said_to(tiny_run, pictures, capsys, "--goal-low", "20", "-inf", "--goal-high", "20", "inf")
    assert box["distance"] == pytest.approx(abs(float(place[0]) - 20), rel=1e-4)
    everywhere = ("--goal-low", "-inf", "-inf", "--goal-high", "inf", "inf")
    inside = said_to(tiny_run, pictures, capsys, *everywhere)
    assert inside["distance"] == 0.0
    assert {candidate["cost"] for candidate in inside["candidates"]} == {0.0}


@pytest.mark.usefixtures("quick_probe")
def test_a_probe_is_fitted_once_and_anew_where_anything_has_changed(
    tiny_run, pictures, tmp_path, capsys, monkeypatch
):
    run, fitted = shutil.copytree(tiny_run, tmp_path / "run"), []
    kept = run / "state_probe.safetensors"
    kept.unlink(missing_ok=True)  # another test may have asked
    monkeypatch.setattr(state_probe, "FITTED", 200)
    fit = state_probe.fit_state_probe
    monkeypatch.setattr(state_probe, "fit_state_probe", lambda *given: fitted.append(1) or fit(*given))

    def answer():
        found = said_to(run, pictures, capsys, "--goal-state", "20", "30", "--avoid", "30", "30", "2")
        return found["distance"], found["probe"], found["candidates"]

    first = answer()
    assert answer() == first
    assert len(fitted) == 1
    kept.write_bytes(kept.read_bytes()[:-3])  # damaged
    assert answer() == first
    assert len(fitted) == 2
    config = ProbeConfig(kind="linear")
    monkeypatch.setattr(state_probe, "PROBE", config)
    linear = answer()
    assert linear == answer() != first
    assert len(fitted) == 3
    monkeypatch.setattr(state_probe, "FITTED", 100)
    assert answer() != linear
    # a run whose folder takes nothing answers all the same
    kept.unlink()
    kept.mkdir()
    (kept / "in the way").touch()
    monkeypatch.setattr(state_probe, "FITTED", 200)
    assert answer() == linear


@pytest.mark.usefixtures("quick_probe")
def test_plans_to_a_place_cost_what_the_probe_reads_along_them(tiny_run, pictures):
    run = load_run(tiny_run)
    ends = with_planner(run, cost=replace(run.experiment.cost, over="terminal"))
    asked = {"run": tiny_run, "start": pictures / "start.png", "candidates": 5}
    found = decide(ends, Options(goal_state=(20.0, 30.0), **asked))
    costs = [candidate["cost"] for candidate in found["candidates"]]
    assert costs == sorted(costs)
    assert costs == pytest.approx([candidate["distance_at_end"] for candidate in found["candidates"]])
    # who counts steps ranks plans to a place by their ends, and the same every time
    counted = with_planner(run, cost=replace(run.experiment.cost, over="n_step"))
    again = decide(counted, Options(goal_state=(20.0, 30.0), **asked))
    assert again["candidates"] == found["candidates"]


@pytest.mark.usefixtures("quick_probe")
def test_what_is_avoided_costs_what_the_probe_reads_inside(tiny_run, pictures, capsys):
    """Who stays outside pays for the distance alone; who does not pays at least for the deepest step."""
    run = load_run(tiny_run)
    probe, model = fit_state_probe(run, open_episodes(tiny_run / "data.h5")), run.system.world_model
    start = model.encode(WallWorld(WALL_BIG).observe(load_instances("WallBig-demo").subset(1).starts).frames)
    place = probe.read(start)[0].tolist()
    common = ("--goal-state", "20", "30", "--planner", "shooting", "--samples", "40", "--cost", "terminal")
    plain = said_to(tiny_run, pictures, capsys, *common, "--candidates", "40")
    assert {candidate["clearance"] for candidate in plain["candidates"]} == {None}
    discs = [[place[0] + 1, place[1], 1.5], [place[0], place[1] - 2, 1.0]]
    options = [word for disc in discs for word in ("--avoid", *(f"{number}" for number in disc))]
    found = said_to(
        tiny_run, pictures, capsys, *common, "--candidates", "40", *options, "--avoid-weight", "3"
    )
    costs = [candidate["cost"] for candidate in found["candidates"]]
    assert costs == sorted(costs)
    for candidate in found["candidates"]:
        if candidate["clearance"] >= 0:
            assert candidate["cost"] == pytest.approx(candidate["distance_at_end"], rel=1e-4)
        else:
            assert candidate["cost"] >= candidate["distance_at_end"] + 3 * candidate["clearance"] ** 2 - 1e-3
    assert any(candidate["clearance"] < 0 for candidate in found["candidates"])
    assert found["probe"]["unit"] == "pixels"
    # a picture is pursued by the learned distance as before
    assert main(arguments(tiny_run, pictures, "--avoid", "20", "30", "5", "--candidates", "2")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "distances are in steps, as the learned distance counts them" in shown
    assert "clearance" in shown
    assert "places are read by a probe" in shown


def test_a_plan_can_be_searched_for_in_other_ways(tiny_run, pictures, capsys):
    """The options of `evaluate`."""
    assert main(arguments(tiny_run, pictures, "--json", "--planner", "cem", "--samples", "10")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["considered"] == 10
    assert main(arguments(tiny_run, pictures, "--json", "--effort", "1", "--cost", "terminal")) == 0
    paid = json.loads(capsys.readouterr().out)["candidates"]
    # the plan to start from does nothing, which is no effort
    assert all(candidate["cost"] >= candidate["distance_at_end"] for candidate in paid)
    assert any(candidate["cost"] > candidate["distance_at_end"] + 0.01 for candidate in paid)
    assert main(arguments(tiny_run, pictures, "--value", "paths")) == 2
    assert "there is no value head 'paths'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("quick_probe")
def test_people_read_what_distances_are_measured_in(tiny_run, pictures, capsys):
    assert main(arguments(tiny_run, pictures)) == 0
    assert "distances are in steps, as the learned distance counts them" in capsys.readouterr().out
    before = set(tiny_run.rglob("*"))
    start = ["plan", str(tiny_run), "--start", str(pictures / "start.png")]
    assert main([*start, "--goal-state", "20", "30"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "distances are in pixels, along a straight line" in shown
    assert "the learned value cannot read places and does not count" in shown
    assert "places are read by a probe that is off by" in shown
    assert "judged by 20 that it did not learn from" in shown
    assert set(tiny_run.rglob("*")) == before


def test_goals_that_are_none_are_refused_in_words(tiny_run, pictures, capsys):
    def refused(*goal):
        code = main(["plan", str(tiny_run), "--start", str(pictures / "start.png"), *goal])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        return " ".join(said.err.split())

    picture = ("--goal", str(pictures / "goal.png"))
    assert "a plan has one goal; got none. Write one of: --goal GOAL.png; --goal-state X Y" in refused()
    assert "got --goal GOAL.png and --goal-state X Y" in refused(*picture, "--goal-state", "20", "30")
    assert "--goal-felt belongs to --goal" in refused("--goal-state", "20", "30", "--goal-felt", "0.0")
    assert "--data is where places are learned from" in refused(*picture, "--data", "some.h5")
    assert "--avoid-weight belongs to --avoid" in refused(*picture, "--avoid-weight", "3")
    assert "--value none counts the steps to a picture" in refused("--value-alone", "a", "--value", "none")
    assert "a ball has a centre and a radius" in refused("--goal-centre", "20", "30")
    assert "a ball has a centre and a radius" in refused("--goal-radius", "3")
    assert "a box has two corners" in refused("--goal-low", "20", "30")
    assert "names no value head without goals; this run has none" in refused("--value-alone", "paths")


@pytest.mark.usefixtures("quick_probe")
def test_places_that_are_none_are_refused_in_words(tiny_run, pictures, capsys):
    def refused(*goal):
        code = main(["plan", str(tiny_run), "--start", str(pictures / "start.png"), *goal])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        return " ".join(said.err.split())

    assert "--goal-state takes 2 numbers, in pixels; got [20.0]" in refused("--goal-state", "20")
    assert "--goal-centre takes 2 numbers" in refused("--goal-centre", "nan", "1", "--goal-radius", "3")
    assert "--goal-radius is a length" in refused("--goal-centre", "20", "30", "--goal-radius", "-3")
    assert "where nothing was recorded" in refused("--goal-state", "200", "30")
    assert "where nothing was recorded" in refused("--goal-centre", "-9", "30", "--goal-radius", "3")
    here = ("--goal-state", "20", "30")
    assert "--avoid takes 3 numbers, a place and a positive radius" in refused(*here, "--avoid", "20", "30")
    assert "got [20.0, nan, 2.0]" in refused(*here, "--avoid", "20", "nan", "2")
    assert "got [20.0, 30.0, -1.0]" in refused(*here, "--avoid", "20", "30", "-1")
    assert "--avoid-weight is a positive number" in refused(
        *here, "--avoid", "20", "30", "2", "--avoid-weight", "0"
    )
    assert "a box needs low <= high" in refused("--goal-low", "20", "30", "--goal-high", "10", "40")


def test_recordings_that_say_no_places_are_refused_in_words(tiny_run, pictures, tmp_path, capsys):
    def refused(run, *data):
        start = ["plan", str(run), "--start", str(pictures / "start.png"), "--goal-state", "20", "30"]
        assert main([*start, *data]) == 2
        return " ".join(capsys.readouterr().err.split())

    torn = shutil.copytree(tiny_run, tmp_path / "run")
    (torn / "data.h5").unlink()
    assert "has no recording of its own to learn places from; write --data FILE" in refused(torn)
    episodes = open_episodes(tiny_run / "data.h5")
    frames, actions = episodes.observations[:20], episodes.actions[:19]
    states = episodes.states[:20]

    def written(name, **columns):
        with EpisodeWriter(tmp_path / name, {"world": "WallBig"}) as writer:
            writer.append(columns.pop("frames", frames), actions, **columns)
        return "--data", str(tmp_path / name)

    assert "holds no states" in refused(torn, *written("blind.h5"))
    assert "holds one trajectory" in refused(torn, *written("short.h5", states=states))
    small = written("small.h5", states=states, frames=frames[..., :32, :32])
    assert "has images (2, 32, 32)" in refused(torn, *small)


@pytest.mark.usefixtures("quick_probe")
def test_states_of_worlds_that_nobody_registered_are_read_as_recorded(tiny_run, tmp_path):
    """Here three numbers, of which the last is the height of the door."""
    known = open_episodes(tiny_run / "data.h5")
    states = known.states[:, [0, 1, 3]]
    with EpisodeWriter(tmp_path / "own.h5", {"world": "MyRooms"}) as writer:
        for first, length in zip(known.starts.tolist(), known.lengths.tolist(), strict=True):
            rows = slice(first, first + length + 1)
            number = (first // (length + 1)) * length
            actions = known.actions[number : number + length]
            writer.append(known.observations[rows], actions, states=states[rows])
    probe = fit_state_probe(load_run(tiny_run), open_episodes(tmp_path / "own.h5"))
    assert (probe.width, probe.unit) == (3, "units of the recorded states")
    torch.testing.assert_close(probe.high, states.amax(0))


def test_a_value_alone_is_what_a_head_without_goals_says(pictures, tmp_path, capsys):
    recipe, path = tiny_experiment("wall_big_prediction_vcreg_cpu"), tmp_path / "run"
    known = load_instances("WallBig-demo").subset(1)
    world, fit = WallWorld(WALL_BIG), recipe.stages[0].fit
    head = ValueHeadConfig(goal=False, hidden=8)
    stage = ValueHeadStage(name="home", fit=fit, head=head, steps=2, reward="success", method="td")
    guided = ValueHeadStage(name="pairs", fit=fit, head=ValueHeadConfig(hidden=8), steps=2, method="pairs")
    record = tmp_path / "walks.h5"
    successes(record)
    train(replace(recipe, stages=(*recipe.stages, stage, guided)), path, TrainOptions(data=record))
    run = load_run(path)
    latent = run.system.world_model.encode(world.observe(known.starts).frames)
    due = -float(run.system.values["home"].ensemble(latent).mean())
    found = said_to(path, pictures, capsys, "--value-alone", "home")
    assert found["distance"] == pytest.approx(due, rel=1e-5)
    assert found["unit"] == "steps to success, as value head 'home' counts them, discounted by 0.98"
    assert found["probe"] is None
    start = ["plan", str(path), "--start", str(pictures / "start.png")]
    assert main([*start, "--value-alone", "pairs"]) == 2
    assert "names no value head without goals; this run has home" in " ".join(capsys.readouterr().err.split())
    # a picture does not count for such a head, and a plain latent is no step
    assert main(arguments(path, pictures)) == 0
    assert "distances are in squared latent units" in capsys.readouterr().out
    alone = with_planner(run, cost=replace(run.experiment.cost, value="home"))
    options = Options(run=path, start=pictures / "start.png", goal=pictures / "goal.png")
    assert decide(alone, options)["note"] == "value head 'home' knows no goals: the picture does not count"


def successes(path):
    """Walks of the tiny recordings, in which the left of the picture is a success."""
    made = path.with_name("made.h5")
    collect_wall(made, WALL_BIG, trajectories=24, states=20, seed=0)
    known = open_episodes(made)
    with EpisodeWriter(path, {"world": "WallBig"}) as writer:
        for episode in range(len(known)):
            rows, acts = slice(20 * episode, 20 * episode + 20), slice(19 * episode, 19 * episode + 19)
            there = known.states[rows, 0] < 20
            writer.append(
                known.observations[rows],
                known.actions[acts],
                states=known.states[rows],
                earned=Earned(success=there),
            )
