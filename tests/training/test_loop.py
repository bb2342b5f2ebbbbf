import math
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from jepaplan.training import distributed
from jepaplan.training.checkpoint import read_weights, save_weights
from jepaplan.training.health import assess
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, RunDirectory, open_run
from jepaplan.training.schedules import warmup_cosine
from jepaplan.training.stage import Diverged, FitConfig, Interrupted, Stage
from jepaplan.types import InputError, SeedTree

ORIGIN = Origin(recipe="test", configuration={}, data="none", seed=0)
CONFIG = FitConfig(updates=30, batch=8, learning_rate=1e-2, log_every=1, save_every=4, gradient_clip=1.0)
ROWS = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))


class Reversal(nn.Module):
    """Learns to reverse a vector; its normalisation has buffers, `unused` parameters never get a gradient."""

    def __init__(self, seed=0, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
            self.unused = nn.Linear(3, 3)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch):
        error = self.dropout(self.net(batch)) - batch.flip(-1)
        loss = error.square().mean()
        return loss, {"largest": error.abs().max()}


def stage(objective, **changes):
    def sample(generator, count):
        return ROWS[torch.randint(len(ROWS), (count,), generator=generator)]

    return replace(Stage(name="encoder", objective=objective, sample=sample), **changes)


def train(path, objective=None, config=CONFIG, on_progress=None, **changes):
    objective = Reversal() if objective is None else objective
    with open_run(path, ORIGIN) as run:
        return fit(stage(objective, **changes), run, config, on_progress)


def stop_at(update):
    def on_progress(progress):
        if progress.update == update:
            signal.raise_signal(signal.SIGTERM if update % 2 else signal.SIGINT)

    return on_progress


def curves(path):
    rows = (path / "metrics.jsonl").read_text().splitlines()
    return [row[: row.index('"frames"')] for row in rows]


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_the_loop_is_adam_with_this_schedule_and_nothing_else(tmp_path, optimiser):
    """Against the loop as one writes it by hand."""
    config = replace(CONFIG, weight_decay=1e-3, optimiser=optimiser)
    trained, expected = Reversal(), Reversal()
    train(tmp_path, trained, config)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser]
    by_hand = kind(expected.parameters(), lr=1.0, weight_decay=1e-3)
    for update in range(30):
        by_hand.param_groups[0]["lr"] = warmup_cosine(update, 30, 1e-2)
        batch = stage(expected).sample(SeedTree(0).torch("encoder", "batch", update), 8)
        by_hand.zero_grad()
        expected(batch)[0].backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        by_hand.step()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value)


def test_training_learns(tmp_path):
    seen = []
    train(tmp_path, config=replace(CONFIG, updates=300), on_progress=seen.append)
    assert seen[-1].loss < 0.3 * seen[0].loss
    assert seen[-1].update == seen[-1].updates == 300
    assert seen[-1].remaining_seconds == 0


@pytest.mark.parametrize("stops", [(1,), (7,), (4, 5, 21), (29,)])
def test_stopped_and_continued_equals_never_stopped(tmp_path, stops):
    whole = Reversal()
    train(tmp_path / "whole", whole)
    for session, stop in enumerate(stops):
        with pytest.raises(Interrupted, match=f"stopped at update {stop} of 30"):
            train(tmp_path / "parts", Reversal(seed=session), on_progress=stop_at(stop))
    last = Reversal(seed=99)  # another beginning, to be overwritten by the checkpoint
    result = train(tmp_path / "parts", last)
    assert result.resumed_from == stops[-1]
    assert same(whole, last)
    assert curves(tmp_path / "parts") == curves(tmp_path / "whole")
    assert len(list((tmp_path / "parts" / "state" / "encoder").iterdir())) == 2


def test_an_objective_that_draws_from_the_global_generator_is_resumable_too(tmp_path):
    whole, last = Reversal(dropout=0.5), Reversal(dropout=0.5)
    train(tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", Reversal(dropout=0.5), on_progress=stop_at(9))
    train(tmp_path / "parts", last)
    assert same(whole, last)


def test_the_global_generator_and_the_signals_are_left_as_they_were(tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_finished_stage_is_loaded_not_trained(tmp_path):
    first, again = Reversal(), Reversal(seed=1)
    done = train(tmp_path, first)
    result = train(tmp_path, again, load=lambda _: pytest.fail("a finished stage drew a batch"))
    assert same(first, again)
    assert result.metrics == pytest.approx(done.metrics)
    assert result.resumed_from == result.updates == 30


def test_two_stages_share_a_run(tmp_path):
    objective = Reversal()
    for _ in range(2):  # the second time everything is there
        with open_run(tmp_path, ORIGIN) as run:
            fit(stage(objective), run, CONFIG)
            fit(stage(objective, name="predictor"), run, replace(CONFIG, updates=5))
    rows = run.read_metrics()
    assert [row["update"] for row in rows] == [*range(1, 31), *range(1, 6)]
    assert set(run.read_card()["stages"]) == {"encoder", "predictor"}
    assert read_weights(run.weights).card["stage"] == "predictor"


def test_only_the_product_is_exported(tmp_path):
    objective = Reversal()
    result = train(tmp_path, objective, product=objective.net)
    weights = read_weights(result.weights)
    assert set(weights.tensors) == set(objective.net.state_dict())
    assert torch.equal(weights.tensors["0.weight"], objective.net[0].weight)
    assert weights.card["update"] == 30


def held_out_scores(*scores):
    remaining = iter(scores)
    return lambda: {"held_out/score": next(remaining)}


@pytest.mark.parametrize("mode, best", [("min", 20), ("max", 10)])
def test_the_best_moment_is_kept(tmp_path, mode, best):
    config = replace(CONFIG, evaluate_every=10, best_metric="held_out/score", best_mode=mode)
    objective = Reversal()
    snapshots = {}

    def remember(update):
        snapshots[update] = {name: value.clone() for name, value in objective.state_dict().items()}

    scores = held_out_scores(3.0, 1.0, math.nan)
    result = train(tmp_path, objective, config, evaluate=scores, after_update=remember)
    assert result.best_update == best
    kept = read_weights(tmp_path / "best.safetensors")
    assert kept.card["update"] == best
    assert all(torch.equal(value, snapshots[best][name]) for name, value in kept.tensors.items())
    assert list(snapshots) == list(range(1, 31))


def test_a_stage_can_end_with_its_best(tmp_path):
    config = replace(CONFIG, evaluate_every=10, best_metric="held_out/score", keep_best=True)
    objective = Reversal()
    train(tmp_path, objective, config, evaluate=held_out_scores(3.0, 1.0, 2.0))
    best = read_weights(tmp_path / "best.safetensors").tensors
    assert all(torch.equal(value, best[name]) for name, value in objective.state_dict().items())


def test_a_best_metric_that_nobody_measures_is_refused(tmp_path):
    config = replace(CONFIG, evaluate_every=1, best_metric="score")
    with pytest.raises(InputError, match=r"held_out/score"):
        train(tmp_path, config=config, evaluate=held_out_scores(1.0))


def test_evaluation_sees_evaluation_mode_and_leaves_no_trace(tmp_path):
    objective = Reversal()
    objective.unused.eval()

    def evaluate():
        assert not objective.training
        assert not torch.is_grad_enabled()
        return {"held_out/loss": float(objective(ROWS)[0])}

    train(tmp_path, objective, evaluate=evaluate)
    assert objective.training
    assert not objective.unused.training
    without = Reversal()
    train(tmp_path / "without", without)
    assert same(objective, without)


def test_health_reaches_the_curves_and_the_watcher(tmp_path):
    seen = []
    config = replace(CONFIG, health_every=15)
    result = train(tmp_path, config=config, health=lambda: assess(torch.zeros(9, 4)), on_progress=seen.append)
    assert "collapsed" in seen[14].warnings[0]
    assert seen[13].warnings == ()
    assert result.metrics["health/effective_rank"] == 1.0
    assert result.warnings == seen[-1].warnings


def test_divergence_stops_before_a_checkpoint_is_spoilt(tmp_path):
    objective = Reversal()

    def poison(update):
        if update == 10:
            nn.init.constant_(objective.net[3].bias, torch.inf)

    with pytest.raises(Diverged, match=r"learning_rate below 0\.01"):
        train(tmp_path, objective, replace(CONFIG, log_every=7), after_update=poison)
    newest = max((tmp_path / "state" / "encoder").iterdir())
    assert newest.name == "000000008.safetensors"
    assert all(value.isfinite().all() for value in read_weights(newest).tensors.values())


def test_other_settings_are_refused_but_the_pace_may_change(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, on_progress=stop_at(6))
    with pytest.raises(InputError, match=r"learning_rate: 0\.01 -> 0\.02"):
        train(tmp_path, config=replace(CONFIG, learning_rate=2e-2))
    assert train(tmp_path, config=replace(CONFIG, save_every=100, log_every=3)).resumed_from == 6


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, on_progress=stop_at(6))
    other = Reversal()
    other.net[3] = nn.Linear(8, 5)
    with pytest.raises(InputError, match=r"net\.3\.weight: the file has \[4, 8\], the model \[5, 8\]"):
        train(tmp_path, other)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path):
    whole, last = Reversal(), Reversal(seed=4)
    train(tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", on_progress=stop_at(10))
    newest = tmp_path / "parts" / "state" / "encoder" / "000000010.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-40] + b"\x01" + content[-39:])
    with pytest.warns(UserWarning, match=r"000000010\.safetensors is refused"):
        result = train(tmp_path / "parts", last)
    assert result.resumed_from == 8
    assert same(whole, last)


def test_when_every_checkpoint_is_damaged_nothing_is_loaded(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, on_progress=stop_at(10))
    for path in (tmp_path / "state" / "encoder").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    objective, untouched = Reversal(), Reversal()
    with pytest.raises(InputError, match=r"(?s)no checkpoint in .*000000008\.safetensors is refused"):
        train(tmp_path, objective)
    assert same(objective, untouched)


def test_bf16_computes_in_bf16_and_keeps_parameters_in_fp32(tmp_path):
    objective = Reversal()
    kinds = []
    objective.net[3].register_forward_hook(lambda _module, _input, output: kinds.append(output.dtype))
    train(tmp_path, objective, replace(CONFIG, precision="bf16"))
    assert set(kinds) == {torch.bfloat16}
    assert objective.net[3].weight.dtype == torch.float32


class Regression(nn.Module):
    """A loss that is a mean over items."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, batch):
        loss = (self.net(batch) - batch.flip(-1)).square().mean()
        return loss, {"items": torch.tensor(float(len(batch)))}


class Spread(Regression):
    """One that is not."""

    def forward(self, batch):
        loss, metrics = super().forward(batch)
        return loss - distributed.gather(self.net(batch)).std(dim=0).mean(), metrics


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_four_parts_train_what_one_does(tmp_path, precision):
    whole, parts, loaded = Regression(), Regression(), []
    config = replace(CONFIG, precision=precision)
    train(tmp_path / "whole", whole, config)

    def load(part):
        loaded.append(len(part))
        return part

    train(tmp_path / "parts", parts, replace(config, accumulate=4), load=load)
    assert loaded == [2] * 4 * 30
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    rows = [RunDirectory(tmp_path / name).read_metrics() for name in ("whole", "parts")]
    for name in ("loss", "gradient_norm"):
        values = [torch.tensor([row[name] for row in run]) for run in rows]
        torch.testing.assert_close(*values, rtol=0, atol=tolerance)
    assert {row["items"] for row in rows[1]} == {2.0}
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=tolerance)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_learns_the_same(tmp_path):
    plain, compiled = Regression(), Regression()
    train(tmp_path / "plain", plain)
    train(tmp_path / "compiled", compiled, replace(CONFIG, compiled=True))
    rows = [RunDirectory(tmp_path / name).read_metrics() for name in ("plain", "compiled")]
    for name in ("loss", "items"):
        values = [torch.tensor([row[name] for row in run]) for run in rows]
        torch.testing.assert_close(*values, rtol=0, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0, atol=1e-5)


def test_a_loss_that_looks_at_all_items_is_refused_in_parts(tmp_path):
    train(tmp_path / "whole", Spread())
    with pytest.raises(InputError, match=r"accumulate=4 .* another loss"):
        train(tmp_path / "parts", Spread(), replace(CONFIG, accumulate=4))


def test_the_number_of_parts_may_change_on_resume(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, Regression(), on_progress=stop_at(6))
    assert train(tmp_path, Regression(), replace(CONFIG, accumulate=2)).resumed_from == 6


def test_before_update_knows_the_update_also_after_a_resume(tmp_path):
    seen = []
    with pytest.raises(Interrupted):
        train(tmp_path, on_progress=stop_at(5), before_update=seen.append)
    assert seen == list(range(5))
    train(tmp_path, before_update=seen.append)
    assert seen == list(range(30))


def test_only_matrices_decay_when_asked(tmp_path):
    """With a loss that nobody can lower the gradient is zero, so decay alone moves a parameter."""

    class Nothing(Regression):
        def forward(self, batch):
            return 0 * super().forward(batch)[0], {}

    objective, began = Nothing(), Nothing()
    nn.init.ones_(objective.net[0].bias)
    config = replace(CONFIG, optimiser="adamw", weight_decay=0.1, weight_decay_on="matrices")
    train(tmp_path, objective, config)
    assert torch.equal(objective.net[0].bias, torch.ones(8))
    total = sum(config.learning_rate_at(update) for update in range(30))
    ratio = (objective.net[0].weight / began.net[0].weight).mean().item()
    assert ratio == pytest.approx(math.exp(-0.1 * total), rel=1e-3)


def test_decay_of_matrices_only_is_resumable(tmp_path):
    config = replace(CONFIG, optimiser="adamw", weight_decay=0.1, weight_decay_on="matrices")
    whole, last = Regression(), Regression()
    train(tmp_path / "whole", whole, config)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", Regression(), config, on_progress=stop_at(9))
    train(tmp_path / "parts", last, config)
    assert same(whole, last)


def test_a_checkpoint_from_before_a_field_existed_is_continued(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, on_progress=stop_at(6))
    newest = max((tmp_path / "state" / "encoder").iterdir())
    weights = read_weights(newest)
    later = ("schedule", "accumulate", "parallel", "weight_decay_on", "initial_fraction", "cooldown_fraction")
    stored = {name: value for name, value in weights.card["config"].items() if name not in later}
    save_weights(newest, weights.tensors, {**weights.card, "config": stored})
    assert train(tmp_path).resumed_from == 6


def test_the_rate_is_constant_then_cools_down(tmp_path):
    config = replace(
        CONFIG, schedule="constant_cooldown", warmup_fraction=0.1, cooldown_fraction=0.2, final_fraction=0.0
    )
    train(tmp_path, config=config)
    rates = [row["learning_rate"] for row in RunDirectory(tmp_path).read_metrics()]
    assert rates[2:24] == [1e-2] * 22
    assert rates[-1] == 0.0


def test_nothing_to_train_is_said(tmp_path):
    with pytest.raises(InputError, match="nothing to train"):
        train(tmp_path, Reversal().requires_grad_(False))


@pytest.mark.parametrize(
    "wrong",
    [
        {"updates": 0},
        {"learning_rate": 0.0},
        {"betas": (0.9, 1.0)},
        {"warmup_fraction": 2.0},
        {"keep_best": True},
        {"accumulate": 0},
        {"accumulate": 3},
        {"compiled": True, "parallel": "sharded"},
        {"cooldown_fraction": 0.1},
        {"schedule": "constant_cooldown", "cooldown_fraction": 0.95},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(
        InputError, match=next(iter(wrong)) if wrong.get("schedule") != "constant_cooldown" else "cool-down"
    ):
        replace(CONFIG, **wrong)


@pytest.mark.parametrize("name", ["schedule", "parallel", "weight_decay_on", "precision", "optimiser"])
def test_an_unknown_choice_is_refused_with_the_known_ones(name):
    """The constructor's types are checked under test before it can say so itself, so past the constructor."""
    config = replace(CONFIG)
    object.__setattr__(config, name, "linear")
    with pytest.raises(InputError, match=f"{name} is one of .*; got 'linear'"):
        config.__post_init__()
