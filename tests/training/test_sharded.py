import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from jepaplan.training.checkpoint import read_weights
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, RunDirectory, open_run
from jepaplan.training.stage import FitConfig, Stage
from jepaplan.types import InputError

SCRIPT = Path(__file__).with_name("two_sharded.py")


def launch(folder, *names, world):
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    )
    answer = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), str(folder), *names],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr[:6000]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two processes train in every way, then one process trains as the yardstick and takes over `moved`."""
    folder = tmp_path_factory.mktemp("sharded")
    launch(folder, "sharded", "accumulated", "bf16", "continued", world=2)
    launch(folder, "replicated", "moved", world=1)
    return folder


def curve(runs, name, column="loss"):
    rows = RunDirectory(runs / name).read_metrics()
    return torch.tensor([row[column] for row in rows], dtype=torch.float64)


def tensors(runs, name, file="weights.safetensors"):
    return read_weights(runs / name / file).tensors


@pytest.mark.parametrize("name", ["sharded", "accumulated", "moved"])
def test_two_processes_with_half_of_everything_train_what_one_would(runs, name):
    """Losses, the norm of the gradient and all tensors, those of the moving average among them."""
    for column in ("loss", "gradient_norm", "masked_0", "masked_1"):
        torch.testing.assert_close(
            curve(runs, name, column), curve(runs, "replicated", column), rtol=0, atol=1e-5
        )
    expected, found = tensors(runs, "replicated"), tensors(runs, name)
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
        if ".target." in key:
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)


def test_the_moving_average_moves_and_the_unused_stays(runs):
    found = tensors(runs, "sharded")
    average = found["masked.target.average.blocks.0.expand.weight"]
    assert not torch.equal(average, found["masked.encoder.blocks.0.expand.weight"])
    assert not torch.equal(found["gain"], torch.tensor(1.1))


def test_killed_and_continued_gives_the_same_to_the_bit(runs):
    assert torch.equal(curve(runs, "continued"), curve(runs, "sharded"))
    expected, found = tensors(runs, "sharded"), tensors(runs, "continued")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_one_process_takes_over_what_two_began(runs):
    assert RunDirectory(runs / "moved").read_card()["stages"]["video"]["resumed_from"] == 4


def test_bf16_is_close_to_fp32_and_its_weights_are_fp32(runs):
    torch.testing.assert_close(curve(runs, "bf16"), curve(runs, "sharded"), rtol=0, atol=5e-3)
    assert not torch.equal(curve(runs, "bf16"), curve(runs, "sharded"))
    assert {value.dtype for value in tensors(runs, "bf16").values()} == {torch.float32}


def test_a_sharded_stage_can_end_with_its_best(runs):
    best, last = tensors(runs, "bf16", "best.safetensors"), tensors(runs, "bf16")
    assert read_weights(runs / "bf16" / "best.safetensors").card["update"] == 3
    assert all(torch.equal(last[name], value) for name, value in best.items())


class Toy(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
            self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, batch):
        return (self.scale * self.net(batch) - batch.flip(-1)).square().mean(), {}


ALONE = FitConfig(
    updates=12, batch=8, learning_rate=1e-2, log_every=1, save_every=4, gradient_clip=0.5, parallel="sharded"
)


class Killed(Exception):
    pass


def train(path, objective, config=ALONE, kill_at=None):
    def after_update(update):
        if update == kill_at:
            raise Killed

    stage = Stage(
        name="toy",
        objective=objective,
        sample=lambda generator, count: torch.randn(count, 4, generator=generator),
        after_update=after_update,
    )
    with open_run(path, Origin(recipe="toy", configuration={}, data="none", seed=0)) as run:
        return fit(stage, run, config)


def killed(path, kill_at=11):
    with pytest.raises(Killed):
        train(path, Toy(), kill_at=kill_at)
    return sorted((path / "state" / "toy").iterdir())


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_alone_it_is_the_loop_as_ever(tmp_path):
    sharded, replicated = Toy(), Toy()
    train(tmp_path / "sharded", sharded)
    train(tmp_path / "replicated", replicated, replace(ALONE, parallel="replicated"))
    for name, value in replicated.state_dict().items():
        torch.testing.assert_close(sharded.state_dict()[name], value)


def test_two_generations_of_folders_are_kept_and_half_written_ones_swept(tmp_path):
    folders = killed(tmp_path)
    assert [folder.name for folder in folders] == ["000000004.sharded", "000000008.sharded"]
    half = tmp_path / "state" / "toy" / ".000000012.sharded.partial"
    half.mkdir()
    (half / "shard.safetensors").write_bytes(b"half")
    whole, last = Toy(), Toy(seed=3)
    train(tmp_path / "whole", whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(tmp_path, last)
    assert result.resumed_from == 8
    assert same(whole, last)
    assert not half.exists()


def spoil_shard(folder):
    file = next(folder.glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-3] + b"\x01" + content[-2:])


def spoil_card(folder):
    sealed = json.loads((folder / "card.json").read_text())
    sealed["content"] = sealed["content"].replace('"update": 8', '"update": 9')
    (folder / "card.json").write_text(json.dumps(sealed))


def lose_shard(folder):
    next(folder.glob("*.safetensors")).unlink()


def lose_card(folder):
    (folder / "card.json").unlink()


@pytest.mark.parametrize("spoil", [spoil_shard, spoil_card, lose_shard, lose_card])
def test_a_damaged_folder_is_named_and_the_one_before_used(tmp_path, spoil):
    spoil(killed(tmp_path)[-1])
    whole, last = Toy(), Toy(seed=3)
    train(tmp_path / "whole", whole)
    with pytest.warns(UserWarning, match=r"000000008\.sharded is refused"):
        assert train(tmp_path, last).resumed_from == 4
    assert same(whole, last)


def test_what_was_begun_sharded_is_not_continued_otherwise(tmp_path):
    killed(tmp_path)
    with pytest.raises(InputError, match=r"parallel='sharded'; now it is 'replicated'"):
        train(tmp_path, Toy(), replace(ALONE, parallel="replicated"))


def test_another_architecture_is_refused_before_anything_is_copied(tmp_path):
    killed(tmp_path)
    other = Toy(seed=5)
    other.net[2] = nn.Linear(8, 5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=r"net\.2\.weight: the file has \[4, 8\], the model \[5, 8\]"):
        train(tmp_path, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
