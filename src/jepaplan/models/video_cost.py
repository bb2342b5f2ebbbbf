"""What video pretraining costs, by formula: parameters, floating point operations and memory of a step.

One multiply-add is two operations; only matrix products are counted (the rest is a few per cent at the sizes
of V-JEPA 2). For a transformer of width D, hidden width H and depth L on N tokens:

    linear maps     2 N L (4 D D + 2 D H)     queries, keys, values, output; perceptron
    attention       4 N N D L                 scores and weighted sums, over all heads
    backward        twice the forward         gradients of inputs and of weights; no gradient of pixels

A training step encodes the whole clip once for the targets, without gradients, and for each mask
configuration once encodes the kept tokens and once predicts the others, both forward and backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jepaplan.models.masked_predictor import MaskedPredictorConfig
from jepaplan.models.transformer import hidden_width
from jepaplan.models.video_vit import VideoTransformerConfig
from jepaplan.types import InputError

_FORWARD_AND_BACKWARD = 3  # times the operations of a forward pass
_STATES = 5  # numbers per parameter that learns: itself, its gradient, two moments of AdamW, its average


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Operations of one training step per clip, by part; and of computing activations a second time."""

    targets: float  # the whole clip, forward only
    contexts: float  # kept tokens of every mask configuration, forward and backward
    predictions: float  # context and mask tokens of every mask configuration, forward and backward
    repeated: float = 0.0  # forward passes of checkpointed blocks, taken again

    @property
    def total(self) -> float:
        """All of it."""
        return self.targets + self.contexts + self.predictions + self.repeated


def encoder_parameters(config: VideoTransformerConfig) -> int:
    """Numbers in a `VideoTransformer`."""
    patches = config.width * (_pixels(config) + 1)
    return patches + config.depth * _block_parameters(config) + 2 * config.width


def predictor_parameters(encoder_width: int, config: MaskedPredictorConfig) -> int:
    """Numbers in a `MaskedPredictor`."""
    linear = 2 * encoder_width * config.width + encoder_width + config.width
    own = (config.mask_tokens + 2) * config.width
    return linear + own + config.depth * _block_parameters(config)


def encoder_flops(config: VideoTransformerConfig, tokens: int | None = None) -> float:
    """Operations of encoding one clip, forward; `tokens` are those kept, by default all."""
    kept = config.tokens if tokens is None else tokens
    return _embedding_flops(config, kept) + _blocks_flops(config, kept)


def predictor_flops(encoder_width: int, config: MaskedPredictorConfig, context: int, targets: int) -> float:
    """Operations of predicting `targets` tokens of one clip from `context` tokens, forward."""
    linear = 2.0 * encoder_width * config.width * (context + targets)
    return linear + _blocks_flops(config, context + targets)


def step_flops(
    encoder: VideoTransformerConfig,
    predictor: MaskedPredictorConfig,
    ratios: Sequence[tuple[float, float]],
) -> StepCost:
    """Operations of a training step per clip; `ratios` of context and target tokens, one pair per mask."""
    contexts = predictions = repeated = 0.0
    for context, targets in _counts(encoder, ratios):
        embedding = _embedding_flops(encoder, context)
        contexts += _FORWARD_AND_BACKWARD * encoder_flops(encoder, context) - embedding
        forward = predictor_flops(encoder.width, predictor, context, targets)
        predictions += _FORWARD_AND_BACKWARD * forward
        if encoder.checkpoint_activations:
            repeated += _blocks_flops(encoder, context)
        if predictor.checkpoint_activations:
            repeated += _blocks_flops(predictor, context + targets)
    return StepCost(
        targets=encoder_flops(encoder), contexts=contexts, predictions=predictions, repeated=repeated
    )


def state_bytes(
    encoder: VideoTransformerConfig, predictor: MaskedPredictorConfig, bytes_each: int = 4
) -> int:
    """Memory that training holds between steps: weights, gradients, AdamW's moments, the average encoder."""
    average = encoder_parameters(encoder)
    learning = average + predictor_parameters(encoder.width, predictor)
    return bytes_each * ((_STATES - 1) * learning + average)


def activation_bytes(
    encoder: VideoTransformerConfig,
    predictor: MaskedPredictorConfig,
    ratios: Sequence[tuple[float, float]],
    bytes_each: int = 4,
) -> int:
    """Memory per clip kept for the backward pass, of all mask configurations at once."""
    numbers = 0
    for context, targets in _counts(encoder, ratios):
        # around the blocks: pixels that were embedded, what the last norms saw, what the predictor was given
        numbers += context * (_pixels(encoder) + _kept_by_blocks(encoder) + 2 * encoder.width)
        numbers += (context + targets) * (_kept_by_blocks(predictor) + predictor.width)
        numbers += targets * predictor.width
    return bytes_each * numbers


def _kept_by_blocks(config: VideoTransformerConfig | MaskedPredictorConfig) -> int:
    """Per token: inputs and outputs of two norms, queries, keys, values, turned ones, what was gathered.

    And the perceptron's hidden numbers before and after its activation. Checkpointed blocks keep their input.
    """
    if config.checkpoint_activations:
        return config.depth * config.width
    return config.depth * (10 * config.width + 2 * hidden_width(config.width, config.mlp_ratio))


def _counts(encoder: VideoTransformerConfig, ratios: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    for pair in ratios:
        if not all(0 <= ratio <= 1 for ratio in pair):
            raise InputError(
                f"ratios {pair} are shares of a clip's tokens, (context, targets), each in [0, 1]; for "
                "V-JEPA 2's masks write [(0.24, 0.475), (0.066, 0.70)]"
            )
    return [(round(context * encoder.tokens), round(targets * encoder.tokens)) for context, targets in ratios]


def _pixels(config: VideoTransformerConfig) -> int:
    return config.channels * config.tubelet * config.patch**2


def _embedding_flops(config: VideoTransformerConfig, tokens: int) -> float:
    return 2.0 * tokens * _pixels(config) * config.width


def _blocks_flops(config: VideoTransformerConfig | MaskedPredictorConfig, tokens: int) -> float:
    width, hidden = config.width, hidden_width(config.width, config.mlp_ratio)
    linear = 2.0 * tokens * (4 * width * width + 2 * width * hidden)
    return config.depth * (linear + 4.0 * tokens * tokens * width)


def _block_parameters(config: VideoTransformerConfig | MaskedPredictorConfig) -> int:
    width, hidden = config.width, hidden_width(config.width, config.mlp_ratio)
    return 4 * width * (width + 1) + hidden * (width + 1) + width * (hidden + 1) + 4 * width
