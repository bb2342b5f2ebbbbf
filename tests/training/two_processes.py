"""Trains one objective whose terms share latents in every way there is; run alone or by torchrun.

Own items only (prediction), statistics of all items (variance, covariance), own items against the goals of
all (contrast), a parameter used after gathering (scale), and one that is never used.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from jepaplan.training.distributed import average_gradients, distributed, gather, processes
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, open_run
from jepaplan.training.stage import FitConfig, Interrupted, Stage


class Objective(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
        self.predictor = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Linear(2, 2)
        self.to(dtype)

    def forward(self, batch):
        now, later = self.encoder(batch["now"]), self.encoder(batch["later"])
        prediction = (self.predictor(now) - later).square().mean()
        all_now, all_later = gather(now), gather(later)
        deviation = (all_now.var(dim=0) + 1e-4).sqrt()
        centred = all_now - all_now.mean(dim=0)
        covariance = centred.T @ centred / (len(centred) - 1)
        off_diagonal = covariance - covariance.diag().diag()
        distances = self.scale * torch.cdist(now, all_later)
        first = processes().rank * len(now)
        own_goal = distances[torch.arange(len(now)), first + torch.arange(len(now))]
        contrast = (own_goal + torch.logsumexp(-distances, dim=1)).mean()
        loss = prediction + torch.relu(1 - deviation).mean() + off_diagonal.square().mean() + contrast
        return loss, {"prediction": prediction, "contrast": contrast, "variance": deviation.mean()}


def train(folder, dtype, stop_at=None):
    torch.manual_seed(processes().rank)  # start_equal must give every process the weights of the first
    objective = Objective(dtype)

    def sample(generator, count):
        rows = torch.randn(count, 12, generator=generator, dtype=torch.float64).to(dtype)
        return {"now": rows[:, :6], "later": rows[:, 6:]}

    held_out = sample(torch.Generator().manual_seed(1), 10)
    stage = Stage(
        name="two",
        objective=objective,
        sample=sample,
        evaluate=lambda: {"held_out/loss": objective(held_out)[0].item()},
        after_update=lambda update: signal.raise_signal(signal.SIGTERM) if update == stop_at else None,
    )
    config = FitConfig(
        updates=20,
        batch=12,
        learning_rate=1e-2,
        log_every=1,
        save_every=7,
        evaluate_every=10,
        gradient_clip=0.5,
    )
    with open_run(folder, Origin(recipe="two", configuration={}, data="none", seed=0)) as run:
        fit(stage, run, config)


def check_gradients_of_parameters_that_only_some_processes_use():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), float(processes().rank))
    if processes().rank == 1:
        parameters[1].grad = torch.ones(2)
    average_gradients(parameters)
    expected = [torch.full((2,), 0.5), torch.full((2,), 0.5)]
    if not all(torch.equal(p.grad, e) for p, e in zip(parameters, expected, strict=False)):
        raise SystemExit(f"gradients are {[p.grad for p in parameters]}")
    if parameters[2].grad is not None:
        raise SystemExit("an unused parameter got a gradient")


def check_that_all_stop_when_one_is_told_to(folder, dtype):
    try:
        train(folder, dtype, stop_at=6 if processes().rank == 1 else None)
    except Interrupted as stopped:
        if "update 10 of 20" not in str(stopped):
            raise
    else:
        raise SystemExit("nobody stopped")


def threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0


def main(folder):
    torch.set_num_threads(1)
    before = threads()
    with distributed() as who:
        for dtype in (torch.float32, torch.float64):
            run = folder / f"{who.world}" / str(dtype).removeprefix("torch.")
            if who.world == 2 and dtype == torch.float64:
                check_that_all_stop_when_one_is_told_to(run, dtype)
            train(run, dtype)
        if who.world == 2:
            check_gradients_of_parameters_that_only_some_processes_use()
    # one that stays and lets go of a tensor while Python ends aborts the process
    if threads() > before:
        raise SystemExit(f"{threads() - before} threads of the group outlive it")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
