"""A slowly following copy of the encoder, whose latents are the targets of prediction.

"pred_EMA" of arXiv:2601.00844, which names I-JEPA (Assran et al., arXiv:2301.08243) and V-JEPA (Bardes et
al., arXiv:2404.08471) for the procedure:

    theta_bar <- m theta_bar + (1 - m) theta    after every step of the optimiser

    paper        here
    theta_bar    MovingAverage.average    the target encoder: no gradient ever reaches it
    theta        source                   the encoder that learns
    m            decay                    0 copies the source, 1 freezes the average

The paper gives no decay. I-JEPA raises it from 0.996 to 1 along a line over the whole training, which is what
the recipes do; a constant 0.99 is the other usual choice.
"""

import copy

import torch
from torch import nn

from jepaplan.types import InputError


def decay_after(update: int, updates: int, decays: tuple[float, float]) -> float:
    """The decay m after `update` of `updates` updates, on a line from the first of `decays` to the last."""
    first, last = decays
    return first + (last - first) * min(update / updates, 1.0)


def refuse_impossible_decays(decays: tuple[float, float]) -> None:
    """A decay below 0 or above 1 would leave the copy behind for ever."""
    if not all(0 <= decay <= 1 for decay in decays):
        raise InputError(
            "a decay lies in [0, 1], 0 to copy the encoder and 1 to freeze its average; got "
            f"{decays[0]} to {decays[1]}"
        )


class MovingAverage(nn.Module):
    """A frozen copy of `source` that `follow` moves towards it; its tensors are part of what is saved."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.average = copy.deepcopy(source).requires_grad_(False)
        # In a list, so not registered: its weights are saved where it belongs, under one name only.
        self._source = [source]

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """One step towards the source; buffers (statistics of the recording, counters) are copied."""
        source = self._source[0]
        for kept, learned in zip(self.average.parameters(), source.parameters(), strict=True):
            # lerp is exact at both ends: a decay of 0 copies to the bit, a decay of 1 changes nothing.
            kept.lerp_(learned, 1 - decay)
        for kept, buffer in zip(self.average.buffers(), source.buffers(), strict=True):
            kept.copy_(buffer)
