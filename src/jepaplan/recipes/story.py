"""From a study to the report: probes, maps, films and blame, gathered into `ReportData`."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from jepaplan.costs.steps import StepDistance
from jepaplan.data.episodes import Episodes
from jepaplan.evaluation.blame import Blame, LearnedParts, blame_failures
from jepaplan.evaluation.charts import read_curves
from jepaplan.evaluation.episodes import EpisodeOptions
from jepaplan.evaluation.films import Film, film, imagination
from jepaplan.evaluation.pictures import contact_sheet, frame_picture, map_picture
from jepaplan.evaluation.position_probe import ProbeConfig, ProbeError, fit_position_probe, probe_error
from jepaplan.evaluation.probes import (
    distance_map,
    fresh_states,
    fresh_walks,
    greedy_descent,
    rank_correlations,
    rollout_errors,
    value_diagnosis,
)
from jepaplan.evaluation.references import GeodesicDistance, RenderedDistance, encode_states
from jepaplan.evaluation.report import Chart, CostShares, MapRow, MethodResult, ProbeReport, ReportData
from jepaplan.evaluation.surveys import cost_unit
from jepaplan.interfaces import Controller, Distance, Prepared, WorldModel
from jepaplan.planners.proposals import NormBound
from jepaplan.recipes.experiment import PlannerConfig
from jepaplan.recipes.methods import PREDICTION_ONLY, VALUE_GUIDED
from jepaplan.recipes.study import Study
from jepaplan.recipes.system import baseline_distance, build_controller
from jepaplan.training import provenance
from jepaplan.types import SeedTree

# What a planner's budget is made of, whichever it has.
_SIZES = ("samples", "starts", "simulations", "width", "branches", "steps")
_PROBE_FRAMES = 6000  # drawn afresh; a sixth of them judges the probe
_GREEDY_TASKS = 20  # each costs three thousand encoded frames, so only our method's are tried
_FEW_GOALS = 2  # in each layout, where a distance has to find out about every goal

Report = Callable[[str, int, int, str], None]  # what, done, of how many, and a note


def planner_in_words(planner: PlannerConfig) -> str:
    """A planner's budget as a reader wants it."""
    bounds = ""
    if isinstance(planner.bounds, NormBound):
        bounds = f", actions no longer than {planner.bounds.max_norm} normalised units"
    settings = {field.name: getattr(planner, field.name) for field in dataclasses.fields(planner)}
    size = [f"{settings[name]} {name}" for name in _SIZES if name in settings]
    rounds = settings.get("iterations", 1)
    iterations = f"{rounds} iteration{'s' if rounds > 1 else ''} per step"
    return ", ".join([type(planner).__name__, *size, f"horizon {planner.horizon}", iterations]) + bounds


class Storyteller:
    """Makes the parts of a report from a study; each part is a method, so a report can leave some out."""

    def __init__(self, study: Study, episodes: Episodes | None, report: Report, blamed: int = 6) -> None:
        self.study, self.episodes, self.report = study, episodes, report
        # Each costs a hundred thousand encoded frames: the learned cost judges truly imagined pictures.
        self.blamed = blamed
        self.run, self.world = study.run, study.world
        self.model = study.run.system.world_model
        self.seeds = SeedTree(study.run.experiment.seed)
        self._probe: nn.Module | None = None
        self._probe_errors: tuple[ProbeError, ...] = ()

    def tell(self) -> ReportData:
        """The whole report."""
        self._note("what the latents know", 0)
        probes = self.probes()
        self._note("maps", 1)
        maps = self.maps()
        self._note("films", 2)
        films = self.films()
        self._note("failures", 3)
        blamed, blames = self.blames()
        self._note("", 4)
        comparison = self.study.comparison()
        world, experiment = self.world, self.run.experiment
        return ReportData(
            title=f"{experiment.recipe} on {self.study.instances.world}",
            question=(
                "Can a world model learned from recorded trajectories plan from pixels to a goal that the "
                f"straight way does not reach, here in {self.study.instances.world}? Every method below uses "
                "the same planner with the same budget on the same instances."
            ),
            success_rule=(world.reached.__doc__ or "").strip(),
            methods=self.methods(),
            facts=self.facts(),
            frames=self.frames(),
            recordings=self.recordings(),
            comparisons=() if comparison is None else (comparison,),
            charts=self.charts(),
            maps=maps,
            films=films,
            blamed=blamed,
            blames=blames,
            probes=probes,
            costs=self.costs(),
            stages=self.run.seconds,
            provenance=self.provenance(),
        )

    def _note(self, part: str, done: int) -> None:
        self.report("explaining", done, 4, part)

    def methods(self) -> tuple[MethodResult, ...]:
        """The success table."""
        return tuple(
            MethodResult(
                name=method.name,
                kind=method.kind,
                success=(outcomes := self.study.outcomes[method.name]).rate,
                seconds_per_step=float(outcomes.seconds_per_step),
                evaluations_per_step=float(outcomes.evaluations_per_step),
                note=method.note,
            )
            for method in self.study.methods
        )

    def probe(self) -> nn.Module:
        """Positions read from latents by a small network; fitted to frames drawn afresh."""
        if self._probe is None:
            generator = self.seeds.torch("probe")
            states = fresh_states(self.world, _PROBE_FRAMES, generator)
            positions = self.world.positions(states)
            with torch.no_grad():
                latents = torch.cat(
                    [encode_states(self.world, self.model.encode, some) for some in states.split(1000)]
                )
            fitted = _PROBE_FRAMES * 5 // 6
            errors: list[ProbeError] = []
            for kind in ("linear", "network"):
                self._probe = fit_position_probe(
                    latents[:fitted],
                    positions[:fitted],
                    ProbeConfig(kind=kind),
                    generator,
                    self.model.moves_from,
                )
                errors.append(probe_error(self._probe, latents[fitted:], positions[fitted:], kind))
            self._probe_errors = tuple(errors)
        assert self._probe is not None
        return self._probe

    def distances(self) -> dict[str, Distance]:
        """What each learned method minimises; values of actions are no distances of states and left out."""
        baseline = baseline_distance(self.run.experiment)
        if not self.run.experiment.learns_value:
            return {PREDICTION_ONLY: baseline}
        guide = self.run.system.steps_to_go(self.run.experiment.cost)
        if isinstance(guide, StepDistance):
            return {PREDICTION_ONLY: baseline}
        return {VALUE_GUIDED: guide, PREDICTION_ONLY: baseline}

    def rendered(self, distance: Distance) -> RenderedDistance:
        """A learned distance between true states."""
        return RenderedDistance(self.world, self.model.encode, distance)

    def probes(self) -> tuple[ProbeReport, ...]:
        """What the latents know and what the distances rank."""
        probe, found = self.probe(), list[ProbeReport]()
        generator = self.seeds.torch("paths")
        walks = fresh_walks(self.world, 200, 96, generator)
        rollouts = rollout_errors(self.world, self.model, probe, walks, moves_from=self.model.moves_from)
        tasks = self.study.instances.subset(min(_GREEDY_TASKS, len(self.study.instances)))
        for number, (name, distance) in enumerate(self.distances().items()):
            rendered = self.rendered(distance)
            goals = _FEW_GOALS if isinstance(distance, Prepared) else None
            found.append(
                ProbeReport(
                    method=name,
                    positions=self._probe_errors if number == 0 else (),
                    rollouts=rollouts if number == 0 else (),
                    correlations=rank_correlations(
                        self.world, rendered, self.seeds.torch("ranks"), goals=goals
                    ),
                    diagnosis=value_diagnosis(self.world, rendered, self.seeds.torch("diagnosis")),
                    way_found=greedy_descent(self.world, tasks, rendered).way_found if number == 0 else None,
                )
            )
        return tuple(found)

    def maps(self, count: int = 3) -> tuple[MapRow, ...]:
        """Distances to the goal from everywhere, learned and true, for the first instances."""
        made: list[MapRow] = []
        instances, world = self.study.instances, self.world
        for number in range(min(count, len(instances))):
            goal = instances.goals[number]
            true = distance_map(world, GeodesicDistance(world), goal)
            pictures = [map_picture(world, true, goal, ("true geodesic", cost_unit(world)))]
            for name, distance in self.distances().items():
                values = distance_map(world, self.rendered(distance), goal)
                unit = "steps" if name == VALUE_GUIDED else "latent units"
                pictures.append(map_picture(world, values, goal, (f"{name} distance", unit)))
            made.append(MapRow(caption=f"Instance {number}: how far is the goal?", maps=tuple(pictures)))
        return tuple(made)

    def films(self) -> tuple[Film, ...]:
        """The best and the worst episode, with the fan of what was considered."""
        outcomes = self.study.outcomes.get(VALUE_GUIDED)
        if outcomes is None or not outcomes.fans:
            return ()
        imagine = imagination(self.world, self.model, self.probe())
        best, worst = outcomes.best_and_worst()
        words = "where the model believes that the candidates lead, read from its latents by the probe"
        titles = {best: "the best episode", worst: "the worst episode"}
        return tuple(
            film(self.world, outcomes, number, imagine, (title, words)) for number, title in titles.items()
        )

    def blames(self) -> tuple[str, tuple[Blame, ...]]:
        """Which part failed in the episodes that failed."""
        name = VALUE_GUIDED if self.run.experiment.learns_value else PREDICTION_ONLY
        outcomes, distance = self.study.outcomes[name], self.distances().get(name)
        if distance is None or bool(outcomes.success.all()):
            return name, ()

        experiment, prior = self.run.experiment, self.run.system.action_prior(self.run.experiment.control)
        # true states have no members to differ, and the geodesic's unit is the world's
        experiment = dataclasses.replace(experiment, cost=experiment.cost.without_value())

        def controller(model: WorldModel, distance: Distance) -> Controller:
            return build_controller(experiment, model, distance, self.world.episode_steps, prior=prior)

        parts = LearnedParts(
            world_model=self.model,
            distance=distance,
            probe=self.probe(),
            make_controller=controller,
        )
        options = EpisodeOptions(episode_steps=self.world.episode_steps)
        generator = self.seeds.torch("blame")
        return name, blame_failures(self.world, outcomes, parts, generator, options, limit=self.blamed)

    def charts(self) -> tuple[Chart, ...]:
        """Learning curves: the loss of each stage, and its held-out loss where there is one."""
        made: list[Chart] = []
        for stage in self.run.experiment.stages:
            curves = read_curves(self.run.path / "metrics.jsonl", stage.name)
            shown = [
                curve for curve in curves if curve.name in ("loss", "held_out/loss", "held_out/prediction")
            ]
            if shown:
                made.append(Chart(title=f"Stage {stage.name}", curves=tuple(shown)))
        return tuple(made)

    def frames(self) -> tuple[str, ...]:
        """What the encoder sees at the start of the first instance, and its goal."""
        instances = self.study.instances.subset(1)
        return tuple(
            frame_picture(self.world.observe(states).frames[0], words)
            for states, words in ((instances.starts, "what is observed"), (instances.goals, "the goal"))
        )

    def recordings(self, count: int = 12) -> str:
        """Some recorded trajectories."""
        episodes = self.episodes
        if episodes is None or episodes.states is None or episodes.states.shape[1] != self.world.state_width:
            return ""
        length = int(episodes.lengths.min()) + 1
        rows = episodes.starts[:count, None] + torch.arange(length)
        return contact_sheet(self.world, episodes.states[rows])

    def costs(self) -> tuple[CostShares, ...]:
        """What the executed plans were predicted to cost."""
        outcomes = self.study.outcomes.get(VALUE_GUIDED)
        if outcomes is None or not outcomes.fans:
            return ()
        sums: dict[str, list[float]] = {}
        for fans in outcomes.fans.values():
            for fan in fans:
                for name, share in fan.predicted.items():
                    sums.setdefault(name, []).append(share)
        if not sums:
            return ()
        return (CostShares(method=VALUE_GUIDED, terms={name: sum(v) / len(v) for name, v in sums.items()}),)

    def facts(self) -> dict[str, str]:
        """Task, data and budget."""
        experiment, instances = self.run.experiment, self.study.instances
        facts = {
            "Task": f"{instances.world}, {len(instances)} instances ({instances.name}), "
            f"{self.world.episode_steps} steps",
            "Planner": planner_in_words(experiment.planner),
            "Method": experiment.description,
            "Parameters": f"{sum(p.numel() for p in self.run.system.parameters()):,}",
        }
        if self.episodes is not None:
            facts["Recording"] = (
                f"{len(self.episodes):,} trajectories, {len(self.episodes.observations):,} frames; true "
                "states are used by the probes only"
            )
        return facts

    def provenance(self) -> dict[str, str]:
        """Where the numbers come from."""
        machine = provenance.hardware()
        card = self.run.card
        return {
            "command": self.study.command,
            "commit": f"{provenance.commit()} (trained at {card.get('commit', 'unknown')})",
            "data": str(card.get("data", "unknown")),
            "training seed": str(self.run.experiment.seed),
            "hardware": ", ".join(f"{name} {value}" for name, value in machine.items()),
        }
