"""The maze of Destrade et al., arXiv:2601.00844, section 7.1.2: a point with inertia, seen from above.

The ten approaches are `recipes/value_guided.py` in the setting below. The encoder sees the picture and,
before its last layer, the velocity, which no picture shows: one latent holds both and is predicted whole.

    paper                              here
    500 perturbations, deviation 5     samples, std; in PLDM's code 5 is the variance
    lambda 0.0025                      temperature
    horizon 100                        horizon
    VCReg along batch and time         weights of variance, covariance, time_variance

Open in the paper, beside what `value_guided` lists:

    largest action           2.45 normalised units, as on the wall: commands of uniform norm below 5 have a
                             deviation of 5 / sqrt(6) per axis, so this is a norm of 5; PLDM plans with 1
    replanning               every step; PLDM's configuration every fourth
    covariance along time    weight 0, PLDM's
"""

from collections.abc import Callable
from dataclasses import replace

from jepaplan.models.encoders import CompactConfig, ImpalaConfig
from jepaplan.models.predictors import PredictorConfig
from jepaplan.objectives.total import ObjectiveWeights
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound, std_from_variance
from jepaplan.recipes.experiment import Experiment, RecordingConfig
from jepaplan.recipes.value_guided import Setting, approaches_in, on_a_cpu

_VELOCITY = 2  # numbers of proprioception

# PLDM's coefficients for its five training mazes, with ten times as many transitions as here.
_VCREG = ObjectiveWeights(prediction=0.0, variance=35.026, covariance=11.925, time_variance=2.9199)
_PLDM = replace(_VCREG, time_similarity=0.10193, inverse_dynamics=5.3964)

MAZE = Setting(
    prefix="maze",
    recording=RecordingConfig(world="Maze", trajectories=1000, states=101),
    encoder=ImpalaConfig(image_channels=3, proprioception_dim=_VELOCITY),
    predictor=PredictorConfig(),
    updates=30_000,
    batch=128,
    vcreg=_VCREG,
    pldm=_PLDM,
    planner=MPPI(
        samples=500,
        horizon=100,
        temperature=0.0025,
        # PLDM passes 5 as the variance of the noise; the paper calls it a standard deviation.
        std=std_from_variance(5.0),
        bounds=NormBound(max_norm=2.45),
        cost_scaling="none",
    ),
)


# A step changes a latent by a hundredth. A predictor that begins by guessing is thrown so far back by its
# first errors that its units die and it stands still for ever; one that begins still, with norms, learns.
MAZE_CPU = replace(
    on_a_cpu(
        MAZE,
        CompactConfig(
            image_channels=3,
            proprioception_dim=_VELOCITY,
            latent_width=128,
            channels=(8, 16, 32),
            readout="keypoints",
            keypoints=32,
        ),
        horizon=24,
    ),
    predictor=PredictorConfig(hidden=256, layers=2, residual=True, begins_still=True),
    cached_updates=3000,
)

MAZE_RECIPES: dict[str, Callable[[], Experiment]] = {
    **approaches_in(MAZE),
    **approaches_in(MAZE_CPU, suffix="_cpu"),
}
