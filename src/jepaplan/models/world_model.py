"""A world model on frame latents: what was seen becomes a latent, actions move it.

The flat model of PLDM (arXiv:2502.14819) and arXiv:2601.00844: z_t = E(s_t), and from z_0 on z_{t+1} =
P(z_t, a_t).

    paper    here
    E        PixelEncoder                  normalises what is seen and felt, then runs the encoder
    P        LatentWorldModel.predictor    sees actions in normalised units

Normalisation travels with the weights: the normalisers are submodules whose statistics are buffers. Where
nothing is felt there is no normaliser of it, and the weights have no tensors for one.
"""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from jepaplan.data.normalise import ActionNormaliser, PixelNormaliser, ProprioceptionNormaliser
from jepaplan.types import InputError


class PixelEncoder(nn.Module):
    """uint8 images, and what the body feels, to latents: the border of units, then the encoder."""

    def __init__(
        self,
        encoder: nn.Module,
        pixels: PixelNormaliser,
        proprioception: ProprioceptionNormaliser | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.proprioception = proprioception

    def forward(
        self,
        observation: Shaped[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Latents of images; what is felt comes in the world's units."""
        return self.encoder(self.pixels(observation), self._felt(proprioception))

    def attend(
        self,
        observation: Shaped[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K cells"]]:
        """Latents, and where the encoder looks; of encoders that can tell (`models/scene_map.py`)."""
        return self.encoder.attend(self.pixels(observation), self._felt(proprioception))  # pyright: ignore[reportCallIssue]

    def _felt(self, proprioception: Float[Tensor, "B P"] | None) -> Float[Tensor, "B P"] | None:
        # An encoder that feels nothing refuses what it is given, in its own words.
        if proprioception is not None and self.proprioception is not None:
            return self.proprioception(proprioception)
        return proprioception

    def encode_frames(
        self,
        observations: Shaped[Tensor, "B frames C height width"],
        proprioception: Float[Tensor, "B frames P"] | None = None,
    ) -> Float[Tensor, "B frames D"]:
        """Latents of every frame of every segment, as one batch."""
        flat = None if proprioception is None else proprioception.flatten(0, 1)
        return self(observations.flatten(0, 1), flat).unflatten(0, observations.shape[:2])


class LatentWorldModel(nn.Module):
    """Encoder, predictor and all borders of units; an `interfaces.WorldModel` of single steps."""

    stride = 1

    def __init__(
        self,
        encoder: nn.Module,
        predictor: nn.Module,
        pixels: PixelNormaliser,
        actions: ActionNormaliser,
        proprioception: ProprioceptionNormaliser | None = None,
    ) -> None:
        super().__init__()
        self.pixel_encoder = PixelEncoder(encoder, pixels, proprioception)
        self.predictor = predictor
        self.actions = actions
        self.action_dim = len(actions.mean)
        expected = getattr(predictor, "action_dim", self.action_dim)
        if expected != self.action_dim:
            raise InputError(
                f"the predictor takes actions of {expected} components, the action normaliser has "
                f"{self.action_dim}; build the predictor with action_dim={self.action_dim}"
            )

    @property
    def action_units(self) -> ActionNormaliser:
        """How environment actions become normalised ones."""
        return self.actions

    @property
    def moves_from(self) -> int:
        """The first number of the latent that an action may change, where the predictor keeps a map."""
        return getattr(self.predictor, "moves_from", 0)

    def places(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch 2"]:
        """Where the thing is, in pixels; of predictors that know (`models/local_predictor.py`)."""
        known = getattr(self.predictor, "places", None)
        if known is None:
            raise InputError(
                f"a {type(self.predictor).__name__} does not know where things are; imagined ways need "
                "predictor=LocalPredictorConfig(...) and encoder=SceneMapConfig(...)"
            )
        return known(latents)

    def encode(
        self,
        observation: UInt8[Tensor, "B C height width"],
        proprioception: Float[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """Latents of uint8 images."""
        return self.pixel_encoder(observation, proprioception)

    def encode_frames(
        self,
        observations: UInt8[Tensor, "B frames C height width"],
        proprioception: Float[Tensor, "B frames P"] | None = None,
    ) -> Float[Tensor, "B frames D"]:
        """Latents of every frame of every segment, with gradients."""
        return self.pixel_encoder.encode_frames(observations, proprioception)

    def step(self, latent: Float[Tensor, "B D"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        """The latent one environment step later."""
        self._check_width(action)
        return self.predictor(latent, action)

    def rollout(
        self, latent: Float[Tensor, "B D"], actions: Float[Tensor, "B S H A"]
    ) -> Float[Tensor, "B S H+1 D"]:
        """Feed predictions back for H steps, all samples of all problems as one batch."""
        self._check_width(actions)
        problems, samples = actions.shape[:2]
        start = latent[:, None].expand(-1, samples, -1).flatten(0, 1)
        return self.unroll(start, actions.flatten(0, 1)).unflatten(0, (problems, samples))

    def unroll(
        self, latent: Float[Tensor, "B D"], actions: Float[Tensor, "B T A"]
    ) -> Float[Tensor, "B T+1 D"]:
        """Feed predictions back along each item's own actions, with gradients; begins with `latent`."""
        self._check_width(actions)
        path = [latent]
        for action in actions.unbind(1):
            path.append(self.predictor(path[-1], action))
        return torch.stack(path, dim=1)

    def _check_width(self, actions: Tensor) -> None:
        if actions.shape[-1] != self.action_dim:
            raise InputError(
                f"actions have {actions.shape[-1]} components per step; this world model was trained with "
                f"action_dim={self.action_dim}. Each model step is one environment action: pass "
                f"actions of shape (..., {self.action_dim}) in normalised units, "
                "`world_model.action_units.normalise(actions)`."
            )
