"""What a frozen video encoder knows, read off by a probe whose setting the test split never chose.

Features are held in memory, so a probe is minutes of a small training loop, not a run. Every setting of a
sweep is trained at once (`video_probe_sweep`); the one with the best accuracy on the validation split is
reported on the test split (Assran et al., "V-JEPA 2", arXiv:2506.09985: attentive probe; Alain and Bengio,
arXiv:1610.01644: linear probe). With several views of a clip, probabilities are averaged over views.

Departs from the paper, where every head of the sweep has an initialisation of its own and where the best test
accuracy of the sweep is reported: here settings share theirs, and a validation split chooses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepaplan.evaluation.statistics import SuccessRate
from jepaplan.evaluation.video_probe_heads import AttentiveHeads, LinearHeads
from jepaplan.evaluation.video_probe_sweep import Items, Sweep, train_heads, view_averages
from jepaplan.types import InputError

# The fractional parts of its multiples are the most even of all: every run of items has its share.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Item numbers a probe learns from, is chosen by, and is measured on; no item is in two of them."""

    train: Int[Tensor, " train"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]

    def __post_init__(self) -> None:
        """Refuse empty and overlapping splits."""
        parts = (self.train, self.validation, self.test)
        different, sizes = len(torch.cat(parts).unique()), [len(part) for part in parts]
        if min(sizes) == 0 or different < sum(sizes):
            raise InputError(
                f"splits need at least one item each and no item twice; got {sizes} train, validation and "
                f"test items, {different} different ones. `draw_splits` makes them."
            )


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Mean of the tokens, standardised on the training split, and one layer."""

    sweep: Sweep = field(
        default_factory=lambda: Sweep(learning_rates=(3e-2, 1e-2, 3e-3, 1e-3), epochs=50, batch=64)
    )

    def inputs(self, items: Items, train: Int[Tensor, " train"]) -> Items:
        """Pooled and standardised: one token per view."""
        pooled = items.features.mean(dim=2, keepdim=True, dtype=torch.float32)
        known = pooled[train].flatten(0, 2)
        scale = known.std(dim=0, correction=0).clamp(min=1e-6)
        return Items((pooled - known.mean(dim=0)) / scale, items.labels)

    def heads(self, width: int, classes: int, generator: torch.Generator) -> LinearHeads:
        """Untrained heads, one per setting; they begin at zero and need no randomness."""
        return LinearHeads(len(self.sweep.settings), width, classes)


@dataclass(frozen=True, kw_only=True)
class AttentiveProbe:
    """Self-attention blocks and a learned query; the defaults are the published protocol.

    `depth` 1 is the query alone, which a laptop can train: its sweep costs hardly more than a single head.
    """

    depth: int = 4  # blocks, the query's included
    heads_per_block: int = 16
    mlp_ratio: float = 4.0
    sweep: Sweep = field(default_factory=Sweep)

    def __post_init__(self) -> None:
        """Refuse probes without a block."""
        if min(self.depth, self.heads_per_block) < 1 or self.mlp_ratio <= 0:
            raise InputError(
                f"an attentive probe needs positive depth, heads_per_block and mlp_ratio; got {self}"
            )

    def inputs(self, items: Items, train: Int[Tensor, " train"]) -> Items:
        """The tokens as they are: the heads normalise them."""
        return items

    def heads(self, width: int, classes: int, generator: torch.Generator) -> AttentiveHeads:
        """Untrained heads, one per setting."""
        if width % self.heads_per_block:
            raise InputError(
                f"features of width {width} do not divide into {self.heads_per_block} attention heads; "
                f"write a `heads_per_block` that divides {width}"
            )
        sizes = (width, classes, self.depth, self.heads_per_block, round(width * self.mlp_ratio))
        return AttentiveHeads(len(self.sweep.settings), sizes, generator)


Probe = LinearProbe | AttentiveProbe

# For features a laptop makes, of width 128 or so and about a thousand training clips: the published sweep's
# lower learning rates would not get off the ground within its 20 epochs, of 4 updates each.
LAPTOP_PROBE = AttentiveProbe(
    depth=1,
    heads_per_block=4,
    sweep=Sweep(learning_rates=(1e-2, 3e-3, 1e-3), weight_decays=(0.1, 0.8), epochs=40, batch=64),
)


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """How one setting of the sweep did on the validation split."""

    learning_rate: float
    weight_decay: float
    accuracy: float
    loss: float  # mean negative log probability of the true class; infinite where training diverged


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The chosen setting on the test split; prints as its accuracy with the 95 % interval."""

    accuracy: SuccessRate  # Wilson's interval, over test items
    correct: Bool[Tensor, " test"]
    probabilities: Float[Tensor, "test classes"]  # averaged over views
    chosen: SettingScore
    validation: tuple[SettingScore, ...]  # every setting
    commonest: float  # accuracy of always naming the commonest class of the training split

    def __str__(self) -> str:
        return str(self.accuracy)


def draw_splits(
    labels: Int[Tensor, " items"],
    generator: torch.Generator,
    validation: float = 0.15,
    test: float = 0.25,
) -> Splits:
    """Random splits in which every class has its share, within 2.51 items in a class of up to 60.

    That is how far so many points in a row of the golden ratio's sequence can miss the length of any arc of
    the circle: 1.92 for 12 of them, 2.51 for 60, 3.69 for 1,000.
    """
    if min(validation, test) <= 0 or validation + test >= 1:
        raise InputError(
            f"shares of validation and test are positive and leave some to train; got {validation}, {test}"
        )
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Items in the order of their classes take turns: item number i falls where i x share wraps around.
    place = (torch.arange(len(labels)) * _GOLDEN + torch.rand((), generator=generator)) % 1.0
    return Splits(
        train=by_class[place >= validation + test].sort().values,
        validation=by_class[place < validation].sort().values,
        test=by_class[(place >= validation) & (place < validation + test)].sort().values,
    )


def probe_features(
    features: Float[Tensor, "items *views N D"],
    labels: Int[Tensor, " items"],
    splits: Splits,
    probe: Probe,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Train all settings of `probe` on the training split, choose one by validation, report it on test."""
    items, labels = _items(features, labels), labels.cpu()
    inputs = probe.inputs(items, splits.train)
    heads = probe.heads(features.shape[-1], int(labels.max()) + 1, generator).to(features.device)
    train_heads(heads, inputs, splits.train, probe.sweep, generator, progress)
    scores = score_settings(
        view_averages(heads, inputs, splits.validation), labels[splits.validation], probe.sweep
    )
    best = best_setting(scores)
    found = view_averages(heads, inputs, splits.test)[best]
    return result_of(found, labels, splits, (scores[best], scores))


def score_settings(
    probabilities: Float[Tensor, "S validation classes"], labels: Int[Tensor, " validation"], sweep: Sweep
) -> tuple[SettingScore, ...]:
    """Accuracy and loss of each setting; one that diverged gets accuracy 0 and infinite loss."""
    scores = list[SettingScore]()
    for (rate, decay), some in zip(sweep.settings, probabilities, strict=True):
        sound = bool(some.isfinite().all())
        own = some.gather(1, labels[:, None]).clamp(min=1e-12)
        scores.append(
            SettingScore(
                learning_rate=rate,
                weight_decay=decay,
                accuracy=float((some.argmax(dim=1) == labels).float().mean()) if sound else 0.0,
                loss=float(-own.log().mean()) if sound else math.inf,
            )
        )
    return tuple(scores)


def best_setting(scores: Sequence[SettingScore]) -> int:
    """The highest accuracy; among equals the smallest loss."""
    best = min(range(len(scores)), key=lambda one: (-scores[one].accuracy, scores[one].loss))
    if math.isinf(scores[best].loss):
        raise InputError(
            "every setting of the sweep diverged: are all features finite? If so, write smaller "
            "learning_rates."
        )
    return best


def result_of(
    probabilities: Float[Tensor, "test classes"],
    labels: Int[Tensor, " items"],
    splits: Splits,
    scores: tuple[SettingScore, tuple[SettingScore, ...]],
) -> ProbeResult:
    """The record of probabilities on the test split; `scores` are the chosen setting's and everyone's."""
    correct = probabilities.argmax(dim=1) == labels[splits.test]
    commonest = labels[splits.train].mode().values
    return ProbeResult(
        accuracy=SuccessRate(int(correct.sum()), len(correct)),
        correct=correct,
        probabilities=probabilities,
        chosen=scores[0],
        validation=scores[1],
        commonest=float((labels[splits.test] == commonest).float().mean()),
    )


def _items(features: Tensor, labels: Tensor) -> Items:
    if features.dim() not in (3, 4) or len(features) != len(labels) or features.numel() == 0:
        raise InputError(
            f"a probe reads features (items, tokens, width) or (items, views, tokens, width) and one label "
            f"per item; got features of shape {tuple(features.shape)} and {len(labels)} labels"
        )
    if int(labels.min()) < 0:
        raise InputError(f"labels are class numbers from 0; got {int(labels.min())}")
    return Items(features if features.dim() == 4 else features[:, None], labels.to(features.device))
