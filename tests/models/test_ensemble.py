"""World models that imagine side by side, and what their disagreement costs."""

import pytest
import torch
from torch import nn

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.distances import TokenMean, mean_square
from jepaplan.costs.ensemble import LatentDisagreement
from jepaplan.costs.terms import GoalDistance
from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser
from jepaplan.interfaces import WorldModel
from jepaplan.models.ensemble import EnsembleWorldModel
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.types import InputError


class Gain(nn.Module):
    """A point that moves by its action, times what the member believes an action to be worth."""

    def __init__(self, gain: float, action_dim: int = 2) -> None:
        super().__init__()
        self.gain, self.action_dim = gain, action_dim

    def forward(self, latent, action):
        return latent + self.gain * action


class Corner(nn.Module):
    """Two pixels are the latent."""

    def forward(self, images, proprioception=None):
        return images[:, 0, 0, :2]


def member(gain: float, action_dim: int = 2) -> LatentWorldModel:
    pixels, units = PixelNormaliser.identity((1, 2, 2)), ActionNormaliser.identity(action_dim)
    return LatentWorldModel(Corner(), Gain(gain, action_dim), pixels, units)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GAINS = (0.5, 1.0, 2.0)
WORLD = EnsembleWorldModel([member(gain) for gain in GAINS])


def test_disagreement_grows_with_the_way_by_which_members_differ():
    """After k steps along S = a_1 + ... + a_k the members are apart by var(gains) * mean(S^2)."""
    latent, actions = numbers(0, 2, 2)[:, None].expand(-1, 3, -1), numbers(1, 2, 5, 4, 2)
    cost = WeightedSum({"z": (1.0, LatentDisagreement(discount=0.9))}).bind(WORLD, latent, latent)
    ways = actions.cumsum(2).square().mean(-1)
    discounts = 0.9 ** torch.arange(1, 5)
    torch.testing.assert_close(
        cost(actions), torch.tensor(GAINS).var(correction=0) * (discounts * ways).sum(2)
    )


def test_every_member_continues_its_own_imagination():
    assert isinstance(WORLD, WorldModel)
    pictures = torch.randint(0, 255, (2, 1, 2, 2), dtype=torch.uint8)
    latent, actions = WORLD.encode(pictures), numbers(2, 2, 5, 3, 2)
    assert (latent == latent[:, :1]).all()
    path = WORLD.rollout(latent, actions)
    assert path.shape == (2, 5, 4, 3, 2)
    stepped = latent[:, None].expand(-1, 5, -1, -1).flatten(0, 1)
    for time in range(3):
        stepped = WORLD.step(stepped, actions[:, :, time].flatten(0, 1))
    torch.testing.assert_close(path[:, :, -1].flatten(0, 1), stepped)
    ends = latent[:, None, 0] + actions.sum(2)
    torch.testing.assert_close(path[:, :, -1, 1], ends)  # of the member whose gain is one
    to_goal = GoalDistance(distance=TokenMean(mean_square), over="terminal")
    goal = WORLD.encode(pictures.flip(0))
    found = WeightedSum({"goal": (1.0, to_goal)}).bind(WORLD, latent, goal)(actions)
    torch.testing.assert_close(found, (path[:, :, -1] - goal[:, None]).square().mean((-2, -1)))


def test_members_of_different_worlds_are_refused():
    with pytest.raises(
        InputError, match=r"all of one action_dim and stride; got 2 with \[\(2, 1\), \(3, 1\)\]"
    ):
        EnsembleWorldModel([member(1.0), member(1.0, action_dim=3)])
    with pytest.raises(InputError, match="one world model or more"):
        EnsembleWorldModel([])
