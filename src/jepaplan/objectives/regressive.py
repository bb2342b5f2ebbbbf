"""One recorded step is one unit of distance, and nothing else is asked.

The baseline "Regressive" of arXiv:2601.00844, section 3: the distance of successive states is made to be 1.
In words in the paper; here

    L = mean_{b,t} ( ||z_{b,t} - z_{b,t+1}|| - 1 )^2

A squared error, as the paper's other losses are. It is no protection from collapse onto a small figure (two
points one unit apart satisfy it), which is why the paper adds VCReg.
"""

from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-12  # inside the root: a finite gradient where a state did not move


def regressive_loss(latents: Float[Tensor, "B frames D"]) -> Float[Tensor, ""]:
    """The loss above, over all successive states of all segments."""
    squares = (latents[:, 1:] - latents[:, :-1]).square().sum(-1)
    return ((squares + _EPSILON).sqrt() - 1).square().mean()
