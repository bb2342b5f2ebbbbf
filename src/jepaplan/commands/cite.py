"""`jepaplan cite RECIPE`: BibTeX of everything that a recipe touches, and of nothing else."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import tyro

from jepaplan.envs.wall import CONFIGS
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import Adam, Optimiser
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.noise import ColouredNoise
from jepaplan.planners.tree import TreeSearch
from jepaplan.recipes.catalogue import find_recipe
from jepaplan.recipes.experiment import (
    Experiment,
    ImaginedValueStage,
    JointStage,
    PlannerConfig,
    PredictionStage,
    StageConfig,
    ValueStage,
)
from jepaplan.recipes.value_learning import ValueLearning
from jepaplan.recipes.value_stages import ValueHeadStage
from jepaplan.recipes.video import VideoExperiment

# Worlds, their recordings and tasks; those that are not here are our own.
_ROOMS = ("destrade2026value", "sobal2025learning")
_MAZES = (*_ROOMS, "fu2020d4rl")
WORLDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(CONFIGS, _ROOMS),
    **dict.fromkeys(("Maze", "MazeHard"), _MAZES),
}

# What a part of a recipe takes from where; the sources are those that the modules themselves name.
SOURCES: Mapping[str, tuple[str, ...]] = {
    # encoders and distances
    "KeypointConfig": ("finn2016deep",),
    "SceneMapConfig": ("finn2016deep",),
    "CompactConfig": (),
    "ImpalaConfig": ("espeholt2018impala",),
    "euclidean": ("destrade2026value",),
    "iqe": ("wang2022improved",),
    "mrn": ("liu2023metric",),
    "euclidean_head": ("destrade2026value",),
    "quasimetric_head": ("wang2023optimal",),
    "imagined_ways": ("eysenbach2019search",),
    # video encoders and what they learn from
    "VideoTransformerConfig": ("assran2025vjepa2", "dosovitskiy2021image", "su2021roformer"),
    "MaskedPredictorConfig": ("assran2025vjepa2",),
    "MaskConfig": ("bardes2024revisiting",),
    # stages
    "PredictionStage": ("sobal2025learning",),
    "MovingPointStage": ("lamb2022guaranteed",),
    "ValueStage": ("destrade2026value",),
    "JointStage": ("destrade2026value",),
    "PredictorStage": ("destrade2026value",),
    "ImaginedValueStage": ("eysenbach2019search", "gonzalez1985clustering"),
    "ValueHeadStage": (),
    "ActionPriorStage": ("ghosh2021learning", "andrychowicz2017hindsight"),
    # what stages that read frames weigh
    "vcreg": ("bardes2022vicreg",),
    "pldm": ("sobal2025learning",),
    "value": ("kostrikov2022offline",),
    "regressive": ("destrade2026value",),
    "info_nce": ("oord2018representation",),
    "margin": ("hadsell2006dimensionality",),
    "target_decay": ("assran2023self", "bardes2024revisiting"),
    "scene_contrast": ("oord2018representation",),
    # how value heads learn, from what, and how they are read
    "td": ("sutton2018reinforcement",),
    "td_lambda": ("sutton2018reinforcement", "hafner2020dream"),
    "expectile": ("kostrikov2022offline",),
    "action-free expectile": ("kostrikov2022offline", "park2023hiql"),
    "monte_carlo": ("sutton2018reinforcement",),
    "pairs": ("li2026beyond",),
    "co_trained": ("schrittwieser2020mastering", "hansen2024tdmpc2"),
    "goals": ("andrychowicz2017hindsight", "park2023hiql", "park2025ogbench"),
    "minimum_of_two": ("chen2021randomized",),
    "read by minimum": ("fujimoto2018addressing",),
    "n-step cost": ("hansen2024tdmpc2",),
    # planners
    "MPPI": ("williams2017information",),
    "MPPI with elites": ("hansen2024tdmpc2",),
    "CEM": ("rubinstein1999cross", "deboer2005tutorial"),
    "ICEM": ("pinneri2020sample", "timmer1995generating"),
    "RandomShooting": ("howell2022predictive",),
    "GradientDescent": ("zhou2024dino",),
    "GradientCEM": ("bharadhwaj2020model", "rubinstein1999cross"),
    "GRASP": ("psenka2026parallel",),
    "collocation by multipliers": ("psenka2026parallel", "hestenes1969multiplier"),
    "BeamSearch": ("lowerre1976harpy",),
    "TreeSearch": ("hubert2021learning", "couetoux2011continuous", "schrittwieser2020mastering"),
    "parallel leaves": ("chaslot2008parallel",),
    "PUCT": ("schrittwieser2020mastering",),
    "GumbelHalving": ("danihelka2022policy",),
    "ColouredNoise": ("timmer1995generating", "pinneri2020sample"),
    # optimisers of training and of planning
    "adam": ("kingma2015adam",),
    "adamw": ("loshchilov2019decoupled",),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which recipe."""

    recipe: tyro.conf.Positional[str]
    """Name of a recipe, as `jepaplan train --help` lists them."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a list of objects with key and bibtex on standard output, and nothing else there."""


def main(arguments: list[str]) -> int:
    """Print the entries."""
    options = tyro.cli(Options, prog="jepaplan cite", description=__doc__, args=arguments)
    known = entries()
    cited = {key: known[key] for key in keys_of(find_recipe(options.recipe))}
    if options.json:
        rows = [{"key": key, "bibtex": text} for key, text in cited.items()]
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        sys.stdout.write("\n\n".join(cited.values()) + "\n")
    return 0


def keys_of(experiment: Experiment | VideoExperiment) -> list[str]:
    """Keys of what `experiment` touches, each once, in the order in which it does."""
    if isinstance(experiment, VideoExperiment):
        records = (experiment.encoder, experiment.predictor, *experiment.masks)
        names = [type(record).__name__ for record in records]
        names += [phase.fit.optimiser for phase in experiment.phases]
        return list(dict.fromkeys(key for name in names for key in SOURCES[name]))
    distance = experiment.distance
    parts = [type(experiment.encoder).__name__]
    parts += [distance.head.quasimetric] if distance.kind == "quasimetric_head" else []
    parts += [distance.kind]
    for stage in experiment.stages:
        parts += _parts_of(stage)
    parts += ["read by minimum"] if experiment.cost.reading == "minimum" else []
    parts += ["n-step cost"] if experiment.cost.over == "n_step" else []
    parts += _parts_of_planner(experiment.planner)
    worlds = WORLDS.get(experiment.recording.world, ())
    return list(dict.fromkeys([*worlds, *(key for part in parts for key in SOURCES[part])]))


def entries() -> dict[str, str]:
    """The packaged bibliography, by key."""
    text = (resources.files("jepaplan") / "references.bib").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for entry in re.split(r"\n\s*\n", text.strip()):
        opening = re.match(r"@\w+\{([^,\s]+),", entry)
        if opening is None:
            raise ValueError(f"references.bib holds an entry without a key: {entry[:60]!r}")
        found[opening[1]] = entry
    return found


def _parts_of(stage: StageConfig) -> list[str]:
    parts = [type(stage).__name__]
    match stage:
        case PredictionStage():
            parts += _parts_of_objective(stage)
            parts += ["scene_contrast"] if stage.scene_contrast > 0 else []
        case ValueStage() | JointStage():
            parts += _parts_of_objective(stage)
        case ValueHeadStage():
            parts += _parts_of_value(stage)
        case ImaginedValueStage() if stage.trains == "head":
            parts += _parts_of_reading(stage.reading.by, stage.members)
        case _:
            pass
    if isinstance(stage, PredictionStage | JointStage) and stage.co_trained is not None:
        parts += ["co_trained", *_parts_of_value(stage.co_trained)]
    return [*parts, stage.fit.optimiser]


def _parts_of_objective(stage: PredictionStage | ValueStage | JointStage) -> list[str]:
    """What the weights of a stage that reads frames switch on."""
    weights, regulariser = stage.weights, stage.regulariser
    spread = (weights.variance, weights.covariance, weights.time_variance, weights.time_covariance)
    used = {
        "vcreg": max(spread) > 0,
        "pldm": max(weights.time_variance, weights.time_similarity, weights.inverse_dynamics) > 0,
        "value": weights.value > 0,
        "regressive": weights.regressive > 0,
        regulariser.contrast: weights.contrastive > 0,
        "target_decay": weights.prediction > 0 and regulariser.target_decay is not None,
    }
    return [part for part, is_used in used.items() if is_used]


def _parts_of_value(stage: ValueLearning) -> list[str]:
    """How a value head learns and how planning reads it."""
    by_state = stage.method == "expectile" and not stage.takes_actions
    parts: list[str] = ["action-free expectile" if by_state else stage.method]
    if stage.takes_goals and stage.method != "pairs":  # pairs are goals already
        parts.append("goals")
    bootstraps = stage.method in ("td", "td_lambda", "expectile")
    if bootstraps and stage.bellman().bootstrap == "minimum_of_two":
        parts.append("minimum_of_two")
    return parts + _parts_of_reading(stage.reading.by, stage.trained_members)


def _parts_of_reading(by: str, members: int) -> list[str]:
    return ["read by minimum"] if by == "minimum" and members > 1 else []


def _parts_of_planner(planner: PlannerConfig) -> list[str]:
    """The planner and what its options add."""
    parts = [type(planner).__name__]
    match planner:
        case MPPI(elites=elites, std_min=least):
            parts += [] if elites is None and least is None else ["MPPI with elites"]
        case Collocation():
            parts = ["GRASP" if planner.stop_gradient else "collocation by multipliers"]
            parts += _parts_of_optimiser(planner.optimiser) + _parts_of_optimiser(planner.latent_optimiser)
        case GradientDescent() | GradientCEM():
            parts += _parts_of_optimiser(planner.descent.optimiser)
        case TreeSearch():
            parts += ["parallel leaves"] if planner.leaves > 1 else []
            parts.append(type(planner.rule).__name__)
        case _:
            pass
    if isinstance(getattr(planner, "proposal", None), ColouredNoise):
        parts.append("ColouredNoise")
    return parts


def _parts_of_optimiser(optimiser: Optimiser) -> list[str]:
    if not isinstance(optimiser, Adam):
        return []
    return ["adam", "adamw"] if optimiser.weight_decay > 0 else ["adam"]
