"""Trains a tiny masked video model, sharded or not, alone or by torchrun; `test_sharded.py` compares them.

Beside the model there is what FSDP treats apart: a parameter without axes, one that is never used, buffers,
activation checkpoints and an average that no gradient reaches.
"""

import contextlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from jepaplan.data.clips import ClipBatch
from jepaplan.data.tubelet_masks import LONG_RANGE, SHORT_RANGE, draw_masks
from jepaplan.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from jepaplan.models.video_vit import VideoTransformer, VideoTransformerConfig
from jepaplan.objectives.masked_latents import MaskedLatents
from jepaplan.training.distributed import barrier, distributed, processes
from jepaplan.training.loop import fit
from jepaplan.training.runs import Origin, open_run
from jepaplan.training.stage import FitConfig, Stage
from jepaplan.types import InputError

ENCODER = VideoTransformerConfig(
    frames=4, image=32, patch=8, tubelet=2, width=48, depth=2, heads=2, checkpoint_activations=True
)
PREDICTOR = MaskedPredictorConfig(width=24, depth=2, heads=2)
REPLICATED = FitConfig(
    updates=6,
    batch=8,
    learning_rate=1e-3,
    optimiser="adamw",
    weight_decay=0.04,
    weight_decay_on="matrices",
    schedule="constant_cooldown",
    warmup_fraction=0.3,
    cooldown_fraction=0.3,
    gradient_clip=1.0,
    log_every=1,
    evaluate_every=3,
    save_every=2,
)
SHARDED = replace(REPLICATED, parallel="sharded")


class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.masked = MaskedLatents(VideoTransformer(ENCODER), MaskedPredictor(ENCODER.width, PREDICTOR))
        self.gain = nn.Parameter(torch.tensor(1.1))
        self.unused = nn.Linear(3, 3)

    def forward(self, batch):
        loss, metrics = self.masked(batch)
        return self.gain.square() * loss, metrics


def sample(generator, count):
    clips = torch.randint(0, 256, (count, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ClipBatch(clips, draw_masks(ENCODER.grid, count, (SHORT_RANGE, LONG_RANGE), generator))


class Killed(Exception):
    pass


def train(folder, config, kill_at=None):
    torch.manual_seed(processes().rank)  # every process must get the weights of the first
    objective = Objective()
    masked = objective.masked
    held_out = sample(torch.Generator().manual_seed(1), 4).clips

    def after_update(update):
        masked.after_update(update)
        if update == kill_at:
            raise Killed

    stage = Stage(
        name="video",
        objective=objective,
        sample=sample,
        evaluate=lambda: {"held_out/size": masked.encode(held_out).square().mean().item()},
        after_update=after_update,
        shard_units=lambda: [
            part
            for model in (masked.encoder, masked.target.average, masked.predictor)
            for part in (model, *model.blocks)
        ],
    )
    with open_run(folder, Origin(recipe="two", configuration={}, data="none", seed=0)) as run:
        fit(stage, run, config)
    return objective


def kill_and_continue(folder, moved):
    """Killed after the checkpoint of update 4; one copy is continued here, another is left for later."""
    with contextlib.suppress(Killed):
        train(folder, SHARDED, kill_at=5)
    if processes().writes:
        shutil.copytree(folder, moved)
    barrier()
    train(folder, SHARDED)


def check_that_every_process_holds_half(objective):
    parameters = [value for value in objective.parameters() if value.ndim]
    whole, held = (
        sum(value.numel() for value in values)
        for values in (parameters, [value.to_local() for value in parameters])
    )
    if not 0.45 * whole < held < 0.55 * whole:
        raise SystemExit(f"the objective has {whole} numbers, of which this process holds {held}")


def check_that_parts_of_a_sharded_objective_are_refused(objective, folder):
    another = nn.Sequential(objective.masked.encoder, nn.Linear(2, 2))
    stage = Stage(name="another", objective=another, sample=sample)
    with open_run(folder, Origin(recipe="two", configuration={}, data="none", seed=0)) as run:
        try:
            fit(stage, run, SHARDED)
        except InputError as refused:
            if "an earlier stage has sharded" not in str(refused):
                raise
        else:
            raise SystemExit("modules of another sharded objective were accepted")


def main(folder, *names):
    torch.set_num_threads(1)
    configs = {
        "replicated": REPLICATED,
        "sharded": SHARDED,
        "moved": SHARDED,
        "accumulated": replace(SHARDED, accumulate=2),
        "bf16": replace(SHARDED, precision="bf16", best_metric="held_out/size", keep_best=True),
    }
    with distributed() as who:
        for name in names:
            if name == "continued":
                kill_and_continue(folder / name, folder / "moved")
                continue
            objective = train(folder / name, configs[name])
            if who.world > 1:
                check_that_every_process_holds_half(objective)
                check_that_parts_of_a_sharded_objective_are_refused(objective, folder / "refused")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    # As the command line does: torch's caches keep the group's threads, which may abort Python's end.
    sys.stdout.flush()
    os._exit(0)
