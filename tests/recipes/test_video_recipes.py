"""Video recipes as records: what they say, that files bring them back, and what they refuse."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from jepaplan.recipes.catalogue import RECIPES, find_recipe
from jepaplan.recipes.serialise import (
    decisive,
    experiment_from_json,
    experiment_to_json,
    video_experiment_from_json,
)
from jepaplan.recipes.video import VIDEO_RECIPES, GeneratedVideos, VideoPhase
from jepaplan.types import InputError
from tiny_video_studies import growing_video_experiment, tiny_video_experiment


def written(experiment):
    return json.loads(json.dumps(experiment_to_json(experiment)))


@pytest.mark.parametrize("name", VIDEO_RECIPES)
def test_a_recipe_is_found_by_its_name_and_comes_back_from_json(name):
    experiment = find_recipe(name.replace("_", "-"))
    assert experiment.recipe == name
    assert experiment.description
    assert video_experiment_from_json(written(experiment)) == experiment
    assert video_experiment_from_json(written(replace(experiment, seed=3))) != experiment


@pytest.mark.parametrize("name", VIDEO_RECIPES)
def test_every_phase_cuts_into_tubelets_and_patches(name):
    experiment = VIDEO_RECIPES[name]()
    for phase in experiment.phases:
        shape = experiment.shape(phase)
        tubelets, rows, columns = shape.grid
        assert tubelets * shape.tubelet == (phase.frames or experiment.encoder.frames)
        assert rows == columns == shape.image // shape.patch
        assert replace(shape, frames=experiment.encoder.frames, image=experiment.encoder.image) == (
            experiment.encoder
        )
    assert experiment.encoder.width % experiment.encoder.heads == 0


def test_shapes_of_phases():
    experiment = growing_video_experiment()
    assert [experiment.shape(phase).grid for phase in experiment.phases] == [(2, 4, 4), (4, 6, 6)]


def test_the_published_schedule():
    """12,000 updates of warm-up from 1e-4 to 5.25e-4, constant to 240,000, then 12,000 down to 1e-6."""
    main, cooldown = (phase.fit for phase in find_recipe("video_large").phases)
    assert main.learning_rate_at(0) == pytest.approx(1e-4, rel=1e-3)
    assert main.learning_rate_at(11_999) == main.learning_rate_at(239_999) == pytest.approx(5.25e-4)
    assert cooldown.learning_rate_at(0) == pytest.approx(5.25e-4, rel=1e-3)
    assert cooldown.learning_rate_at(11_999) == pytest.approx(1e-6)
    assert main.batch == cooldown.batch == 3072
    assert find_recipe("video_giant").phases[1].frames == 64


@pytest.mark.parametrize("name", ["video_nano", "video_tiny"])
def test_small_recipes_warm_up_once_and_end_at_a_hundredth(name):
    phases = find_recipe(name).phases
    first, last = phases[0].fit, phases[-1].fit
    assert first.learning_rate_at(0) < first.learning_rate / 10
    assert last.learning_rate_at(last.updates - 1) == pytest.approx(last.learning_rate / 100)
    for before, after in pairwise(phases):
        begins = after.fit.learning_rate_at(0)
        assert math.isclose(before.fit.learning_rate_at(before.fit.updates - 1), begins, rel_tol=0.01)
    # A target as fast as the encoder cannot be learned before it has moved on.
    assert find_recipe(name).objective.ema == (0.999, 0.999)


def test_wrong_experiments_are_refused_in_words():
    tiny = tiny_video_experiment()
    (phase,) = tiny.phases
    for changes, words in (
        ({"held_out": 0.0}, "held_out is a share of the files"),
        ({"held_out": 1.0}, "held_out is a share of the files"),
        ({"phases": ()}, "one phase or more"),
        ({"phases": (phase, phase)}, "of different names"),
        ({"phases": (replace(phase, frames=5),)}, "does not cut into tubelets of 2 frames"),
        ({"phases": (replace(phase, image=36),)}, "patches of 8 pixels"),
        ({"phases": (replace(phase, fit=replace(phase.fit, seed=3)),)}, "Write --seed 3"),
    ):
        with pytest.raises(InputError, match=words):
            tiny_video_experiment(**changes)
    with pytest.raises(InputError, match="at least 2: one to learn from"):
        GeneratedVideos(count=1)
    seeded = VideoPhase(fit=replace(phase.fit, seed=3))
    assert tiny_video_experiment(seed=3, phases=(seeded,)).phases == (seeded,)


def test_files_of_another_kind_or_version_are_refused():
    video, plans = tiny_video_experiment(), RECIPES["wall_big_paths"]()
    with pytest.raises(InputError, match="`jepaplan probe RUN --data VIDEOS`"):
        experiment_from_json(written(video))
    with pytest.raises(InputError, match="`jepaplan evaluate RUN`"):
        video_experiment_from_json(written(plans))
    with pytest.raises(InputError, match="VideoExperiment has no field colour; it was written by another"):
        video_experiment_from_json({**written(video), "colour": "blue"})
    old = written(video)
    for name in ("order", "cache", "probed"):
        del old[name]
    assert video_experiment_from_json(old) == replace(video, cache=False)  # what defaults say


def test_what_decides_is_all_but_descriptions():
    tiny = tiny_video_experiment()
    assert decisive(replace(tiny, description="another")) == decisive(tiny)
    assert decisive(replace(tiny, equalise="first")) != decisive(tiny)
