"""How fast one MPPI replan is, against the predictor's bare matrix products and against other planners.

    PYTHONPATH=src python benchmarks/planning.py --rounds 6 --out benchmarks/results/<date>_<hardware>.md

Everything runs in one process, in paired rounds: each round times every contestant once, in rotating order,
and its own reference. Ratios are formed within a round; the table shows their median and range. Machines
drift, so a ratio from two processes would be no finding.

The reference is the loop of the predictor's matrix products alone, with buffers allocated beforehand: no
bias, no norm, no activation, no cost, no sampling. It runs once with all rows in one product and once with
the rows of one chunk; the faster of the two counts. All contestants use one predictor, one cost (mean
square distance to the goal, summed over the steps), one iteration and the same counts of samples and steps.
Peers are optional: whoever is missing gets a row that says so. The planner teaches the C library to keep
freed blocks; in one process its peers profit as well. Memory is the peak of a fresh process above what it
held before planning.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from jepaplan.costs.compose import WeightedSum
from jepaplan.costs.terms import GoalDistance, mean_square
from jepaplan.models.predictors import MLPPredictor, PredictorConfig
from jepaplan.planners.mppi import MPPI
from jepaplan.planners.proposals import NormBound, std_from_variance

Replan = Callable[[], object]
CHUNK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is planned, and with how large a predictor."""

    problems: int
    samples: int
    horizon: int
    latent: int
    hidden: int
    layers: int


SIZES = {
    "paper": Size(problems=1, samples=2000, horizon=96, latent=512, hidden=512, layers=4),
    "real-time": Size(problems=16, samples=256, horizon=12, latent=512, hidden=512, layers=4),
    "small": Size(problems=64, samples=64, horizon=8, latent=64, hidden=256, layers=3),
}
ACTION_DIM = 2
OURS = "jepaplan MPPI"


class Missing(Exception):
    """A contestant that cannot run here, and why."""


class Setting:
    """One predictor, the latents to start from and the goals."""

    def __init__(self, size: Size, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        config = PredictorConfig(hidden=size.hidden, layers=size.layers)
        self.size = size
        self.predictor = MLPPredictor(size.latent, ACTION_DIM, config).eval().to(dtype)
        self.latent = torch.randn(size.problems, size.latent).to(dtype)
        self.goal = torch.randn(size.problems, size.latent)

    def flat_step(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The predictor on any leading axes."""
        return self.predictor(latent.flatten(0, -2), action.flatten(0, -2)).unflatten(0, latent.shape[:-1])


class PredictorWorld:
    """The part of a world model that a cost uses."""

    action_dim = ACTION_DIM
    stride = 1

    def __init__(self, predictor: MLPPredictor) -> None:
        self.step = predictor


def ours(setting: Setting) -> Replan:
    size = setting.size
    planner = MPPI(
        samples=size.samples, horizon=size.horizon, std=std_from_variance(12), bounds=NormBound(max_norm=2.45)
    )
    terms = WeightedSum({"goal": (1.0, GoalDistance(distance=mean_square))})
    generators = [torch.Generator().manual_seed(problem) for problem in range(size.problems)]

    def run() -> object:
        cost = terms.bind(PredictorWorld(setting.predictor), setting.latent, setting.goal)
        return planner.plan(cost, planner.initial(size.problems, ACTION_DIM), generators)

    return run


def ours_in_bfloat16(setting: Setting) -> Replan:
    return ours(Setting(setting.size, torch.bfloat16))


def bare_products(setting: Setting, rows: int) -> Replan:
    size = setting.size
    weights = [
        part.weight.detach() for part in setting.predictor.modules() if isinstance(part, torch.nn.Linear)
    ]
    hidden = size.hidden * (size.latent + ACTION_DIM + (size.layers - 1) * size.hidden + size.latent)
    if sum(weight.numel() for weight in weights) != hidden:
        raise RuntimeError(
            "the bare loop has lost a product of the predictor: every nn.Linear is thought to be one"
        )
    inputs = [torch.randn(rows, weight.shape[1]) for weight in weights]
    outputs = [torch.empty(rows, weight.shape[0]) for weight in weights]
    passes = size.problems * size.samples * size.horizon // rows

    def run() -> None:
        for _ in range(passes):
            for given, weight, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(given, weight.T, out=out)

    return run


def chunk_rows(size: Size) -> int:
    """The largest divisor of all rows that fits a chunk, so that both bare loops do the same work."""
    total = size.problems * size.samples
    return next(rows for rows in range(min(CHUNK_ROWS, total), 0, -1) if total % rows == 0)


def pytorch_mppi(setting: Setting) -> Replan:
    try:
        from pytorch_mppi import mppi
    except ImportError as error:
        raise Missing(f"not installed ({error})") from error
    size = setting.size
    goal = setting.goal.repeat_interleave(size.samples, dim=0)
    options = {
        "dynamics": setting.predictor,
        "running_cost": lambda latent, action: mean_square(latent, goal),
        "nx": size.latent,
        "noise_sigma": 12 * torch.eye(ACTION_DIM),
        "num_samples": size.samples,
        "horizon": size.horizon,
        "u_max": torch.full((ACTION_DIM,), 2.45),
    }
    if size.problems == 1:
        single = mppi.MPPI(**options)
        return lambda: single.command(setting.latent[0])
    batched = mppi.MPPI_Batched(**options, num_envs=size.problems)
    return lambda: batched.command(setting.latent)


class SummedReward(torch.nn.Module):
    """The cheapest advantage that torchrl's planner accepts: rewards to go, no value network."""

    def forward(self, tensordict: object) -> object:
        """Set the rewards to go."""
        reward = tensordict["next", "reward"]
        tensordict["advantage"] = reward.flip(-2).cumsum(-2).flip(-2)
        return tensordict


def torchrl_mppi(setting: Setting) -> Replan:
    try:
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.data import Bounded, Composite, Unbounded
        from torchrl.envs.model_based import ModelBasedEnvBase
        from torchrl.modules import MPPIPlanner, WorldModelWrapper
    except ImportError as error:
        raise Missing(f"not installed ({error})") from error
    size, goal = setting.size, setting.goal[:, None]

    class Imagination(ModelBasedEnvBase):
        def __init__(self, world_model: torch.nn.Module) -> None:
            super().__init__(world_model)
            self.state_spec = Composite(latent=Unbounded((size.latent,)))
            self.observation_spec = Composite(latent=Unbounded((size.latent,)))
            self.action_spec = Bounded(-2.45, 2.45, (ACTION_DIM,))
            self.reward_spec = Unbounded((1,))

        def _reset(self, tensordict: object) -> object:
            return tensordict

    dynamics = TensorDictModule(setting.flat_step, in_keys=["latent", "action"], out_keys=["latent"])
    reward = TensorDictModule(
        lambda z: -mean_square(z, goal)[..., None], in_keys=["latent"], out_keys=["reward"]
    )
    planner = MPPIPlanner(
        Imagination(WorldModelWrapper(dynamics, reward)),
        SummedReward(),
        temperature=1e-3,
        planning_horizon=size.horizon,
        optim_steps=1,
        num_candidates=size.samples,
        top_k=size.samples,
    )
    blank = torch.zeros(size.problems, 1, dtype=torch.bool)
    start = TensorDict(
        {"latent": setting.latent, "done": blank, "terminated": blank.clone()}, batch_size=[size.problems]
    )
    return lambda: planner(start.clone())


class PlainLoop(torch.nn.Module):
    """The leanest model for stable-worldmodel's solver: one loop, nothing kept."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.predictor = setting, setting.predictor

    def get_cost(self, info: dict[str, torch.Tensor], actions: torch.Tensor) -> torch.Tensor:
        """Costs of all candidates."""
        latent, total = info["latent"], torch.zeros(actions.shape[:2])
        for action in actions.unbind(2):
            latent = self.setting.flat_step(latent, action)
            total = total + mean_square(latent, info["goal"])
        return total


def _swm_solver(size: Size, model: torch.nn.Module, batch_size: int) -> object:
    for name in ("torchvision", "torchvision.tv_tensors", "torchvision.io"):
        if name not in sys.modules:  # only its images need it, and it cannot load beside every torch
            stub = types.ModuleType(name)
            stub.__path__ = []
            stub.tv_tensors, stub.decode_jpeg, stub.ImageReadMode = None, None, None
            sys.modules[name] = stub
    try:
        import gymnasium
        import stable_worldmodel
        from stable_worldmodel.solver import MPPISolver
    except Exception as error:  # its import reaches into data sets and environments: anything may be missing
        raise Missing(f"cannot be measured ({type(error).__name__}: {error})") from error
    solver = MPPISolver(model, batch_size=batch_size, num_samples=size.samples, n_steps=1, topk=size.samples)
    solver.configure(
        action_space=gymnasium.spaces.Box(-2.45, 2.45, (size.problems, ACTION_DIM)),
        n_envs=size.problems,
        config=stable_worldmodel.PlanConfig(horizon=size.horizon, receding_horizon=1),
    )
    return solver


def swm_with_a_plain_loop(setting: Setting) -> Replan:
    solver = _swm_solver(setting.size, PlainLoop(setting), setting.size.problems)
    return lambda: _silently(solver, {"latent": setting.latent, "goal": setting.goal})


def swm_with_its_pldm(setting: Setting) -> Replan:
    """Its own model class does the rollout, one problem at a time: its criterion takes no larger batch."""
    solver = _swm_solver(setting.size, torch.nn.Identity(), 1)
    from stable_worldmodel.wm.pldm.pldm import PLDM

    class HandThrough(torch.nn.Module):
        def forward(self, pixels: torch.Tensor, interpolate_pos_encoding: bool) -> object:
            return types.SimpleNamespace(last_hidden_state=pixels[:, None])

    class OneFrame(torch.nn.Module):
        num_frames = 1

        def forward(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return setting.flat_step(latent, action)

    solver.model = PLDM(HandThrough(), OneFrame(), torch.nn.Identity())
    info = {"pixels": setting.latent[:, None], "goal": setting.goal[:, None]}
    info["action"] = torch.zeros(setting.size.problems, 1, ACTION_DIM)
    return lambda: _silently(solver, dict(info))


def _silently(solver: object, info: dict[str, torch.Tensor]) -> object:
    with contextlib.redirect_stdout(io.StringIO()):
        return solver.solve(info)


PEERS: dict[str, Callable[[Setting], Replan]] = {
    "pytorch-mppi": pytorch_mppi,
    "torchrl MPPIPlanner": torchrl_mppi,
    "stable-worldmodel MPPISolver, plain loop": swm_with_a_plain_loop,
    "stable-worldmodel MPPISolver, its PLDM class": swm_with_its_pldm,
}
CONTESTANTS = {OURS: ours, "jepaplan MPPI, bfloat16": ours_in_bfloat16, **PEERS}


def timed(run: Replan, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


@torch.no_grad()
def measure(size: Size, rounds: int, contestants: list[str]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per replan, by contestant and round; and why some could not run."""
    setting, runs, missing = Setting(size), {}, {}
    for name in contestants:
        try:
            # a short replan warms up, and tells early what does not run
            CONTESTANTS[name](Setting(replace(size, horizon=2)))()
            runs[name] = CONTESTANTS[name](setting)
        except Missing as error:
            missing[name] = str(error)
        except Exception as error:  # a peer that fails is a row that says so, not the end of the others
            if name not in PEERS:
                raise
            missing[name] = f"failed ({type(error).__name__}: {str(error)[:100]})"
    total = size.problems * size.samples
    runs |= {
        "bare, all rows": bare_products(setting, total),
        "bare, one chunk": bare_products(setting, chunk_rows(size)),
    }
    repeats = max(1, round(0.5 / timed(runs["bare, all rows"], 1)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            seconds[name].append(timed(runs[name], repeats))
        print(f"  round {number + 1}/{rounds}", file=sys.stderr, flush=True)
    seconds["bare"] = [
        min(pair) for pair in zip(seconds["bare, all rows"], seconds["bare, one chunk"], strict=True)
    ]
    return seconds, missing


def _status_megabytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return float("nan")


@torch.no_grad()
def peak_above_base(size: Size, name: str) -> float:
    """Megabytes that one replan adds to a fresh process in which everything else is loaded."""
    setting = Setting(size)
    CONTESTANTS[name](Setting(replace(size, horizon=2, samples=8, problems=1)))()
    replan = CONTESTANTS[name](setting)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    base = _status_megabytes("VmRSS")
    replan()
    return _status_megabytes("VmHWM") - base


def memory(size_name: str, name: str, threads: int) -> float | None:
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", size_name, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def spread(numbers: list[float], digits: int = 2) -> str:
    return f"{median(numbers):.{digits}f} [{min(numbers):.{digits}f}-{max(numbers):.{digits}f}]"


def table(
    size_name: str,
    seconds: dict[str, list[float]],
    missing: dict[str, str],
    memories: dict[str, float | None],
) -> str:
    size = SIZES[size_name]
    lines = [
        f"## {size_name}: {size.problems} problem(s) x {size.samples} samples x {size.horizon} steps, "
        "predictor "
        f"{size.latent} -> {size.layers} x {size.hidden} -> {size.latent}",
        "",
        "| planner | seconds per replan | bare loop / planner | planner / ours | peak MB above base |",
        "|---|---|---|---|---|",
    ]
    bare, our = seconds["bare"], seconds.get(OURS, seconds["bare"])
    for name in ("bare, all rows", "bare, one chunk", *CONTESTANTS):
        if name in seconds:
            share = spread([b / s for b, s in zip(bare, seconds[name], strict=True)])
            behind = spread([s / o for s, o in zip(seconds[name], our, strict=True)])
            held = memories.get(name)
            megabytes = "" if held is None else f"{held:.0f}"
            lines.append(f"| {name} | {spread(seconds[name], 3)} | {share} | {behind} | {megabytes} |")
        elif name in missing:
            lines.append(f"| {name} | {missing[name]} | | | |")
    return "\n".join(lines)


def heading(threads: int, rounds: int) -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return (
        f"# One MPPI replan, {datetime.now(UTC):%Y-%m-%d}\n\n{model}, {threads} thread(s), "
        f"torch {torch.__version__}, "
        f"Python {platform.python_version()}; {rounds} paired rounds, median [least-greatest]; made by "
        "`benchmarks/planning.py`, whose docstring says how to read it."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch and its matrix products")
    parser.add_argument(
        "--rounds", type=int, default=6, help="paired rounds per size; a finding needs six or more"
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--no-peers", action="store_true", help="only our planner and the bare loops")
    parser.add_argument(
        "--no-memory", action="store_true", help="skip the fresh processes that measure memory"
    )
    parser.add_argument("--no-bf16", action="store_true", help="skip the row with bfloat16 weights")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--memory-of", nargs=2, metavar=("SIZE", "CONTESTANT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        size_name, name = options.memory_of
        print(json.dumps(peak_above_base(SIZES[size_name], name)))
        return
    names = [name for name in CONTESTANTS if not (options.no_peers and name in PEERS)]
    names = [name for name in names if not (options.no_bf16 and "bfloat16" in name)]
    parts = [heading(options.threads, options.rounds)]
    for size_name in options.sizes:
        print(size_name, file=sys.stderr)
        seconds, missing = measure(SIZES[size_name], options.rounds, names)
        wanted = [] if options.no_memory else [name for name in names if name in seconds]
        memories = {name: memory(size_name, name, options.threads) for name in wanted}
        parts.append(table(size_name, seconds, missing, memories))
        print(parts[-1], flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        partial = options.out.with_suffix(".partial")
        partial.write_text("\n\n".join(parts) + "\n")
        os.replace(partial, options.out)


if __name__ == "__main__":
    main()
