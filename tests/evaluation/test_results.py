import json

import pytest

from jepaplan.evaluation.results import (
    ResultRow,
    in_milliseconds,
    read_rows,
    row_from_json,
    rows_text,
    write_rows,
)
from jepaplan.evaluation.statistics import SuccessRate
from jepaplan.types import InputError


@pytest.fixture
def row():
    return ResultRow(
        task="WallBig",
        method="VF_quasi",
        instance_file="WallBig-final",
        split="final",
        success=SuccessRate(48, 50, (0.87, 0.99)),
        training_seeds=(0, 1),
        evaluations_per_step=1536.0,
        seconds_per_step=0.02,
        commit="abc1234",
        hardware="2 CPU cores",
        command="jepaplan evaluate runs/demo",
    )


def test_rows_survive_a_round_trip(row, tmp_path):
    path = tmp_path / "results.json"
    write_rows(path, [row, row])
    assert read_rows(path) == [row, row]
    assert list(tmp_path.iterdir()) == [path]


def test_rows_have_exactly_the_agreed_fields(row):
    (written,) = json.loads(rows_text([row]))
    assert list(written) == [
        "task", "method", "instances", "success", "training_seeds", "evaluations_per_step",
        "seconds_per_step", "commit", "hardware", "command",
    ]  # fmt: skip
    assert written["success"] == {"rate": 0.96, "low": 0.87, "high": 0.99, "successes": 48, "trials": 50}
    assert written["instances"] == {"file": "WallBig-final", "split": "final"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"commit": None}, "`commit` is None"),
        ({"surprise": 1}, "unknown \\['surprise'\\]"),
        ({"seconds_per_step": True}, "`seconds_per_step` is True"),
        ({"success": {"rate": 0.5, "low": 0.1, "high": 0.9, "successes": 9, "trials": 10}}, "9 successes"),
        ({"success": {"rate": 0.5}}, "missing \\['high', 'low', 'successes', 'trials'\\]"),
    ],
)
def test_damaged_rows_are_refused_by_name(row, change, message):
    with pytest.raises(InputError, match=message):
        row_from_json({**row.as_json(), **change})


def test_a_missing_field_is_named(row):
    written = row.as_json()
    del written["hardware"]
    with pytest.raises(InputError, match="missing \\['hardware'\\]"):
        row_from_json(written)


def test_files_that_are_not_rows_are_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(InputError, match="jepaplan evaluate"):
        read_rows(path)
    path.write_text('[{"task": ')
    with pytest.raises(InputError, match="not JSON"):
        read_rows(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="list of rows"):
        read_rows(path)


def test_times_have_two_digits_and_no_powers_of_ten():
    shown = [in_milliseconds(seconds) for seconds in (0.00085, 0.0114, 0.0994, 0.0996, 0.1171, 1.5)]
    assert shown == ["0.85 ms", "11 ms", "99 ms", "100 ms", "117 ms", "1,500 ms"]
