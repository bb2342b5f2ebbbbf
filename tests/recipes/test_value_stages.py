"""Value heads trained by the loop on a world of points that drift along a line: seconds on one core."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from jepaplan.data.episodes import Episodes
from jepaplan.data.goals import GoalMixture
from jepaplan.models.quasimetric import Euclidean
from jepaplan.models.value_heads import QuasimetricHead, QuasimetricHeadConfig, Reading, ValueHeadConfig
from jepaplan.objectives.returns import value_of_steps
from jepaplan.recipes.value_batches import ImaginedActions, Signals
from jepaplan.recipes.value_stages import ValueHeadStage, build_value_heads, value_head_stage
from jepaplan.training.distributed import Processes, shard
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, RunDirectory, open_run
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError
from point_bench import Bench, Drift

ORIGIN = Origin(recipe="test", configuration={}, data="none", seed=0)
FIT = FitConfig(updates=6, batch=16, learning_rate=3e-3, log_every=1, evaluate_every=3, save_every=1)
LEARN = FitConfig(
    updates=150, batch=32, learning_rate=1e-2, log_every=999, evaluate_every=999, save_every=999
)
HEAD = ValueHeadConfig(
    hidden=32, quasimetric=QuasimetricHeadConfig(hidden=16, layers=1, width=16, components=2)
)
STATE = replace(HEAD, goal=False)
FREE = replace(STATE, nonpositive=False)  # rewards are positive
LATER = GoalMixture(geometric=1.0, geometric_mean=10.0)


class Points(nn.Module):
    """A system: what `Workshop.system` is."""

    def __init__(self, stage):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.world_model = Drift()
            self.distance = QuasimetricHead(2, HEAD.quasimetric)
            self.values = build_value_heads([stage], latent_width=2, action_dim=2)


def bench(stage):
    """20 walks of 8 to 16 steps, mostly to the right: one step moves by a quarter."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 17, (20,), generator=generator)
    steps = [torch.stack([torch.full((n,), 0.25), torch.zeros(n)], dim=1) for n in lengths.tolist()]
    firsts = torch.stack([torch.rand(20, generator=generator) - 2, torch.zeros(20)], dim=1)
    paths = [torch.cat([first[None], moves]).cumsum(0) for first, moves in zip(firsts, steps, strict=True)]
    points, actions = torch.cat(paths), torch.cat(steps)
    episodes = Episodes(
        path=Path("points.h5"),
        manifest={},
        content_hash="",
        observations=torch.zeros(len(points), 1, 1, 1, dtype=torch.uint8),
        actions=actions,
        states=None,
        proprioception=None,
        starts=(lengths + 1).cumsum(0) - lengths - 1,
        lengths=lengths,
    )
    return Bench(Points(stage), episodes, points, trained_episodes=16)


def signals_of(workshop):
    """Success: beyond 1; reward: how far right an action leads."""
    points, actions = workshop.points, workshop.episodes.actions
    return Signals(rewards=actions[:, 0], success=points[:, 0] > 1)


def stage_of(workshop, config):
    return value_head_stage(config, workshop, signals_of(workshop))


def train(path, config, on_progress=None):
    workshop = bench(config)
    with open_run(path, ORIGIN) as run:
        result = fit(stage_of(workshop, config), run, config.fit, on_progress)
    return workshop.system, result


CONFIGS = {
    "td": ValueHeadStage(fit=FIT, head=HEAD, method="td", steps=1, members=1),
    "td_lambda": ValueHeadStage(fit=FIT, head=HEAD, method="td_lambda", steps=4),
    "expectile": ValueHeadStage(fit=FIT, head=HEAD, members=3, steps=4, target="stop_gradient"),
    "monte_carlo": ValueHeadStage(fit=FIT, head=HEAD, method="monte_carlo", goals=LATER),
    "pairs": ValueHeadStage(fit=FIT, head=HEAD, method="pairs"),
    "distance": ValueHeadStage(fit=FIT, trains="distance", method="pairs", discount=1.0, expectile=0.9),
    "quasimetric": ValueHeadStage(fit=FIT, head=replace(HEAD, geometry="quasimetric"), steps=4),
    "imagined": ValueHeadStage(fit=FIT, head=HEAD, steps=4, latents="imagined"),
    "both": ValueHeadStage(
        fit=FIT, head=HEAD, steps=4, latents="both", imagination=ImaginedActions(actions="other")
    ),
    "action values": ValueHeadStage(fit=FIT, head=replace(HEAD, action=True), steps=4),
    "success": ValueHeadStage(fit=FIT, head=STATE, reward="success", method="td_lambda", steps=4),
    "recorded": ValueHeadStage(fit=FIT, head=FREE, reward="recorded", method="td"),
    "returns of success": ValueHeadStage(fit=FIT, head=STATE, reward="success", method="monte_carlo"),
}  # fmt: skip


def tensors(system):
    return {name: value.clone() for name, value in system.state_dict().items()}


def rows_of(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in RunDirectory(path).read_metrics()]


@pytest.mark.parametrize("name", CONFIGS)
def test_interrupted_and_continued_is_never_interrupted_to_the_bit(name, tmp_path):
    config = CONFIGS[name]
    whole, _ = train(tmp_path / "whole", config)

    def interrupt(progress):
        if progress.update == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", config, interrupt)
    parts, result = train(tmp_path / "parts", config)
    assert result.resumed_from == 3
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")
    before = tensors(bench(config).system)
    for tensor_name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(parts)[tensor_name])
        learned = "distance" if config.trains == "distance" else "values"
        assert torch.equal(tensor, before[tensor_name]) or tensor_name.startswith(learned)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in tensors(whole).items())


@pytest.mark.parametrize(
    "name", ["td", "td_lambda", "expectile", "monte_carlo", "pairs", "imagined", "distance"]
)
def test_every_method_learns_which_states_are_further_from_the_goal(name, tmp_path):
    config = CONFIGS[name]
    config = replace(config, fit=replace(LEARN, updates=100))
    _, result = train(tmp_path, config)
    assert result.metrics["held_out/rank_correlation"] > 0.9


def test_action_values_learn_which_way_to_go(tmp_path):
    config = replace(CONFIGS["action values"], fit=LEARN, latents="both", method="expectile")
    config = replace(config, imagination=ImaginedActions(actions="none", noise=0.4), steps=2)
    system, _ = train(tmp_path, config)
    value, here, goal = system.values["value_head"], torch.zeros(9, 2), torch.tensor([0.5, 0.0]).expand(9, 2)
    here = here + torch.linspace(-0.5, 0, 9)[:, None] * torch.tensor([1.0, 0.0])
    forwards, backwards = (value(here, goal, torch.tensor([sign * 0.25, 0.0])) for sign in (1, -1))
    assert (forwards > backwards).float().mean() > 0.8


def sampled(config, seed=0, count=32):
    workshop = bench(config)
    stage = stage_of(workshop, config)
    drawn = stage.sample(torch.Generator().manual_seed(seed), count)
    return workshop, stage, drawn, stage.load(drawn)


def test_imagined_segments_are_what_the_world_model_makes_of_other_actions():
    config = replace(CONFIGS["imagined"], imagination=ImaginedActions(noise=0.5), self_goals=0.5)
    workshop, _, _, batch = sampled(config)
    assert torch.isin(batch.latents[:, 0], workshop.points).all()
    torch.testing.assert_close(batch.latents.diff(dim=1), batch.actions)
    assert not torch.isin(batch.latents[:, 1:], workshop.points).any(-1).any()
    assert not batch.latents.requires_grad  # the world model is not taught by the value
    assert workshop.system.world_model.gain.grad is None
    # A goal of the segment's own window is the latent imagined there; any other is a recorded frame.
    own = batch.terminal[:, 0]
    assert 8 <= int(own.sum()) <= 24
    torch.testing.assert_close(batch.goals[own], batch.latents[own, 0])
    inside = (batch.goals[:, None] == batch.latents).all(-1)
    torch.testing.assert_close(inside[:, :-1], batch.terminal)
    assert (batch.rewards == batch.terminal.float() - 1).all()


def test_both_imagines_half_and_leaves_the_rest_as_recorded():
    workshop, _, drawn, batch = sampled(CONFIGS["both"], count=200)
    imagined = drawn["imagined"]
    assert 70 < int(imagined.sum()) < 130
    recorded = torch.isin(batch.latents[:, 1:, 0], workshop.points[:, 0]).all(1)
    assert torch.equal(recorded, ~imagined)


def test_recorded_goals_are_reached_where_they_are():
    _, _, _, batch = sampled(replace(CONFIGS["td_lambda"], self_goals=0.0, goals=LATER), count=200)
    gap = (batch.goals[:, None, 0] - batch.latents[..., 0]).abs()
    assert torch.equal(gap[:, :-1] < 1e-5, batch.terminal)
    assert (gap[:, 1:] < 1e-5).any()
    _, _, _, itself = sampled(replace(CONFIGS["td_lambda"], self_goals=1.0))
    assert itself.terminal[:, 0].all()


def test_returns_until_a_goal_are_the_steps_of_the_recording():
    config = replace(CONFIGS["monte_carlo"], discount=0.9, self_goals=0.1)
    _, _, _, batch = sampled(config, count=100)
    steps = ((batch.goals - batch.latents)[:, 0] / 0.25).round()
    torch.testing.assert_close(batch.returns, value_of_steps(steps, 0.9))


def test_returns_until_success_count_an_unfinished_recording_as_never():
    workshop, _, _, batch = sampled(replace(CONFIGS["returns of success"], discount=0.9), count=300)
    steps = ((1 - batch.latents[:, 0]) / 0.25).clamp(min=0).ceil()
    lasts = workshop.points[workshop.episodes.starts + workshop.episodes.lengths, 0]
    assert (lasts[:16] <= 1).any()
    assert (lasts[:16] > 1).any()
    due = value_of_steps(steps, 0.9)
    # What starts where no recording arrives is worth never; elsewhere the steps to success, up to rounding.
    assert ((batch.returns - due).abs() < 1e-4).any()
    assert (((batch.returns - due).abs() < 1e-4) | ((batch.returns + 10).abs() < 1e-4)).all()
    with pytest.raises(InputError, match="write a discount below 1"):
        sampled(replace(CONFIGS["returns of success"], discount=1.0))[1].load(
            sampled(CONFIGS["returns of success"])[2]
        )


def test_rewards_and_successes_are_read_where_they_were_recorded():
    _, _, _, batch = sampled(CONFIGS["recorded"])
    assert (batch.rewards == 0.25).all()
    assert not batch.terminal.any()
    assert batch.goals is None
    _, _, _, batch = sampled(CONFIGS["success"], count=200)
    succeeded = batch.latents[..., 0] > 1
    assert torch.equal(batch.terminal, succeeded[:, :-1] | succeeded[:, 1:])
    assert torch.equal(batch.rewards, succeeded[:, :-1].float() - 1)
    assert batch.terminal.any()


def test_processes_load_their_share_of_the_same_batch():
    for name in ("expectile", "both", "monte_carlo", "pairs"):
        _, stage, drawn, whole = sampled(CONFIGS[name])
        halves = [stage.load(shard(drawn, 32, Processes(rank, 2))) for rank in (0, 1)]
        for part in ("latents", "goals"):
            torch.testing.assert_close(
                torch.cat([getattr(half, part) for half in halves]), getattr(whole, part)
            )


def test_the_reading_travels_with_the_head():
    heads = build_value_heads([replace(CONFIGS["pairs"], reading=Reading(by="minimum"))], 2, 2)
    assert list(heads) == ["value_head"]
    here, goal = torch.randn(5, 2), torch.randn(5, 2)
    torch.testing.assert_close(
        heads["value_head"](here, goal), heads["value_head"].ensemble(here, goal).amin(-1)
    )
    assert not build_value_heads([CONFIGS["distance"], Euclidean()], 2, 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward": "success"}, "reward='goal' is for values with a goal"),
        ({"head": STATE}, "reward='goal' is for values with a goal"),
        ({"latents": "imagined", "reward": "success", "head": STATE}, "nobody saw"),
        ({"latents": "both", "method": "pairs"}, "nobody saw"),
        ({"method": "pairs", "reward": "success", "head": STATE}, "counts steps to a goal"),
        ({"method": "monte_carlo"}, r"write goals\.batch=0"),
        ({"method": "td", "head": replace(HEAD, action=True)}, "implicit Q-learning"),
        ({"members": 0}, "members=0"),
        ({"discount": 0.0}, "discount=0"),
    ],
)
def test_what_cannot_be_learned_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        ValueHeadStage(fit=FIT, **{"head": HEAD, **changes})


def test_missing_columns_and_heads_are_named():
    config = CONFIGS["success"]
    with pytest.raises(InputError, match=r"needs a column `success` of \d+ rows for points.h5; got none"):
        value_head_stage(config, bench(config))
    with pytest.raises(InputError, match="no value head 'value_head'"):
        stage_of(bench(CONFIGS["distance"]), config)
