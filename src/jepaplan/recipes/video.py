"""Video pretraining as records: where clips come from, what is masked, what is trained, in which phases.

V-JEPA 2 (arXiv:2506.09985), sections 2 and A; settings of its published code where the text is silent
(facebookresearch/vjepa2, MIT licence, c2963a47):

    theirs                          here
    batch 3072, 252k updates        the recipes from `video_large` on
    warm-up 12k, constant, cool-down 12k    VideoPhase.fit, schedule "constant_cooldown"; the cool-down with
                                    longer and larger clips is a phase of its own
    16 frames at 256 pixels, then 64 at 256 or 384      VideoPhase.frames and image
    weight decay 0.04 on matrices   FitConfig.weight_decay_on
    no gradient clipping            clipped at norm 1 here, which small runs need
    VideoMix22M                     videos of one's own, `--data`; without them generated sprites

The small recipes differ in what a laptop asks for: patches of 8 pixels, clips of 64 x 64, masks that are
equalised at random (`data/tubelet_masks.py`). With the published objective their target becomes what all
tokens of a clip have in common within a few hundred updates, and its rank falls (docs/lab_notes.md). So long
blocks hide half of the time, the target is standardised over each clip, and rotary positions have a base that
fits eight rows instead of ten thousand.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from jepaplan.data.clips import AugmentationConfig
from jepaplan.data.sprite_videos import SpriteConfig
from jepaplan.data.tubelet_masks import LONG_RANGE, SHORT_RANGE, MaskConfig
from jepaplan.data.video_clips import ClipConfig
from jepaplan.models.masked_predictor import PREDICTOR, MaskedPredictorConfig
from jepaplan.models.video_vit import VIDEO_SIZES, VideoTransformerConfig
from jepaplan.objectives.masked_latents import MaskedLatentsConfig
from jepaplan.training.stage import FitConfig
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class GeneratedVideos:
    """What is learned from when no videos are given: files of moving sprites, written into the run."""

    count: int = 2000
    sprites: SpriteConfig = field(default_factory=SpriteConfig)

    def __post_init__(self) -> None:
        if self.count < 2:
            raise InputError(
                f"count is videos, at least 2: one to learn from, one held out; got {self.count}"
            )


@dataclass(frozen=True, kw_only=True)
class VideoPhase:
    """One length and size of clips, trained from start to end."""

    name: str = "pretraining"
    fit: FitConfig
    frames: int | None = None  # of a clip; none: the encoder's
    image: int | None = None  # pixels per side of a clip; none: the encoder's


@dataclass(frozen=True, kw_only=True)
class VideoExperiment:
    """Everything that decides what a video encoder learns; equal experiments and seeds are the same run."""

    recipe: str
    description: str
    seed: int = 0
    held_out: float = 0.05  # share of the files that is never trained on, for held-out metrics
    generated: GeneratedVideos = field(default_factory=GeneratedVideos)
    clips: ClipConfig = field(default_factory=ClipConfig)  # its frames are those of the phase
    augmentation: AugmentationConfig | None = field(default_factory=AugmentationConfig)  # none: the middle
    cache: bool = False  # decode every file once, into RUN/cache; for small sets
    order: Literal["weighted", "shuffled"] = "weighted"  # shuffled: every file once an epoch, no weights
    encoder: VideoTransformerConfig
    predictor: MaskedPredictorConfig
    masks: tuple[MaskConfig, ...] = (SHORT_RANGE, LONG_RANGE)
    equalise: Literal["random", "first"] = "random"
    objective: MaskedLatentsConfig = field(default_factory=MaskedLatentsConfig)
    phases: tuple[VideoPhase, ...]
    probed: str | None = "motion"  # labels that the running probe reads, where the videos have them

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is a share of the files, in (0, 1); got {self.held_out}")
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) != len(names):
            raise InputError(f"an experiment has one phase or more, of different names; got {names}")
        for phase in self.phases:
            self.shape(phase)
            if phase.fit.seed not in (0, self.seed):
                raise InputError(
                    f"phase {phase.name!r} asks for seed {phase.fit.seed}, the experiment for {self.seed}; "
                    f"one seed decides the whole experiment. Write --seed {phase.fit.seed}"
                )

    @property
    def stages(self) -> tuple[VideoPhase, ...]:
        """The phases, by the name that every experiment has for what it trains in turn."""
        return self.phases

    def shape(self, phase: VideoPhase) -> VideoTransformerConfig:
        """The encoder's shape with the clips of a phase; its weights are the same for all."""
        return replace(
            self.encoder,
            frames=phase.frames or self.encoder.frames,
            image=phase.image or self.encoder.image,
        )


def video_nano() -> VideoExperiment:
    """Sprites on two cores in minutes: clips of 8 frames at 64 pixels, an encoder of 1.2 million."""
    return VideoExperiment(
        recipe="video_nano",
        description="masked video pretraining on generated sprites, in minutes on two cores",
        # A mirror would turn left into right, and that is what the probes ask for; crops change speeds.
        augmentation=None,
        cache=True,
        encoder=replace(VIDEO_SIZES["nano"], rope_base=_SMALL_ROPE_BASE),
        predictor=replace(PREDICTOR["nano"], rope_base=_SMALL_ROPE_BASE),
        masks=(SHORT_RANGE, replace(LONG_RANGE, temporal_scale=0.5)),
        phases=(VideoPhase(fit=_small_fit(3000)),),
        objective=MaskedLatentsConfig(ema=(0.999, 0.999), target_norm="clip"),
    )


def video_tiny() -> VideoExperiment:
    """The same with an encoder of 5.3 million, first on 8 and then on 16 frames."""
    phases = (
        VideoPhase(fit=_small_fit(4000, cooldown=0.0)),
        VideoPhase(
            name="cooldown",
            frames=16,
            fit=replace(_small_fit(500), cooldown_fraction=1.0, warmup_fraction=0.0),
        ),
    )
    return replace(
        video_nano(),
        recipe="video_tiny",
        description="masked video pretraining on generated sprites, hours on two cores; clips grow",
        # Sixteen frames at half the rate span 31.
        generated=GeneratedVideos(sprites=SpriteConfig(frames=36)),
        encoder=replace(VIDEO_SIZES["tiny"], rope_base=_SMALL_ROPE_BASE),
        predictor=replace(PREDICTOR["tiny"], rope_base=_SMALL_ROPE_BASE),
        phases=phases,
    )


_SMALL_ROPE_BASE = 20.0  # grids of 4 x 8 x 8


def _small_fit(updates: int, cooldown: float = 0.15) -> FitConfig:
    return FitConfig(
        updates=updates,
        batch=16,
        learning_rate=1.5e-3,
        optimiser="adamw",
        weight_decay=0.04,
        weight_decay_on="matrices",
        schedule="constant_cooldown",
        warmup_fraction=0.1,
        cooldown_fraction=cooldown,
        final_fraction=0.01,
        gradient_clip=1.0,
        evaluate_every=100,
        health_every=100,
    )


def _released(size: Literal["large", "huge", "giant"]) -> VideoExperiment:
    """The published schedule for one of the published sizes; needs videos and many accelerators."""
    fit = FitConfig(
        updates=240_000,
        batch=3072,
        learning_rate=5.25e-4,
        optimiser="adamw",
        weight_decay=0.04,
        weight_decay_on="matrices",
        schedule="constant_cooldown",
        initial_fraction=1 / 5.25,
        warmup_fraction=0.05,
        final_fraction=1.0,
        gradient_clip=1.0,
        precision="bf16",
        parallel="sharded",
        evaluate_every=3000,
        health_every=3000,
    )
    cooldown = replace(
        fit,
        updates=12_000,
        warmup_fraction=0.0,
        initial_fraction=0.0,
        cooldown_fraction=1.0,
        final_fraction=1e-6 / 5.25e-4,
    )
    return VideoExperiment(
        recipe=f"video_{size}",
        description=f"V-JEPA 2's schedule for ViT-{size}, on videos of your own; a cluster's work",
        encoder=replace(VIDEO_SIZES[size], checkpoint_activations=True),
        predictor=replace(PREDICTOR[size], checkpoint_activations=True),
        objective=MaskedLatentsConfig(ema=(0.99925, 0.99925)),
        phases=(VideoPhase(fit=fit), VideoPhase(name="cooldown", fit=cooldown, frames=64)),
        probed=None,
    )


def video_large() -> VideoExperiment:
    """ViT-L as published."""
    return _released("large")


def video_huge() -> VideoExperiment:
    """ViT-H as published."""
    return _released("huge")


def video_giant() -> VideoExperiment:
    """ViT-g as published."""
    return _released("giant")


VIDEO_RECIPES: dict[str, Callable[[], VideoExperiment]] = {
    make.__name__: make for make in (video_nano, video_tiny, video_large, video_huge, video_giant)
}
