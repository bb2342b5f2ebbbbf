"""Predict in one space, pay in another: a second encoder on top of the first.

arXiv:2601.00844, section 7.3, "Separate predictive and planning representations": the first space is learned
by prediction, the second by value learning with a second state encoder; plans are imagined in the first and
judged in the second.

    paper              here
    first level        the world model's latents z
    second encoder     SecondSpace.projector, a network of z
    second level       SecondSpace.project(z); the Euclidean distance there is minus the value

What is imagined is never a picture, so the second encoder must read the first space. The paper does not say
what it is made of; a network of a few layers is ours. The other reading, a second encoder of pictures and a
translation between the two spaces, needs a third network that the paper does not mention.
"""

from jaxtyping import Float
from torch import Tensor, nn

from jepaplan.models.quasimetric import Euclidean
from jepaplan.models.value_heads import QuasimetricHeadConfig, build_projector


class SecondSpace(nn.Module):
    """Steps to go between latents: the Euclidean distance of what a network makes of them."""

    def __init__(self, latent_width: int, config: QuasimetricHeadConfig) -> None:
        super().__init__()
        self.projector = build_projector(latent_width, config)
        self.distance = Euclidean()

    def forward(
        self, source: Float[Tensor, "*#batch D"], goal: Float[Tensor, "*#batch D"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of broadcastable batches; each side is projected before it is broadcast."""
        return self.between(self.project(source), self.project(goal))

    def pairwise(
        self, sources: Float[Tensor, "B M D"], goals: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B M N"]:
        """Distances from every source to every goal of the same problem."""
        return self.distance.pairwise(self.project(sources), self.project(goals))

    def project(self, latents: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch W"]:
        """The second space."""
        return self.projector(latents)

    def between(
        self, source: Float[Tensor, "*#batch W"], goal: Float[Tensor, "*#batch W"]
    ) -> Float[Tensor, "*batch"]:
        """Distances of projected latents."""
        return self.distance(source, goal)
