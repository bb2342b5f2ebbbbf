"""What an environment said while it was recorded is what values learn: collect, train, load, compare."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from jepaplan import cli
from jepaplan.data.episodes import open_episodes
from jepaplan.models.encoders import CompactConfig
from jepaplan.models.value_heads import ValueHeadConfig
from jepaplan.objectives.returns import value_of_steps
from jepaplan.objectives.total import ObjectiveWeights
from jepaplan.recipes.experiment import PredictionStage
from jepaplan.recipes.run import TrainOptions, load_run, train
from jepaplan.recipes.value_learning import CoTrainedHead
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError
from tiny_runs import tiny_experiment

PLACES, SIDE, DISCOUNT = 6, 16, 0.9
FIT = FitConfig(updates=200, batch=64, learning_rate=1e-2, log_every=999, evaluate_every=999, save_every=999)
STAGE = ValueHeadStage(
    name="earned",
    fit=FIT,
    head=ValueHeadConfig(goal=False, nonpositive=False, hidden=32),
    reward="recorded",
    method="td",
    discount=DISCOUNT,
    steps=1,
)


class Corridor(gymnasium.Env):
    """Every action leads one place to the right; -0.5 a step, 3 for the last place, where it ends."""

    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def _see(self):
        picture = np.zeros((SIDE, SIDE, 1), np.uint8)
        picture[:, 2 * self.place : 2 * self.place + 4] = 255
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(PLACES - 1))
        return self._see(), {}

    def step(self, action):
        self.place += 1
        there = self.place == PLACES - 1
        return self._see(), 3.0 if there else -0.5, there, False, {"success": there}


gymnasium.register("jepaplan-tests/Corridor-v0", entry_point=Corridor)


@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    path = tmp_path_factory.mktemp("corridor") / "walks.h5"
    assert cli.main(["collect", "jepaplan-tests/Corridor-v0", "--episodes", "40", "--out", str(path)]) == 0
    return path


def experiment(stage):
    encoder = CompactConfig(image_channels=1, image_size=SIDE, latent_width=16, channels=(4, 4))
    recipe = tiny_experiment("wall_big_prediction_vcreg_cpu")
    return replace(recipe, encoder=encoder, stages=(stage,))


def values(corridor, stage, path):
    """Learned values of all recorded frames, and the places that these show."""
    train(experiment(stage), path, TrainOptions(data=corridor))
    system, episodes = load_run(path).system, open_episodes(corridor)
    places = episodes.observations[:, 0, 0].float().argmax(dim=-1) // 2
    return system.values["earned"](system.world_model.encode(episodes.observations)), places


# Where the encoder learns as well, from prediction and from the head.
BESIDE = PredictionStage(
    fit=replace(FIT, learning_rate=3e-3),
    steps=1,
    weights=ObjectiveWeights(prediction=1.0, variance=1.0),
    co_trained=CoTrainedHead(
        name="earned", head=STAGE.head, reward="recorded", method="td", discount=DISCOUNT
    ),
)


@pytest.mark.parametrize("stage", [STAGE, replace(STAGE, method="monte_carlo"), BESIDE])
def test_recorded_rewards_become_the_value_of_the_corridor(corridor, tmp_path, stage):
    found, places = values(corridor, stage, tmp_path / "run")
    known, worth = [0.0] * PLACES, 0.0
    for place in reversed(range(PLACES - 1)):
        worth = 3.0 if place == PLACES - 2 else -0.5 + DISCOUNT * worth
        known[place] = worth
    before = places < PLACES - 1  # nothing is earned from the last place, so nothing is learned of it
    torch.testing.assert_close(found[before], torch.tensor(known)[places[before]], atol=0.15, rtol=0)


def test_recorded_success_becomes_the_steps_to_it(corridor, tmp_path):
    stage = replace(STAGE, reward="success", head=replace(STAGE.head, nonpositive=True), method="td")
    found, places = values(corridor, stage, tmp_path / "run")
    known = value_of_steps(PLACES - 1 - places, DISCOUNT)
    before = places < PLACES - 1
    torch.testing.assert_close(found[before], known[before], atol=0.2, rtol=0)


def test_the_health_card_tells_what_was_earned(corridor, tiny_data, capsys):
    assert cli.main(["inspect", str(corridor)]) == 0
    card = " ".join(capsys.readouterr().out.split())
    assert "-0.5 to 3, mean" in card
    assert "100.0%" in card
    assert cli.main(["inspect", str(tiny_data)]) == 0
    assert capsys.readouterr().out.count("not recorded") == 2


@pytest.mark.parametrize("reward, column", [("recorded", "rewards"), ("success", "success")])
def test_recordings_without_the_column_are_refused_before_a_run_begins(tmp_path, tiny_data, reward, column):
    recipe = tiny_experiment("wall_big_prediction_vcreg_cpu")
    recipe = replace(recipe, stages=(*recipe.stages, replace(STAGE, reward=reward)))
    message = rf"needs a column `{column}` of \d+ rows for .*; got none. `jepaplan collect` records"
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run", TrainOptions(data=tiny_data))
    assert not (tmp_path / "run" / "card.json").exists()
