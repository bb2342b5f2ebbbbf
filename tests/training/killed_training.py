"""Trains a tiny model in children that are killed at random moments; compares with one that never was.

Run by test_killed.py in a process of its own, which forks: a child starts at once, torch imported.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from jepaplan.training.checkpoint import read_weights
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, open_run
from jepaplan.training.stage import FitConfig, Stage

CONFIG = FitConfig(updates=400, batch=16, learning_rate=1e-2, log_every=5, save_every=3, save_seconds=None)
KILLS = 10


def train(folder, config=CONFIG):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 8))

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return (self.net(batch) - batch.flip(-1)).square().mean(), {}

    def sample(generator, count):
        return torch.randn(count, 8, generator=generator)

    with open_run(folder, Origin(recipe="killed", configuration={}, data="none", seed=0)) as run:
        return fit(Stage(name="only", objective=Objective(), sample=sample), run, config)


def train_and_kill(folder, seconds):
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def fingerprint(folder):
    tensors = read_weights(folder / "weights.safetensors").tensors
    content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(content).hexdigest()


def curves(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def newest(folder):
    files = sorted((folder / "state" / "only").glob("[0-9]*.safetensors"))
    return int(files[-1].stem) if files else 0


def main(folder):
    torch.set_num_threads(1)
    train(folder / "warm", replace(CONFIG, updates=3))  # children inherit what torch imports when first used
    moments = random.Random(7)
    began = time.monotonic()
    train(folder / "whole")
    whole = time.monotonic() - began
    killed, reached = 0, []
    while killed < KILLS:
        killed += train_and_kill(folder / "killed", whole * moments.uniform(0.02, 0.12))
        reached.append(newest(folder / "killed"))
        if reached[-1] == CONFIG.updates:
            break
    resumed_from = train(folder / "killed").resumed_from
    print(
        json.dumps(
            {
                "killed": killed,
                "reached": reached,
                "resumed_from": resumed_from,
                "same_weights": fingerprint(folder / "killed") == fingerprint(folder / "whole"),
                "same_curves": curves(folder / "killed") == curves(folder / "whole"),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
