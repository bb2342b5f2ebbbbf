import json
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from jepaplan.training.checkpoint import read_weights
from jepaplan.training.runs import Origin, RunDirectory, differences, open_run, to_json
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class Planner:
    samples: int = 200
    bounds: tuple[float, float] = (-1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    planner: Planner = Planner()
    seed: int = 3


ORIGIN = Origin(recipe="two_rooms", configuration=Recipe(), data="abc", seed=3)


def files_under(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_begins_with_its_configuration_and_where_it_comes_from(tmp_path):
    with open_run(tmp_path / "run", ORIGIN) as run:
        pass
    assert json.loads(run.config.read_text()) == {
        "planner": {"samples": 200, "bounds": [-1.0, 1.0]},
        "seed": 3,
    }
    card = run.read_card()
    assert (card["recipe"], card["data"], card["seed"]) == ("two_rooms", "abc", 3)
    assert card["hardware"]["torch"] == torch.__version__
    assert len(card["commit"]) >= 7


def test_opening_again_with_the_same_origin_continues(tmp_path):
    with open_run(tmp_path, ORIGIN) as run:
        run.update_card("encoder", {"seconds": 2.5})
    with open_run(tmp_path, ORIGIN) as run:
        assert run.read_card()["stages"] == {"encoder": {"seconds": 2.5}}
        assert run.read_card()["seconds"] == 2.5


def test_a_run_from_before_a_field_existed_is_continued_when_told_its_default(tmp_path):
    with open_run(tmp_path, replace(ORIGIN, configuration={"seed": 3})):
        pass

    def complete(stored):
        return {"planner": {"samples": 200, "bounds": [-1.0, 1.0]}, **stored}

    with open_run(tmp_path, ORIGIN, complete=complete) as run:
        assert run.read_card()["configuration"] == {"seed": 3}
    with pytest.raises(InputError, match="planner"), open_run(tmp_path, ORIGIN):
        pass


def test_another_configuration_is_refused_and_the_fields_shown(tmp_path):
    with open_run(tmp_path, ORIGIN):
        pass
    changed = replace(ORIGIN, configuration=Recipe(planner=Planner(samples=500)), data="xyz")
    with (
        pytest.raises(InputError, match=r"configuration\.planner\.samples: 200 -> 500") as refusal,
        open_run(tmp_path, changed),
    ):
        pass
    assert 'data: "abc" -> "xyz"' in str(refusal.value)
    assert "seed" not in str(refusal.value)


def test_two_processes_cannot_write_into_one_run(tmp_path):
    # A lock belongs to an open file, so one process can play both.
    with (
        open_run(tmp_path, ORIGIN),
        pytest.raises(InputError, match="in use by another process"),
        open_run(tmp_path, ORIGIN),
    ):
        pass
    with open_run(tmp_path, ORIGIN):
        pass


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not a run of ours"), open_run(tmp_path, ORIGIN):
        pass
    assert (tmp_path / "config.json").read_text() == "{}"


def test_what_a_kill_left_half_written_is_swept(tmp_path):
    with open_run(tmp_path, ORIGIN):
        pass
    (tmp_path / ".weights.safetensors.123.partial").write_bytes(b"half")
    with open_run(tmp_path, ORIGIN):
        pass
    assert not list(tmp_path.glob("*.partial"))


def test_rows_after_the_checkpoint_are_forgotten_and_a_torn_line_too(tmp_path):
    with open_run(tmp_path, ORIGIN) as run:
        for update in range(1, 6):
            run.log({"stage": "encoder", "update": update, "loss": 1.0 / update})
        run.log({"stage": "predictor", "update": 1, "loss": float("nan")})
    with run.metrics.open("a") as file:
        file.write('{"stage": "encoder", "upd')
    with open_run(tmp_path, ORIGIN) as run:
        run.rewind("encoder", 3)
        run.log({"stage": "encoder", "update": 4, "loss": 0.0})
    rows = [(row["stage"], row["update"], row["loss"]) for row in run.read_metrics()]
    assert rows == [
        ("encoder", 1, 1.0),
        ("encoder", 2, 0.5),
        ("encoder", 3, 1 / 3),
        ("predictor", 1, None),
        ("encoder", 4, 0.0),
    ]


def test_weights_carry_their_origin_and_everything_stays_inside(tmp_path):
    before = files_under(tmp_path)
    with open_run(tmp_path / "run", ORIGIN, tensorboard=True) as run:
        run.log({"stage": "encoder", "update": 1, "loss": 1.0})
        run.save_product(run.weights, nn.Linear(2, 1).state_dict(), stage="encoder", update=1)
    card = read_weights(run.weights).card
    assert (card["recipe"], card["data"], card["stage"]) == ("two_rooms", "abc", "encoder")
    made = {name for name in files_under(tmp_path) - before if not name.startswith("run/events/encoder/")}
    assert made == {
        f"run/{name}"
        for name in ("config.json", "card.json", "weights.safetensors", "metrics.jsonl", ".lock")
    }
    assert list((tmp_path / "run" / "events" / "encoder").iterdir())


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(InputError, match=r"pip install 'jepaplan\[track\]'"),
        open_run(tmp_path, ORIGIN, tensorboard=True),
    ):
        pass


def test_writing_needs_an_open_run_and_reading_a_run(tmp_path):
    with pytest.raises(InputError, match="open_run"):
        RunDirectory(tmp_path).log({})
    with pytest.raises(InputError, match=r"card\.json"):
        RunDirectory(tmp_path).read_card()


def test_json_of_awkward_values():
    value = {"path": ORIGIN.configuration, "set": {2, 1}, "inf": float("inf"), "device": torch.device("cpu")}
    assert json.loads(json.dumps(to_json(value))) == {
        "path": {"planner": {"samples": 200, "bounds": [-1.0, 1.0]}, "seed": 3},
        "set": [1, 2],
        "inf": None,
        "device": "cpu",
    }
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"d": 2}}) == [
        'b.c: 2 -> "(absent)"',
        'b.d: "(absent)" -> 2',
    ]
