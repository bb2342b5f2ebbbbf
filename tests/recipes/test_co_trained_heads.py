"""Stages that train a value head beside encoder and predictor: trained, continued, saved, planned with."""

from dataclasses import replace

import pytest
import torch

from jepaplan.data.episodes import open_episodes
from jepaplan.data.goals import GoalMixture
from jepaplan.models.value_heads import Reading, ValueHeadConfig
from jepaplan.objectives.total import ObjectiveWeights, RegulariserConfig
from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.costs import CostConfig
from jepaplan.recipes.experiment import JointStage
from jepaplan.recipes.run import TrainOptions, interface_of, load_run, train
from jepaplan.recipes.serialise import decisive, experiment_from_json, experiment_to_json
from jepaplan.recipes.stages import Workshop
from jepaplan.recipes.system import build_controller, build_system
from jepaplan.recipes.value_learning import CoTrainedHead
from jepaplan.training.distributed import Processes, shard
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError
from tiny_runs import tensor_hashes, tiny_experiment

SMALL = ValueHeadConfig(hidden=16)
HEADS = {
    "td": CoTrainedHead(head=SMALL, method="td", members=1),
    "td_lambda": CoTrainedHead(head=SMALL, method="td_lambda", reading=Reading(by="minimum")),
    "expectile": CoTrainedHead(head=SMALL, members=3, shapes_encoder=False),
    "actions": CoTrainedHead(head=replace(SMALL, action=True), target="stop_gradient"),
}


def experiment(head, joint=False):
    """The recipe's first stage with another head; or a joint one with a target encoder."""
    tiny = tiny_experiment("wall_big_heads_co_trained", cost=CostConfig())
    first = tiny.stages[0]
    if joint:
        first = JointStage(
            fit=first.fit,
            steps=3,
            weights=ObjectiveWeights(value=0.1, variance=1.0),
            value=replace(find_recipe("wall_big_value_euclidean").stages[0].value, batch_goals=8),
            regulariser=RegulariserConfig(target_decay=(0.9, 1.0)),
        )
    return replace(tiny, stages=(replace(first, co_trained=head),))


def built(made, data):
    episodes = open_episodes(data)
    system = build_system(made, interface_of(episodes))
    return system, Workshop(made, system, episodes).build(made.stages[0])


def interrupt(progress):
    if progress.update == 3:
        raise KeyboardInterrupt


def rows_of(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in RunDirectory(path).read_metrics()]


@pytest.mark.parametrize("name, joint", [("expectile", False), ("td_lambda", True), ("actions", False)])
def test_interrupted_and_continued_is_never_interrupted_to_the_bit(name, joint, tmp_path, tiny_data):
    made = experiment(HEADS[name], joint)
    train(made, tmp_path / "whole", TrainOptions(data=tiny_data))
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "parts", TrainOptions(data=tiny_data, on_progress=interrupt))
    (result,) = train(made, tmp_path / "parts", TrainOptions(data=tiny_data))
    assert result.resumed_from == 2
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    assert tensor_hashes(tmp_path / "whole") == tensor_hashes(tmp_path / "parts")
    examined = [row for row in rows_of(tmp_path / "whole") if "held_out/head" in row]
    assert examined
    assert all(("held_out/rank_correlation" in row) == (name != "actions") for row in examined)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_the_encoder_learns_from_the_head_where_it_is_asked_to(name, joint, tiny_data):
    gradients = []
    for head in (replace(HEADS[name], weight=3.0), None):
        system, stage = built(experiment(head, joint), tiny_data)
        drawn = stage.sample(torch.Generator().manual_seed(0), 8)
        stage.objective(stage.load(drawn))[0].backward()
        encoder = system.world_model.pixel_encoder.parameters()
        gradients.append(torch.cat([one.grad.flatten() for one in encoder if one.grad is not None]))
        if head is not None:
            assert all(one.grad is not None for one in system.values.parameters())
            assert len(system.values["co_trained"].ensemble) == head.members
    same = torch.allclose(*gradients, rtol=1e-4, atol=1e-6)
    assert same is not HEADS[name].shapes_encoder


def test_windows_know_their_goals_and_when_they_are_there(tiny_data):
    head = replace(HEADS["expectile"], self_goals=0.3, goals=GoalMixture(geometric=1.0, geometric_mean=2.0))
    _, stage = built(experiment(head), tiny_data)
    drawn = stage.sample(torch.Generator().manual_seed(0), 64)
    batch, episodes = stage.load(drawn), open_episodes(tiny_data)
    frames = batch.windows.segments.frames
    assert torch.equal(batch.goals, episodes.observations[drawn["goal"]])
    assert torch.equal(batch.terminal, frames[:, :-1] == drawn["goal"][:, None])
    assert torch.equal(batch.rewards, batch.terminal.float() - 1)
    assert 8 <= int(batch.terminal[:, 0].sum()) <= 30
    assert (drawn["goal"] >= frames[:, 0]).all()
    assert drawn["subset"].shape == (64, 2)
    halves = [stage.load(shard(drawn, 64, Processes(rank, 2))) for rank in (0, 1)]
    for part in ("goals", "rewards", "terminal", "subset", "actions"):
        assert torch.equal(torch.cat([getattr(half, part) for half in halves]), getattr(batch, part))


@pytest.mark.parametrize("name", ["td_lambda", "actions"])
def test_the_head_is_saved_and_planned_with(name, tmp_path, tiny_data):
    made = experiment(replace(HEADS[name], name="mine.own"))
    made = replace(made, cost=CostConfig(value="mine_own"))
    assert made.learns_value
    train(made, tmp_path / "run", TrainOptions(data=tiny_data))
    run = load_run(tmp_path / "run")
    assert run.experiment == made
    values, latent = run.system.values["mine_own"], torch.randn(4, 48)
    steps = run.system.steps_to_go(run.experiment.cost)
    if name == "td_lambda":
        paid = steps(latent, latent.roll(1, 0))
        torch.testing.assert_close(paid, -values.ensemble(latent, latent.roll(1, 0)).amin(-1))
        assert (paid > 0).all()
    control = build_controller(run.experiment, run.system.world_model, steps)
    frames = open_episodes(tiny_data).observations
    control.reset(frames[10:12], torch.Generator().manual_seed(0))
    assert control.act(frames[:2]).shape == (2, 2)


def test_a_stage_without_a_head_is_known_by_what_it_was_known_by(tiny_data):
    """The field came later: older runs lack it, and what was found without it is found again."""
    plain = experiment(None)
    assert "co_trained" not in decisive(plain)["stages"][0]
    written = experiment_to_json(plain)
    del written["stages"][0]["co_trained"]
    assert experiment_from_json(written) == plain
    with_head = experiment(HEADS["td"])
    assert experiment_from_json(experiment_to_json(with_head)) == with_head
    assert not build_system(plain, interface_of(open_episodes(tiny_data))).values


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "pairs"}, "learns from whole recordings, and a co-trained head sees windows"),
        ({"method": "monte_carlo", "goals": GoalMixture(geometric=1.0)}, "train a ValueHeadStage on the fin"),
        ({"trains": "distance"}, "is a network of its own; the distance learns .* by weights.value"),
        ({"weight": 0.0}, r"finite and positive; got weight=0\.0.*leave co_trained out"),
        ({"reward": "success"}, "reward='goal' is for values with a goal"),
        ({"method": "td", "head": replace(SMALL, action=True)}, "implicit Q-learning"),
        ({"members": 0}, "members=0"),
    ],
)
def test_what_cannot_be_learned_beside_an_encoder_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(HEADS["expectile"], **changes)


def test_heads_have_names_of_their_own_and_columns_to_learn_from(tmp_path, tiny_data):
    heads, shaped = find_recipe("wall_big_heads"), find_recipe("wall_big_heads_co_trained")
    both = (shaped.stages[0], *heads.stages[1:])
    assert replace(heads, stages=both, cost=CostConfig(value="co_trained")).learns_value
    with pytest.raises(InputError, match=r"value heads need different names.*co-trained.name mine"):
        replace(heads, stages=(replace(both[0], co_trained=CoTrainedHead(name="pairs")), *heads.stages[1:]))
    with pytest.raises(InputError, match=r"no value head 'value'.* this experiment has co_trained"):
        replace(shaped, cost=CostConfig(value="value"))
    recorded = CoTrainedHead(reward="recorded", head=replace(SMALL, goal=False, nonpositive=False))
    with pytest.raises(InputError, match="head 'co_trained' learned recorded rewards"):
        replace(experiment(recorded), cost=CostConfig(value="co_trained", over="n_step"))
    success = CoTrainedHead(reward="success", head=replace(SMALL, goal=False))
    with pytest.raises(InputError, match="needs a column `success`"):
        train(experiment(success), tmp_path / "run", TrainOptions(data=tiny_data))
    assert not (tmp_path / "run").exists()
