"""Mirror images of recordings: more layouts and more bumps, of nothing that was not recorded.

    left-right     columns of the pictures in reverse; the first component of actions changes its sign
    upside-down    rows in reverse; the second component changes its sign

They are true recordings of worlds that treat all directions alike, pull nowhere, and take actions along the
picture's axes, such as the two rooms and the maze. What is felt (the maze's velocity) is mirrored like an
action. Where a world treats directions differently, its mirror image is another world. The maze does so in
one thing that moves nothing: one mirror alone swaps the light and the dark quarters of its floor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from jepaplan.data.episodes import PER_ACTION, Earned, Episodes
from jepaplan.types import InputError

Mirror = Literal["left-right", "upside-down"]
_COMPONENT: dict[Mirror, int] = {"left-right": 0, "upside-down": 1}  # of an action
_AXIS: dict[Mirror, int] = {"left-right": -1, "upside-down": -2}  # of a picture


def mirrored(episodes: Episodes, mirrors: Iterable[Mirror]) -> Episodes:
    """Every recording beside its mirror images: two of each for one mirror, four for both.

    The images of a recording follow it, so that what is held out is held out in all of them. True states are
    left out: what they would be is the world's to say. Memory grows with the number of images.
    """
    chosen = tuple(dict.fromkeys(mirrors))
    if not chosen:
        return episodes
    for name, column in (("actions", episodes.actions), ("proprioception", episodes.proprioception)):
        if column is not None and column.shape[1] != 2:
            raise InputError(
                f"{episodes.path}: {name} have {column.shape[1]} components, and mirror images are known of "
                "two, along the picture's columns and rows; write --mirrors with nothing behind it"
            )
    images = [some for count in range(len(chosen) + 1) for some in combinations(chosen, count)]
    lengths, felt = episodes.lengths, episodes.proprioception
    frames, steps = _places(lengths + 1, len(images)), _places(lengths, len(images))
    each = lengths.repeat_interleave(len(images))
    earned = {
        name: _interleaved((column for _ in images), steps if name in PER_ACTION else frames)
        for name, column in episodes.earned.columns().items()
    }
    return replace(
        episodes,
        observations=_interleaved((_flipped(episodes.observations, image) for image in images), frames),
        actions=_interleaved((_turned(episodes.actions, image) for image in images), steps),
        states=None,
        proprioception=None
        if felt is None
        else _interleaved((_turned(felt, image) for image in images), frames),
        starts=(each + 1).cumsum(0) - each - 1,
        lengths=each,
        earned=Earned(**earned),
    )


def _places(rows: Int[Tensor, " E"], images: int) -> Int[Tensor, "images R"]:
    """Where each row of each image of an episode goes: images of one episode behind each other."""
    before = (rows.cumsum(0) - rows) * (images - 1)
    own = torch.arange(int(rows.sum())) + before.repeat_interleave(rows)
    return own + torch.arange(images)[:, None] * rows.repeat_interleave(rows)


def _interleaved(images: Iterable[Tensor], places: Int[Tensor, "images R"]) -> Tensor:
    """All images in one tensor, each row in its place; one image at a time is held beside it."""
    whole: Tensor | None = None
    for image, place in zip(images, places, strict=True):
        if whole is None:
            whole = image.new_empty(places.numel(), *image.shape[1:])
        whole[place] = image
    assert whole is not None
    return whole


def _flipped(frames: UInt8[Tensor, "F C height width"], image: Sequence[Mirror]) -> Tensor:
    return frames.flip([_AXIS[mirror] for mirror in image]) if image else frames


def _turned(rows: Float[Tensor, "R 2"], image: Sequence[Mirror]) -> Float[Tensor, "R 2"]:
    turned = rows.clone()
    for mirror in image:
        turned[:, _COMPONENT[mirror]] *= -1
    return turned
