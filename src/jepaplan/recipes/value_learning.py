"""How a value head learns, whichever latents it reads: what a stage of its own and a co-trained head share.

What is learned is named by `method`, what from by `reward`. Defaults: the goals of OGBench (Park et al.,
arXiv:2410.20092): 20 % the state itself, 50 % later in its recording, 30 % anywhere; a value without actions
by expectiles, with the minimum of two.

    method         objective              targets
    td             TDObjective            one step, then the value of a moving average
    td_lambda      TDObjective            all steps of a segment, mixed by `trace_decay`
    expectile      TDObjective            one step, the best recorded; with head.action ActionValueObjective
    monte_carlo    ReturnObjective        what the recording earned in the end
    pairs          ReturnObjective        steps between two frames of a recording, all equally likely

    record            latents                               methods
    ValueHeadStage    of the finished encoder, cached       all
    CoTrainedHead     of the encoder as it learns           those that bootstrap: td, td_lambda, expectile
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jepaplan.data.goals import GoalMixture
from jepaplan.models.value_heads import Reading, ValueHeadConfig
from jepaplan.objectives.td import TDConfig
from jepaplan.types import InputError


@dataclass(frozen=True, kw_only=True)
class ValueLearning:
    """What both records have; never used by itself."""

    name: str
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

    def __post_init__(self) -> None:
        self.bellman()  # refuses discounts, expectiles and decays that are none
        self._check_method()
        if self.members < 1 or not 0 <= self.self_goals <= 1:
            raise InputError(
                "members are at least 1 and self_goals a share in [0, 1]; got "
                f"members={self.members}, self_goals={self.self_goals}"
            )
        if (self.reward == "goal") != self.takes_goals:
            raise InputError(
                "reward='goal' is for values with a goal, the others for values without: got "
                f"reward={self.reward!r}, head.goal={self.head.goal}, trains={self.trains!r}. "
                f"Write trains='head' and head.goal={self.reward == 'goal'}"
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


@dataclass(frozen=True, kw_only=True)
class CoTrainedHead(ValueLearning):
    """A value head that learns together with the encoder and the predictor of its stage, on its windows.

    The moving average is of the head: targets are its values of what the encoder makes of the frames now.
    """

    name: str = "co_trained"  # what `cost.value` calls it
    weight: float = 1.0  # of its loss, in squared steps, beside what the stage weighs
    shapes_encoder: bool = True  # whether its gradient reaches the encoder

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < float("inf"):
            raise InputError(
                f"a co-trained head learns by its weight, finite and positive; got weight={self.weight}. To "
                "train none leave co_trained out; to keep it from the encoder write shapes_encoder=False"
            )
        if self.trains == "distance":
            raise InputError(
                "a co-trained head is a network of its own; the distance learns beside a predictor by "
                "weights.value of a JointStage. Write trains='head'"
            )
        if self.method in ("monte_carlo", "pairs"):
            raise InputError(
                f"method={self.method!r} learns from whole recordings, and a co-trained head sees windows; "
                "write 'expectile', 'td', or 'td_lambda' (with trace_decay=1 all that a window saw, then the "
                "value), or train a ValueHeadStage on the finished encoder"
            )


@runtime_checkable
class HeadStage(Protocol):
    """What may train value heads of its own: `ValueHeadStage`, `ImaginedValueStage`, `CoTrainedHead`."""

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
class CoTrains(Protocol):
    """A stage that may train a head beside encoder and predictor: `PredictionStage`, `JointStage`."""

    @property
    def co_trained(self) -> CoTrainedHead | None:
        """That head."""
        ...


def heads_of(stages: Iterable[object]) -> list[HeadStage]:
    """What among `stages` trains value heads, co-trained ones included, in their order."""
    return [one for one in _learning(stages) if isinstance(one, HeadStage) and one.trains == "head"]


def rewards_of(stages: Iterable[object]) -> list[str]:
    """What values among `stages` learn from: `ValueLearning.reward` of each."""
    return [one.reward for one in _learning(stages) if isinstance(one, ValueLearning)]


def head_key(stage: str) -> str:
    """The name of a head, by the name of what trains it; modules allow no dots."""
    return stage.replace(".", "_")


def _learning(stages: Iterable[object]) -> Iterator[object]:
    for stage in stages:
        yield stage.co_trained if isinstance(stage, CoTrains) else stage
