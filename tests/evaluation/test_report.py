import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from jepaplan.control.receding_horizon import RecedingHorizon
from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance
from jepaplan.data.normalise import ActionNormaliser
from jepaplan.envs.wall import WALL_BIG, WallWorld
from jepaplan.evaluation.blame import Blame
from jepaplan.evaluation.charts import Curve
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes, true_states
from jepaplan.evaluation.films import film, true_course
from jepaplan.evaluation.pictures import contact_sheet, frame_picture, map_picture
from jepaplan.evaluation.position_probe import ProbeError
from jepaplan.evaluation.probes import RankCorrelation, RolloutError, distance_map
from jepaplan.evaluation.references import GeodesicDistance, TrueDynamics
from jepaplan.evaluation.report import (
    Chart,
    CostShares,
    MapRow,
    MethodResult,
    ProbeReport,
    ReportData,
    duration,
    render_report,
    write_report,
)
from jepaplan.evaluation.statistics import SuccessRate, compare
from jepaplan.evaluation.tasks import load_instances
from jepaplan.evaluation.value_diagnostics import diagnose
from jepaplan.planners.mppi import MPPI
from jepaplan.types import InputError

WORLD = WallWorld(WALL_BIG)
UNITS = ActionNormaliser(torch.zeros(2), torch.full((2,), 1.5))
METHOD = MethodResult(
    name="VF_quasi",
    kind="ours",
    success=SuccessRate(48, 50),
    seconds_per_step=0.002,
    evaluations_per_step=1536.0,
    note="a note with </script> & <b>tags</b>",
)
MINIMAL = ReportData(title="A title", question="A question?", success_rule="A rule.", methods=(METHOD,))


@pytest.fixture(scope="module")
def outcomes():
    controller = RecedingHorizon(
        world_model=TrueDynamics(WORLD, UNITS),
        planner=MPPI(samples=16, horizon=6),
        cost=WeightedSum({"goal": (1.0, GoalDistance(distance=GeodesicDistance(WORLD)))}),
    )
    options = EpisodeOptions(episode_steps=5, observe=true_states, keep=(1,))
    instances = load_instances("WallBig-demo").subset(2)
    return run_episodes(WORLD, instances, controller, torch.Generator().manual_seed(0), options)


@pytest.fixture(scope="module")
def whole(outcomes):
    goal, start = torch.tensor([50.0, 40.0, 32.0, 20.0]), torch.tensor([10.0, 12.0, 32.0, 20.0])
    values = distance_map(WORLD, GeodesicDistance(WORLD), goal, stride=4)
    frame = WORLD.observe(start[None]).frames[0]
    ours, theirs = torch.tensor([True] * 9 + [False]), torch.tensor([True] + [False] * 9)
    return replace(
        MINIMAL,
        facts={"Data": "1000 walks"},
        frames=(frame_picture(frame, "the start"),),
        recordings=contact_sheet(WORLD, start.expand(1, 4, 4)),
        comparisons=(compare(("VF_quasi", ours), ("pred_VCReg", theirs), torch.Generator().manual_seed(0)),),
        charts=(Chart(title="Loss", curves=(Curve(name="loss", x=(0.0, 1.0), y=(2.0, 1.0)),)),),
        maps=(MapRow(caption="One goal", maps=(map_picture(WORLD, values, goal, ("path", "px")),)),),
        films=(film(WORLD, outcomes, 1, true_course(WORLD, UNITS), ("Best", "Where candidates lead.")),),
        blamed="VF_quasi",
        blames=(Blame(instance=3, verdict="value", all_true=True, true_dynamics=False, true_distance=True),),
        probes=(
            ProbeReport(
                method="VF_quasi",
                positions=(ProbeError(kind="linear", mean=0.9, median=0.7, worst_twentieth=2.0, frames=10),),
                rollouts=(
                    RolloutError(steps=15, pixels=1.2, still_pixels=9.0, latent=0.1, still_latent=0.9),
                ),
                correlations=(RankCorrelation(pairs="other room", mean=0.9, low=0.8, high=0.95, layouts=9),),
                diagnosis=diagnose(
                    torch.arange(12.0).view(3, 4), torch.arange(12.0).view(3, 4), torch.Generator(), 2
                ),
                way_found=SuccessRate(9, 10),
            ),
        ),
        costs=(CostShares(method="VF_quasi", terms={"goal": 3.0, "effort": 1.0}),),
        stages={"training": 150.0},
        provenance={"commit": "abc1234"},
    )


class Reader(HTMLParser):
    """Collects what a browser would fetch, and whether tags are balanced."""

    EMPTY = ("meta", "img", "input", "br")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.pictures, self.ids = [], [], [], set()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "xlink:href", "action") if name in values]
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "img" or values.get("role") == "img":
            self.pictures.append(values.get("alt") or values.get("aria-label"))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.mark.parametrize("which", ["whole", "minimal"])
def test_the_page_fetches_nothing(which, whole):
    page = render_report(whole if which == "whole" else MINIMAL)
    reader = read(page)
    assert all(link.startswith(("#", "data:")) for link in reader.links)
    # the name of the SVG vocabulary is an identifier, never fetched
    rest = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", rest)


def test_every_inner_link_has_its_target_and_every_picture_its_words(whole):
    reader = read(render_report(whole))
    assert {link[1:] for link in reader.links if link.startswith("#")} <= reader.ids
    assert len(reader.pictures) >= 6
    assert all(reader.pictures)


def test_the_page_says_what_the_data_say(whole):
    page = render_report(whole)
    for words in (
        "VF_quasi reaches the goal in 48 of 50 tasks (96%, 95% interval 87 to 99%)",
        "succeeds 80 percentage points more often than pred_VCReg",
        "A rule.",
        "0.96</b>",
        "[0.87, 0.99]",
        "1\N{NARROW NO-BREAK SPACE}536",
        "To blame, in 1 failed episodes examined: value in 1.",
        "other room: <b>0.90</b>",
        "<b>0.00 [0.00, 0.00]</b>",  # of what blind choice loses
        "2.5: <b>2.5</b>",  # predicted and true
        "abc1234",
    ):
        assert words in page


def test_what_is_missing_is_left_out():
    page = render_report(MINIMAL)
    for section in ("episodes", "maps", "failures", "probes", "training", "costs", "provenance"):
        assert f'id="{section}"' not in page
    assert 'id="result"' in page


def test_texts_cannot_break_out_of_their_place():
    page = render_report(MINIMAL)
    assert "&lt;/script&gt; &amp; &lt;b&gt;tags&lt;/b&gt;" in page


def test_a_film_holds_every_step_and_its_fan(outcomes, whole):
    document = json.loads(whole.films[0].data)
    assert len(document["path"]) == 6
    assert [entry["step"] for entry in document["fans"]] == [0, 1, 2, 3, 4]
    first = document["fans"][0]
    assert len(first["fan"]) == 12
    assert all(len(course) == 7 for course in [first["plan"], *first["fan"]])
    # every course begins where the dot is
    assert {tuple(course[0]) for course in first["fan"]} == {tuple(document["path"][0])}
    assert first["cost"]["goal"] > 0
    with pytest.raises(InputError, match="keep=\\(0,\\)"):
        film(WORLD, outcomes, 0, true_course(WORLD, UNITS), ("x", "y"))


def test_the_page_is_written_whole(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, MINIMAL)
    assert path.read_text(encoding="utf-8") == render_report(MINIMAL)
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_without_methods_is_refused():
    with pytest.raises(InputError, match="at least one method"):
        replace(MINIMAL, methods=())


@pytest.mark.parametrize(
    "seconds, words",
    [(3e-6, "3 \N{MICRO SIGN}s"), (0.0123, "12.3 ms"), (61.0, "61 s"), (600.0, "10 min"), (9000.0, "2.5 h")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
