"""Video experiments and studies at the size of a test: a few updates, seconds on one core."""

from dataclasses import replace

from jepaplan.data.sprite_videos import BouncingConfig, SpriteConfig
from jepaplan.evaluation.video_probe_supervised import SupervisedConfig
from jepaplan.evaluation.video_probe_sweep import Sweep
from jepaplan.evaluation.video_probes import AttentiveProbe, LinearProbe
from jepaplan.recipes.video import video_nano
from jepaplan.recipes.video_study import VideoStudy

UPDATES = 4
SPRITES = SpriteConfig(size=32, frames=12, radius=(4.0, 5.0))
BOUNCING = BouncingConfig(size=32, frames=7, radius=(3.0, 4.0), bins=2)


def tiny_phase(phase, updates=UPDATES, **changes):
    """A phase of a few updates, each of which is logged and saved."""
    pace = {"log_every": 1, "evaluate_every": 2, "health_every": updates, "save_every": 1}
    fit = replace(phase.fit, updates=updates, batch=4, warmup_fraction=0.0, **pace)
    return replace(phase, fit=fit, **changes)


def tiny_video_experiment(updates=UPDATES, **changes):
    """`video_nano` with clips of 4 frames of 32 pixels, two blocks, and 40 small videos."""
    nano = video_nano()
    tiny = replace(
        nano,
        encoder=replace(nano.encoder, frames=4, image=32, patch=8, width=48, depth=2, heads=2),
        predictor=replace(nano.predictor, width=24, depth=2, heads=2),
        generated=replace(nano.generated, count=40, sprites=SPRITES),
        phases=(tiny_phase(nano.phases[0], updates),),
        held_out=0.2,
    )
    return replace(tiny, **changes)


def growing_video_experiment(**changes):
    """Two phases; the clips of the second are longer and larger."""
    first = tiny_video_experiment().phases[0]
    longer = replace(tiny_phase(first), name="cooldown", frames=8, image=48)
    return tiny_video_experiment(phases=(first, longer), **changes)


def tiny_video_study(**changes):
    """All sources and tasks on 60 clips, with the smallest probe."""
    sweep = Sweep(learning_rates=(1e-3,), weight_decays=(0.01,), epochs=2, batch=16)
    probe = AttentiveProbe(depth=1, heads_per_block=2, sweep=sweep)
    study = VideoStudy(
        name="tiny-videos",
        experiment=tiny_video_experiment(),
        clips=60,
        bouncing_clips=60,
        seen_frames=2,
        sprites=SPRITES,
        bouncing=BOUNCING,
        probe=probe,
        linear=LinearProbe(sweep=replace(sweep, learning_rates=(1e-2,))),
        supervised=SupervisedConfig(updates=2, evaluations=1, head=probe),
    )
    return replace(study, **changes)
