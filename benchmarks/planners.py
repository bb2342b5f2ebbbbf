"""What a replan costs beyond the model: every planner against a bare loop of the predictor, and its peers.

    python benchmarks/planners.py --rounds 6 --out benchmarks/results/<date>_<hardware>_planners.md

The reference is exact: a planner is run once while every call of the predictor is written down (how many
rows, with or without gradient, whether it goes on from the call before). The bare loop makes the same calls
and nothing else: no sampling, no cost, no choice. Overhead is the planner's time above its own bare loop; it
holds the cost terms, too. A call with gradient is a forward and, at the end of its path, a backward pass to
latents and actions.

All planners get about the same number of evaluations, counted as `Search.evaluations` does: a gradient is
three. Trees get a sixteenth of them below a million, or they would take most of the time. Peers get
the same samples, steps and iterations, and cost the same terms; "large" leaves them out. For mctx an
evaluation is a simulation; it imagines one leaf of each problem at a time where we imagine LEAVES, up to
SIBLINGS of them below one node (docs/lab_notes.md has what that does to plans), and
at a million it is left out: two thousand simulations, one after the other, take minutes.

One by one: EACH problems are planned alone, one after the other, and the time is scaled to all of them. In
paired rounds, as `measuring` says; medians with [least-greatest] of the rounds.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bare_loop import Listening, bare_loop
from jepaplan.interfaces import Planner
from jepaplan.planners.beam import BeamSearch
from jepaplan.planners.cem import CEM
from jepaplan.planners.collocation import Collocation
from jepaplan.planners.descent import Adam, Descent
from jepaplan.planners.gradient import GradientDescent
from jepaplan.planners.hybrid import GradientCEM
from jepaplan.planners.icem import ICEM
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound
from jepaplan.planners.shooting import RandomShooting
from jepaplan.planners.tree import TreeSearch
from jepaplan.planners.tree_rules import GumbelHalving
from measuring import Work, origin, paired, ratios, rotating, save, spread, timed
from peers import (
    Missing,
    Peer,
    mctx_tree,
    pytorch_mppi,
    swm,
    swm_gradient,
    swm_sampling,
    torchrl_cem,
    torchrl_mppi,
)
from setting import ACTION_DIM, MAX_ACTION, PredictorWorld, Setting, Size

HORIZON = 16
LEAVES = 32  # of tree search, imagined at once per problem
SIBLINGS = 8  # of them at the end of one way down
CHUNK, BANK = 4, 64  # actions of a recorded chunk, and how many chunks there are to draw from
EACH = 2  # problems of "one by one"
_BOUNDS = NormBound(max_norm=MAX_ACTION)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many problems, how many evaluations for each, and how large the predictor."""

    problems: int
    evaluations: int
    latent: int
    hidden: int
    layers: int
    peers: bool = True
    tree_share: int = 16  # trees get so many times fewer evaluations

    @property
    def words(self) -> str:
        """For a heading."""
        shape = f"{self.latent} -> {self.layers} x {self.hidden} -> {self.latent}"
        return (
            f"{self.problems:,} problem(s) x about {self.evaluations:,} evaluations, horizon {HORIZON}, "
            f"predictor {shape}"
        )


# the predictors of `planning.py`: the paper's, and the compact one
SCALES = {
    "one": Scale(problems=1, evaluations=2048, latent=512, hidden=512, layers=4),
    "batch": Scale(problems=64, evaluations=2048, latent=64, hidden=256, layers=3),
    "million": Scale(problems=512, evaluations=2048, latent=64, hidden=256, layers=3, tree_share=1),
    # takes 13 seconds a replan: on request only
    "large": Scale(
        problems=64, evaluations=16384, latent=512, hidden=512, layers=4, peers=False, tree_share=1
    ),
}


def planners(evaluations: int, tree_share: int = 16, siblings: int = SIBLINGS) -> dict[str, Planner]:
    """Every planner, with about so many evaluations per problem."""
    paths = evaluations // HORIZON
    cem = paths // 4
    return {
        "random shooting": RandomShooting(samples=paths, horizon=HORIZON, bounds=_BOUNDS),
        "MPPI": MPPI(samples=paths, horizon=HORIZON, bounds=_BOUNDS),
        "CEM": CEM(samples=cem, elites=max(2, cem // 8), iterations=4, horizon=HORIZON, bounds=_BOUNDS),
        "iCEM": ICEM(
            samples=max(4, round(paths / 2.95)),  # 1 + 0.8 + 0.64 + 0.51 of them in four iterations
            elites=max(2, paths // 24),
            iterations=4,
            horizon=HORIZON,
            bounds=_BOUNDS,
        ),
        "gradient descent": GradientDescent(
            starts=max(1, paths // 25), horizon=HORIZON, descent=Descent(steps=8), bounds=_BOUNDS
        ),
        "CEM with gradients": GradientCEM(
            samples=max(16, round(paths / 5.6)),
            elites=max(2, round(paths / 45)),
            iterations=3,
            horizon=HORIZON,
            descent=Descent(steps=2, optimiser=Adam(learning_rate=0.05)),
            bounds=_BOUNDS,
        ),
        "collocation": Collocation(
            starts=max(1, paths // 39),
            horizon=HORIZON,
            steps=12,
            synchronise_every=6,
            shooting=None,
            bounds=_BOUNDS,
        ),
        "beam search": BeamSearch(width=max(1, paths // 16), branches=16, horizon=HORIZON, bounds=_BOUNDS),
        "tree search, PUCT": TreeSearch(
            simulations=evaluations // tree_share,
            leaves=LEAVES,
            siblings=siblings,
            horizon=HORIZON,
            bounds=_BOUNDS,
        ),
        "tree search, Gumbel": TreeSearch(
            simulations=evaluations // tree_share,
            leaves=LEAVES,
            siblings=siblings,
            horizon=HORIZON,
            rule=GumbelHalving(),
            bounds=_BOUNDS,
        ),
        "tree search, PUCT, recorded chunks": TreeSearch(
            simulations=max(1, evaluations // tree_share // CHUNK),
            leaves=LEAVES,
            siblings=siblings,
            horizon=HORIZON,
            bounds=_BOUNDS,
            bank=torch.randn(BANK, CHUNK, ACTION_DIM, generator=torch.Generator().manual_seed(0)),
        ),
    }


PEERS: dict[str, dict[str, Peer]] = {
    "random shooting": {"stable-worldmodel predictive sampling": swm("PredictiveSamplingSolver")},
    "MPPI": {
        "pytorch-mppi": pytorch_mppi,
        "torchrl MPPI": torchrl_mppi,
        "stable-worldmodel MPPI": swm_sampling("MPPISolver"),
    },
    "CEM": {"torchrl CEM": torchrl_cem, "stable-worldmodel CEM": swm_sampling("CEMSolver")},
    "iCEM": {"stable-worldmodel iCEM": swm_sampling("ICEMSolver")},
    "gradient descent": {"stable-worldmodel gradient": swm_gradient},
    "tree search, PUCT": {"mctx MuZero": mctx_tree("muzero_policy")},
    "tree search, Gumbel": {"mctx Gumbel MuZero": mctx_tree("gumbel_muzero_policy")},
}


def scaled(scale: Scale, planner: Planner) -> Size:
    """The planner's samples and iterations for peers."""
    descent = getattr(planner, "descent", None)
    tried = (getattr(planner, name, None) for name in ("samples", "starts", "simulations", "width"))
    return Size(
        problems=scale.problems,
        samples=next(number for number in tried if number is not None),
        horizon=HORIZON,
        latent=scale.latent,
        hidden=scale.hidden,
        layers=scale.layers,
        iterations=descent.steps if descent is not None else getattr(planner, "iterations", 1),
        elites=getattr(planner, "elites", None),
    )


def replan(setting: Setting, planner: Planner, world: PredictorWorld | None = None) -> Work:
    """All problems in one batch."""
    problems = setting.size.problems
    generators = [torch.Generator().manual_seed(problem) for problem in range(problems)]

    def run() -> object:
        return planner.plan(setting.cost(world=world), planner.initial(problems, ACTION_DIM), generators)

    return run


def one_by_one(setting: Setting, planner: Planner, count: int) -> Work:
    """The first `count` problems, each alone."""
    generators = [[torch.Generator().manual_seed(problem)] for problem in range(count)]

    def run() -> None:
        for problem, generator in enumerate(generators):
            cost = setting.cost(slice(problem, problem + 1))
            planner.plan(cost, planner.initial(1, ACTION_DIM), generator)

    return run


def peers_of(scale: Scale, name: str, options: argparse.Namespace) -> dict[str, Peer]:
    """Who else has this planner."""
    too_long = name.startswith("tree search") and scale.tree_share == 1
    return PEERS.get(name, {}) if scale.peers and not too_long and not options.no_peers else {}


def contestants(
    setting: Setting, planner: Planner, peers: dict[str, Peer]
) -> tuple[dict[str, Work], dict[str, str]]:
    """The peers that run, and why the others do not."""
    works: dict[str, Work] = {"ours": replan(setting, planner)}
    missing: dict[str, str] = {}
    for peer, build in peers.items():
        try:
            works[peer] = build(setting)
            works[peer]()
        except Missing as error:
            missing[peer] = str(error)
        except Exception as error:  # a peer that fails is a row that says so, not the end of the others
            works.pop(peer, None)
            missing[peer] = f"failed ({type(error).__name__}: {str(error)[:100]})"
    return works, missing


def measure(scale: Scale, name: str, options: argparse.Namespace) -> list[str]:
    """The rows of one planner and its peers."""
    planner = planners(scale.evaluations, scale.tree_share, options.siblings)[name]
    setting = Setting(scaled(scale, planner))
    listening = Listening(setting)
    found = replan(setting, planner, listening)()
    works, missing = contestants(setting, planner, peers_of(scale, name, options))
    works["bare"] = bare_loop(setting, listening.calls)
    alone = scale.problems > 1 and not options.no_alone
    if alone:
        works["alone"] = one_by_one(setting, planner, EACH)
    # what takes a blink is repeated until a clock can tell it from noise
    repeats = {each: max(1, round(options.blink / timed(work))) for each, work in works.items()}
    seconds = paired(works, options.rounds, order=rotating, warm_up=False, repeats=repeats)
    overhead = [100 * (ratio - 1) for ratio in ratios(seconds["ours"], seconds["bare"])]
    each = [scale.problems / EACH * one for one in seconds.get("alone", [])]
    cells = [
        name,
        f"{scale.problems * found.evaluations:,}",
        spread(seconds["bare"], 3),
        spread(seconds["ours"], 3),
        spread(overhead, 0),
        spread(ratios(each, seconds["ours"]), 1) if alone else "",
    ]
    lines = [f"| {' | '.join(cells)} | |"]
    for peer in peers_of(scale, name, options):
        if peer in missing:
            lines.append(f"| &nbsp; {peer} | | {missing[peer]} | | | | |")
            continue
        behind = spread(ratios(seconds[peer], seconds["ours"]))
        lines.append(f"| &nbsp; {peer} | | | {spread(seconds[peer], 3)} | | | {behind} |")
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="paired rounds; a finding needs six or more")
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=["one", "batch", "million"])
    parser.add_argument("--evaluations", type=int, help="per problem, in place of each scale's own")
    parser.add_argument("--planners", nargs="+", choices=list(planners(2048)), default=list(planners(2048)))
    parser.add_argument("--no-peers", action="store_true", help="only our planners and their bare loops")
    parser.add_argument("--no-alone", action="store_true", help="leave out one problem at a time")
    parser.add_argument(
        "--blink", type=float, default=0.1, help="seconds that one measurement takes, at least"
    )
    parser.add_argument(
        "--siblings", type=int, default=SIBLINGS, help="leaves at the end of a tree's way down, at most"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, and of tree search with them")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    lines = [
        "# What a replan costs beyond the model",
        "",
        *origin(),
        f"- {options.rounds} paired rounds, float32; median [least-greatest]; `benchmarks/planners.py` says "
        "how to read it",
    ]
    print("\n".join(lines), flush=True)
    for name in options.scales:
        scale = SCALES[name]
        if options.evaluations is not None:
            scale = replace(scale, evaluations=options.evaluations)
        table = [
            "",
            f"## {name}: {scale.words}",
            "",
            "| planner | evaluations | bare loop, s | planner, s | overhead, % | one by one / in one batch | "
            "peer / ours |",
            "|---|---|---|---|---|---|---|",
        ]
        print("\n".join(table), flush=True)
        for planner in options.planners:
            rows = measure(scale, planner, options)
            print("\n".join(rows), flush=True)
            table += rows
        lines += table
    save(options.out, "\n".join(lines))
    print("done", file=sys.stderr)


if __name__ == "__main__":
    main()
