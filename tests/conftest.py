"""What the rooms of the tests share: one tiny recording, tiny finished runs, and how to make more."""

import random

import pytest
import torch

from jepaplan.data.wall_walks import collect_wall
from jepaplan.envs.wall import WALL_BIG
from jepaplan.recipes.run import TrainOptions, train
from jepaplan.recipes.video_run import train_video
from tiny_runs import tiny_experiment
from tiny_video_studies import tiny_video_experiment


@pytest.fixture(scope="session", autouse=True)
def _one_thread_from_the_start():
    """Equal numbers need equal thread counts; session fixtures are made before any test's own ones."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_again():
    """Commands under test set the number of threads for the process; the next test shall not notice."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """24 big-step walks of 20 states."""
    path = tmp_path_factory.mktemp("recording") / "walks.h5"
    collect_wall(path, WALL_BIG, trajectories=24, states=20, seed=3)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished run with its own recording; tests that change it work on a copy."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    torch.manual_seed(random.randrange(2**31))  # nothing may depend on the global generator
    train(tiny_experiment(), path, TrainOptions())
    return path


@pytest.fixture(scope="session")
def tiny_video_run(tmp_path_factory):
    """A finished video run with its own videos; tests that change it work on a copy."""
    path = tmp_path_factory.mktemp("video_runs") / "tiny"
    train_video(tiny_video_experiment(), path)
    return path
