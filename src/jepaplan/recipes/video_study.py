"""What a pretrained video encoder knows, beside what it has to beat: `jepaplan reproduce vjepa2`.

V-JEPA 2 (arXiv:2506.09985) probes its frozen encoder on Something-Something v2 for motion and on ImageNet
for appearance, and anticipates actions of Epic-Kitchens-100. Neither fits a laptop; the generated sets
`synthetic-motion-v1` and `bouncing-sprite-v1` (`data/sprite_videos.py`) ask the same questions of it:

    source        what is probed                                              motion should be
    pretrained    the target encoder after masked pretraining                 known
    random        the same architecture, untrained                            known less
    pixels        principal components of shrunken clips                      known less
    one frame     the pretrained encoder on the middle frame, repeated        at chance
    shuffled      the pretrained encoder on frames in another order           known less
    supervised    the pretrained encoder, trained on with the labels          the upper bound

    anticipation  bin in which a bouncing sprite is one second after the clip: encoder tokens, encoder and
                  predictor tokens, the last place, constant velocity, and constant velocity that bounces

Training seeds have pretraining videos, weights and probes of their own; labelled clips and their splits are
the same for all.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from jepaplan.data.sprite_videos import (
    BouncingConfig,
    SpriteConfig,
)
from jepaplan.evaluation.video_probe_supervised import SupervisedConfig
from jepaplan.evaluation.video_probe_sweep import Sweep
from jepaplan.evaluation.video_probes import (
    LAPTOP_PROBE,
    AttentiveProbe,
    LinearProbe,
)
from jepaplan.recipes.video import VideoExperiment, video_nano, video_tiny
from jepaplan.types import InputError

LABELLED_SEED, BOUNCING_SEED = 7001, 7002  # of the labelled sets, which no training sees
TASKS = ("motion", "appearance")
ATTENTIVE, LINEAR = "attentive", "linear"  # heads
COLUMNS = tuple(f"{task}, {head}" for task in TASKS for head in (ATTENTIVE, LINEAR))
ANTICIPATION = "anticipation"
SOURCES = ("pretrained", "random", "pixels", "one frame", "shuffled", "supervised")
AHEAD = ("encoder", "encoder and predictor", "random encoder", "last place", "constant velocity", "bouncing")
LEARNED_AHEAD = AHEAD[:3]
RECALL_AT = (1, 3)

# From random weights, 500 updates end at chance of motion: a bound begins with what it is to bound.
SUPERVISED = SupervisedConfig(
    updates=400,
    learning_rates=(3e-4,),
    evaluations=4,
    head_first=Sweep(learning_rates=(1e-2,), weight_decays=(0.1,), epochs=40, batch=64),
)


@dataclass(frozen=True, kw_only=True)
class VideoStudy:
    """What is trained, on what it is probed, and how."""

    name: str = "vjepa2"
    title: str = "Video pretraining: what a masked predictor's encoder knows (V-JEPA 2, arXiv:2506.09985)"
    experiment: VideoExperiment
    clips: int = 2400  # labelled ones of motion and appearance
    bouncing_clips: int = 4800  # labelled ones to anticipate from
    sprites: SpriteConfig = field(default_factory=SpriteConfig)
    bouncing: BouncingConfig = field(default_factory=BouncingConfig)
    seen_frames: int = 4  # of a bouncing clip, its last, so that what is asked lies where predictors learned
    probe: AttentiveProbe = LAPTOP_PROBE
    linear: LinearProbe = field(default_factory=LinearProbe)
    supervised: SupervisedConfig = SUPERVISED
    sources: tuple[str, ...] = SOURCES
    ahead: tuple[str, ...] = AHEAD

    def only(self, words: tuple[str, ...]) -> "VideoStudy":
        """The sources whose name holds one of `words`."""
        if not words:
            return self
        kept = tuple(one for one in self.sources if any(word in one for word in words))
        ahead = tuple(one for one in self.ahead if any(word in f"{ANTICIPATION} {one}" for word in words))
        if not kept and not ahead:
            raise InputError(
                f"nothing of {self.name} holds {' or '.join(words)}; its sources are {', '.join(SOURCES)}; "
                f"of {ANTICIPATION} {', '.join(AHEAD)}"
            )
        return replace(self, sources=kept, ahead=ahead)


def vjepa2(scale: Literal["cpu", "full"]) -> VideoStudy:
    """The study at the size of a laptop, or of one accelerator."""
    if scale == "cpu":
        return VideoStudy(experiment=video_nano())
    sweep = Sweep(batch=64)
    return VideoStudy(
        experiment=video_tiny(),
        sprites=video_tiny().generated.sprites,
        bouncing=BouncingConfig(frames=31),  # one window of 16 at half the rate
        seen_frames=8,
        clips=6000,
        probe=AttentiveProbe(depth=4, heads_per_block=4, sweep=sweep),
    )
