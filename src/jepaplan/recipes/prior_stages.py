"""A stage that trains a prior of actions on latents that are encoded once: what leads from here to there.

Every recorded action is an example of how its recording came to any later frame of it. `goals` says which
frames: of the kinds in `data.goals` all but those of other recordings, to which the action did not lead.

`action_prior_stage(config, workshop)` makes the `Stage`; `build_action_priors` the modules it trains, which
are part of the system and so of the run's weights. To plan with one, name its stage in `control.prior`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from jepaplan.data.goals import GoalMixture
from jepaplan.models.goal_inverse_dynamics import GoalInverseDynamics, GoalInverseDynamicsConfig
from jepaplan.objectives.action_likelihood import ActionLikelihoodObjective
from jepaplan.recipes.value_batches import ReturnBatches, Signals
from jepaplan.recipes.value_learning import head_key
from jepaplan.recipes.value_stages import HELD_OUT, ValueWorkshop, recording_of
from jepaplan.training.distributed import map_tensors
from jepaplan.training.stage import FitConfig, Stage
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class ActionPriorStage:
    """Goal-conditioned inverse dynamics alone, on cached latents of the finished encoder."""

    name: str = "action_prior"
    fit: FitConfig
    model: GoalInverseDynamicsConfig = field(default_factory=GoalInverseDynamicsConfig)
    # Near goals teach which way, far ones that the way is uncertain; plans meet both.
    goals: GoalMixture = field(
        default_factory=lambda: GoalMixture(geometric=0.7, uniform=0.3, geometric_mean=10.0)
    )

    def __post_init__(self) -> None:
        if self.goals.batch > 0:
            raise InputError(
                "a prior learns how recordings came to their goals, and to those of other recordings they "
                f"did not: write goals.batch=0; got goals.batch={self.goals.batch}"
            )


def build_action_priors(
    stages: Iterable[object], latent_width: int, action_dim: int, moves_from: int = 0
) -> nn.ModuleDict:
    """The priors that the `ActionPriorStage`s among `stages` train, by `head_key`.

    Draws first weights from the global generator, as all modules do: call it where that is seeded.
    """
    return nn.ModuleDict(
        {
            head_key(stage.name): GoalInverseDynamics(latent_width, action_dim, stage.model, moves_from)
            for stage in stages
            if isinstance(stage, ActionPriorStage)
        }
    )


def action_prior_stage(config: ActionPriorStage, workshop: ValueWorkshop) -> Stage:
    """The stage that `config` describes."""
    system = workshop.system.requires_grad_(False)
    priors = cast(nn.ModuleDict, system.get_submodule("priors"))
    key = head_key(config.name)
    if key not in priors:
        raise InputError(
            f"the system has no action prior {key!r}, only {sorted(priors)}; build its `priors` with "
            "`build_action_priors(experiment.stages, latent_width, action_dim)`"
        )
    objective = ActionLikelihoodObjective(priors[key].requires_grad_(True))
    learned, apart = (
        ReturnBatches(recording_of(workshop, held_out), 1.0, (config.goals, 0.0), Signals(), actions=True)
        for held_out in (False, True)
    )
    drawn = apart.sample(workshop.seeds.torch(config.name, "held out"), HELD_OUT)

    def evaluate() -> dict[str, float]:
        device = next(system.parameters()).device
        loss, metrics = objective(map_tensors(lambda part: part.to(device), apart.load(drawn)))
        return {f"held_out/{name}": float(part) for name, part in {"loss": loss, **metrics}.items()}

    return Stage(
        name=config.name,
        objective=objective,
        sample=learned.sample,
        load=learned.load,
        product=system,
        evaluate=evaluate,
        frames_per_item=learned.frames_per_item,
    )
