"""The prediction loss: imagine a whole segment from its first latent and compare with what was encoded.

PLDM (arXiv:2502.14819), section 3: L_pred = mean over t >= 1 of |zhat_t - z_t|^2, unrolled from z_0 only, no
teacher forcing.

    paper    here
    zhat     imagined    unrolled from the first encoded latent
    z        encoded     targets; they learn too, unless detached

Means are over items, steps and the latent's numbers, so the weight of the loss does not depend on their
counts.
"""

from jaxtyping import Float
from torch import Tensor


def prediction_loss(
    imagined: Float[Tensor, "B frames D"],
    encoded: Float[Tensor, "B frames D"],
    *,
    detach_targets: bool = False,
) -> Float[Tensor, ""]:
    """Mean squared error of the imagined latents; the first one was observed and does not count.

    Targets learn by default: they move towards what is predictable, and only a regulariser keeps them from
    collapsing. `detach_targets` makes them constants, as when the encoder is fixed or a moving average.
    """
    targets = encoded.detach() if detach_targets else encoded
    return (imagined[:, 1:] - targets[:, 1:]).square().mean()


def scaled_prediction_loss(
    imagined: Float[Tensor, "B frames D"],
    encoded: Float[Tensor, "B frames D"],
    variance: Float[Tensor, " D"],
) -> Float[Tensor, ""]:
    """`prediction_loss` of each number as a share of its `variance`, which learns as well if it can.

    Latents of any scale have the same loss, so nothing is gained by shrinking what is hard to predict.
    """
    errors = (imagined[:, 1:] - encoded[:, 1:]).square().mean(dim=(0, 1))
    return (errors / variance.clamp(min=1e-8)).mean()


def copy_error(encoded: Float[Tensor, "B frames D"]) -> Float[Tensor, ""]:
    """The prediction loss of believing that nothing changes: what a predictor must beat."""
    return (encoded[:, :1] - encoded[:, 1:]).detach().square().mean()


def relative_prediction_loss(
    imagined: Float[Tensor, "B frames D"],
    encoded: Float[Tensor, "B frames D"],
) -> Float[Tensor, ""]:
    """`prediction_loss` of each number beside its own `copy_error`: 1 is standing still, whatever the scale.

    So a number that changes by hundredths counts as much as one that changes by ones. Targets are constants:
    an encoder that learned from this before anything moves would divide by next to nothing, and collapsed.
    """
    encoded = encoded.detach()
    changes = (encoded[:, :1] - encoded[:, 1:]).square().mean(dim=(0, 1))
    return scaled_prediction_loss(imagined, encoded, changes)
