"""Several world models of one latent space, each continuing its own imagination: latents are `M D`.

What they disagree about they have not learned: `costs.ensemble.LatentDisagreement` prices it, as PLDM
(arXiv:2502.14819) does. Distances between such latents go through `costs.distances.TokenMean`.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from jepaplan.data.normalise import ActionNormaliser
from jepaplan.models.world_model import LatentWorldModel
from jepaplan.types import InputError


class EnsembleWorldModel(nn.Module):
    """An `interfaces.WorldModel` made of world models; the first one encodes and knows the action units.

    So the members are predictors that learned from the same latents: their own encoders are not used.
    """

    def __init__(self, members: Sequence[LatentWorldModel]) -> None:
        super().__init__()
        kinds = {(member.action_dim, member.stride) for member in members}
        if len(kinds) != 1:
            raise InputError(
                "an ensemble needs one world model or more, all of one action_dim and stride; got "
                f"{len(members)} with {sorted(kinds)}"
            )
        self.members = nn.ModuleList(members)
        self.action_dim = members[0].action_dim
        self.stride = members[0].stride

    @property
    def action_units(self) -> ActionNormaliser:
        """Those of the first member."""
        return self._models()[0].action_units

    def encode(
        self,
        observation: Shaped[Tensor, "B *observation"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B M D"]:
        """The same latent for every member."""
        latent = self._models()[0].encode(observation, proprioception)
        return latent[:, None].repeat(1, len(self.members), 1)

    def step(self, latent: Float[Tensor, "B M D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B M D"]:
        """Each member's latent one model step later."""
        rows = zip(self._models(), latent.unbind(1), strict=True)
        return torch.stack([member.step(row, action) for member, row in rows], dim=1)

    def rollout(
        self, latent: Float[Tensor, "B M D"], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H+1 M D"]:
        """Each member's rollout."""
        rows = zip(self._models(), latent.unbind(1), strict=True)
        return torch.stack([member.rollout(row, actions) for member, row in rows], dim=3)

    def _models(self) -> list[LatentWorldModel]:
        return cast("list[LatentWorldModel]", list(self.members))
