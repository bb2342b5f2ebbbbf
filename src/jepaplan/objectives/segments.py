"""What objectives are given: windows of frames or of latents, and the faces of what learns from them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.interfaces import ActionUnits


@runtime_checkable
class Segments(Protocol):
    """Recorded windows, as `data.windows.WindowBatch`; actions in environment units."""

    @property
    def observations(self) -> UInt8[Tensor, "B frames C height width"]:
        """uint8 frames."""
        ...

    @property
    def actions(self) -> Float[Tensor, "B T A"]:
        """In environment units."""
        ...

    @property
    def frames(self) -> Int[Tensor, "B frames"]:
        """Number of each frame in the recording."""
        ...

    @property
    def proprioception(self) -> Float[Tensor, "B frames P"] | None:
        """What the body feels at each frame."""
        ...


@dataclass(frozen=True)
class LatentSegments:
    """Windows of latents that were encoded before; actions in environment units."""

    latents: Float[Tensor, "B frames D"]
    actions: Float[Tensor, "B T A"]
    frames: Int[Tensor, "B frames"] | None = None  # number of each frame in the recording, where goals matter


@runtime_checkable
class FrameEncoder(Protocol):
    """Encodes all frames of all segments, with gradients."""

    def encode_frames(
        self,
        observations: UInt8[Tensor, "B frames C height width"],
        proprioception: Float[Tensor, "B frames P"] | None = None,
    ) -> Float[Tensor, "B frames D"]:
        """Latents of every frame."""
        ...


@runtime_checkable
class LatentDynamics(Protocol):
    """Unrolls latents along normalised actions, with gradients."""

    @property
    def action_units(self) -> ActionUnits:
        """How environment actions become normalised ones."""
        ...

    def unroll(
        self, latent: Float[Tensor, "B D"], actions: Float[Tensor, "B T A"]
    ) -> Float[Tensor, "B frames D"]:
        """Begins with `latent` itself."""
        ...


@runtime_checkable
class TrainableWorldModel(FrameEncoder, LatentDynamics, Protocol):
    """Both: what `models.world_model.LatentWorldModel` is."""
