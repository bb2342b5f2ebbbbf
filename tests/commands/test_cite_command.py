"""Citations: every recipe has them, from the packaged entries, for the papers that the code names."""

import json
import re
from pathlib import Path

import pytest

import jepaplan
from jepaplan import cli
from jepaplan.commands.cite import SOURCES, WORLDS, entries, keys_of
from jepaplan.recipes.wall import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_cited_from_the_bibliography(name):
    keys = keys_of(find_recipe(name))
    assert set(keys) <= set(entries())
    assert len(set(keys)) == len(keys)


def test_a_recipe_cites_what_it_touches_and_nothing_else():
    demo = keys_of(find_recipe("wall_big_demo"))
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


def test_no_entry_is_unused_and_no_key_unknown():
    assert {key for keys in SOURCES.values() for key in keys} | {
        key for keys in WORLDS.values() for key in keys
    } == set(entries())


def test_cited_papers_are_named_by_the_code():
    source = "\n".join(path.read_text() for path in Path(jepaplan.__file__).parent.rglob("*.py"))
    for entry in entries().values():
        number = re.search(r"arXiv:(\d{4}\.\d{5})", entry)
        if number is not None and number[1] not in ("1412.6980", "1711.05101"):  # Adam and AdamW are torch's
            assert number[1] in source


def test_entries_are_balanced_bibtex(capsys):
    assert cli.main(["cite", "wall_big_demo"]) == 0
    text = capsys.readouterr().out
    assert text.count("{") == text.count("}")
    assert cli.main(["cite", "wall_big_demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "\n\n".join(row["bibtex"] for row in rows) + "\n" == text


def test_unknown_recipe_suggests_the_nearest(capsys):
    assert cli.main(["cite", "wall_big_dem"]) == 2
    assert "wall_big_demo" in capsys.readouterr().err
