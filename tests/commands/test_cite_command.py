"""Citations: every recipe has them, from the packaged entries, for the papers that the code names."""

import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

import jepaplan
from jepaplan import cli
from jepaplan.commands.cite import SOURCES, WORLDS, entries, keys_of
from jepaplan.data.goals import GoalMixture
from jepaplan.models.value_heads import Reading
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import SGD, Adam, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.noise import ColouredNoise
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from jepaplan.recipes.catalogue import LISTED, REPRODUCTIONS, find_recipe
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.recipes.video_study import VideoStudy
from jepaplan.training.stage import FitConfig


@pytest.mark.parametrize("name", LISTED)
def test_every_recipe_is_cited_from_the_bibliography(name):
    keys = keys_of(find_recipe(name))
    assert set(keys) <= set(entries())
    assert len(set(keys)) == len(keys)


def test_a_recipe_cites_what_it_touches_and_nothing_else():
    demo = keys_of(find_recipe("wall_big_paths"))
    assert {
        "finn2016deep",
        "oord2018representation",
        "eysenbach2019search",
        "williams2017information",
    } <= set(demo)
    assert not {"kostrikov2022offline", "espeholt2018impala", "rubinstein1999cross"} & set(demo)
    joint = keys_of(find_recipe("wall_small_value_quasimetric_joint"))
    assert {"kostrikov2022offline", "espeholt2018impala", "wang2022improved"} <= set(joint)
    assert "finn2016deep" not in joint
    counted = replace(find_recipe("wall_big_paths"), cost=CostConfig(over="n_step"))
    assert set(keys_of(counted)) - set(demo) == {"hansen2024tdmpc2"}


IQL = "kostrikov2022offline"


@pytest.mark.parametrize(
    "approach, due, not_due",
    [
        ("contrastive", {"oord2018representation"}, {IQL, "bardes2022vicreg", "hadsell2006dimensionality"}),
        ("regressive", {"bardes2022vicreg"}, {IQL, "oord2018representation"}),
        ("prediction_vcreg", {"bardes2022vicreg"}, {IQL, "assran2023self"}),
        ("prediction_ema", {"assran2023self", "bardes2024revisiting"}, {IQL, "bardes2022vicreg"}),
        ("value_euclidean", {IQL}, {"bardes2022vicreg", "wang2022improved"}),
        ("value_quasimetric", {IQL, "wang2022improved"}, {"bardes2022vicreg", "oord2018representation"}),
        ("value_vcreg", {IQL, "bardes2022vicreg"}, {"wang2022improved"}),
        ("value_vcreg_joint", {IQL, "bardes2022vicreg"}, {"wang2022improved"}),
        ("two_spaces", {IQL, "bardes2022vicreg"}, {"assran2023self"}),
    ],
)
def test_approaches_cite_what_their_losses_are_made_of(approach, due, not_due):
    keys = set(keys_of(find_recipe(f"maze_{approach}")))
    assert due | {"destrade2026value", "sobal2025learning", "fu2020d4rl"} <= keys
    assert not not_due & keys


def test_a_contrast_with_a_margin_is_hadsells():
    recipe = find_recipe("wall_small_contrastive")
    encoder, predictor = recipe.stages
    encoder = replace(encoder, regulariser=replace(encoder.regulariser, contrast="margin"))
    keys = keys_of(replace(recipe, stages=(encoder, predictor)))
    assert "hadsell2006dimensionality" in keys
    assert "oord2018representation" not in keys


GUMBEL = GumbelHalving(considered_actions=4)


@pytest.mark.parametrize(
    "planner, due",
    [
        (MPPI(), "williams2017information"),
        (MPPI(elites=8), "williams2017information hansen2024tdmpc2"),
        (CEM(), "rubinstein1999cross deboer2005tutorial"),
        (
            CEM(proposal=ColouredNoise()),
            "rubinstein1999cross deboer2005tutorial timmer1995generating pinneri2020sample",
        ),
        (ICEM(), "pinneri2020sample timmer1995generating"),
        (RandomShooting(), "howell2022predictive"),
        (BeamSearch(), "lowerre1976harpy"),
        (GradientDescent(), "zhou2024dino kingma2015adam"),
        (GradientDescent(descent=Descent(optimiser=SGD())), "zhou2024dino"),
        (
            GradientDescent(descent=Descent(optimiser=Adam(weight_decay=0.1))),
            "zhou2024dino kingma2015adam loshchilov2019decoupled",
        ),
        (Collocation(stop_gradient=True), "psenka2026parallel kingma2015adam"),
        (Collocation(), "psenka2026parallel hestenes1969multiplier kingma2015adam"),
        (
            TreeSearch(leaves=1),
            "hubert2021learning couetoux2011continuous schrittwieser2020mastering",
        ),
        (
            TreeSearch(leaves=4, rule=GUMBEL),
            "hubert2021learning couetoux2011continuous schrittwieser2020mastering chaslot2008parallel "
            "danihelka2022policy",
        ),
    ],
)
def test_planners_cite_what_their_options_switch_on(planner, due):
    # Nothing else is left to cite: a world of our own, an encoder without a source, and no stage.
    bare = replace(find_recipe("pits"), stages=(), planner=planner)
    before = keys_of(replace(bare, planner=RandomShooting()))[:-1]
    assert keys_of(bare)[: len(before)] == before
    assert set(keys_of(bare)[len(before) :]) == set(due.split()) - set(before)


FIT = FitConfig(updates=1, optimiser="adamw")
OWN_GOALS = GoalMixture(geometric=1.0)
RELABELLED = {"andrychowicz2017hindsight", "park2023hiql", "park2025ogbench"}


@pytest.mark.parametrize(
    "stage, due",
    [
        (ValueHeadStage(fit=FIT, method="td", members=1), {"sutton2018reinforcement", *RELABELLED}),
        (
            ValueHeadStage(fit=FIT, method="td_lambda", reading=Reading(by="minimum")),
            {
                "sutton2018reinforcement",
                "hafner2020dream",
                "chen2021randomized",
                "fujimoto2018addressing",
                *RELABELLED,
            },
        ),
        (ValueHeadStage(fit=FIT), {IQL, "chen2021randomized", *RELABELLED}),
        (
            ValueHeadStage(fit=FIT, method="monte_carlo", goals=OWN_GOALS),
            {"sutton2018reinforcement", *RELABELLED},
        ),
        (ValueHeadStage(fit=FIT, method="pairs"), {"li2026beyond"}),
    ],
)
def test_value_heads_cite_how_they_learn(stage, due):
    bare = replace(find_recipe("pits"), stages=())
    new = set(keys_of(replace(bare, stages=(stage,)))) - set(keys_of(bare))
    assert new == due | {"loshchilov2019decoupled"}


def test_heads_that_learn_beside_an_encoder_cite_how_as_well():
    beside = find_recipe("wall_big_heads_co_trained")
    stages = (replace(beside.stages[0], co_trained=None), beside.stages[1])
    new = set(keys_of(beside)) - set(keys_of(replace(beside, stages=stages, cost=CostConfig())))
    shaped = {"schrittwieser2020mastering", "hansen2024tdmpc2"}
    assert new == {IQL, "chen2021randomized", *shaped, *RELABELLED}


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_everything_that_is_reproduced_can_be_cited(name):
    made = REPRODUCTIONS[name]("cpu")
    if isinstance(made, VideoStudy):
        experiments = [made.experiment]
    else:
        experiments = [cell.experiment for training in made.trainings for cell in training.evaluations]
    assert experiments
    for experiment in experiments:
        assert set(keys_of(experiment)) <= set(entries())


def test_video_pretraining_cites_vjepa(capsys):
    assert cli.main(["cite", "video_nano"]) == 0
    shown = capsys.readouterr().out
    assert "{V-JEPA} 2: Self-Supervised Video Models" in shown
    assert "arXiv:2506.09985" in shown
    assert "arXiv:2404.08471" in shown
    assert "loshchilov2019decoupled" in shown
    assert "williams2017information" not in shown  # nothing plans


def test_no_entry_is_unused_and_no_key_unknown():
    assert {key for keys in SOURCES.values() for key in keys} | {
        key for keys in WORLDS.values() for key in keys
    } == set(entries())


def test_cited_papers_are_named_by_the_code():
    """By their number, or by the first author and the title or year."""
    source = plain("\n".join(path.read_text() for path in Path(jepaplan.__file__).parent.rglob("*.py")))
    for key, entry in entries().items():
        number = re.search(r"arXiv:(\d{4}\.\d{5})", entry)
        if number is not None and number[1] in source:
            continue
        surname = re.search(r"author\s*= \{([^,]+),", entry)
        year = re.search(r"year\s*= \{(\d+)\}", entry)
        assert surname is not None
        assert year is not None
        near = rf"\b{re.escape(plain(surname[1]))}\b[\s\S]{{0,160}}{year[1]}"
        assert re.search(near, source), key


def plain(text):
    """Without accents, in TeX or as letters."""
    text = re.sub(r"\{?\\[\"'`^]\{?(\w)\}?\}?", r"\1", text)
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def test_entries_are_balanced_bibtex(capsys):
    assert cli.main(["cite", "wall_big_paths"]) == 0
    text = capsys.readouterr().out
    assert text.count("{") == text.count("}")
    assert cli.main(["cite", "wall_big_paths", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "\n\n".join(row["bibtex"] for row in rows) + "\n" == text


def test_unknown_recipe_suggests_the_nearest(capsys):
    assert cli.main(["cite", "wall_big_dem"]) == 2
    assert "wall_big_paths" in capsys.readouterr().err
