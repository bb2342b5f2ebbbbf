"""A stage that trains a value head on latents that are encoded once, recorded or imagined.

What is learned, and what from, is said by the fields of `recipes/value_learning.py`; which latents by
`latents`.

`value_head_stage(config, workshop)` makes the `Stage`; `build_value_heads` the modules it trains, which are
part of the system and so of the run's weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from jepaplan.data.episodes import Episodes
from jepaplan.evaluation.statistics import spearman
from jepaplan.models.value_heads import NegativeDistance, ReadValue, ValueEnsemble, ValueHead, build_values
from jepaplan.objectives.segments import LatentDynamics
from jepaplan.objectives.td import ActionValueObjective, ReturnObjective, TDObjective
from jepaplan.recipes.value_batches import (
    ImaginedActions,
    PairBatches,
    Recording,
    ReturnBatches,
    SegmentBatches,
    Signals,
)
from jepaplan.recipes.value_learning import HeadStage, ValueLearning, head_key, heads_of, rewards_of
from jepaplan.training.distributed import map_tensors
from jepaplan.training.stage import FitConfig, Stage
from jepaplan.types import InputError, SeedTree

HELD_OUT = 256  # items of a held-out batch


@dataclass(frozen=True, kw_only=True)
class ValueHeadStage(ValueLearning):
    """A value head alone, on cached latents of the finished encoder."""

    name: str = "value_head"
    fit: FitConfig
    steps: int = 8  # actions per segment
    longest_pair: int | None = None  # steps, for "pairs"; none: as long as recordings are
    latents: Literal["recorded", "imagined", "both"] = "recorded"  # "both": half of the segments each
    imagination: ImaginedActions = field(default_factory=ImaginedActions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise InputError(f"steps counts the actions of a segment, at least 1; got steps={self.steps}")
        if self.latents != "recorded" and (self.reward != "goal" or self.method in ("monte_carlo", "pairs")):
            raise InputError(
                f"nobody saw what imagined latents earn: latents={self.latents!r} needs reward='goal' and a "
                f"method that bootstraps (td, td_lambda, expectile); got reward={self.reward!r}, "
                f"method={self.method!r}"
            )


@runtime_checkable
class ValueWorkshop(Protocol):
    """A system in training and what it learns from; `recipes.stages.Workshop` is one."""

    @property
    def system(self) -> nn.Module:
        """Has `world_model`, `distance` and `values`, a ModuleDict of heads by stage."""
        ...

    @property
    def episodes(self) -> Episodes:
        """The recording."""
        ...

    @property
    def seeds(self) -> SeedTree:
        """The experiment's seed."""
        ...

    @property
    def trained_episodes(self) -> int:
        """How many recordings, from the first, are trained on."""
        ...

    def latents(self) -> Tensor:
        """Latents of all recorded frames."""
        ...


def build_value_heads(stages: Iterable[object], latent_width: int, action_dim: int) -> nn.ModuleDict:
    """The heads that `stages` train, by `head_key`.

    Draws first weights from the global generator, as all modules do: call it where that is seeded.
    """
    return nn.ModuleDict(
        {
            head_key(stage.name): ReadValue(
                build_values(stage.head, latent_width, stage.members, action_dim), stage.reading
            )
            for stage in heads_of(stages)
        }
    )


def refuse_missing_signals(stages: Iterable[object], episodes: Episodes) -> None:
    """Before anything is trained: the recording has the rewards or successes that stages ask for."""
    for reward in rewards_of(stages):
        Signals.recorded(episodes).only(reward, episodes)


def value_head_stage(
    config: ValueHeadStage, workshop: ValueWorkshop, signals: Signals | None = None
) -> Stage:
    """The stage that `config` describes. `signals`: rewards or successes; None: those of the recording."""
    signals = signals or Signals.recorded(workshop.episodes)
    ensemble = _ensemble(config, workshop.system)
    objective = head_objective(config, ensemble, workshop)
    batches = {
        held_out: _batches(config, workshop, signals, len(ensemble), held_out) for held_out in (False, True)
    }
    held_out = batches[True].sample(workshop.seeds.torch(config.name, "held out"), HELD_OUT)
    apart = PairBatches(recording_of(workshop, held_out=True), config.discount, None, actions=False)
    pairs = apart.sample(workshop.seeds.torch(config.name, "held-out pairs"), HELD_OUT)

    def evaluate() -> dict[str, float]:
        device = next(workshop.system.parameters()).device
        loss, metrics = objective(map_tensors(lambda part: part.to(device), batches[True].load(held_out)))
        found = {f"held_out/{name}": float(part) for name, part in {"loss": loss, **metrics}.items()}
        if config.takes_goals and not config.takes_actions:
            batch = map_tensors(lambda part: part.to(device), apart.load(pairs))
            values = config.reading(ensemble(batch.latents, batch.goals)).cpu()
            # With the steps that the recording took, which are at least the steps to go.
            found["held_out/rank_correlation"] = spearman(values, batch.returns.cpu())
        return found

    def follow(update: int) -> None:
        if isinstance(objective, TDObjective | ActionValueObjective):
            objective.follow()

    return Stage(
        name=config.name,
        objective=objective,
        sample=batches[False].sample,
        load=batches[False].load,
        product=workshop.system,
        evaluate=evaluate,
        after_update=follow,
        frames_per_item=batches[False].frames_per_item,
    )


def _ensemble(config: ValueHeadStage, system: nn.Module) -> ValueEnsemble:
    """The members to train, and only they learn."""
    system.requires_grad_(False)
    if config.trains == "distance":
        ensemble = ValueEnsemble([NegativeDistance(system.get_submodule("distance"))])
    else:
        ensemble = ensemble_of(config, system)
    return ensemble.requires_grad_(True)


def ensemble_of(stage: HeadStage, system: nn.Module) -> ValueEnsemble:
    """The value heads in `system` that are this stage's."""
    heads = cast(nn.ModuleDict, system.get_submodule("values"))
    if head_key(stage.name) not in heads:
        raise InputError(
            f"the system has no value head {head_key(stage.name)!r}, only {sorted(heads)}; build its "
            "`values` with `build_value_heads(experiment.stages, latent_width, action_dim)`"
        )
    return cast(ReadValue, heads[head_key(stage.name)]).ensemble


def head_objective(
    config: ValueLearning, ensemble: ValueEnsemble, workshop: ValueWorkshop
) -> TDObjective | ActionValueObjective | ReturnObjective:
    """What teaches `ensemble` as `config` says."""
    if config.method in ("monte_carlo", "pairs"):
        return ReturnObjective(ensemble, config.bellman().expectile)
    if not config.takes_actions:
        return TDObjective(ensemble, config.bellman())
    # Implicit Q-learning needs V beside Q while it trains and never again: it is no part of the system.
    width = cast(ValueHead, ensemble.members[0]).of_latent.in_features
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(workshop.seeds[config.name, "state values"])
        states = build_values(replace(config.head, action=False), width, members=1)
    return ActionValueObjective(ensemble, states.to(next(ensemble.parameters()).device), config.bellman())


def recording_of(workshop: ValueWorkshop, held_out: bool, steps: int = 1) -> Recording:
    """The recordings that are trained on, or the others; where none of these has `steps`, the same."""
    episodes, trained = workshop.episodes, workshop.trained_episodes
    others = held_out and bool((episodes.lengths[trained:] >= steps).any())
    first, end = (trained, len(episodes)) if others else (0, trained)
    world_model = workshop.system.get_submodule("world_model")
    return Recording(
        episodes=episodes,
        latents=workshop.latents,
        dynamics=cast(LatentDynamics, world_model),
        device=next(workshop.system.parameters()).device,
        first=first,
        end=end,
    )


def _batches(
    config: ValueHeadStage, workshop: ValueWorkshop, signals: Signals, members: int, held_out: bool
) -> SegmentBatches | ReturnBatches | PairBatches:
    recording = recording_of(workshop, held_out, config.steps)
    goals = (config.goals, config.self_goals) if config.takes_goals else None
    if config.method == "pairs":
        return PairBatches(recording, config.discount, config.longest_pair, actions=config.takes_actions)
    signals = signals.only(config.reward, workshop.episodes)
    if config.method == "monte_carlo":
        return ReturnBatches(recording, config.discount, goals, signals, actions=config.takes_actions)
    share = {"recorded": 0.0, "imagined": 1.0, "both": 0.5}[config.latents]
    return SegmentBatches(
        recording, config.steps, goals, signals, members=members, imagination=(share, config.imagination)
    )
