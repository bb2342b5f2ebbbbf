"""What weights of fewer bits give a planner and cost it: time of a replan, error of a step, success.

    python benchmarks/precision.py RUN --out benchmarks/results/<date>_<hardware>_precision.md

    float32     as trained
    bfloat16    what `--precision bf16` plans with
    int8        weights of the predictor as 8-bit integers, one scale for each tensor, and activations rounded
                to 8 bits as they come, with a scale for each batch: torch's dynamic quantisation

torch has deprecated dynamic quantisation, so int8 is measured here and not an option of the library. Success
is that of a trained run on its tuning instances, value-guided; of one step, the error is the mean difference
from float32 as a share of what the step changes. Times are of replans on random weights at the sizes of
`planning.py`, in paired rounds; medians with [least-greatest].
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from jepaplan.envs.worlds import find_world
from jepaplan.evaluation.episodes import EpisodeOptions, run_episodes
from jepaplan.evaluation.references import encode_states
from jepaplan.evaluation.tasks import Instances, load_instances
from jepaplan.models.predictors import MLPPredictor, to_bfloat16
from jepaplan.recipes.run import load_run
from jepaplan.recipes.system import build_controller
from jepaplan.types import SeedTree
from measuring import origin, paired, ratios, rotating, save, spread, timed
from planning import SIZES, ours
from setting import Setting


class Int8Predictor(nn.Module):
    """A trained predictor whose products are those of 8-bit integers."""

    def __init__(self, trained: MLPPredictor) -> None:
        super().__init__()
        self.config, self.action_dim = trained.config, trained.action_dim
        if trained.config.activation != "relu":
            raise SystemExit(f"only relu is written down here; the run has {trained.config.activation}")
        linears = nn.ModuleList(_plain(part) for part in (trained.first, *trained.hidden, trained.last))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.linears = torch.ao.quantization.quantize_dynamic(linears, {nn.Linear}, dtype=torch.qint8)
        self.norms = copy.deepcopy(trained.norms)

    def forward(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The latent one step later."""
        hidden = torch.cat([latent, action], dim=-1)
        *inner, last = self.linears
        for linear, norm in zip(inner, self.norms, strict=True):
            hidden = F.relu(norm(linear(hidden)), inplace=True)
        held, moved = self.config.held, last(hidden)
        if self.config.residual:
            moved = moved + latent[:, held:]
        return torch.cat([latent[:, :held], moved], dim=1) if held else moved


def _plain(part: nn.Linear) -> nn.Linear:
    """A plain layer, which is what torch knows to quantise."""
    plain = nn.Linear(part.in_features, part.out_features)
    plain.load_state_dict(part.state_dict())
    return plain


Change = Callable[[MLPPredictor], nn.Module]
PRECISIONS: dict[str, Change] = {
    "float32": lambda predictor: predictor,
    "bfloat16": lambda predictor: predictor,  # where it is bound: `CostConfig.precision`, `Setting`'s dtype
    "int8": Int8Predictor,
}


@dataclass(frozen=True)
class Found:
    """What one precision gives a run."""

    success: str
    error: float  # of one step, as a share of the change


@torch.no_grad()
def judge(path: Path, name: str, instances: Instances) -> Found:
    """Success of a run with its predictor in another precision."""
    run = load_run(path)
    experiment, system = run.experiment, run.system
    precision = "bf16" if name == "bfloat16" else "fp32"
    cost = replace(experiment.cost, precision=precision)
    model = system.world_model
    exact = model.predictor
    model.predictor = PRECISIONS[name](exact)
    world = find_world(instances.world)
    distance = system.steps_to_go(cost)
    controller = build_controller(replace(experiment, cost=cost), model, distance, world.episode_steps)
    options = EpisodeOptions(episode_steps=world.episode_steps)
    outcomes = run_episodes(world, instances, controller, SeedTree(0).torch("plan"), options)
    rate = outcomes.rate
    words = f"{rate.rate:.3f} [{rate.low:.2f}, {rate.high:.2f}] ({rate.successes} of {rate.trials})"
    latents = encode_states(world, model.encode, instances.starts)
    actions = torch.randn(len(latents), model.action_dim, generator=torch.Generator().manual_seed(0))
    true = exact(latents, actions)
    if precision == "bf16":
        twin = to_bfloat16(copy.deepcopy(exact))
        rounded = twin(latents.bfloat16(), actions.bfloat16()).float()
    else:
        rounded = model.predictor(latents, actions)
    return Found(words, float((rounded - true).abs().mean() / (true - latents).abs().mean()))


def replans(size_name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a replan by precision and round."""
    size, works = SIZES[size_name], {}
    for name, change in PRECISIONS.items():
        setting = Setting(size, torch.bfloat16 if name == "bfloat16" else torch.float32)
        setting.predictor = change(setting.predictor)
        works[name] = ours(setting)
    repeats = max(1, round(0.3 / timed(works["float32"])))
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
    columns = " | ".join(f"float32 / it, {size}" for size in options.sizes)
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
        gains = [spread(ratios(times["float32"], times[name])) for times in seconds.values()]
        lines.append(f"| {name} | {found.success} | {100 * found.error:.2f} % | {' | '.join(gains)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))
    save(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
