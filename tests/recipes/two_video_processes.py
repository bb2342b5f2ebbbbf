"""Trains the tiny video experiments on given videos, alone or as one of the processes of torchrun."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from jepaplan.recipes.run import TrainOptions
from jepaplan.recipes.video_run import train_video
from jepaplan.training.distributed import distributed, processes
from tiny_video_studies import growing_video_experiment, tiny_video_experiment

EXPERIMENTS = {
    "weighted": tiny_video_experiment(),
    "growing": growing_video_experiment(order="shuffled", cache=False),
}


def main(videos, folder):
    torch.set_num_threads(1)
    with distributed():
        for name, experiment in EXPERIMENTS.items():
            train_video(experiment, folder / str(processes().world) / name, TrainOptions(data=videos))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
