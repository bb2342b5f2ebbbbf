"""Probe heads, one per setting of a sweep, trained side by side as one module.

Every parameter has a leading axis S, one slice per setting; all slices begin equal, so that settings are
compared and not their initialisations. No slice ever sees another: a head that diverges harms itself only.

    linear      one layer on the mean of the tokens
    attentive   self-attention blocks on the tokens, a learned query that attends to them, a block's second
                half on what it found, one layer (Bardes et al., "Revisiting Feature Prediction for Learning
                Visual Representations from Video", arXiv:2404.08471, section 4; Assran et al., "V-JEPA 2",
                arXiv:2506.09985: four blocks, of which the last is the cross-attention)

The query's attention is computed without keys and values of tokens. With query q, token x, key and value maps
K and V, and weights w that sum to one,

    q . (K x + k) = (K' q) . x + q . k      the second term is equal for all tokens: the softmax ignores it
    sum_n w_n (V x_n + v) = V (sum_n w_n x_n) + v

so the maps act on S x heads vectors and not on every token. With the cross-attention alone (depth 1) all
settings then read the same normalised tokens in one matrix product: a sweep costs little more than one head.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6  # of layer normalisation, as in the encoder
STD = 0.02  # of the truncated normal that weights begin with


class StackedLinear(nn.Module):
    """S linear layers: slice s of the input meets slice s of the weights."""

    def __init__(self, settings: int, first: Float[Tensor, "into out"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(first.expand(settings, -1, -1).clone())
        self.bias = nn.Parameter(first.new_zeros(settings, first.shape[1]))

    def forward(self, values: Float[Tensor, "S *batch into"]) -> Float[Tensor, "S *batch out"]:
        """Slice s of `values` times slice s of the weights."""
        flat = values.flatten(1, -2) if values.dim() > 2 else values[:, None]
        out = torch.baddbmm(self.bias[:, None], flat, self.weight)
        return out.view(*values.shape[:-1], out.shape[-1])


class StackedNorm(nn.Module):
    """S layer normalisations: gains and offsets of their own."""

    def __init__(self, settings: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(settings, width))
        self.offset = nn.Parameter(torch.zeros(settings, width))

    def forward(self, values: Float[Tensor, "S *batch D"]) -> Float[Tensor, "S *batch D"]:
        """Every vector to mean 0 and variance 1, then gain and offset."""
        shape = (len(self.gain), *(1 for _ in values.shape[1:-1]), -1)
        return normalised(values) * self.gain.view(shape) + self.offset.view(shape)


class StackedMLP(nn.Module):
    """Norm and two layers of a block, added to their input."""

    def __init__(self, settings: int, width: int, hidden: int, block: int, generator: torch.Generator):
        super().__init__()
        self.norm = StackedNorm(settings, width)
        self.widen = StackedLinear(settings, _draw(width, hidden, generator))
        self.narrow = StackedLinear(settings, _draw(hidden, width, generator) / math.sqrt(2 * block))

    def forward(self, values: Float[Tensor, "S *batch D"]) -> Float[Tensor, "S *batch D"]:
        """The input plus what the layers make of it."""
        return values + self.narrow(functional.gelu(self.widen(self.norm(values))))


class StackedSelfAttention(nn.Module):
    """A pre-norm transformer block of each setting; `block` counts from 1 and scales the initial outputs."""

    def __init__(
        self, settings: int, width: int, heads: int, hidden: int, block: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = StackedNorm(settings, width)
        self.queries_keys_values = StackedLinear(settings, _draw(width, 3 * width, generator))
        self.project = StackedLinear(settings, _draw(width, width, generator) / math.sqrt(2 * block))
        self.mlp = StackedMLP(settings, width, hidden, block, generator)

    def forward(self, tokens: Float[Tensor, "S B N D"]) -> Float[Tensor, "S B N D"]:
        """Tokens that have seen each other."""
        settings, items, count, width = tokens.shape
        mixed = self.queries_keys_values(self.norm(tokens))
        mixed = mixed.view(settings * items, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(mixed[0], mixed[1], mixed[2])
        read = read.transpose(1, 2).reshape(settings, items, count, width)
        return self.mlp(tokens + self.project(read))


class StackedQuery(nn.Module):
    """A learned query per setting reads the tokens; there is no output projection.

    Keys have no bias: it would change no softmax.
    """

    def __init__(
        self, settings: int, width: int, heads: int, hidden: int, block: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(_draw(1, width, generator).expand(settings, -1, -1).clone())
        self.ask = StackedLinear(settings, _draw(width, width, generator))
        self.norm = StackedNorm(settings, width)
        self.keys = nn.Parameter(_draw(width, width, generator).expand(settings, -1, -1).clone())
        self.values = StackedLinear(settings, _draw(width, width, generator))
        self.mlp = StackedMLP(settings, width, hidden, block, generator)

    def forward(self, tokens: Float[Tensor, "*settings B N D"]) -> Float[Tensor, "S B D"]:
        """What each setting's query finds; tokens without a leading axis are the same for all settings."""
        width = tokens.shape[-1]
        split = (self.heads, width // self.heads)
        asked = self.ask(self.query)[:, 0].unflatten(-1, split) / math.sqrt(split[1])
        # K' q of each attention head, and the norm's gain with it; both offsets are equal for all tokens
        wanted = torch.einsum("she,sdhe->shd", asked, self.keys.unflatten(-1, split))
        wanted = wanted * self.norm.gain[:, None]
        found = _attend(normalised(tokens), wanted)
        found = found * self.norm.gain[:, None, None] + self.norm.offset[:, None, None]
        read = torch.einsum("sbhd,sdhe->sbhe", found, self.values.weight.unflatten(-1, split))
        read = read.flatten(-2) + self.values.bias[:, None]
        return self.mlp(self.query + read)


class AttentiveHeads(nn.Module):
    """S attentive probes of `depth` blocks, of which the last is the query's."""

    def __init__(
        self,
        settings: int,
        sizes: tuple[int, int, int, int, int],
        generator: torch.Generator,
    ) -> None:
        """`sizes` are the tokens' width, classes, depth, attention heads and hidden units of the blocks."""
        super().__init__()
        width, classes, depth, heads, hidden = sizes
        self.blocks = nn.ModuleList(
            StackedSelfAttention(settings, width, heads, hidden, block, generator)
            for block in range(1, depth)
        )
        self.query = StackedQuery(settings, width, heads, hidden, depth, generator)
        self.classify = StackedLinear(settings, _draw(width, classes, generator))
        self.settings = settings

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "S B classes"]:
        """Logits of every setting."""
        read = tokens
        if len(self.blocks) > 0:
            read = tokens.expand(self.settings, -1, -1, -1)
        for block in self.blocks:
            read = block(read)
        return self.classify(self.query(read))

    def values_per_item(self, tokens: int, width: int) -> int:
        """Numbers in the largest activation of one item: what all settings share is not counted."""
        return self.settings * tokens * (width if len(self.blocks) > 0 else self.query.heads)


class LinearHeads(nn.Module):
    """S linear classifiers of standardised, mean-pooled tokens (given as one token)."""

    def __init__(self, settings: int, width: int, classes: int) -> None:
        super().__init__()
        self.classify = StackedLinear(settings, torch.zeros(width, classes))
        self.settings = settings

    def forward(self, tokens: Float[Tensor, "B 1 D"]) -> Float[Tensor, "S B classes"]:
        """Logits of every setting."""
        return self.classify(tokens[:, 0].expand(self.settings, -1, -1))

    def values_per_item(self, tokens: int, width: int) -> int:
        """Numbers in the largest activation of one item."""
        return self.settings * tokens * width


def matrices(heads: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """All parameters, and whether each is a matrix within its setting: only those decay."""
    for parameter in heads.parameters():
        yield parameter, parameter.dim() > 2


def normalised(values: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Layer normalisation without gain and offset."""
    return functional.layer_norm(values, values.shape[-1:], eps=EPSILON)


def _attend(
    tokens: Float[Tensor, "*settings B N D"], wanted: Float[Tensor, "S H D"]
) -> Float[Tensor, "S B H D"]:
    """The tokens' mean under the softmax of their products with each wanted direction."""
    settings, heads, width = wanted.shape
    if tokens.dim() == 4:
        weights = (wanted[:, None] @ tokens.mT).softmax(dim=-1)
        return weights @ tokens
    weights = (wanted.view(1, settings * heads, width) @ tokens.mT).softmax(dim=-1)
    return (weights @ tokens).view(-1, settings, heads, width).transpose(0, 1)


def _draw(into: int, out: int, generator: torch.Generator) -> Float[Tensor, "into out"]:
    weight = torch.empty(into, out)
    return nn.init.trunc_normal_(weight, std=STD, generator=generator)
