import json
import re

import pytest

from jepaplan.evaluation.charts import Curve, curve_chart, interval_bar, number, read_curves, share_bar
from jepaplan.types import InputError


def test_curves_are_read_by_stage_and_survive_an_interrupted_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"stage": "value", "update": 1, "loss": 3.0},
        {"stage": "value", "update": 2, "loss": 2.0, "rank": 0.5},
        {"stage": "prediction", "update": 1, "loss": 9.0},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"stage": "val')
    assert read_curves(path, "value") == (Curve(name="loss", x=(1.0, 2.0), y=(3.0, 2.0)),)
    with pytest.raises(InputError, match="jepaplan train"):
        read_curves(tmp_path / "nothing.jsonl")


def heights(chart):
    points = re.search(r'class="curve c0" points="([^"]*)"', chart).group(1)
    return [float(point.split(",")[1]) for point in points.split()]


def test_equal_factors_are_equal_heights_on_a_logarithmic_axis():
    chart = curve_chart([Curve(name="loss", x=(0.0, 1.0, 2.0), y=(100.0, 10.0, 1.0))], "Loss")
    first, second, third = heights(chart)
    assert second - first == pytest.approx(third - second, abs=0.2)
    assert "loss from 100 to 1" in chart


def test_a_narrow_range_is_drawn_linearly():
    first, second, third = heights(
        curve_chart([Curve(name="rank", x=(0.0, 1.0, 2.0), y=(1.0, 0.5, 0.25))], "Rank")
    )
    assert second - first == pytest.approx(2 * (third - second), abs=0.3)


def test_long_curves_are_averaged_not_cut():
    curve = Curve(name="noise", x=tuple(map(float, range(5000))), y=tuple(float(i % 2) for i in range(5000)))
    drawn = heights(curve_chart([curve], "Noise"))
    assert 100 < len(drawn) <= 240


def test_a_constant_curve_can_be_drawn():
    assert len(heights(curve_chart([Curve(name="flat", x=(0.0, 1.0), y=(0.0, 0.0))], "Flat"))) == 2


def test_bars_have_the_widths_of_their_shares():
    bar = share_bar({"goal": 3.0, "<effort>": 1.0, "bonus": -1.0})
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', bar)]
    assert widths == [75.0, 25.0, 0.0]
    assert "&lt;effort&gt;" in bar
    assert "<effort>" not in bar
    assert share_bar({"goal": 0.0}) == ""
    assert 'x1="93.0" x2="100.0"' in interval_bar(1.0, 0.93, 1.0, "ours")


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.12345, "0.123"),
        (1536, "1\N{NARROW NO-BREAK SPACE}536"),
        (2.0e-5, "2e-5"),
        (5.9e9, "5.9e9"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text
