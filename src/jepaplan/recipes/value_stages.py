"""A stage that trains a value head on latents that are encoded once, recorded or imagined.

What is learned is named by `method`, what from by `latents` and `reward`. Defaults: the goals of OGBench
(Park et al., arXiv:2410.20092): 20 % the state itself, 50 % later in its recording, 30 % anywhere; a value
without actions by expectiles, with the minimum of two.

    method         objective              targets
    td             TDObjective            one step, then the value of a moving average
    td_lambda      TDObjective            `steps` steps, mixed by `trace_decay`
    expectile      TDObjective            one step, the best recorded; with head.action ActionValueObjective
    monte_carlo    ReturnObjective        what the recording earned in the end
    pairs          ReturnObjective        steps between two frames of a recording, all equally likely

`value_head_stage(config, workshop)` makes the `Stage`; `build_value_heads` the modules it trains, which are
part of the system and so of the run's weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from jepaplan.data.episodes import Episodes
from jepaplan.data.goals import GoalMixture
from jepaplan.evaluation.statistics import spearman
from jepaplan.models.value_heads import (
    NegativeDistance,
    Reading,
    ReadValue,
    ValueEnsemble,
    ValueHead,
    ValueHeadConfig,
    build_values,
)
from jepaplan.objectives.segments import LatentDynamics
from jepaplan.objectives.td import ActionValueObjective, ReturnObjective, TDConfig, TDObjective
from jepaplan.recipes.value_batches import (
    ImaginedActions,
    PairBatches,
    Recording,
    ReturnBatches,
    SegmentBatches,
    Signals,
)
from jepaplan.training.distributed import map_tensors
from jepaplan.training.stage import FitConfig, Stage
from jepaplan.types import InputError, SeedTree

HELD_OUT = 256  # items of a held-out batch


@dataclass(frozen=True, kw_only=True)
class ValueHeadStage:
    """A value head alone, on cached latents of the finished encoder."""

    name: str = "value_head"
    fit: FitConfig
    trains: Literal["head", "distance"] = "head"  # "distance": the system's own, as minus the value
    head: ValueHeadConfig = field(default_factory=ValueHeadConfig)
    members: int = 2  # heads with different first weights
    reading: Reading = field(default_factory=Reading)  # how planning reads them
    method: Literal["td", "td_lambda", "expectile", "monte_carlo", "pairs"] = "expectile"
    discount: float = 0.98  # per model step
    trace_decay: float = 0.95  # lambda, for "td_lambda"
    expectile: float = 0.7  # for "expectile" and "pairs"; 0.5: the mean of what was recorded
    bootstrap: Literal["own", "mean", "minimum_of_two"] = "minimum_of_two"
    target: Literal["moving_average", "stop_gradient"] = "moving_average"
    target_decay: float = 0.95  # of the moving average, per update; long trainings take 0.995
    reward: Literal["goal", "success", "recorded"] = "goal"  # -1 until there; until success; a column
    goals: GoalMixture = field(
        default_factory=lambda: GoalMixture(geometric=0.5, batch=0.3, geometric_mean=50.0)
    )
    self_goals: float = 0.2  # share of segments that begin at their goal; the others are drawn from `goals`
    steps: int = 8  # actions per segment
    longest_pair: int | None = None  # steps, for "pairs"; none: as long as recordings are
    latents: Literal["recorded", "imagined", "both"] = "recorded"  # "both": half of the segments each
    imagination: ImaginedActions = field(default_factory=ImaginedActions)

    def __post_init__(self) -> None:
        self.bellman()  # refuses discounts, expectiles and decays that are none
        self._check_method()
        if self.members < 1 or self.steps < 1 or not 0 <= self.self_goals <= 1:
            raise InputError(
                "members and steps are at least 1 and self_goals a share in [0, 1]; got "
                f"members={self.members}, steps={self.steps}, self_goals={self.self_goals}"
            )
        if (self.reward == "goal") != self.takes_goals:
            raise InputError(
                "reward='goal' is for values with a goal, the others for values without: got "
                f"reward={self.reward!r}, head.goal={self.head.goal}, trains={self.trains!r}. "
                f"Write trains='head' and head.goal={self.reward == 'goal'}"
            )
        if self.latents != "recorded" and (self.reward != "goal" or self.method in ("monte_carlo", "pairs")):
            raise InputError(
                f"nobody saw what imagined latents earn: latents={self.latents!r} needs reward='goal' and a "
                f"method that bootstraps (td, td_lambda, expectile); got reward={self.reward!r}, "
                f"method={self.method!r}"
            )

    def _check_method(self) -> None:
        if self.method == "pairs" and self.reward != "goal":
            raise InputError(f"method='pairs' counts steps to a goal; got reward={self.reward!r}")
        if self.method == "monte_carlo" and self.reward == "goal" and self.goals.batch > 0:
            raise InputError(
                "monte_carlo needs goals that the recording reached: write goals.batch=0; got "
                f"goals.batch={self.goals.batch}"
            )
        if self.takes_actions and self.method in ("td", "td_lambda"):
            raise InputError(
                f"method={self.method!r} learns values of states; with head.action=True write "
                "method='expectile' (implicit Q-learning), 'monte_carlo' or 'pairs'"
            )

    @property
    def takes_goals(self) -> bool:
        """Whether the value depends on a goal."""
        return self.trains == "distance" or self.head.goal

    @property
    def takes_actions(self) -> bool:
        """Whether the value depends on an action."""
        return self.trains == "head" and self.head.action

    @property
    def trained_members(self) -> int:
        """Members that are trained: a system has one distance."""
        return 1 if self.trains == "distance" else self.members

    def bellman(self) -> TDConfig:
        """What `method` makes of the numbers."""
        return TDConfig(
            discount=self.discount,
            trace_decay=self.trace_decay if self.method == "td_lambda" else 0.0,
            expectile=self.expectile if self.method in ("expectile", "pairs") else 0.5,
            bootstrap="own" if self.trained_members == 1 else self.bootstrap,
            target=self.target,
            target_decay=self.target_decay,
        )


@runtime_checkable
class HeadStage(Protocol):
    """A stage that may train value heads of its own: `ValueHeadStage`, `ImaginedValueStage`."""

    @property
    def name(self) -> str:
        """Names the head, too."""
        ...

    @property
    def trains(self) -> Literal["head", "distance"]:
        """Whether it does."""
        ...

    @property
    def head(self) -> ValueHeadConfig:
        """What the values depend on."""
        ...

    @property
    def members(self) -> int:
        """Heads with different first weights."""
        ...

    @property
    def reading(self) -> Reading:
        """How planning reads them."""
        ...


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
    """The heads that the `HeadStage`s among `stages` train, by `head_key`.

    Draws first weights from the global generator, as all modules do: call it where that is seeded.
    """
    return nn.ModuleDict(
        {
            head_key(stage.name): ReadValue(
                build_values(stage.head, latent_width, stage.members, action_dim), stage.reading
            )
            for stage in stages
            if isinstance(stage, HeadStage) and stage.trains == "head"
        }
    )


def head_key(stage: str) -> str:
    """The name of a stage's head, by the stage's name; modules allow no dots."""
    return stage.replace(".", "_")


def refuse_missing_signals(stages: Iterable[object], episodes: Episodes) -> None:
    """Before anything is trained: the recording has the rewards or successes that stages ask for."""
    for stage in stages:
        if isinstance(stage, ValueHeadStage):
            Signals.recorded(episodes).only(stage.reward, episodes)


def value_head_stage(
    config: ValueHeadStage, workshop: ValueWorkshop, signals: Signals | None = None
) -> Stage:
    """The stage that `config` describes. `signals`: rewards or successes; None: those of the recording."""
    signals = signals or Signals.recorded(workshop.episodes)
    ensemble = _ensemble(config, workshop.system)
    objective = _objective(config, ensemble, workshop)
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
    """The stage's own value heads in `system`."""
    heads = cast(nn.ModuleDict, system.get_submodule("values"))
    if head_key(stage.name) not in heads:
        raise InputError(
            f"the system has no value head {head_key(stage.name)!r}, only {sorted(heads)}; build its "
            "`values` with `build_value_heads(experiment.stages, latent_width, action_dim)`"
        )
    return cast(ReadValue, heads[head_key(stage.name)]).ensemble


def _objective(
    config: ValueHeadStage, ensemble: ValueEnsemble, workshop: ValueWorkshop
) -> TDObjective | ActionValueObjective | ReturnObjective:
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
