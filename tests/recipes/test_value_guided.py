"""The ten approaches of arXiv:2601.00844 differ in what its table 1 says they do, and in nothing else."""

import dataclasses
from dataclasses import replace

import pytest

from jepaplan.objectives.iql import ValueConfig
from jepaplan.objectives.total import RegulariserConfig
from jepaplan.recipes.catalogue import RECIPES, SWEEPS, find_recipe
from jepaplan.recipes.experiment import JointStage, PredictionStage, PredictorStage, ValueStage
from jepaplan.recipes.maze import MAZE
from jepaplan.recipes.value_guided import APPROACHES, TABLE

VF, QUASI = ValueConfig(discount=0.98, expectile=0.80), ValueConfig(discount=0.93, expectile=0.60)

# Table 1, and what sections 3 and 7.2 add: the losses of the encoder, Sep, the distance, gamma and tau.
PAPER = {
    "contrastive": ({"contrastive"}, "Sep", "euclidean", None),
    "regressive": ({"regressive", "vcreg"}, "Sep", "euclidean", None),
    "prediction_vcreg": ({"prediction", "vcreg"}, "joint", "euclidean", None),
    "prediction_ema": ({"prediction"}, "joint", "euclidean", None),
    "value_euclidean": ({"value"}, "Sep", "euclidean", VF),
    "value_euclidean_joint": ({"value", "prediction"}, "joint", "euclidean", VF),
    "value_quasimetric": ({"value"}, "Sep", "iqe", QUASI),
    "value_quasimetric_joint": ({"value", "prediction"}, "joint", "iqe", QUASI),
    "value_vcreg": ({"value", "vcreg"}, "Sep", "euclidean", VF),
    "value_vcreg_joint": ({"value", "vcreg", "prediction"}, "joint", "euclidean", VF),
}
VCREG = {
    "wall_small": {"variance": 2.2, "covariance": 13.0},
    "wall_big": {"variance": 2.2, "covariance": 13.0},
    # Section 7.2: along batch and time in the maze, along the batch only on the wall.
    "maze": {"variance": 35.026, "covariance": 11.925, "time_variance": 2.9199},
}
SETTINGS = [(prefix, suffix) for prefix in VCREG for suffix in ("", "_cpu")]


def weights_of(stage):
    return {name: weight for name, weight in dataclasses.asdict(stage.weights).items() if weight != 0}


def expected_weights(losses, prefix):
    named = {name: 1.0 for name in losses - {"vcreg"}}
    if {"prediction", "value"} <= losses:  # no more, or the encoder stands still to be predictable
        named["prediction"] = 0.03
    return named | (VCREG[prefix] if "vcreg" in losses else {})


@pytest.mark.parametrize("prefix, suffix", SETTINGS)
@pytest.mark.parametrize("name", PAPER)
def test_every_row_of_the_table(name, prefix, suffix):
    losses, kind, distance, value = PAPER[name]
    experiment = find_recipe(f"{prefix}_{name}{suffix}")
    stages = experiment.stages
    first = ValueStage if kind == "Sep" else JointStage if value else PredictionStage
    rest = (PredictorStage,) if kind == "Sep" else ()
    assert tuple(type(stage) for stage in stages) == (first, *rest)
    assert weights_of(stages[0]) == expected_weights(losses, prefix)
    target_decay = (0.996, 1.0) if name == "prediction_ema" else None
    assert stages[0].regulariser == RegulariserConfig(target_decay=target_decay)
    assert experiment.distance.kind == distance
    if value is not None:
        assert stages[0].value == value
    assert experiment.learns_value == (value is not None)
    assert not any(getattr(stage, "frozen_encoder", False) for stage in stages)
    # What plans without a learned value: the distance that the loss shapes, or PLDM's.
    shaped = name in ("contrastive", "regressive")
    assert experiment.baseline_distance == ("euclidean" if shaped else "mean_square")


@pytest.mark.parametrize("prefix, suffix", SETTINGS)
def test_whatever_the_table_does_not_name_is_equal(prefix, suffix):
    experiments = [find_recipe(f"{prefix}_{name}{suffix}") for name in PAPER]
    assert len({experiment.stages[0].fit for experiment in experiments}) == 1
    assert len({stage.fit for made in experiments for stage in made.stages[1:]}) == 1
    assert len({experiment.stages[0].steps for experiment in experiments}) == 1
    assert {stage.steps for made in experiments for stage in made.stages[1:]} == {15}
    plain = {
        repr(
            replace(
                experiment,
                recipe="",
                description="",
                stages=(),
                distance=replace(experiment.distance, kind="euclidean"),
                baseline_distance="mean_square",
            )
        )
        for experiment in experiments
    }
    assert len(plain) == 1


def test_the_table_is_all_there_and_so_are_its_two_companions():
    assert [approach.__name__ for approach in TABLE] == list(PAPER)
    for prefix, suffix in SETTINGS:
        for approach in APPROACHES:
            assert f"{prefix}_{approach.__name__}{suffix}" in RECIPES


@pytest.mark.parametrize("prefix, suffix", SETTINGS)
def test_plain_pldm_differs_by_the_terms_that_the_paper_does_not_mention(prefix, suffix):
    literal = find_recipe(f"{prefix}_prediction_vcreg{suffix}")
    pldm = find_recipe(f"{prefix}_prediction_vcreg_inverse{suffix}")
    extra = set(weights_of(pldm.stages[0])) - set(weights_of(literal.stages[0]))
    assert extra == {"time_similarity", "inverse_dynamics"} | (
        {"time_variance"} if "wall" in prefix else set()
    )
    plain = replace(pldm.stages[0], weights=literal.stages[0].weights)
    assert replace(pldm, stages=(plain,), recipe=literal.recipe, description=literal.description) == literal


@pytest.mark.parametrize("prefix, suffix", SETTINGS)
def test_two_spaces_predict_as_pred_vcreg_and_pay_as_vf(prefix, suffix):
    first = find_recipe(f"{prefix}_prediction_vcreg{suffix}")
    second = find_recipe(f"{prefix}_value_euclidean{suffix}").stages[0]
    two = find_recipe(f"{prefix}_two_spaces{suffix}")
    assert two.stages[0] == first.stages[0]
    assert two.distance.kind == "euclidean_head"
    assert two.learns_value
    space = two.stages[1]
    assert space.frozen_encoder
    assert (space.weights, space.value, space.fit) == (second.weights, second.value, second.fit)


@pytest.mark.parametrize(
    "prefix, samples, horizon, temperature, variance, trajectories, states",
    [
        ("wall_small", 2000, 96, 0.005, 12, 1000, 64),
        ("wall_big", 2000, 64, 0.005, 12, 1000, 64),
        ("maze", 500, 100, 0.0025, 5, 1000, 101),
    ],
)
def test_the_settings_of_section_7(prefix, samples, horizon, temperature, variance, trajectories, states):
    for name in PAPER:
        experiment = find_recipe(f"{prefix}_{name}")
        planner, recording = experiment.planner, experiment.recording
        assert (planner.samples, planner.horizon, planner.temperature) == (samples, horizon, temperature)
        assert planner.std**2 == pytest.approx(variance)
        assert (recording.trajectories, recording.states) == (trajectories, states)
        assert experiment.encoder.latent_width == 512
        assert all(stage.steps + 1 == 16 for stage in experiment.stages)
        fit = experiment.stages[0].fit
        assert fit.learning_rate * 256 / fit.batch == pytest.approx(0.0028)
        assert fit.optimiser == "adam"


def test_the_maze_shows_colours_and_feels_its_velocity():
    for suffix in ("", "_cpu"):
        encoder = find_recipe(f"maze_value_quasimetric{suffix}").encoder
        assert (encoder.image_channels, encoder.image_size, encoder.proprioception_dim) == (3, 64, 2)
    assert MAZE.recording.world == "Maze"


def test_the_sweep_varies_one_number_on_another_recording():
    assert not set(SWEEPS) & set(RECIPES)
    for suffix in ("", "_cpu"):
        for method, gamma in (("value_euclidean", 0.98), ("value_quasimetric", 0.93)):
            names = [
                name
                for name in SWEEPS
                if name.startswith(f"wall_small_{method}_") and name.endswith("_cpu") == bool(suffix)
            ]
            discounts = {}
            for name in names:
                experiment = find_recipe(name)
                assert experiment.recipe == name
                assert (experiment.seed, experiment.instances) == (1, "WallSmall-tuning")
                chosen = find_recipe(f"wall_small_{method}{suffix}")
                first = experiment.stages[0]
                assert replace(first, value=chosen.stages[0].value) == chosen.stages[0]
                if "discount" in name:
                    assert first.value.expectile == 0.7
                    discounts[first.value.discount] = name
                else:
                    assert first.value.discount == gamma
            assert len(names) == 10
            assert gamma in discounts
