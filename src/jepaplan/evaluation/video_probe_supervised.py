"""The upper bound of a probe: the same architecture and head, trained end to end on the labels.

What an encoder learns that is told the answers, within a number of updates, from random weights or from
those that pretraining left. Its head may learn alone first, as a probe does: an untrained head would spoil
them. The state is chosen among learning rates and moments of training by the validation split, and measured
once on the test split.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from jepaplan.data.clips import AugmentationConfig, ClipNormaliser, apply_views, draw_views
from jepaplan.evaluation.video_probe_features import fresh_module
from jepaplan.evaluation.video_probe_heads import AttentiveHeads, matrices
from jepaplan.evaluation.video_probe_sweep import Items, Sweep, train_heads
from jepaplan.evaluation.video_probes import (
    AttentiveProbe,
    ProbeResult,
    SettingScore,
    Splits,
    best_setting,
    result_of,
    score_settings,
)
from jepaplan.training.schedules import warmup_cosine
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """How the upper bound is trained."""

    updates: int = 1000
    batch: int = 16
    learning_rates: tuple[float, ...] = (1e-3,)  # one training each
    weight_decay: float = 0.05  # on matrices
    warm_up: float = 0.1  # share of the updates; then half a cosine to zero
    evaluations: int = 10  # on the validation split, evenly over training
    head: AttentiveProbe = field(default_factory=lambda: AttentiveProbe(depth=1, heads_per_block=4))
    head_first: Sweep | None = None  # of one setting: the head alone, on the encoder's tokens as they are
    augmentation: AugmentationConfig | None = None  # mirrors change labels of motion

    def __post_init__(self) -> None:
        """Refuse trainings that cannot be chosen from."""
        if min(self.updates, self.batch, self.evaluations) < 1 or self.evaluations > self.updates:
            raise InputError(
                f"updates, batch and evaluations count from 1, evaluations up to updates; got {self}"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0 or self.weight_decay < 0:
            raise InputError(f"learning rates are positive and weight_decay is not negative; got {self}")
        if self.head_first is not None and len(self.head_first.settings) != 1:
            raise InputError(
                "head_first trains one head, so it has one learning rate and one weight decay; got "
                f"{self.head_first.learning_rates} and {self.head_first.weight_decays}"
            )
        if not 0 <= self.warm_up < 1:
            raise InputError(f"warm_up is a share of the updates; got {self.warm_up}")


@dataclass(frozen=True)
class LabelledClips:
    """Clips and their classes."""

    clips: UInt8[Tensor, "items T C height width"]
    labels: Int[Tensor, " items"]


def train_supervised(
    build: Callable[[], nn.Module],
    known: LabelledClips,
    splits: Splits,
    config: SupervisedConfig,
    generator: torch.Generator,
) -> ProbeResult:
    """Accuracy of the best moment of training; `build` makes the encoder that it begins with.

    Trains where the clips lie.
    """
    scores, best, chosen = list[SettingScore](), None, None
    first = _Classifier(fresh_module(build, generator).requires_grad_(True), known, config, generator)
    if config.head_first is not None:
        _train_head(first, known, splits, config.head_first, generator)
    for rate in config.learning_rates:
        sweep = Sweep(learning_rates=(rate,), weight_decays=(config.weight_decay,))
        reached = list[SettingScore]()
        model = copy.deepcopy(first)
        for _ in _moments(model, known, splits, replace(config, learning_rates=(rate,)), generator):
            found = _probabilities(model, known.clips[splits.validation], config.batch)
            (score,) = score_settings(found[None], known.labels[splits.validation].cpu(), sweep)
            reached.append(score)
            if best is None or best_setting([best, score]) == 1:
                best, chosen = score, copy.deepcopy(model)
        scores.append(reached[best_setting(reached)])
    if best is None or chosen is None:
        raise InputError("no moment of the training was evaluated")
    found = _probabilities(chosen, known.clips[splits.test], config.batch)
    return result_of(found, known.labels.cpu(), splits, (best, tuple(scores)))


class _Classifier(nn.Module):
    """Encoder and a head of a single setting."""

    def __init__(
        self, encoder: nn.Module, known: LabelledClips, config: SupervisedConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        device = known.clips.device
        self.normaliser, self.encoder = ClipNormaliser().to(device), encoder.to(device)
        with torch.no_grad():
            width = encoder(self.normaliser(known.clips[:1])).shape[-1]
        single = replace(config.head, sweep=Sweep(learning_rates=(1.0,), weight_decays=(0.0,)))
        head = single.heads(width, int(known.labels.max()) + 1, generator)
        self.head: AttentiveHeads = head.to(device)

    def forward(self, clips: UInt8[Tensor, "B T C height width"]) -> Float[Tensor, "B classes"]:
        return self.head(self.encoder(self.normaliser(clips)))[0]

    def groups(self, decay: float) -> list[dict[str, object]]:
        """Matrices with weight decay, everything else without."""
        marked = [(one, one.dim() > 1) for one in self.encoder.parameters()] + list(matrices(self.head))
        return [
            {"params": [one for one, decays in marked if decays], "weight_decay": decay},
            {"params": [one for one, decays in marked if not decays], "weight_decay": 0.0},
        ]


def _train_head(
    model: _Classifier, known: LabelledClips, splits: Splits, sweep: Sweep, generator: torch.Generator
) -> None:
    """Train the head alone, on tokens that are encoded once."""
    clips, labels = known.clips[splits.train], known.labels[splits.train].to(known.clips.device)
    with torch.no_grad():
        parts = clips.split(4 * sweep.batch)
        tokens = torch.cat([model.encoder(model.normaliser(part)).half() for part in parts])
    train_heads(model.head, Items(tokens[:, None], labels), torch.arange(len(clips)), sweep, generator)


def _moments(
    model: _Classifier,
    known: LabelledClips,
    splits: Splits,
    config: SupervisedConfig,
    generator: torch.Generator,
) -> Iterator[int]:
    """Train; yields the update's number whenever the model should be evaluated.

    A head that was trained alone is worth evaluating before anything else moves.
    """
    if config.head_first is not None:
        yield 0
    (peak,) = config.learning_rates
    optimizer = torch.optim.AdamW(model.groups(config.weight_decay))
    stops = {round((one + 1) * config.updates / config.evaluations) for one in range(config.evaluations)}
    for update in range(1, config.updates + 1):
        some = splits.train[torch.randint(len(splits.train), (config.batch,), generator=generator)]
        clips = known.clips[some]
        if config.augmentation is not None:
            views = draw_views(len(clips), config.augmentation, generator)
            clips = apply_views(clips, views, (clips.shape[-2], clips.shape[-1]))
        with torch.enable_grad():
            loss = functional.cross_entropy(model.train()(clips), known.labels[some].to(clips.device))
            optimizer.zero_grad()
            loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(update - 1, config.updates, peak, config.warm_up)
        optimizer.step()
        if update in stops:
            yield update


@torch.no_grad()
def _probabilities(
    model: _Classifier, clips: UInt8[Tensor, "B T C height width"], batch: int
) -> Float[Tensor, "B classes"]:
    model.eval()
    return torch.cat([model(some).softmax(dim=-1) for some in clips.split(4 * batch)]).cpu()
