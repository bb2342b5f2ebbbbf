"""A small recording with episodes of different lengths, shared by the tests of this room."""

import pytest
import torch

from jepaplan.data.episodes import Episodes, EpisodeWriter, open_episodes

LENGTHS = (5, 1, 12, 3, 7, 5)


@pytest.fixture(scope="session")
def small_path(tmp_path_factory):
    """A file of six episodes. Pixel (0, 0, 0) of a frame is its flat number."""
    path = tmp_path_factory.mktemp("episodes") / "small.h5"
    generator = torch.Generator().manual_seed(0)
    frame = 0
    with EpisodeWriter(path, {"world": "test", "seed": 0}) as writer:
        for steps in LENGTHS:
            images = torch.randint(0, 9, (steps + 1, 2, 6, 7), generator=generator, dtype=torch.uint8)
            images[:, 0, 0, 0] = torch.arange(frame, frame + steps + 1)
            actions = torch.randn(steps, 3, generator=generator)
            states = torch.randn(steps + 1, 4, generator=generator)
            felt = torch.arange(frame, frame + steps + 1.0)[:, None]
            writer.append(images, actions, states=states, proprioception=felt)
            frame += steps + 1
    return path


@pytest.fixture(scope="session")
def small(small_path) -> Episodes:
    return open_episodes(small_path)
