"""What this library needs of a gymnasium environment: pictures to look at and continuous actions to take.

`check_world` reads the declared spaces, says in words what is missing, and returns how to read an
observation; so a recording fails before its first step and not after an hour.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, UInt8
from torch import Tensor

from jepaplan.types import InputError

MAX_CHANNELS = 4  # an axis no longer than this, beside two longer ones, is the channels


@dataclass(frozen=True, kw_only=True)
class WorldInterface:
    """Where an environment keeps its picture, its proprioception and its action."""

    image_key: str | None  # None: the observation is the picture
    channels_last: bool
    proprioception_key: str | None
    action_shape: tuple[int, ...]

    def image(self, observation: Any) -> UInt8[Tensor, "C height width"]:
        """The picture of an observation, channels first."""
        pixels = observation if self.image_key is None else observation[self.image_key]
        frame = torch.from_numpy(np.array(pixels))
        return frame.movedim(-1, 0).contiguous() if self.channels_last else frame

    def proprioception(self, observation: Any) -> Float[Tensor, " P"] | None:
        """What the body feels, or None."""
        if self.proprioception_key is None:
            return None
        return torch.from_numpy(np.array(observation[self.proprioception_key], np.float32))


def check_world(env: gymnasium.Env[Any, Any]) -> WorldInterface:
    """How to record `env`; an InputError says what it lacks."""
    action, seen = env.action_space, env.observation_space
    if not isinstance(action, spaces.Box):
        raise InputError(
            f"{_name(env)} takes actions {action}; planning needs continuous ones, a Box. "
            f"Wrap the environment so that a vector of numbers chooses the action"
        )
    if isinstance(seen, spaces.Dict):
        image_key, proprioception_key = _keys(env, seen.spaces)
        image = seen[image_key]
    else:
        image_key, proprioception_key, image = None, None, seen
    if not _is_image(image):
        raise InputError(
            f"{_name(env)} shows {image}; a picture is a uint8 Box of height width channels or channels "
            f"height width "
            f"with 1 to {MAX_CHANNELS} channels. For rendered pictures: "
            f"`gymnasium.wrappers.AddRenderObservation(gymnasium.make(..., render_mode='rgb_array'))`"
        )
    return WorldInterface(
        image_key=image_key,
        channels_last=_channels_last(image.shape or ()),
        proprioception_key=proprioception_key,
        action_shape=action.shape,
    )


def _keys(env: gymnasium.Env[Any, Any], seen: Mapping[str, spaces.Space[Any]]) -> tuple[str, str | None]:
    """The names of the picture and of the proprioception in a dictionary of observations."""
    images = [key for key, space in seen.items() if _is_image(space)]
    vectors = [key for key, space in seen.items() if isinstance(space, spaces.Box) and len(space.shape) == 1]
    if len(images) != 1 or len(vectors) > 1 or len(seen) != len(images) + len(vectors):
        raise InputError(
            f"{_name(env)} observes {dict(seen)}; it should be one picture (uint8, three axes) and "
            f"at most "
            f"one vector. Pick them with `gymnasium.wrappers.FilterObservation(env, [picture, vector])`"
        )
    return images[0], vectors[0] if vectors else None


def _is_image(space: spaces.Space[Any]) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    return space.shape[0] <= MAX_CHANNELS or space.shape[-1] <= MAX_CHANNELS


def _channels_last(shape: tuple[int, ...]) -> bool:
    # Where both ends could be channels, the last one is: that is what renderers give.
    return shape[-1] <= MAX_CHANNELS


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
