"""Work is done once, by whomever; stopped anywhere it goes on to the same result."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import tiny_reproductions
from jepaplan.envs import wall
from jepaplan.evaluation.probes import distance_map
from jepaplan.evaluation.references import GeodesicDistance
from jepaplan.evaluation.tasks import load_instances
from jepaplan.planners.mppi import MPPI
from jepaplan.recipes import reproduction_pieces, reproduction_work
from jepaplan.recipes.projects import Grid
from jepaplan.recipes.reproduction import (
    Claim,
    Reproduction,
    Training,
    read_outcomes,
)
from jepaplan.recipes.reproduction_maps import STRIDE, MapPiece
from jepaplan.recipes.reproduction_pieces import pieces
from jepaplan.recipes.reproduction_work import Left, Silent, WorkOptions, adopt, publish
from jepaplan.types import InputError
from tiny_reproductions import (
    SHORT,
    left_open,
    outcomes_of,
    tiny_evaluation,
    tiny_reproduction,
    tiny_training,
    weights_of,
    work,
)

DEMO = tiny_reproduction("wall_big_paths")
SHORT_WORLD = wall.WallWorld(SHORT)
SCRIPT = Path(tiny_reproductions.__file__)


@pytest.fixture(autouse=True)
def _short_episodes(monkeypatch):
    monkeypatch.setitem(wall.CONFIGS, "WallBig", SHORT)
    monkeypatch.setattr(reproduction_work, "WAIT_SECONDS", 0.01)


@pytest.fixture
def calls(monkeypatch):
    """How often anything that takes time was done."""
    counted = Counter()
    for name in ("record_world", "train", "evaluate_cell"):
        done = getattr(reproduction_pieces, name)

        def counting(*arguments, name=name, done=done):
            counted[name] += 1
            return done(*arguments)

        monkeypatch.setattr(reproduction_pieces, name, counting)
    return counted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """DEMO, done without interruption; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wall.CONFIGS, "WallBig", SHORT)
        assert work(DEMO, folder, WorkOptions()) == Left(pieces=0)
    return folder


class Clock(Silent):
    """A board that ends time when it is told of a certain moment."""

    def __init__(self, monkeypatch, ends):
        self.ends, self.now = ends, 0.0
        monkeypatch.setattr(
            reproduction_work, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
        )

    def report(self, what, done, total, note=""):
        if self.ends(what, done, note):
            self.now = 2.0

    @property
    def options(self):
        return WorkOptions(deadline=1.0, board=self)


def test_every_piece_is_done_once_and_recordings_are_shared(tmp_path, calls):
    both = tiny_reproduction()
    assert work(both, tmp_path, WorkOptions()) == Left(pieces=0)
    assert calls == {"record_world": 1, "train": 2, "evaluate_cell": 4}
    assert work(both, tmp_path, WorkOptions()) == Left(pieces=0)
    assert calls == {"record_world": 1, "train": 2, "evaluate_cell": 4}
    assert {len(found["success"]) for found in outcomes_of(tmp_path).values()} == {
        tiny_reproductions.INSTANCES
    }


def test_seeds_have_recordings_of_their_own_and_come_one_after_the_other():
    both = tiny_reproduction()
    order = [(piece.seed, piece.training.name) for piece in pieces(both, 2) if piece.evaluation is None]
    assert order == [(seed, training.name) for seed in (0, 1) for training in both.trainings]
    late = replace(DEMO, trainings=(tiny_training("wall_big_paths", seed=1000),))
    assert {piece.seed for piece in pieces(late, 2)} == {1000, 1001}
    assert {piece.experiment.seed for piece in pieces(late, 2)} == {1000, 1001}


def test_changed_evaluations_are_done_again_and_others_are_not(finished, tmp_path, calls):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (training,) = DEMO.trainings
    first, second = training.evaluations
    smaller = replace(second, experiment=replace(second.experiment, planner=replace_samples(second, 8)))
    changed = replace(DEMO, trainings=(replace(training, evaluations=(first, smaller)),))
    assert [piece.evaluation for piece in left_open(changed, folder, 1)] == [smaller]
    assert work(changed, folder, WorkOptions()) == Left(pieces=0)
    assert calls == {"evaluate_cell": 1}
    assert read_outcomes(folder, training, 0, second) is None  # what was asked before is not known any more
    assert read_outcomes(folder, training, 0, smaller) is not None
    fewer = replace(first, episodes=2)
    assert work(
        replace(DEMO, trainings=(replace(training, evaluations=(fewer, smaller)),)), folder, WorkOptions()
    ) == Left(pieces=0)
    assert calls == {"evaluate_cell": 2}


def replace_samples(cell, samples):
    return replace(cell.experiment.planner, samples=samples)


def test_only_what_is_asked_for(tmp_path, calls):
    wanted = tiny_reproduction().only(["wall_big_paths, value"])
    assert [cell.variant for training in wanted.trainings for cell in training.evaluations] == ["value"]
    assert wanted.claims == ()
    assert tiny_reproduction().only(["quasimetric"]).claims == tiny_reproduction().claims[1:]
    assert tiny_reproduction().only([]) == tiny_reproduction()
    with pytest.raises(InputError, match=r"nothing of tiny holds abacus; its methods are wall_big_paths, .*"):
        tiny_reproduction().only(["abacus"])
    assert work(wanted, tmp_path, WorkOptions()) == Left(pieces=0)
    assert calls == {"record_world": 1, "train": 1, "evaluate_cell": 1}


# In the middle of a stage, and at its last update: then it ends, and the next one is not begun.
@pytest.mark.parametrize("stage, update", [("world_model", 3), ("predictor", 4)])
def test_time_up_in_a_training_saves_it_and_the_next_call_ends_alike(
    finished, tmp_path, monkeypatch, stage, update
):
    clock = Clock(monkeypatch, lambda what, done, note: note.startswith(f"{stage},") and done == update)
    assert work(DEMO, tmp_path, clock.options) == Left(pieces=3)
    newest = max(tmp_path.rglob("state/*/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    assert (newest.parent.name, int(newest.stem)) == (stage, update)
    assert work(DEMO, tmp_path, WorkOptions()) == Left(pieces=0)
    assert weights_of(tmp_path) == weights_of(finished)
    assert outcomes_of(tmp_path) == outcomes_of(finished)


@pytest.mark.parametrize(
    "moment, left",
    [("imagining scenes", 3), ("recording WallBig", 3), ("0 solved", 2)],
    ids=["between stages", "recording", "evaluating"],
)
def test_time_up_elsewhere_loses_only_what_has_no_middle(finished, tmp_path, monkeypatch, moment, left):
    def ends(what, done, note):
        return done > 1 and (note == moment or what.startswith(moment))

    assert work(DEMO, tmp_path, Clock(monkeypatch, ends).options) == Left(pieces=left)
    assert not list(tmp_path.rglob("outcomes/*"))
    assert len(list(tmp_path.rglob("*.h5"))) == 1  # begun, so finished
    assert work(DEMO, tmp_path, WorkOptions()) == Left(pieces=0)
    assert weights_of(tmp_path) == weights_of(finished)
    assert outcomes_of(tmp_path) == outcomes_of(finished)


def test_no_time_at_all_is_no_error(tmp_path, calls):
    late = WorkOptions(deadline=time.monotonic() - 1)
    assert work(DEMO, tmp_path, late) == Left(pieces=3)
    assert not calls


@pytest.mark.slow
def test_in_a_thread_time_ends_as_well(finished, tmp_path, monkeypatch):
    """Only the main thread can stop as a signal does; elsewhere what follows the last checkpoint is lost."""
    clock = Clock(monkeypatch, lambda what, done, note: note.startswith("world_model,") and done == 3)
    found = []
    thread = threading.Thread(target=lambda: found.append(work(DEMO, tmp_path, clock.options)))
    thread.start()
    thread.join(60)
    assert found == [Left(pieces=3)]
    assert work(DEMO, tmp_path, WorkOptions()) == Left(pieces=0)
    assert weights_of(tmp_path) == weights_of(finished)


def test_what_another_worker_holds_is_waited_for(finished, tmp_path, calls):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (training,) = DEMO.trainings
    shutil.rmtree(folder / "wall_big_paths" / "seed0" / "outcomes")
    piece = pieces(DEMO, 1)[1]
    lock = folder / "wall_big_paths" / "seed0" / ".locks" / piece.key[-1]
    with reproduction_work.claimed(lock) as mine:
        assert mine
        soon = WorkOptions(deadline=time.monotonic() + 3)
        assert work(DEMO, folder, soon) == Left(pieces=1)  # the other evaluation was done meanwhile
    assert calls == {"evaluate_cell": 1}
    assert read_outcomes(folder, training, 0, training.evaluations[0]) is None
    assert work(DEMO, folder, WorkOptions()) == Left(pieces=0)


def test_a_recording_that_another_worker_makes_is_waited_for_and_used(finished, tmp_path, calls):
    (whole,) = finished.rglob("*.h5")
    target = tmp_path / "data" / whole.name
    with reproduction_work.claimed(target.with_suffix(".lock")) as mine:
        assert mine
        half = target.with_name(f".{target.name}.0badcafe.partial")
        half.write_bytes(whole.read_bytes()[:1000])
        assert work(DEMO, tmp_path, WorkOptions(deadline=time.monotonic() + 0.3)) == Left(pieces=3)
        assert not target.exists()
        shutil.copy(whole, target)
    assert work(DEMO, tmp_path, WorkOptions()) == Left(pieces=0)
    assert "record_world" not in calls
    assert weights_of(tmp_path) == weights_of(finished)


def test_half_a_recording_is_never_used(finished, tmp_path, calls):
    (whole,) = finished.rglob("*.h5")
    folder = tmp_path / "data"
    folder.mkdir()
    half = folder / f".{whole.name}.0badcafe.partial"
    half.write_bytes(whole.read_bytes()[:1000])
    assert work(DEMO, tmp_path, WorkOptions()) == Left(pieces=0)
    assert calls["record_world"] == 1
    assert not half.exists()
    assert weights_of(tmp_path) == weights_of(finished)

    broken = tmp_path / "another" / "data" / whole.name
    broken.parent.mkdir(parents=True)
    broken.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(InputError, match="these are not the bytes that were written"):
        work(DEMO, tmp_path / "another", WorkOptions())


def test_a_training_that_diverges_does_not_stop_the_others(tmp_path):
    good, bad = tiny_reproduction().trainings
    first = bad.experiment.stages[0]
    wild = replace(first, fit=replace(first.fit, learning_rate=1e30, log_every=1))
    bad = replace(
        bad, experiment=replace(bad.experiment, stages=(wild, *bad.experiment.stages[1:])), name="bad"
    )
    cells = tuple(replace(cell, method="bad") for cell in bad.evaluations)
    both = replace(DEMO, trainings=(replace(bad, evaluations=cells), good))
    left = work(both, tmp_path, WorkOptions())
    assert left.pieces == 3
    (words,) = left.diverged
    assert words.startswith("bad seed 0: stage")
    assert "Try a learning_rate below 1e+30" in words
    assert len(outcomes_of(tmp_path)) == 2


def test_a_run_of_another_recipe_is_refused(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (training,) = DEMO.trainings
    other = replace(training, experiment=replace(training.experiment, held_out=0.2))
    with pytest.raises(InputError, match=r"configuration.held_out: 0.05 -> 0.2"):
        work(replace(DEMO, trainings=(other,)), folder, WorkOptions())


def test_missing_instances_are_noticed_before_any_training(tmp_path, calls):
    (training,) = DEMO.trainings
    lost = replace(training, evaluations=(replace(training.evaluations[0], instances="WallBig-lost"),))
    with pytest.raises(InputError, match="WallBig-lost"):
        work(replace(DEMO, trainings=(lost,), claims=()), tmp_path, WorkOptions())
    assert not calls


def test_a_reproduction_without_sense_is_refused():
    training = tiny_training("wall_big_paths")
    cell = training.evaluations[0]
    with pytest.raises(InputError, match=r"trainings of tiny need different names.*: wall_big_paths"):
        replace(DEMO, trainings=(training, training))
    with pytest.raises(InputError, match="evaluations of wall_big_paths need different names"):
        replace(training, evaluations=(cell, cell))
    twin = Training(name="twin", experiment=training.experiment, evaluations=training.evaluations)
    with pytest.raises(InputError, match=r"cells of tiny need different names.*distance on WallBig"):
        replace(DEMO, trainings=(training, twin))
    with pytest.raises(InputError, match="which nothing evaluates; its labels are wall_big_paths, distance"):
        replace(DEMO, claims=(Claim(words="?", better="wall_big_paths", worse="wall_big_paths, value"),))
    with pytest.raises(InputError, match="got 'a/b'"):
        Training(name="a/b", experiment=training.experiment, evaluations=())
    with pytest.raises(InputError, match=r"got '\.\.'"):
        replace(cell, name="..")
    elsewhere = replace(cell, name="elsewhere", variant="", instances="WallBig-final")
    with pytest.raises(InputError, match="WallBig meet WallBig-demo and WallBig-final"):
        replace(DEMO, trainings=(replace(training, evaluations=(*training.evaluations, elsewhere)),))


def test_labels_are_methods_with_their_variants():
    experiment = DEMO.trainings[0].experiment
    assert tiny_evaluation(experiment, "CEM", "value").label == "CEM, value"
    assert replace(tiny_evaluation(experiment, "CEM"), variant="").label == "CEM"
    assert Reproduction(name="empty", title="", introduction="", trainings=()).only(()).trainings == ()


@pytest.mark.slow
def test_a_killed_worker_leaves_a_run_that_another_finishes(finished, tmp_path):
    """SIGKILL in the middle of a stage: the lock is gone with its holder, the last checkpoint is not."""
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    both = tiny_reproduction()
    worker = subprocess.Popen(
        [sys.executable, str(SCRIPT), "reproduce", "tiny", "--seeds", "1", "--folder", str(killed)],
        env={**os.environ, "STALL": "predictor", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    for line in worker.stderr:
        if "stalled" in line:
            break
    soon = WorkOptions(deadline=time.monotonic() + 0.5)
    assert work(both.only(["wall_big_paths"]), killed, soon) == Left(pieces=3)  # it holds what we want
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    worker.stderr.close()
    assert work(both, killed, WorkOptions()) == Left(pieces=0)
    assert work(both, whole, WorkOptions()) == Left(pieces=0)
    assert weights_of(killed) == weights_of(whole)
    assert outcomes_of(killed) == outcomes_of(whole)


def test_what_was_published_is_not_done_again_anywhere(finished, tmp_path, calls):
    published = tmp_path / "page.outcomes.jsonl"
    publish(pieces(DEMO, 1), finished, published)
    elsewhere = tmp_path / "elsewhere"
    assert adopt(pieces(DEMO, 1), elsewhere, published) == 2
    assert left_open(DEMO, elsewhere, 1) == []
    assert work(DEMO, elsewhere, WorkOptions()) == Left(pieces=0)
    assert not calls
    assert outcomes_of(elsewhere) == outcomes_of(finished)
    assert adopt(pieces(DEMO, 1), elsewhere, published) == 0
    again = tmp_path / "again.outcomes.jsonl"
    publish(pieces(DEMO, 1), elsewhere, again)
    assert again.read_bytes() == published.read_bytes()


def test_published_outcomes_of_other_settings_count_for_nothing(finished, tmp_path):
    published = tmp_path / "page.outcomes.jsonl"
    publish(pieces(DEMO, 1), finished, published)
    (training,) = DEMO.trainings
    other = replace(training, experiment=replace(training.experiment, held_out=0.2))
    changed = replace(DEMO, trainings=(other,))
    assert adopt(pieces(changed, 1), tmp_path / "elsewhere", published) == 0
    described = replace(training, experiment=replace(training.experiment, description="in other words"))
    assert adopt(pieces(replace(DEMO, trainings=(described,)), 1), tmp_path / "there", published) == 2
    published.write_text("{\n")
    with pytest.raises(InputError, match="line 1, is no outcome"):
        adopt(pieces(DEMO, 1), tmp_path / "broken", published)


def test_maps_are_of_the_first_seed_and_travel_with_the_page(finished, tmp_path, calls):
    drawn = replace(DEMO, maps=2)
    folder, published = tmp_path / "made", tmp_path / "page.outcomes.jsonl"
    shutil.copytree(finished, folder)
    assert len(left_open(drawn, folder, 2)) == 1 + len(pieces(DEMO, 1))  # the maps, and all of seed 1
    assert work(drawn, folder, WorkOptions()) == Left(pieces=0)
    (piece,) = (piece for piece in pieces(drawn, 1) if isinstance(piece, MapPiece))
    found = piece.read(folder)
    assert found is not None
    goals = load_instances("WallBig-demo").goals
    for rows, goal in zip(found["maps"], goals, strict=False):
        truth = distance_map(SHORT_WORLD, GeodesicDistance(SHORT_WORLD), goal, STRIDE)
        assert [[value is not None for value in row] for row in rows] == truth.isfinite().tolist()
    assert len(found["maps"]) == 2
    publish(pieces(drawn, 1), folder, published)
    elsewhere = tmp_path / "elsewhere"
    assert adopt(pieces(drawn, 1), elsewhere, published) == 3
    assert left_open(drawn, elsewhere, 1) == []
    assert not calls
    Grid(drawn).write(elsewhere, 1, tmp_path / "page.md")
    assert "![Maps of the learned distances, WallBig](page_maps_WallBig.png)" in (
        (tmp_path / "page.md").read_text()
    )
    with Image.open(tmp_path / "page_maps_WallBig.png") as picture:
        assert picture.width > picture.height / 2 * 1.5  # two maps down, the truth and the method across
    Grid(DEMO).write(finished, 1, tmp_path / "without.md")
    assert "far" not in (tmp_path / "without.md").read_text()


def test_maps_are_known_by_what_they_are_measured_with():
    (piece,) = (piece for piece in pieces(replace(DEMO, maps=2), 1) if isinstance(piece, MapPiece))
    cell = piece.cell
    other = replace(cell, experiment=replace(cell.experiment, baseline_distance="euclidean"))
    training = replace(piece.training, evaluations=(other, *piece.training.evaluations[1:]))
    assert replace(piece, training=training).digest != piece.digest
    faster = replace(cell, experiment=replace(cell.experiment, planner=MPPI(samples=3)))
    training = replace(piece.training, evaluations=(faster, *piece.training.evaluations[1:]))
    assert replace(piece, training=training).digest == piece.digest
