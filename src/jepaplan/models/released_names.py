"""How the released V-JEPA 2 weights name their tensors, and how this library names the same ones.

Two dialects of the same weights, each translated in both directions: that of transformers
(`VJEPA2Model`, github.com/huggingface/transformers) and that of Meta's files
(github.com/facebookresearch/vjepa2).

    here                          transformers                           Meta
    patches                       encoder.embeddings.patch_embeddings.proj   patch_embed.proj
    blocks.3                      encoder.layer.3                        blocks.3
    attention.query_key_value     attention.query, .key, .value          attn.qkv
    attention.output              attention.proj                         attn.proj
    expand, contract              mlp.fc1, mlp.fc2                       mlp.fc1, mlp.fc2
    mask_tokens  (M, D)           predictor.embeddings.mask_tokens       mask_tokens.0 ... M-1
                                  (M, 1, 1, D)                           (1, 1, D)

A name that has no translation is kept as it came, so that whoever loads strictly can report it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Pairs = Sequence[tuple[str, str]]  # a prefix here, the same prefix there


@dataclass(frozen=True)
class _Dialect:
    """Prefixes of a module's parts, and of the parts of its blocks."""

    parts: Pairs
    in_block: Pairs

    def translated(self, tensors: Mapping[str, Tensor]) -> Tensors:
        return {self._name(name): tensor for name, tensor in tensors.items()}

    def reversed(self) -> "_Dialect":
        return _Dialect(
            [(there, here) for here, there in self.parts], [(there, here) for here, there in self.in_block]
        )

    def _name(self, name: str) -> str:
        part, translation = _longest(name, self.parts)
        rest = name[len(part) :]
        block = re.fullmatch(r"(\d+\.)(.+)", rest)
        if block is None:
            return translation + rest
        inner, inner_translation = _longest(block[2], self.in_block)
        if not inner:
            return name
        return translation + block[1] + inner_translation + block[2][len(inner) :]


def _longest(name: str, pairs: Pairs) -> tuple[str, str]:
    fitting = [pair for pair in pairs if name.startswith(pair[0])]
    return max(fitting, key=lambda pair: len(pair[0]), default=("", ""))


_IN_BLOCK = (
    ("norm_attention.", "norm1."),
    ("norm_mlp.", "norm2."),
    ("expand.", "mlp.fc1."),
    ("contract.", "mlp.fc2."),
)
_IN_BLOCK_OF_TRANSFORMERS = (
    *_IN_BLOCK,
    ("attention.output.", "attention.proj."),
    *((f"attention.{part}.", f"attention.{part}.") for part in ("query", "key", "value")),
)
_IN_BLOCK_OF_META = (
    *_IN_BLOCK,
    ("attention.output.", "attn.proj."),
    ("attention.query_key_value.", "attn.qkv."),
)
_ENCODER_OF_TRANSFORMERS = _Dialect(
    (
        ("patches.", "encoder.embeddings.patch_embeddings.proj."),
        ("blocks.", "encoder.layer."),
        ("norm.", "encoder.layernorm."),
    ),
    _IN_BLOCK_OF_TRANSFORMERS,
)
_PREDICTOR_OF_TRANSFORMERS = _Dialect(
    (
        ("embedding.", "predictor.embeddings.predictor_embeddings."),
        ("mask_tokens", "predictor.embeddings.mask_tokens"),
        ("blocks.", "predictor.layer."),
        ("norm.", "predictor.layernorm."),
        ("readout.", "predictor.proj."),
    ),
    _IN_BLOCK_OF_TRANSFORMERS,
)
_ENCODER_OF_META = _Dialect(
    (("patches.", "patch_embed.proj."), ("blocks.", "blocks."), ("norm.", "norm.")), _IN_BLOCK_OF_META
)
_PREDICTOR_OF_META = _Dialect(
    (
        ("embedding.", "predictor_embed."),
        ("blocks.", "predictor_blocks."),
        ("norm.", "predictor_norm."),
        ("readout.", "predictor_proj."),
    ),
    _IN_BLOCK_OF_META,
)


def from_transformers(tensors: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Encoder and predictor in our names; what is neither stays, untranslated, with the encoder."""
    # a classifier built on the model keeps it under one more name
    tensors = {name.removeprefix("vjepa2."): tensor for name, tensor in tensors.items()}
    predictor = {name: tensor for name, tensor in tensors.items() if name.startswith("predictor.")}
    encoder = {name: tensor for name, tensor in tensors.items() if name not in predictor}
    encoder = _joined(_ENCODER_OF_TRANSFORMERS.reversed().translated(encoder))
    predictor = _joined(_PREDICTOR_OF_TRANSFORMERS.reversed().translated(predictor))
    if "mask_tokens" in predictor:
        predictor["mask_tokens"] = predictor["mask_tokens"].flatten(1)
    return encoder, predictor


def to_transformers(encoder: Mapping[str, Tensor], predictor: Mapping[str, Tensor]) -> Tensors:
    """The state that transformers' `VJEPA2Model` loads."""
    predictor = dict(predictor)
    if "mask_tokens" in predictor:
        predictor["mask_tokens"] = predictor["mask_tokens"][:, None, None]
    return {
        **_ENCODER_OF_TRANSFORMERS.translated(_split(encoder)),
        **_PREDICTOR_OF_TRANSFORMERS.translated(_split(predictor)),
    }


def encoder_from_meta(tensors: Mapping[str, Tensor]) -> Tensors:
    """An encoder of Meta's files in our names."""
    return _ENCODER_OF_META.reversed().translated(_without_wrappers(tensors))


def predictor_from_meta(tensors: Mapping[str, Tensor]) -> Tensors:
    """A predictor of Meta's files in our names."""
    plain = _without_wrappers(tensors)
    tokens = [
        plain.pop(f"mask_tokens.{index}") for index in range(len(plain)) if f"mask_tokens.{index}" in plain
    ]
    found = _PREDICTOR_OF_META.reversed().translated(plain)
    return {**found, "mask_tokens": torch.cat(tokens).flatten(1)} if tokens else found


def encoder_to_meta(tensors: Mapping[str, Tensor]) -> Tensors:
    """An encoder in the names of Meta's files, with the wrappers those were saved in."""
    return {f"module.backbone.{name}": value for name, value in _ENCODER_OF_META.translated(tensors).items()}


def predictor_to_meta(tensors: Mapping[str, Tensor]) -> Tensors:
    """A predictor in the names of Meta's files, with the wrappers those were saved in."""
    rest = {name: tensor for name, tensor in tensors.items() if name != "mask_tokens"}
    named = _PREDICTOR_OF_META.translated(rest)
    named |= {f"mask_tokens.{index}": token[None, None] for index, token in enumerate(tensors["mask_tokens"])}
    return {f"module.backbone.{name}": value for name, value in named.items()}


def _without_wrappers(tensors: Mapping[str, Tensor]) -> Tensors:
    """Names without what distributed and multi-mask wrappers put in front of them."""
    return {re.sub(r"^(module\.)*(backbone\.)?", "", name): tensor for name, tensor in tensors.items()}


def _split(tensors: Mapping[str, Tensor]) -> Tensors:
    """One matrix for queries, keys and values becomes three."""
    split: Tensors = {}
    for name, tensor in tensors.items():
        if ".query_key_value." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[name.replace("query_key_value", part)] = piece
        else:
            split[name] = tensor
    return split


def _joined(tensors: Mapping[str, Tensor]) -> Tensors:
    """Three matrices become one; where one of them is missing the others stay as they are, to be reported."""
    joined = dict(tensors)
    for name in tensors:
        if ".attention.query." in name:
            names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(each in joined for each in names):
                joined[name.replace(".query.", ".query_key_value.")] = torch.cat(
                    [joined.pop(n) for n in names]
                )
    return joined
