"""What a predictor of fewer bits gives a planner and costs it: time of a replan, error of a step, success.

    python benchmarks/precision.py RUN --out benchmarks/results/<date>_<hardware>_precision.md

    fp32    as trained
    bf16    what `--precision bf16` plans with
    int8    what `--precision int8` plans with: products of 8-bit integers, a scale for each row and output

Success is that of a trained run on its tuning instances, value-guided; of one step, the error is the mean
difference from float32 as a share of what the step changes. Times are of replans on random weights at the
sizes of `planning.py`, in paired rounds; medians with [least-greatest].
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes
from jepaplan.evaluation.references import encode_states
from jepaplan.evaluation.tasks import Instances, load_instances
from jepaplan.recipes.experiment import Precision
from jepaplan.recipes.run import load_run
from jepaplan.recipes.system import build_controller
from jepaplan.types import SeedTree
from measuring import origin, paired, ratios, rotating, save, spread, timed
from planning import SIZES, ours
from setting import Setting

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Found:
    """What one precision gives a run."""

    success: str
    error: float  # of one step, as a share of the change


@torch.no_grad()
def judge(path: Path, precision: Precision, instances: Instances) -> Found:
    """Success of a run with its predictor in another precision."""
    run = load_run(path)
    experiment, model = run.experiment, run.system.world_model
    cost = replace(experiment.cost, precision=precision)
    world = find_world(instances.world)
    distance = run.system.steps_to_go(cost)
    controller = build_controller(replace(experiment, cost=cost), model, distance, world.episode_steps)
    options = EpisodeOptions(episode_steps=world.episode_steps)
    outcomes = run_episodes(world, instances, controller, SeedTree(0).torch("plan"), options)
    rate = outcomes.rate
    words = f"{rate.rate:.3f} [{rate.low:.2f}, {rate.high:.2f}] ({rate.successes} of {rate.trials})"
    latents = encode_states(world, model.encode, instances.starts)
    actions = torch.randn(len(latents), model.action_dim, generator=torch.Generator().manual_seed(0))
    true = model.step(latents, actions)
    held = latents.to(torch.bfloat16 if precision == "bf16" else latents.dtype)
    found = controller.world_model.step(held, actions.to(held.dtype)).float()
    return Found(words, float((found - true).abs().mean() / (true - latents).abs().mean()))


def replans(size_name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a replan by precision and round."""
    works = {precision: ours(Setting(SIZES[size_name], precision)) for precision in PRECISIONS}
    repeats = max(1, round(0.3 / timed(works["fp32"])))
    return paired(works, rounds, order=rotating, repeats=repeats)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        default=Path("runs/paths"),
        help="folder of a finished run of wall_big_paths",
    )
    parser.add_argument("--instances", default="WallBig-tuning", help="what success is measured on")
    parser.add_argument("--episodes", type=int, help="only the first of them")
    parser.add_argument("--rounds", type=int, default=6, help="paired rounds; a finding needs six or more")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    instances = load_instances(options.instances)
    if options.episodes is not None:
        instances = instances.subset(options.episodes)
    columns = " | ".join(f"fp32 / it, {size}" for size in options.sizes)
    lines = [
        "# Weights of fewer bits",
        "",
        *origin(),
        f"- Success on `{options.instances}`; {options.rounds} paired rounds, median [least-greatest]; "
        "`benchmarks/precision.py` says how to read it",
        "",
        f"| precision | success | error of a step | {columns} |",
        f"|---|---|---|{'---|' * len(options.sizes)}",
    ]
    seconds = {size: replans(size, options.rounds) for size in options.sizes}
    for name in PRECISIONS:
        found = judge(options.run, name, instances)
        gains = [spread(ratios(times["fp32"], times[name])) for times in seconds.values()]
        lines.append(f"| {name} | {found.success} | {100 * found.error:.2f} % | {' | '.join(gains)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    save(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
