"""From the records of an experiment's stages to what the training loop runs."""

from jepaplan.recipes.co_trained import with_co_trained_head
from jepaplan.recipes.experiment import (
    ImaginedValueStage,
    JointStage,
    MovingPointStage,
    PredictionStage,
    PredictorStage,
    StageConfig,
    ValueStage,
)
from jepaplan.recipes.frame_stages import joint_stage, moving_point_stage, prediction_stage, value_stage
from jepaplan.recipes.latent_stages import imagined_value_stage, latent_value_stage, predictor_stage
from jepaplan.recipes.materials import Materials, Report, silent
from jepaplan.recipes.prior_stages import ActionPriorStage, action_prior_stage
from jepaplan.recipes.value_stages import ValueHeadStage, value_head_stage
from jepaplan.training.stage import Stage

__all__ = ["Report", "Workshop", "silent"]


class Workshop(Materials):
    """Materials, and what is made of them: one stage after the other."""

    def build(self, config: StageConfig) -> Stage:
        """The stage that `config` describes."""
        match config:
            case PredictionStage():
                return with_co_trained_head(self, config, prediction_stage(self, config))
            case MovingPointStage():
                return moving_point_stage(self, config)
            case ValueStage():
                make = latent_value_stage if config.frozen_encoder else value_stage
                return make(self, config)
            case JointStage():
                return with_co_trained_head(self, config, joint_stage(self, config))
            case PredictorStage():
                return predictor_stage(self, config)
            case ImaginedValueStage():
                return imagined_value_stage(self, config)
            case ValueHeadStage():
                return value_head_stage(config, self)
            case ActionPriorStage():
                return action_prior_stage(config, self)
