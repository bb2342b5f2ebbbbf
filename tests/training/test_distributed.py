import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepaplan.training.checkpoint import read_weights
from jepaplan.training.distributed import Processes, cut, distributed, gather, map_tensors, shard
from jepaplan.training.runs import RunDirectory
from jepaplan.types import InputError

SCRIPT = Path(__file__).with_name("two_processes.py")


def launch(folder, *, world):
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    )
    command = [sys.executable, *torchrun, str(SCRIPT), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=False, env=environment
    )
    assert answer.returncode == 0, answer.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    for world in (1, 2):
        launch(folder, world=world)
    return folder


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("float64", 1e-12)])
def test_two_processes_train_exactly_what_one_would(runs, precision, tolerance):
    """Losses, the gradient's norm (Adam alone would forgive a wrong scale) and weights after 20 updates."""
    one, two = RunDirectory(runs / "1" / precision), RunDirectory(runs / "2" / precision)
    rows_one, rows_two = one.read_metrics(), two.read_metrics()
    assert len(rows_one) == len(rows_two) == 20
    # What is logged passed through float32, so its own rounding is the floor.
    for name in ("loss", "prediction", "contrast", "variance", "gradient_norm"):
        values = [
            torch.tensor([row[name] for row in rows], dtype=torch.float64) for rows in (rows_one, rows_two)
        ]
        torch.testing.assert_close(values[0], values[1], rtol=0, atol=max(tolerance, 1e-6))
    assert rows_one[-1]["held_out/loss"] == pytest.approx(rows_two[-1]["held_out/loss"], abs=tolerance)
    weights_one, weights_two = read_weights(one.weights).tensors, read_weights(two.weights).tensors
    for name, value in weights_one.items():
        torch.testing.assert_close(weights_two[name], value, rtol=0, atol=tolerance)


def test_unused_parameters_stay_as_they_began_and_used_ones_do_not(runs):
    tensors = read_weights(runs / "2" / "float64" / "weights.safetensors").tensors
    torch.manual_seed(0)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from two_processes import Objective
    finally:
        sys.path.pop(0)
    began = Objective(torch.float64).state_dict()
    assert torch.equal(tensors["unused.weight"], began["unused.weight"])
    assert not torch.equal(tensors["scale"], began["scale"])


def test_shards_put_together_are_the_batch():
    @dataclass(frozen=True)
    class Batch:
        frames: Tensor
        nested: tuple
        names: dict
        nothing: None = None

    Pair = namedtuple("Pair", "left right")
    rows = torch.arange(12).reshape(6, 2)
    batch = Batch(rows, (rows + 1, [rows + 2]), {"pair": Pair(rows + 3, 7), "scalar": torch.tensor(5)})
    parts = [shard(batch, 6, Processes(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([part.frames for part in parts]), rows)
    assert torch.equal(torch.cat([part.nested[1][0] for part in parts]), rows + 2)
    assert torch.equal(torch.cat([part.names["pair"].left for part in parts]), rows + 3)
    assert all(part.names["pair"].right == 7 and part.names["scalar"] == 5 for part in parts)
    assert shard(batch, 6, Processes(0, 1)) is batch


def test_a_share_is_cut_into_parts_in_order():
    rows = torch.arange(12).reshape(6, 2)
    assert torch.equal(torch.cat([part["rows"] for part in cut({"rows": rows}, 6, 3)]), rows)
    assert cut(rows, 6, 1)[0] is rows
    with pytest.raises(InputError, match=r"6 items .* accumulate=4"):
        cut(rows, 6, 4)


def test_batches_that_cannot_be_shared_say_which_can():
    with pytest.raises(InputError, match="batch of 6 or of 8"):
        shard(torch.zeros(7), 7, Processes(0, 2))
    with pytest.raises(InputError, match=r"shape \[3\]"):
        shard({"shared": torch.zeros(3)}, 4, Processes(0, 2))


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    own = torch.randn(3, 2, requires_grad=True)
    assert gather(own) is own
    with distributed() as who:
        assert (who.rank, who.world, who.writes) == (0, 1, True)
    assert map_tensors(lambda tensor: tensor + 1, [torch.zeros(1), "name"])[1] == "name"
